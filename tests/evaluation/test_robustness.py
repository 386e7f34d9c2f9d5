"""Maps under noise, and repeats of maps."""

import numpy as np
import pytest
import torch
from captum.metrics import sensitivity_max
from scipy import stats as scipy_stats

from captum_causalseg.evaluation import map_agreement, max_sensitivity


@pytest.mark.parametrize("d", [1, 2, 3])
def test_max_sensitivity_of_a_linear_map_is_known(d):
    """The largest relative change of ``w * x`` is that of the noise, weighted; every example has its own."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, *(5,) * d, generator=generator) + 1
    weight = torch.rand(images.shape[1:], generator=generator)
    seen = []

    def explain(x):
        seen.append(x)
        return weight * x

    found = max_sensitivity(explain, images, radius=0.1, n_perturbations=4, seed=3)
    plain, *noisy = seen
    assert len(noisy) == 4
    assert max(float((x - images).abs().max()) for x in noisy) <= 0.1 + 1e-6
    for n in range(2):
        changes = [float((weight * (x[n] - images[n])).norm() / (weight * images[n]).norm()) for x in noisy]
        assert found[n] == pytest.approx(max(changes), rel=1e-5)
    assert torch.equal(plain, images)
    assert np.isnan(max_sensitivity(torch.zeros_like, images)).all()


def test_it_is_captums_up_to_its_noise():
    """Captum draws from the global generator, within a ball by each element: both maxima of many draws are nearly the same."""
    image = torch.rand(1, 1, 12, 12)

    def explain(x):
        return x**2

    theirs = sensitivity_max(lambda x: (explain(x[0]),), image, perturb_radius=0.05, n_perturb_samples=60)
    assert max_sensitivity(explain, image, radius=0.05, n_perturbations=60)[0] == pytest.approx(float(theirs[0]), rel=0.1)


def test_several_inputs_count_together():
    first, second = torch.ones(1, 1, 4), torch.ones(1, 2)
    found = max_sensitivity(lambda x: (x[0] * 0, x[1]), (first, second), radius=0.1, n_perturbations=2)
    assert 0 < found[0] <= 0.1


@pytest.mark.parametrize("d", [1, 2, 3])
def test_agreement_is_the_mean_rank_correlation_of_all_pairs(d):
    maps = [torch.rand(2, 1, *(4,) * d, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    inside = torch.rand(1, 1, *(4,) * d) < 0.7
    inside.flatten()[:3] = True
    for where in (None, inside):
        found = map_agreement(maps, where=where)
        for n in range(2):
            rows = [one[n].flatten() if where is None else one[n][where[0]] for one in maps]
            pairs = [scipy_stats.spearmanr(rows[a], rows[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
            assert found[n] == pytest.approx(np.mean(pairs))
    assert np.isnan(map_agreement([maps[0], torch.zeros_like(maps[0])])).all()


def test_bad_arguments():
    one = torch.rand(1, 1, 4)
    with pytest.raises(ValueError, match=r"maps\[1\]: expected the shape of the first"):
        map_agreement([one, one[..., :2]])
    with pytest.raises(ValueError, match="maps: expected at least 2"):
        map_agreement([one])
    with pytest.raises(TypeError, match=r"maps\[1\]: expected a tensor"):
        map_agreement([one, 3.0])
    with pytest.raises(ValueError, match="where: it is for maps of one input"):
        map_agreement([(one, one), (one, one)], where=one > 0)
    with pytest.raises(TypeError, match="explain: expected a tensor"):
        max_sensitivity(lambda x: 1.0, one)
