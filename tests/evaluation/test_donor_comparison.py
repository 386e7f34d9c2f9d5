"""The same effects with several kinds of donors: what is called a change of sign, what is trusted, what is said."""

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_causalseg import AverageTreatmentEffect, Constant, NeighborBank, PatchBank, SameImage, compare_donors
from captum_causalseg.evaluation.donor_comparison import kinds_of_donors
from captum_causalseg.evaluation.planted import load_shortcut_case
from captum_causalseg.statistics import adjust_p_values


def brightness_and_texture(x: Tensor) -> Tensor:
    """Dark and light halves of an image are summed with opposite weights, and rough texture adds."""
    step = (x[..., 1:] - x[..., :-1]).abs()
    return -x.double().mean((1, 2, 3)) + 2 * step.double().mean((1, 2, 3))


def case() -> tuple[Tensor, PatchBank]:
    """An image that is darker and smoother than its donors: by their brightness donors lower the score, by texture they raise it."""
    generator = torch.Generator().manual_seed(0)
    image = 0.1 * torch.rand(2, 1, 24, 24, generator=generator)
    donors = 2 + 0.6 * torch.rand(20, 1, 24, 24, generator=generator)
    return image, PatchBank(donors)


GIVEN = {"block_size": 6, "n_draws": 15}


def test_kinds_that_answer_each_other_the_opposite_way() -> None:
    image, bank = case()
    kinds = {"raw": bank, "matched": bank.fitted(match="mean")}
    found = compare_donors(brightness_and_texture, image, kinds, **GIVEN)
    one, other = found.statistics["raw"], found.statistics["matched"]
    assert bool((one.effect > 0).all())
    assert bool((other.effect < 0).all())
    assert bool(found.sign_differs("raw", "matched").all())
    assert not bool(found.trusted.any())
    assert found.table["n_sign_differs"].tolist() == [16, 16]
    assert found.table["units"][0] == list(range(16))
    assert "32 of 32 units have a significant effect with raw donors; 0 of these have the same sign" in found.conclusion
    assert "32 change their sign significantly (units 0 of example 0, 1 of example 0" in found.conclusion
    assert found.conclusion in str(found)


def test_a_change_of_sign_by_its_formula() -> None:
    """Opposite signs, and the larger of the two p-values corrected over the units of the example."""
    image, bank = case()
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(24, 24, generator=generator, dtype=torch.float64)

    def score(x: Tensor) -> Tensor:
        return (x[:, 0].double() * weights).mean((1, 2)) + 0.02 * torch.randn(
            1, generator=torch.Generator().manual_seed(2)
        ).double()

    kinds = {"raw": bank, "rough": bank.fitted(match="mean"), "zero": Constant(0.05)}
    found = compare_donors(score, image, kinds, alpha=0.3, **GIVEN)
    for first, second in (("raw", "rough"), ("rough", "zero")):
        one, other = found.statistics[first], found.statistics[second]
        for n in range(2):
            p = [
                max(a, b) if x * y < 0 else 1.0
                for a, b, x, y in zip(
                    one.p_values()[n].tolist(), other.p_values()[n].tolist(), one.effect[n].tolist(), other.effect[n].tolist()
                )
            ]
            wanted = adjust_p_values(np.array(p)) <= 0.3
            assert found.sign_differs(first, second)[n].tolist() == wanted.tolist()
    row = found.table.query("first == 'raw' and second == 'zero' and example == 1").iloc[0]
    a, b = (found.statistics[name].effect[1].numpy() for name in ("raw", "zero"))
    assert row["slope"] == pytest.approx((a * b).sum() / (a * a).sum())
    assert row["rank_correlation"] == pytest.approx(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1])
    assert found.natural == ["raw", "rough"]


def test_the_statistics_are_those_of_attribute_with_the_same_draws() -> None:
    image, bank = case()
    found = compare_donors(brightness_and_texture, image, {"a": bank, "b": SameImage()}, seed=3, **GIVEN)
    for name, source in (("a", bank), ("b", SameImage())):
        _, direct = AverageTreatmentEffect(brightness_and_texture).attribute(
            image, source, seed=3, return_statistics=True, **GIVEN
        )
        assert torch.equal(found.statistics[name].effect, direct.effect)


def test_a_bank_alone_means_all_kinds() -> None:
    bank = PatchBank(torch.rand(6, 1, 24, 24, generator=torch.Generator().manual_seed(4)))
    kinds = kinds_of_donors(bank, match="histogram", blend=1, ring=2)
    assert [repr(kinds[name]) for name in ("raw", "matched", "blended")] == [
        "PatchBank(6 images, placement='anywhere')",
        "PatchBank(6 images, placement='anywhere', match='histogram')",
        "PatchBank(6 images, placement='anywhere', match='histogram', blend=1)",
    ]
    assert isinstance(kinds["neighbors"], NeighborBank)
    found = compare_donors(brightness_and_texture, case()[0], bank, block_size=8, n_draws=4)
    assert list(found.statistics) == list(kinds)
    assert found.natural == ["raw", "matched", "blended", "neighbors"]


def test_a_planted_cause_holds_with_all_kinds() -> None:
    shortcut = load_shortcut_case()
    found = compare_donors(shortcut.target(), shortcut.images, shortcut.donors, n_draws=6)
    for statistics in found.statistics.values():
        effects = statistics.effect[0].nan_to_num(0.0)
        assert int(statistics.unit_ids[effects.argmax()]) == shortcut.marker_unit
    assert bool(found.trusted[0, list(found.statistics["raw"].unit_ids).index(shortcut.marker_unit)])
    assert found.roi is not None
    assert torch.equal(found.roi[0], shortcut.roi.reshape(found.roi[0].shape))
    figure = found.plot(title="A shortcut")
    assert [axes.get_title() for axes in figure.axes[:6]] == list(found.statistics)


def test_one_kind_has_nothing_to_be_compared_with() -> None:
    image, bank = case()
    found = compare_donors(brightness_and_texture, image, {"raw": bank}, **GIVEN)
    assert found.conclusion.endswith("and there are no other natural donors to compare them with")
    assert len(found.table) == 0


def test_what_cannot_be_compared() -> None:
    image, bank = case()
    for wrong in ({}, bank.fitted, 3):
        with pytest.raises((TypeError, ValueError), match="donors: expected"):
            compare_donors(brightness_and_texture, image, wrong)
    with pytest.raises(TypeError, match="baselines: give donors"):
        compare_donors(brightness_and_texture, image, bank, baselines=bank)
    with pytest.raises(ValueError, match="output: "):
        compare_donors(lambda x: torch.stack([x.mean((1, 2, 3))] * 2, 1), image, {"raw": bank}, 5, **GIVEN)
    with pytest.raises(TypeError, match=r"donors\['odd'\]: expected a donor source"):
        compare_donors(brightness_and_texture, image, {"odd": "bank"}, **GIVEN)
    found = compare_donors(brightness_and_texture, image, {"raw": bank}, **GIVEN)
    with pytest.raises(ValueError, match=r"name: expected one of \['raw'\], got 'zeros'"):
        found.sign_differs("raw", "zeros")
