"""Rows and their designs."""

import numpy as np
from engine_cases import make_plan, table

from captum_causalseg.engine.design import StratifiedDesign, UniformDesign


def test_rows_without_a_ranking_are_drawn_uniformly():
    differences, _ = table(n=1, u=2, donors=30)
    plan = make_plan(differences, sampling="stratified", rankings=[np.arange(30), None])
    assert isinstance(plan.design(0), StratifiedDesign)
    assert isinstance(plan.design(1), UniformDesign)
    assert isinstance(make_plan(differences, sampling="stratified").design(0), UniformDesign)
