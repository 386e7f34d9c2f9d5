"""Scores from the surroundings of the regions are the scores."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from window_cases import NAN, case, pixels

from captum_causalseg import SegmentationTarget, metrics, regions
from captum_causalseg.target import segmentation_target
from captum_causalseg.target.local_scores import LocalScores
from captum_causalseg.target.scoring import named_score


class Probable(nn.Module):
    """Probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(1) if x.shape[1] > 1 else x.sigmoid()


def local_and_whole(target: SegmentationTarget, images: Tensor, logits: Tensor, examples: np.ndarray, *arguments: Tensor):
    """The scores of rows of logits that belong to these examples, from the surroundings of the RoIs and from everything."""
    target(images, *arguments)
    local = target.local_scores(images, *arguments)
    assert local is not None
    index = torch.from_numpy(examples)
    rows = [target.score(logits[b : b + 1], images[n : n + 1], *(a[n : n + 1] for a in arguments)) for b, n in enumerate(index)]
    return local, torch.cat(rows)


@pytest.mark.parametrize("metric", sorted(metrics.METRICS))
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("activation", ["auto", "sigmoid", "none"])
@pytest.mark.parametrize("place", ["inside", "border", "corner", "everything", "scattered"])
def test_scores_from_around_the_regions_are_the_scores(metric, classes, activation, place):
    generator = torch.Generator().manual_seed(classes)
    spatial, n = (13, 11), 3
    rois = torch.zeros(n, 2, *spatial, dtype=torch.bool)
    boxes = {
        "inside": [(2, 7, 3, 8), (4, 9, 2, 5)],
        "border": [(0, 5, 3, 8), (8, 13, 2, 11)],
        "corner": [(0, 3, 0, 4), (9, 13, 7, 11)],
        "everything": [(0, 13, 0, 11), (5, 6, 5, 6)],
        "scattered": [(1, 12, 1, 10), (3, 10, 0, 11)],
    }[place]
    for k in range(n):
        for r, (a, b, c, d) in enumerate(boxes):
            rois[k, r, max(a - k, 0) : b, c : min(d + k, 11)] = True
    if place == "scattered":
        rois &= torch.rand(rois.shape, generator=generator) > 0.5
    images = torch.rand(n, 1, *spatial, generator=generator)
    overlapping = classes == 1 or activation == "sigmoid"
    shape = (n, classes, *spatial) if overlapping else (n, *spatial)
    reference = torch.randint(0, 2 if overlapping else classes, shape, generator=generator)
    blobs = torch.randn(5, classes, *spatial, generator=generator)
    logits = functional.avg_pool2d(functional.pad(blobs, (1,) * 4), 3, 1) * 4
    model = nn.Conv2d(1, classes, 1)
    if activation == "none":
        logits, model = logits.softmax(1) if classes > 1 else logits.sigmoid(), nn.Sequential(model, Probable())
    examples = np.array([2, 0, 1, 1, 2])
    arguments = SegmentationTarget(model, roi="argument", reference="argument", metric=metric, activation=activation)
    local, expected = local_and_whole(arguments, images, logits, examples, rois, reference)
    torch.testing.assert_close(local(logits, examples), expected, atol=1e-6, rtol=2e-6)
    target = SegmentationTarget(model, roi=rois, reference=reference, metric=metric, activation=activation)
    target(images)
    own = target.local_scores(images)
    torch.testing.assert_close(own(logits, examples), expected, atol=1e-6, rtol=2e-6)
    assert own(logits, examples).shape == expected.shape
    shared = SegmentationTarget(model, roi=rois[0], reference=reference[0], metric=metric, activation=activation)
    local, expected = local_and_whole(shared, images, logits, examples)
    torch.testing.assert_close(local(logits, examples), expected, atol=1e-6, rtol=2e-6)


def test_scores_are_nan_where_the_logits_around_the_regions_are():
    images = pixels(16, 16, count=2)
    roi = torch.stack([regions.box((16, 16), start=4, size=4), regions.box((16, 16), start=(6, 8), size=3)])
    target = SegmentationTarget(nn.Conv2d(1, 2, 1), roi=roi, metric="logit_mean")
    target(images)
    local = target.local_scores(images)
    logits = torch.rand(4, 2, 16, 16)
    logits[0, 1, 5, 5] = logits[1, 0, 3, 3] = logits[2, 0, 14, 14] = NAN
    scores = local(logits, np.array([0, 1, 0, 1]))
    assert scores.flatten(1).isnan().all(1).tolist() == [True, True, False, False]
    assert not scores[2:].isnan().any()


def test_scores_of_one_example_do_not_depend_on_the_others():
    images, rois = pixels(16, 16, count=2), torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    rois[0, 0, 2:6, 2:6] = rois[1, 0, 9:14, 8:12] = True
    target = SegmentationTarget(nn.Conv2d(1, 2, 1), roi=rois, metric="logit_mean")
    target(images)
    local = target.local_scores(images)
    logits = torch.rand(2, 2, 16, 16)
    expected = torch.stack([logits[0, :, 2:6, 2:6].mean((1, 2)), logits[1, :, 9:14, 8:12].mean((1, 2))])
    torch.testing.assert_close(local(logits, np.array([0, 1])), expected)
    part = local.cropped(np.array([[1, 1], [8, 7]]), (7, 7))
    assert isinstance(part, LocalScores)
    crops = torch.stack([logits[0, :, 1:8, 1:8], logits[1, :, 8:15, 7:14]])
    torch.testing.assert_close(part(crops, np.array([0, 1])), expected)


def test_no_local_scores_before_the_first_call_or_with_ones_own_metric():
    target, image, _ = case(metric="logit_mean")
    assert target.local_scores(image) is None
    target(image)
    assert target.local_scores(image) is not None
    own, image, _ = case(metric=lambda prediction, reference, roi: prediction.flatten(2).mean(2))
    own(image)
    assert own.local_scores(image) is None


@pytest.mark.parametrize("metric", ["dice", "soft_dice", "surface_dice"])
def test_whole_outputs_are_scored_around_the_regions(monkeypatch, metric):
    """A whole scan's scores would take many times its memory."""
    seen = []

    def score(*args, **kwargs):
        seen.append(tuple(args[1].shape))
        return named_score(*args, **kwargs)

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 20, 30, generator=generator)
    labels = torch.randint(0, 3, (20, 30), generator=generator)
    roi = regions.box((20, 30), start=(4, 12), size=(6, 5))
    inside = SegmentationTarget(torch.nn.Identity(), roi=roi, reference=labels, metric=metric, activation="softmax")
    monkeypatch.setattr(segmentation_target, "named_score", score)
    found = inside(logits)
    assert seen == [(2, 3, 8, 7)]
    # The same as of the part that was cut out by hand, with a pixel around it.
    part = (..., slice(3, 11), slice(11, 18))
    alone = SegmentationTarget(torch.nn.Identity(), roi=roi[part], reference=labels[part], metric=metric, activation="softmax")
    assert torch.equal(found, alone(logits[part]))
