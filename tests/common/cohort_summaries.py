"""Studies of networks whose reach is known, and what is to be said of them."""

import math

import numpy as np
import torch
from scipy import stats as scipy_stats

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
from captum_causalseg.cohort import explain_cohort

SHAPE = (16, 16)
ROI = regions.box(SHAPE, 4, 4)


def images(n, seed, shape=SHAPE):
    return torch.rand(n, 1, *shape, generator=torch.Generator().manual_seed(seed))


def box_filter(edge):
    """Answers with how bright the surroundings are; reaches ``edge // 2`` pixels far."""
    return torch.nn.AvgPool2d(edge, 1, edge // 2, count_include_pad=False)


def cases_of(n, seed=0):
    return [{"id": f"case-{k}", "image": image, "site": "AB"[k % 2], "age": 50 + k} for k, image in enumerate(images(n, seed))]


def study_of(out, cases, model, roi=ROI, image=None, **options):
    """One study of blocks; soft, so that every block within reach has an effect."""
    metric = {"metric": "probability_mean", "activation": "none"}

    def make_target(case):
        if case.get("broken"):
            raise RuntimeError("no such file")
        return SegmentationTarget(model, roi=roi, reference=torch.ones_like(case["image"][None]), **metric)

    options = {
        "method": AverageTreatmentEffect,
        "baselines": PatchBank(images(12, 99)),
        "block_size": 4,
        "n_draws": 6,
        "n_screening_draws": 0,
        "columns": ["site", "age"],
        "show_progress": False,
    } | options
    return explain_cohort(cases, make_target, out=out, **options)


def t_interval(values, level=0.95):
    values = np.asarray(values, dtype=float)
    # Values that differ by rounding do not show how cases differ.
    spread = values.std(ddof=1) if np.ptp(values) > 1e-12 * abs(values.mean()) else math.nan
    half = scipy_stats.t.ppf(0.5 + level / 2, len(values) - 1) * spread / math.sqrt(len(values))
    return [values.mean(), values.mean() - half, values.mean() + half]
