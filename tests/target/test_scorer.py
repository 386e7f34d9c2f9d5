"""A plain function and a target are asked the same questions."""

import pytest
import torch
from torch import nn

from captum_causalseg import SegmentationTarget, regions
from captum_causalseg.target.scorer import FunctionScorer, Scorer, TargetScorer, as_scorer


def target(**options):
    return SegmentationTarget(nn.Conv2d(1, 2, 3, padding=1), roi=regions.box((8, 8), 2, 4), metric="soft_volume", **options)


def test_a_scorer_is_wrapped_once():
    scorer = as_scorer(target())
    assert as_scorer(scorer) is scorer
    assert isinstance(scorer, TargetScorer)
    assert isinstance(as_scorer(lambda x: x.sum((1, 2, 3))), FunctionScorer)


def test_both_kinds_have_the_same_interface():
    asked = {name for name in vars(Scorer) if not name.startswith("_")}
    for kind in (FunctionScorer, TargetScorer):
        assert not kind.__abstractmethods__
        own = {name for one in kind.__mro__ for name in vars(one) if not name.startswith("_")}
        assert asked <= own


@pytest.mark.parametrize("function", [target(), lambda x: x.mean((2, 3))])
def test_scores_are_made_of_logits(function):
    scorer, image = as_scorer(function), torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        logits = scorer.logits(*scorer.model_inputs(image))
        torch.testing.assert_close(scorer.score(logits, image), function(image), rtol=0, atol=0)
        torch.testing.assert_close(scorer(image), function(image), rtol=0, atol=0)
        torch.testing.assert_close(scorer.score_of_answer(image), function(image), rtol=0, atol=0)


@pytest.mark.parametrize("function", [target(), lambda x: x.mean((2, 3)) + 0 * len(x)])
def test_each_alone_runs_every_image_by_itself(function):
    scorer, image = as_scorer(function), torch.rand(3, 1, 8, 8)
    seen = []
    counted = scorer.with_model(lambda x: (seen.append(len(x)), scorer.model(x))[1]).each_alone()
    with torch.no_grad():
        torch.testing.assert_close(counted(image), scorer(image))
    assert seen == [1, 1, 1]
    assert counted.takes_batches is False


def test_what_a_plain_function_has_not():
    scorer, image = as_scorer(lambda x: x.mean((1, 2, 3))), torch.rand(1, 1, 8, 8)
    assert scorer.rois(image) is None
    assert scorer.local_scores(image) is None
    assert scorer.axes(0, (8, 8)) == ()
    assert scorer.axes(2, (8, 8)) == ("output_0", "output_1")
    for asked in (
        lambda: scorer.predict(image),
        lambda: scorer.sampled([0], image),
        lambda: scorer.with_masks_of_calls("dice"),
        lambda: scorer.score(image, image, roi=image > 0),
    ):
        with pytest.raises(TypeError, match=r"forward_func: a plain function has no .*; expected a SegmentationTarget"):
            asked()


def test_a_target_says_what_it_is_made_of():
    made = target(activation="sigmoid", threshold=0.3)
    again = SegmentationTarget(**as_scorer(made).constructor_arguments())
    image = torch.rand(2, 1, 8, 8)
    assert repr(again) == repr(made)
    torch.testing.assert_close(again(image), made(image), rtol=0, atol=0)
    from_calls = SegmentationTarget(nn.Conv2d(1, 2, 1), roi="argument", reference="argument").constructor_arguments()
    assert (from_calls["roi"], from_calls["reference"]) == ("argument", "argument")
