"""Supports of models that hide NaN or that cannot be asked: doubts are said, and nothing is left out then."""

import logging

import numpy as np
import pytest
import torch
from support_cases import NAN, box_mask, find, holds, smooth, three_taps

from captum_causalseg.interventions.support import find_support
from captum_causalseg.target.rounding import relative_tolerance

LOGGER = "captum_causalseg.interventions.support"


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def shrink(x, t=0.5):
    """Soft shrinkage that takes NaN for a small number."""
    return torch.where(x > t, x - t, torch.where(x < -t, x + t, torch.zeros_like(x)))


def everything(x):
    return tuple(range(1, x.ndim))


def refuses_nan(x):
    if x.isnan().any():
        raise ValueError("not a number\nin here")
    return smooth(x)


def far_gate(x):
    return smooth(x) + torch.where(x[..., -1:, -1:] > 2, 0.5, 0.0)


def mean_gate(x):
    return smooth(x) + torch.where(x.mean(everything(x), keepdim=True) < -0.2, 0.5, 0.0)


def spread_gate(x):
    spread = x.std(everything(x), keepdim=True)
    return smooth(x) + torch.where(spread > 5, spread, torch.zeros_like(spread))


def channel_gate(x):
    difference = (x[:, :1] - x[:, 1:]).mean(everything(x), keepdim=True).abs()
    return smooth(x) + torch.where(difference > 100, 1.0, 0.0)


def look_up(x):
    return torch.linspace(0, 1, 11)[(x.mean(1, keepdim=True) * 10).long().clamp(0, 10)]


def look_up_far(x):
    return smooth(x) + look_up(x).amax(everything(x), keepdim=True)


HIDING = {
    "nan_to_num at the input": lambda x: smooth(x.nan_to_num()),
    "nan_to_num on a global branch": lambda x: smooth(x) + x.nan_to_num().mean(everything(x), keepdim=True),
    "nan_to_num at the output": lambda x: smooth(x).nan_to_num(0.5),
    "where(isnan)": lambda x: smooth(torch.where(x.isnan(), torch.zeros_like(x), x)),
    "where(isnan) on a global branch": lambda x: (
        smooth(x) + torch.where(x.isnan(), torch.zeros_like(x), x).amax(everything(x), keepdim=True)
    ),
    "nanmean": lambda x: smooth(x) + x.flatten(1).nanmean(1).reshape(-1, *(1,) * (x.ndim - 1)),
    "fmax": lambda x: torch.fmax(smooth(x), torch.zeros(())),
    "fmax on a global branch": lambda x: smooth(x) + torch.fmax(x.mean(everything(x), keepdim=True), torch.tensor(0.9)),
    "fmin on a global branch": lambda x: smooth(x) + torch.fmin(x.amin(everything(x), keepdim=True), torch.tensor(-0.2)),
    "shrinkage on a global branch": lambda x: smooth(x) + shrink(x).mean(everything(x), keepdim=True),
    "a wide shrinkage on a global branch": lambda x: smooth(x) + shrink(x, 50.0).mean(everything(x), keepdim=True),
    "a gate on every pixel": lambda x: smooth(x) + torch.where(x > 3, 1.0, 0.0).amax(everything(x), keepdim=True),
    "a gate on negative pixels": lambda x: smooth(x) + torch.where(x < -3, 1.0, 0.0).amax(everything(x), keepdim=True),
    "a gate on one far pixel": far_gate,
    "a gate on the mean": mean_gate,
    "a gate on the spread": spread_gate,
    "a gate on the difference of channels": channel_gate,
    "a local gate": lambda x: smooth(x) + torch.where(smooth(x, 15) > 300, 1.0, 0.0),
    "a local step": lambda x: smooth(x) + torch.where(smooth(x, 15) > 1, 1.0, 0.0),
    "integers": look_up,
    "indices": lambda x: torch.arange(1000.0)[(x.sum(1, keepdim=True) * 100).long()],
    "integers on a global branch": look_up_far,
    "random": lambda x: smooth(x) + torch.rand(len(x))[:, None, None, None],
}


