"""Every planted fault is found by the refuters that are said to find it; ``benchmarks/refuters.py`` counts over more runs, and false alarms."""

import pytest
from planted_faults import FAULTS, tried


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    for seed in (0, 1, 2):
        report = tried(fault, seed, [*FAULTS[fault].found_by])
        assert {one.verdict for one in report.refutations} == {"fail"}, str(report)
        assert not report.passed


def test_an_honest_estimate_is_not_accused():
    for seed in (0, 1, 2):
        report = tried(None, seed, ["recompute", "split", "crossed"])
        assert {one.verdict for one in report.refutations} == {"pass"}, str(report)
