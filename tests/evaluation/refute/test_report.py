"""Reports of refuters."""

import math

import numpy as np
import pytest
from refutation_cases import run_on_table

from captum_causalseg.evaluation.refute import Refutation, RefutationReport


def a_report(*verdicts):
    table = np.ones((2, 3))
    statistics = run_on_table(table, "placebo").statistics
    given = [
        Refutation(f"check {i}", verdict, math.nan if verdict == "inconclusive" else 0.125, 0.05, 7 * i, 10**i, "a finding")
        for i, verdict in enumerate(verdicts)
    ]
    return RefutationReport(given, statistics)


def test_a_report_passes_if_nothing_failed_and_something_passed():
    assert a_report("pass", "inconclusive").passed
    assert not a_report("pass", "fail").passed
    assert not a_report("inconclusive").passed
    assert not a_report("fail").passed


def test_a_report_reads_well():
    report = a_report("pass", "fail", "inconclusive")
    assert str(report) == "\n".join(
        [
            "refuter  verdict       statistic  threshold  units  forwards  finding",
            "-" * 92,
            "check 0  pass              0.125       0.05      0         1  a finding",
            "check 1  fail              0.125       0.05      7        10  a finding",
            "check 2  inconclusive          -       0.05     14       100  a finding",
            "-" * 92,
            f"overall  fail                                            {report.n_forwards:>3}  1 pass, 1 fail, 1 inconclusive",
        ]
    )
    frame = report.to_dataframe()
    assert list(frame.columns) == ["name", "verdict", "statistic", "threshold", "n_units", "n_forwards", "message"]
    assert frame["verdict"].tolist() == ["pass", "fail", "inconclusive"]
    assert frame["n_forwards"].tolist() == [1, 10, 100]
    assert report.n_forwards == 111 + report.statistics.n_forwards
    assert report["check 1"] is report.refutations[1]
    with pytest.raises(KeyError, match="'seed' was not run"):
        report["seed"]
    assert repr(report).startswith("RefutationReport(check 0: pass, check 1: fail, check 2: inconclusive; ")