@pytest.mark.parametrize("name", HIDING)
def test_models_that_hide_nan_are_found_out(name, caplog):
    image = torch.rand(1, 2, 48, 48, generator=torch.Generator().manual_seed(1)) * 0.4
    rois = box_mask((1, 1, 48, 48), (0, 1), (0, 1), (10, 14), (12, 18))
    with caplog.at_level(logging.INFO, LOGGER):
        support = find(HIDING[name], image, rois)
    assert support.doubt
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert support.doubt in caplog.text


def test_no_doubt_no_line_in_the_log(caplog):
    with caplog.at_level(logging.INFO, LOGGER):
        find(smooth, torch.rand(1, 1, 32), box_mask((1, 1, 32), (0, 1), (0, 1), (4, 6)))
    assert not caplog.records


def test_a_model_that_refuses_nan():
    support = find(refuses_nan, torch.rand(1, 1, 32), box_mask((1, 1, 32), (0, 1), (0, 1), (4, 6)))
    assert support.doubt == "the model raised ValueError on a changed input: not a number"
    assert support.n_forwards == 1


def test_a_model_that_fails_on_the_plain_examples_is_no_doubt():
    def model(x):
        if (x > 9).any():
            raise ValueError("too bright")
        return smooth(x)

    images = torch.rand(5, 1, 32)
    images[4] += 10
    with pytest.raises(ValueError, match="too bright"):
        find(model, images, box_mask((1, 1, 32), (0, 1), (0, 1), (4, 6)), batch_size=2)


def test_only_a_far_place_matters():
    rois = box_mask((1, 1, 64), (0, 1), (0, 1), (4, 6))
    image = torch.rand(1, 1, 64)
    support = find(lambda x: x.roll(-30, 2), image, rois)
    assert support.doubt == (
        "NaN does not pass through this model: on the RoI's own pixels in tensor 0 it does not reach an RoI of example 0"
    )
    # Where positions of the tensor are not those of the RoI, nothing says that this is odd.
    holds(find(lambda x: x.roll(-30, 2)[..., :60], image, rois[..., :60]), [[[[34, 36]]]])


def test_a_tensor_without_influence():
    rois = box_mask((1, 1, 64), (0, 1), (0, 1), (4, 6))
    support = find(lambda a, b: smooth(a), [torch.rand(1, 1, 64), torch.rand(1, 3)], rois)
    assert "everywhere in tensor 1" in support.doubt


def test_nan_that_arrives_only_all_together():
    # The mean of a constant does not change with the number of values.
    def model(x):
        return x.nanmean(2, keepdim=True).expand(-1, -1, 20)

    support = find(model, torch.ones(1, 1, 30), box_mask((1, 1, 20), (0, 1), (0, 1), (4, 6)))
    assert "less of it arrives" in support.doubt


def test_nan_that_stays_silent_in_small_parts_only():
    def model(x):
        few = x.isnan().sum(2, keepdim=True) <= 2
        return smooth(torch.where(few & x.isnan(), torch.ones_like(x), x), 9)

    rois = box_mask((1, 1, 64), (0, 1), (0, 1), (20, 24))
    assert find(model, torch.ones(1, 1, 64), rois).doubt is None
    # Block by block nothing would reach: all the blocks together do.
    support = find(model, torch.ones(1, 1, 64), rois, block_size=2)
    assert support.doubt.startswith("with NaN outside the support, logits inside an RoI of example 0 moved")


def test_one_suspicious_roi_of_one_example_is_enough():
    rois = torch.stack([box_mask((48,), (4, 6)), box_mask((48,), (20, 22))])[None]

    def model(x):
        leak = torch.where((x.amax(2, keepdim=True) > 3) & (x[..., 20:21] > 0.5), 1.0, 0.0)
        return smooth(x) + leak * box_mask((48,), (20, 22))

    images = torch.zeros(2, 1, 48)
    holds(find(model, images, rois), [[[[3, 7]], [[19, 23]]]] * 2)
    images[1] = 1
    support = find(model, images, rois)
    assert "outside the support, logits inside an RoI of example 1 moved by 1" in support.doubt


def test_one_class_that_hides_nan_is_enough():
    def model(x):
        return torch.cat([smooth(x), smooth(x, 15).nan_to_num(0)], 1)

    support = find(model, torch.rand(1, 1, 64), box_mask((1, 1, 64), (0, 1), (0, 1), (20, 24)))
    assert "it moved finite logits" in support.doubt


