"""Grids and affines: when they agree, and how values keep theirs."""

import pytest
import torch
from captum.attr import NoiseTunnel
from image_files import OBLIQUE, scan
from monai.data import MetaTensor, list_data_collate
from torch import nn

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    PatchBank,
    PdCR,
    SegmentationTarget,
    images,
    regions,
)
from captum_causalseg.baselines import MiSuRe, RiseSegmentation


def test_the_same_grid_is_the_same_shape_at_the_same_place():
    image = scan(1, 2, 40, 50, 60)
    images.check_same_grid(image, scan(1, 1, 40, 50, 60))
    images.check_same_grid(image, torch.zeros(1, 1, 40, 50, 60))
    images.check_same_grid(torch.zeros(3, 1, 8), torch.zeros(3, 2, 8))
    with pytest.raises(
        ValueError, match=r"expected the image's grid, 1 example\(s\) of \(40, 50, 60\), got 1 of \(40, 50, 61\)"
    ):
        images.check_same_grid(image, scan(1, 1, 40, 50, 61))
    with pytest.raises(ValueError, match=r"got 2 of \(40, 50, 60\)"):
        images.check_same_grid(image, scan(2, 1, 40, 50, 60))


@pytest.mark.parametrize("spatial", [(40, 50), (40, 50, 60)])
def test_the_farthest_corner_decides_whether_affines_agree(spatial):
    image = scan(1, 1, *spatial)
    # The smallest edge is 1 mm. The angle moves the far corner of the first axis by 39 times as much.
    for angle, agrees in [(0.009 / 39, True), (0.011 / 39, False)]:
        other = OBLIQUE.copy()
        other[2, 0] += angle
        if agrees:
            images.check_same_grid(image, scan(1, 1, *spatial, affine=other))
        else:
            with pytest.raises(
                ValueError, match=r"label: it is not on the image's grid. Affine of the image: \[\[0\.9.*; of the label"
            ):
                images.check_same_grid(image, scan(1, 1, *spatial, affine=other))
            images.check_same_grid(image, scan(1, 1, *spatial, affine=other), tolerance=0.02)


def test_in_a_collated_batch_each_example_has_its_own_grid():
    moved = OBLIQUE.copy()
    moved[0, 3] += 1
    batch = list_data_collate([scan(1, 4, 5, 6), scan(1, 4, 5, 6, affine=moved)])
    images.check_same_grid(batch, batch > 0.5)
    with pytest.raises(ValueError, match="is not on the image's grid"):
        images.check_same_grid(batch, list_data_collate([scan(1, 4, 5, 6)] * 2))


class Watched(nn.Module):
    """Notes what kinds of tensors it is given."""

    def __init__(self, axes):
        super().__init__()
        self.conv = (nn.Conv2d if axes == 2 else nn.Conv3d)(1, 2, 3, padding=1)
        self.kinds = set()

    def forward(self, x):
        self.kinds.add(type(x))
        return self.conv(x)


FACES = {
    AverageTreatmentEffect: {"block_size": 2, "n_draws": 4},
    PdCR: {"block_size": 2, "n_draws": 4},
    GradientTreatmentEffect: {"block_size": 2},
    RiseSegmentation: {"n_masks": 6, "grid_size": 2},
    MiSuRe: {"n_steps": 2},
}


@pytest.mark.parametrize("spatial", [(8, 6), (6, 4, 4)])
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("collated", [False, True])
def test_metatensor_in_metatensor_out_and_plain_tensors_inside(face, spatial, collated):
    affine = torch.tensor(OBLIQUE)
    one = MetaTensor(torch.rand(1, *spatial), affine=affine, meta={"patient": "a"})
    two = MetaTensor(torch.rand(1, *spatial), affine=2 * affine, meta={"patient": "b"})
    batch = list_data_collate([one, two]) if collated else one[None]
    model = Watched(len(spatial)).eval()
    if face is MiSuRe:
        # It explains what is predicted.
        model.conv.bias.data[1] += 2
    reference = (torch.rand(spatial) > 0.5).long()
    roi = regions.box(spatial, 0, 2)
    metric = "soft_dice" if face is GradientTreatmentEffect else "dice"
    explained = face(SegmentationTarget(model, roi=roi, reference=reference, metric=metric))
    more = dict(FACES[face])
    if face in (AverageTreatmentEffect, PdCR, GradientTreatmentEffect):
        more["baselines"] = PatchBank(torch.rand(9, 1, *spatial))
    plain = explained.attribute(batch.as_tensor(), target=1, **more)
    model.kinds.clear()
    attribution = explained.attribute(batch, target=1, **more)
    assert model.kinds == {torch.Tensor}
    assert type(plain) is torch.Tensor
    assert isinstance(attribution, MetaTensor)
    assert torch.equal(attribution.as_tensor(), plain)
    assert attribution.is_contiguous()
    assert not attribution.requires_grad
    assert attribution.is_batch == collated
    assert torch.equal(attribution.affine, batch.affine)
    assert attribution.meta["patient"] == (["a", "b"] if collated else "a")
    assert torch.equal(attribution[0].affine, affine)
    if collated:
        assert torch.equal(attribution[1].affine, 2 * affine)
    attribution.affine.fill_(0)
    assert batch.affine.any()


