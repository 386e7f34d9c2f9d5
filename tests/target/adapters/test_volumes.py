"""VISTA3D: one channel for each class or click that an image was prompted with."""

import functools

import pytest
import torch
from monai.networks import nets
from output_cases import returning
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, regions

ROI = regions.box((16, 16, 16), 4, 8)
CLASSES, POINTS = torch.tensor([[1], [7], [22]]), torch.tensor([[[5.0, 6.0, 7.0]], [[9.0, 9.0, 3.0]]])


@pytest.fixture(scope="module")
def vista() -> nn.Module:
    from monai.networks.nets import vista3d

    torch.manual_seed(0)
    encoder = nets.SegResNetDS2(in_channels=1, blocks_down=(1, 1), norm="instance", out_channels=8, init_filters=8, dsdepth=1)
    return nets.VISTA3D(
        image_encoder=encoder,
        class_head=vista3d.ClassMappingClassify(n_classes=32, feature_size=8, use_mlp=True),
        point_head=vista3d.PointMappingSAM(feature_size=8, n_classes=32, last_supported=20),
    ).eval()


def volumes(n: int = 1) -> Tensor:
    return torch.rand(n, 1, 16, 16, 16, generator=torch.Generator().manual_seed(n))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # MONAI's, where it draws the clicks
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("prompts", ["classes", "one class", "clicks", "classes and clicks"])
def test_a_channel_for_each_prompt(vista, transpose, prompts):
    given = {
        "classes": {"class_vector": CLASSES},
        "one class": {"class_vector": CLASSES[:1]},
        "clicks": {"point_coords": POINTS, "point_labels": torch.ones(2, 1, dtype=torch.long), "prompt_class": CLASSES[:2]},
        "classes and clicks": {
            "class_vector": CLASSES[:2],
            "point_coords": POINTS,
            "point_labels": torch.ones(2, 1, dtype=torch.long),
            "prompt_class": CLASSES[:2],
        },
    }[prompts]
    images = volumes(2)
    expected = torch.cat([vista(image[None], **given).transpose(0, 1) for image in images])
    model = functools.partial(vista, transpose=transpose, **given)
    target = SegmentationTarget(model, ROI, metric="volume")
    assert torch.equal(target.logits(images), expected)
    assert torch.equal(target.predict(images), expected > 0)
    assert target.takes_batches is False
    # By name, in a function of which nothing is known.
    named = SegmentationTarget(lambda x: model(x), ROI, metric="volume", output="vista3d")
    assert torch.equal(named.logits(images), expected)


def test_effects_of_a_prompted_class_are_those_made_by_hand(vista):
    image, donors = volumes(), volumes(2)
    given = {"class_vector": CLASSES}
    target = SegmentationTarget.from_prediction(functools.partial(vista, **given), image, roi=ROI, metric="probability_mean")
    _, statistics = AverageTreatmentEffect(target).attribute(
        *(image, donors, 1), block_size=8, n_draws=2, n_screening_draws=0, exclude=None, return_statistics=True
    )
    assert statistics.settings["disabled"]["batches"] == "the model takes one image at a time"
    changed = image.expand(2, -1, -1, -1, -1).clone()
    changed[:, :, 8:, :8, :8] = donors[:, :, 8:, :8, :8]

    @torch.no_grad()
    def score(volume: Tensor) -> Tensor:
        return vista(volume[None], **given)[:, 0].sigmoid()[:, ROI].mean(1)

    expected = score(image[0]) - (score(changed[0]) + score(changed[1])) / 2
    torch.testing.assert_close(statistics.effect[0, 4].float(), expected, atol=1e-6, rtol=0)
    assert expected.abs().max() > 1e-5


def test_the_message_names_the_adapter():
    image = torch.rand(1, 1, 8, 8, 8)
    with pytest.raises(
        ValueError, match=r"got \(3, 1, 8, 8, 8\); `output='vista3d'` reads them as 3 classes or prompts of one image"
    ):
        SegmentationTarget(returning(torch.rand(3, 1, 8, 8, 8)), metric="volume")(image)
    for returned, match in (
        ({}, r"expects a tensor \(prompts, 1, \*spatial\), got 'dict'"),
        (torch.rand(3, 2, 8, 8, 8), r"expects \(prompts, 1, \*spatial\), or \(1, prompts, \*spatial\), got \(3, 2, 8, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=f"output: 'vista3d' {match}"):
            SegmentationTarget(returning(returned), metric="volume", output="vista3d")(image)