def test_a_gate_in_any_tensor():
    rois = box_mask((1, 1, 48), (0, 1), (0, 1), (4, 6))
    for slot in range(2):
        images = [torch.rand(1, 1, 48), torch.rand(1, 1, 48)]
        support = find(lambda *x, slot=slot: smooth(x[0]) + smooth(x[1]) + far_gate(x[slot]), images, rois)
        assert support.doubt.startswith("with ")


def test_what_is_pasted_outside():
    image = torch.rand(2, 2, 40, 30, generator=torch.Generator().manual_seed(0)) * 3 - 1
    amplitude = image.abs().amax((1, 2, 3))
    outside = ~box_mask((40, 30), (9, 13), (19, 22))
    rois = box_mask((1, 1, 40, 30), (0, 1), (0, 1), (10, 12), (20, 21))

    def pasted(seed):
        seen = []

        def model(x):
            seen.extend(x.clone())
            return smooth(x)

        assert find(model, image, rois, seed=seed).doubt is None
        return seen[-26:-13], seen[-13:]

    one, other = pasted(1), pasted(2)
    for n, values in enumerate(one):
        for row in values:
            assert torch.equal(row[:, ~outside], image[n][:, ~outside])
        rows = [row[:, outside] for row in values]
        a = float(amplitude[n])
        assert rows[0].isnan().all()
        assert (float(rows[1].mean()), float(rows[1].std())) == pytest.approx(
            (float(image[n].mean()), float(image[n].std())), abs=0.15
        )
        assert torch.equal(rows[2], image[n].flip(0, 1, 2)[:, outside])
        assert torch.equal(rows[3], image[n].roll((1, 20, 15), (0, 1, 2))[:, outside])
        assert torch.equal(rows[4], image[1 - n][:, outside])
        assert float(rows[5].std()) == pytest.approx(10 * a, rel=0.1)
        assert float(rows[6].std()) == pytest.approx(1000 * a, rel=0.1)
        for row, factor in zip(rows[7:11], (1, -1, 1000, -1000)):
            torch.testing.assert_close(row, torch.full_like(row, factor * a))
        for row in rows[11:13]:
            assert row[0].unique().numel() == row[1].unique().numel() == 1
            assert float((row[0] - row[1]).abs().max()) > 10 * a
        different = [
            index for index, (x, y) in enumerate(zip(values, other[n])) if not torch.equal(x, y) and not x.isnan().any()
        ]
        assert different == [1, 5, 6, 11, 12]


def test_stand_ins_are_tried():
    rois = box_mask((1, 1, 48), (0, 1), (0, 1), (4, 6))
    image, stand_in = torch.rand(1, 1, 48), torch.rand(1, 1, 48)
    stand_in[..., -1] = 0.123

    def model(x):
        return smooth(x) + torch.where(x[..., -1:] == stand_in[..., -1:], 1.0, 0.0)

    holds(find(model, image, rois), [[[[3, 7]]]])
    support = find(model, image, rois, stand_ins=[[torch.rand(1, 1, 48)], [stand_in]])
    assert support.doubt.startswith("with natural stand-in 1 outside the support")


def test_another_example_is_tried():
    images = torch.rand(2, 1, 48)

    def model(x):
        swapped = (x[..., -1:] == images[0, ..., -1]) & (x[..., -2:-1] == images[0, ..., -2])
        return smooth(x) + torch.where(swapped, 1.0, 0.0) * (x[..., 4:5] != images[0, ..., 4])

    assert find(model, images, box_mask((1, 1, 48), (0, 1), (0, 1), (4, 6))).doubt is not None
    assert find(model, images[1:], box_mask((1, 1, 48), (0, 1), (0, 1), (4, 6))).doubt is None


def test_plain_logits_that_are_not_finite():
    rois = box_mask((1, 1, 48), (0, 1), (0, 1), (4, 6))
    image = torch.rand(1, 1, 48)
    image[..., 4] = torch.inf
    assert "not finite" in find(smooth, image, rois).doubt
    # Elsewhere they are nobody's business.
    image = torch.rand(1, 1, 48)
    image[..., 30] = torch.inf
    image[..., 40] = NAN
    support = find_support(lambda tensors, _: smooth(tensors[0]), [image], rois)
    holds(support, [[[[3, 7]]]])


