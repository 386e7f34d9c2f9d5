"""Distances and displacements of units: against a loop over all pixels."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_causalseg.evaluation.profile import profile_of_map
from captum_causalseg.evaluation.unit_space import distance_to


@pytest.mark.parametrize(("metric", "distance"), [("chebyshev", 2), ("euclidean", math.sqrt(5)), ("cityblock", 3)])
def test_metrics(metric, distance):
    effects = np.zeros((3, 4))
    roi = np.zeros((3, 4), bool)
    roi[0, 0] = True
    profile = profile_of_map(effects, roi, block_size=1, metric=metric)
    assert float(profile.units.set_index("unit").loc[1 * 4 + 2, "distance"]) == pytest.approx(distance)


@st.composite
def scenes(draw):
    shape = draw(
        st.one_of(st.tuples(*[st.integers(1, 6)] * 2), st.tuples(*[st.integers(1, 4)] * 3), st.tuples(st.integers(2, 9)))
    )
    pixels = math.prod(shape)
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=pixels, max_size=pixels))).reshape(shape) * 3
    inside = np.zeros(pixels, bool)
    inside[draw(st.lists(st.integers(0, pixels - 1), min_size=1, max_size=4))] = True
    spacing = draw(st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 2.5])] * len(shape)))
    return labels, inside.reshape(shape), spacing


@settings(max_examples=40)
@given(scenes(), st.sampled_from(["chebyshev", "euclidean", "cityblock"]))
def test_distances_and_displacements_are_those_of_a_loop_over_all_pixels(scene, metric):
    labels, roi, spacing = scene
    norms = {"chebyshev": max, "euclidean": lambda d: math.sqrt(sum(x * x for x in d)), "cityblock": sum}

    def distance(a, b):
        return norms[metric]([abs(x - y) * s for x, y, s in zip(a, b, spacing)])

    goal = [tuple(p) for p in np.argwhere(roi)]
    nearest = np.array([min(distance(p, q) for q in goal) for p in np.ndindex(roi.shape)]).reshape(roi.shape)
    np.testing.assert_allclose(distance_to(roi, np.array(spacing), metric), nearest, atol=1e-12)
    free = [u for u in np.unique(labels) if not roi[labels == u].any()]
    if not free:
        with pytest.raises(ValueError, match="every unit touches the RoI"):
            profile_of_map(labels * 1.0, roi, feature_mask=labels)
        return
    profile = profile_of_map(labels * 1.0, roi, feature_mask=labels, spacing=spacing, metric=metric)
    assert profile.units["unit"].tolist() == free
    assert profile.units["effect"].tolist() == free
    np.testing.assert_allclose(profile.units["distance"], [nearest[labels == u].min() for u in free], atol=1e-12)
    middle = np.argwhere(roi).mean(0)
    for axis, step in enumerate(spacing):
        centers = [(np.argwhere(labels == u).mean(0) - middle)[axis] * step for u in free]
        np.testing.assert_allclose(profile.units[f"displacement_{axis}"], centers, atol=1e-12)
    assert (profile.units["distance"] <= profile.units["bin"] * profile.bin_width * (1 + 1e-6)).all()
    assert (profile.units["distance"] > (profile.units["bin"] - 1) * profile.bin_width * (1 - 1e-6)).all()
