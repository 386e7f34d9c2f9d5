"""When a map is empty, the log, the picture and the report say why, and what to do."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    PatchBank,
    PdCR,
    SegmentationTarget,
    TreatmentEffectStatistics,
    regions,
)
from captum_causalseg.cli.results import emptiness
from captum_causalseg.visualization import plot_effects

ROI = regions.box((16, 16), 4, 8)
SOFT = 'metric="soft_dice" on the same target shows what happens before that'


class Sure(nn.Module):
    """Two classes; the first wins everywhere, by a little more where the surroundings are bright: no label ever changes."""

    def __init__(self, reach: int = 5) -> None:
        super().__init__()
        self.blur = nn.AvgPool2d(reach, 1, reach // 2)

    def forward(self, x):
        bright = self.blur(x)
        return torch.cat([0.2 + bright, -0.2 - bright], 1)


def target_of(metric="dice", reference=0, model=None, **options):
    return SegmentationTarget(model or Sure(), roi=ROI, reference=torch.full((16, 16), reference), metric=metric, **options)


def bank():
    return PatchBank(torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(1)))


def image(n=1):
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def explained(target, n=1, output=0, **options):
    options = {"block_size": 4, "n_draws": 8} | options
    return AverageTreatmentEffect(target).attribute(image(n), bank(), output, return_statistics=True, **options)[1]


@pytest.mark.parametrize(
    ("output", "value", "condition"),
    [(0, "exactly 1", ""), (1, "exactly 0", ", if the reference holds the class in the region")],
)
def test_a_hard_score_at_its_end_names_the_soft_one(output, value, condition):
    """The class that wins everywhere, and the one that never does; the reference holds that class only."""
    said = explained(target_of(reference=output), output=output).why_empty(output)
    assert said == (
        "no effect differs from 0: of 12 units, 12 did not change the score in any draw. "
        f'metric="dice" is {value} and changes only where a pixel changes its label; {SOFT}{condition}'
    )
    # And that is so.
    soft = explained(target_of("soft_dice", output), output=output)
    assert soft.why_empty(output) is None
    assert bool(soft.significant()[..., output].any())


def test_a_class_that_the_reference_does_not_hold():
    """Soft Dice is 0 as well, whatever the model says."""
    said = explained(target_of("soft_dice", reference=1)).why_empty(0)
    assert said.endswith(
        'metric="soft_dice" is exactly 0 whatever is replaced: does the reference hold the class in the region of interest?'
    )


def test_without_screening_it_is_the_same():
    statistics = explained(target_of(), n_screening_draws=0)
    assert statistics.why_empty(0) == explained(target_of()).why_empty(0)


def test_units_out_of_reach_are_not_counted():
    said = explained(target_of(model=Sure(3)), block_size=2).why_empty(0)
    assert said.startswith("no effect differs from 0: of 20 units that can reach the region of interest, 20 did not")


def test_a_soft_score_below_the_screening_threshold():
    said = explained(target_of("soft_dice"), screening_threshold=0.5).why_empty(0)
    assert said == (
        "no effect differs from 0: of 12 units, 12 changed the score by less than 0.5 in the draws that they had. "
        "n_screening_draws=0 goes on measuring such units"
    )


def test_a_hard_score_in_between_says_its_value():
    reference = torch.zeros(16, 16, dtype=torch.int64)
    reference[:8] = 1
    said = explained(SegmentationTarget(Sure(), roi=ROI, reference=reference)).why_empty(0)
    assert 'metric="dice" is 0.6667 and changes only where' in said


def test_nothing_was_intervened_on():
    pointwise = target_of(model=nn.Conv2d(1, 2, 1))
    assert explained(pointwise).why_empty(0) == (
        "no unit beside the region of interest can reach it through the model: the effects are exactly 0"
    )
    excluded = explained(target_of("soft_dice"))
    excluded.status[:] = 3
    assert excluded.why_empty(0) == "every unit touches the region of interest or was excluded: no effect is known"


def test_each_output_and_example_by_itself():
    class SureOfHalf(nn.Module):
        def forward(self, x):
            blurred = nn.functional.avg_pool2d(x, 5, 1, 2)
            return torch.cat([40 * (blurred - 0.5), blurred + 3], 1)

    images = image(2)
    target = SegmentationTarget(
        SureOfHalf(), roi=ROI, reference=(images > 0.5).long().expand(2, 2, 16, 16), activation="sigmoid", metric="dice"
    )
    statistics = explained(target, 2)
    assert [statistics.why_empty(k, example=1) is None for k in (0, 1)] == [True, False]
    with pytest.raises(ValueError, match=r"^target: "):
        statistics.why_empty()
    with pytest.raises(ValueError, match=r"^example: expected an integer from 0 to 1, got 2"):
        statistics.why_empty(0, example=2)


def test_noise_is_not_silence():
    """Effects that are drawn, though none is significant: the map shows something."""
    statistics = explained(target_of("soft_dice"), n_screening_draws=0, n_draws=2)
    statistics.effect[:] = 1e-9
    assert not bool(statistics.significant().any())
    assert statistics.why_empty(0) is None


def test_any_forward_function():
    statistics = AverageTreatmentEffect(lambda x: x.flatten(1).sum(1) * 0).attribute(
        image(), bank(), block_size=8, n_draws=4, return_statistics=True
    )[1]
    assert statistics.why_empty() == "no effect differs from 0: of 4 units, 4 did not change the score in any draw"


def test_it_survives_a_file(tmp_path):
    statistics = explained(target_of())
    statistics.save(tmp_path / "s.npz")
    assert TreatmentEffectStatistics.load(tmp_path / "s.npz").why_empty(0) == statistics.why_empty(0)


# One line in the log.


@pytest.mark.parametrize("return_statistics", [False, True])
def test_one_line_in_the_log(caplog, return_statistics):
    """A warning to who sees the map alone."""
    faces = {
        "Average Treatment Effect": (AverageTreatmentEffect(target_of()), {"baselines": bank(), "block_size": 4}),
        "PdCR": (PdCR(target_of()), {"baselines": bank(), "block_size": 4}),
        "Layer Average Treatment Effect": (
            LayerAverageTreatmentEffect(target := target_of(), target.model.blur),
            {"layer_baselines": torch.rand(6, 1, 16, 16), "units": "block", "block_size": 4},
        ),
    }
    for name, (face, arguments) in faces.items():
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="captum_causalseg"):
            face.attribute(image(), target=0, n_draws=4, return_statistics=return_statistics, **arguments)
        found = [(r.levelname, r.getMessage()) for r in caplog.records if "the map is empty" in r.getMessage()]
        assert len(found) == 1
        assert found[0][0] == ("INFO" if return_statistics else "WARNING")
        assert found[0][1].startswith(f"{name}: the map is empty: no effect differs from 0: ")
        # The protocol scores hard Dice whatever the target does.
        assert found[0][1].endswith(SOFT + (", with AverageTreatmentEffect" if name == "PdCR" else ""))


def test_one_line_for_a_batch(caplog):
    with caplog.at_level(logging.WARNING, logger="captum_causalseg"):
        AverageTreatmentEffect(target_of()).attribute(image(3), bank(), 0, block_size=4, n_draws=4)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1
    assert "3 of 3 maps are empty, that of example 0: no effect differs" in said[0]


def test_a_map_that_shows_something_says_nothing(caplog):
    with caplog.at_level(logging.INFO, logger="captum_causalseg"):
        AverageTreatmentEffect(target_of("soft_dice")).attribute(image(), bank(), 0, block_size=4, n_draws=8)
    assert not [r for r in caplog.records if "empty" in r.getMessage()]


# The picture and the report.


def test_the_caption_and_the_report_say_it():
    statistics = explained(target_of())
    caption = " ".join(plot_effects(image(), statistics, ROI, 0).get_supxlabel().split())
    assert statistics.why_empty(0) in caption
    case, options = SimpleNamespace(output=0), SimpleNamespace(metric="dice")
    assert emptiness(case, options, statistics) == (f"The map is empty: {statistics.why_empty(0)} (--metric soft_dice).")
    # Where the map shows effects, none of them told from 0, it is not called empty.
    effects = SimpleNamespace(effect=torch.tensor([[0.1, 0.0, float("nan")]]))
    few = SimpleNamespace(why_empty=statistics.why_empty, of_output=lambda output: effects)
    said = emptiness(case, options, few)
    assert said.startswith("No effect differs from 0: of 12 units, ")
    soft = explained(target_of("soft_dice"))
    assert emptiness(case, SimpleNamespace(metric="soft_dice"), soft) is None
    assert "no effect differs" not in plot_effects(image(), soft, ROI, 0).get_supxlabel()


def test_the_caption_of_several_regions_says_whose_it_is():
    rois = torch.stack([ROI, regions.box((16, 16), 0, 4)])
    model = nn.Conv2d(1, 2, 1)
    pointwise = SegmentationTarget(model, roi=rois, reference=torch.zeros(16, 16, dtype=torch.int64), metric="soft_dice")
    statistics = explained(pointwise, output=(0, 0))
    statistics.effect[..., 0, 1] = torch.as_tensor(np.linspace(-1, 1, statistics.effect.shape[1]))
    caption = plot_effects(image(), statistics, rois, target=0).get_supxlabel()
    assert "no unit beside" in caption


def test_first_order_effects_are_not_tested_but_shown():
    def score(x):
        return torch.stack([x[..., :2].sum((1, 2, 3)), x.sum((1, 2, 3)) * 0], 1)

    def of(target):
        face = GradientTreatmentEffect(score)
        return face.attribute(torch.ones(1, 1, 4, 4), 0.0, target, block_size=2, return_statistics=True)[1]

    assert of(0).effect[..., 0].tolist() == [[4, 0, 4, 0]]
    assert of(0).why_empty(0) is None
    assert of(0).why_empty(1) == "first-order effects are known of the output that was asked for alone: ask for this one"
    assert str(of(1).why_empty(1)).startswith("all first-order effects are exactly 0")