def test_of_several_inputs_each_keeps_what_it_is():
    model = nn.Conv2d(1, 2, 3, padding=1)
    roi = regions.box((8, 8), 0, 2)
    target = SegmentationTarget(lambda x, y: model(x + y), roi=roi, reference=(torch.rand(8, 8) > 0.5).long())
    image = scan(1, 1, 8, 8)
    first, second = AverageTreatmentEffect(target).attribute((image, torch.rand(1, 1, 8, 8)), target=1, block_size=4, n_draws=3)
    assert isinstance(first, MetaTensor)
    assert torch.equal(first.affine, image.affine)
    assert type(second) is torch.Tensor
    (only,) = AverageTreatmentEffect(SegmentationTarget(model, roi=roi, reference=(torch.rand(8, 8) > 0.5).long())).attribute(
        (image,), target=1, block_size=4, n_draws=3
    )
    assert isinstance(only, MetaTensor)


def test_captums_noise_tunnel_takes_metatensors():
    model = nn.Conv2d(1, 2, 3, padding=1)
    target = SegmentationTarget(
        model, roi=regions.box((8, 8), 0, 3), reference=(torch.rand(8, 8) > 0.5).long(), metric="soft_dice"
    )
    bank = PatchBank(torch.rand(5, 1, 8, 8))
    tunnel = NoiseTunnel(AverageTreatmentEffect(target, baselines=bank))
    for batch in (scan(1, 1, 8, 8), list_data_collate([scan(1, 8, 8), scan(1, 8, 8)])):
        found = tunnel.attribute(batch, target=1, nt_samples=2, stdevs=0.0, block_size=4, n_draws=3)
        assert found.shape == batch.shape


def test_with_metadata_shares_memory_and_refuses_tuples_of_another_length():
    values = torch.zeros(1, 1, 4, 4)
    image = scan(1, 1, 4, 4)
    result = images.with_metadata(values, image)
    assert result.data_ptr() == values.data_ptr()
    assert images.with_metadata(values, values) is values
    with pytest.raises(ValueError, match="like: expected a tuple of 2, as many as there are values"):
        images.with_metadata((values, values), (image,))


def test_spacing_is_the_length_of_a_step_whichever_way_the_axes_run():
    turned = torch.tensor([[0.0, -0.7, 0.0, 9.0], [0.5, 0.0, 0.0, -4.0], [0.0, 0.0, -3.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    scan = torch.rand(2, 1, 4, 5, 6)
    assert images.spacing_of(MetaTensor(scan, affine=turned)) == pytest.approx((0.5, 0.7, 3.0))
    assert images.spacing_of(MetaTensor(scan[..., 0], affine=turned)) == pytest.approx((0.5, 0.7))
    collated = MetaTensor(scan, affine=turned)
    collated.affine = torch.stack([turned, torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))])
    assert images.spacing_of(collated, 1) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match=r"example: expected an integer from 0 to 1, got 2"):
        images.spacing_of(collated, 2)
    with pytest.raises(TypeError, match=r"image: expected a tensor of real numbers, got str"):
        images.spacing_of("scan.nii.gz")


@pytest.mark.parametrize(
    "affine", [torch.eye(4), torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0])), torch.full((4, 4), torch.nan)]
)
def test_an_affine_that_says_nothing_is_no_spacing(affine):
    assert images.spacing_of(MetaTensor(torch.rand(1, 1, 4, 5, 6), affine=affine)) is None
    assert images.spacing_of(torch.rand(1, 1, 4, 5, 6)) is None