def test_integers_hold_no_nan():
    support = find(
        lambda x: smooth(x.float()), torch.ones(1, 1, 48, dtype=torch.int64), box_mask((1, 1, 48), (0, 1), (0, 1), (4, 6))
    )
    assert "floating point" in support.doubt
    assert support.n_forwards == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3000.0])
def test_types_and_scales(dtype, scale):
    rois = box_mask((1, 1, 64), (0, 1), (0, 1), (20, 24))
    image = (torch.randn(2, 1, 64) * scale).to(dtype)

    def model(x):
        assert not x.isinf().any()
        return three_taps(x)

    holds(find(model, image, rois), [[[[19, 25]]]] * 2)

    def gated(x):
        return three_taps(x) + torch.where(x > (3 * scale + 3) * 1.5, 0.3 * (scale + 1), 0.0).amax(2, keepdim=True).to(x.dtype)

    assert find(gated, image, rois).doubt is not None


def test_logits_all_zero():
    rois = box_mask((1, 1, 64), (0, 1), (0, 1), (20, 24))
    holds(find(smooth, torch.zeros(1, 1, 64), rois), [[[[19, 25]]]])


def test_rounding_of_other_batches_is_no_doubt():
    rois = box_mask((1, 1, 64), (0, 1), (0, 1), (20, 24))
    holds(find(lambda x: smooth(x) * (1 + 1e-6 * len(x)), torch.rand(3, 1, 64), rois), [[[[19, 25]]]] * 3)
    assert find(lambda x: smooth(x) * (1 + 1e-4 * len(x)), torch.rand(3, 1, 64), rois).doubt is not None


def test_tolerance():
    class Stub:
        def __init__(self, dtype, is_cuda):
            self.dtype, self.is_cuda = dtype, is_cuda

    def tolerance(dtype, is_cuda=False):
        return relative_tolerance([torch.zeros(1), Stub(dtype, is_cuda)])

    assert tolerance(torch.float32) == 1e3 * 2**-23
    assert tolerance(torch.float16) == 8 * 2**-10
    assert tolerance(torch.bfloat16, True) == 8 * 2**-7
    assert relative_tolerance([Stub(torch.float64, True)]) == 1e3 * 2**-52
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        for convolutions, products in ((True, False), (False, True), (False, False)):
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
            assert tolerance(torch.float32, True) == (2**-10 if convolutions or products else 1e3 * 2**-23)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_a_guess_that_holds_saves_the_search():
    x, rois = torch.rand(1, 1, 64, 64), box_mask((1, 1, 64, 64), (0, 1), (0, 1), (24, 32), (24, 32))
    searched = find(smooth, x, rois)
    guessed = find(smooth, x, rois, guess=searched.masks)
    assert guessed.doubt is None
    assert torch.equal(guessed.masks[0], searched.masks[0])
    # The plain one, two controls, NaN, two natural stand-ins, noise, a constant per channel.
    assert guessed.n_forwards == 8 < searched.n_forwards


@pytest.mark.parametrize("side", [(23, 33), (24, 32)])
def test_a_guess_that_is_too_small_is_not_believed(side):
    x, rois = torch.rand(1, 1, 64, 64), box_mask((1, 1, 64, 64), (0, 1), (0, 1), (24, 32), (24, 32))
    small = box_mask((1, 1, 64, 64), (0, 1), (0, 1), (22, 34), side)
    found = find(lambda image: smooth(image, 5), x, rois, guess=[small])
    assert found.doubt is None
    np.testing.assert_array_equal(found.hull(0), [[[[22, 34], [22, 34]]]])


def test_a_guess_is_not_believed_where_a_gate_swallows_nan_far_away():
    x, rois = torch.rand(1, 1, 64, 64), box_mask((1, 1, 64, 64), (0, 1), (0, 1), (24, 32), (24, 32))
    guess = [box_mask((1, 1, 64, 64), (0, 1), (0, 1), (16, 40), (16, 40))]

    def gated(image):
        far = image[:, :, :4, :4].nan_to_num().mean((1, 2, 3), keepdim=True)
        return smooth(image) + torch.where(far > 2.0, 1.0, 0.0)

    assert find(gated, x, rois, guess=guess).doubt is not None
