"""Interventions on a layer: against a literal loop, and what is refused."""

import numpy as np
import oracle
import pytest
import torch
from layer_cases import PLAIN, Net, case
from torch import Tensor, nn

from captum_causalseg import (
    ActivationBank,
    AverageTreatmentEffect,
    LayerAverageTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    Status,
    regions,
)


def literal(model: nn.Module, name: str, image: Tensor, donor: Tensor, mask: Tensor, unit: int) -> Tensor:
    """Logits of one image with one unit of the named layer replaced by the donor image's activation."""
    module = getattr(model, name)
    seen = []
    handle = module.register_forward_hook(lambda m, a, out: seen.append(out.detach()))
    with torch.no_grad():
        model(donor)
    handle.remove()

    def replace(m, a, out):
        new = out.clone()
        inside = (mask == unit).expand(out.shape)
        new[inside] = seen[0][inside]
        return new

    handle = module.register_forward_hook(replace)
    with torch.no_grad():
        logits = model(image)
    handle.remove()
    return logits


def unit_mask(kind: str, shape: tuple[int, ...]) -> Tensor:
    channels, spatial = shape[0], shape[1:]
    blocks = regions.grid(spatial, 4)
    if kind == "channel":
        return torch.arange(channels).view(1, -1, *(1,) * len(spatial)).expand(1, *shape)
    if kind == "block":
        return blocks.expand(1, *shape)
    if kind == "channel_block":
        return torch.stack([blocks + c * (int(blocks.max()) + 1) for c in range(channels)])[None]
    return torch.zeros(1, *shape, dtype=torch.int64)


@pytest.mark.parametrize("kind", ["channel", "block", "channel_block", "layer"])
@pytest.mark.parametrize(("d", "name"), [(2, "early"), (2, "middle"), (2, "late"), (3, "middle")])
def test_effects_and_errors_equal_the_literal_loop(d, name, kind):
    model, images, labels, donors, roi = case(d)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    face = LayerAverageTreatmentEffect(target, getattr(model, name))
    arguments = {
        "layer_baselines": donors,
        "units": kind,
        "block_size": 4 if "block" in kind else None,
        "n_draws": 4,
        "seed": 2,
        **PLAIN,
    }
    attr, stats = face.attribute(
        images, **arguments, target=1, n_screening_draws=2, perturbations_per_eval=5, return_statistics=True
    )
    channels = getattr(model, name).out_channels
    mask = unit_mask(kind, (channels, *images.shape[2:]))
    assert attr.shape == (2, channels, *images.shape[2:])

    moved: dict[tuple[int, int], list[np.ndarray]] = {}
    for step in face.plan(images, **arguments):
        image, label = images[step.example : step.example + 1], labels[step.example]
        (_, donor, _) = step.donors[0]
        logits = literal(model, name, image, donors[donor : donor + 1], mask, step.unit)
        observed = oracle.dice_scores(model, (image,), label, [roi])
        intervened = oracle.dice_scores(lambda x, logits=logits: logits, (image,), label, [roi])
        moved.setdefault((step.example, step.unit), []).append(observed - intervened)
    assert {unit for _, unit in moved} == set(mask.unique().tolist())
    largest = 0.0
    for example in range(2):
        units = sorted(unit for n, unit in moved if n == example)
        for k in range(3):
            kept = [oracle.screen([float(v[k]) for v in moved[example, unit]], 2, 0.0002) for unit in units]
            effects, errors = oracle.effect_and_error([values for values, _ in kept], [6.0] * len(units))
            torch.testing.assert_close(stats.effect[example, :, k], torch.tensor(effects).double(), atol=1e-6, rtol=0)
            torch.testing.assert_close(stats.standard_error[example, :, k], torch.tensor(errors).double(), atol=1e-6, rtol=0)
            assert [s == Status.SCREENED for s in stats.status[example, :, k]] == [screened for _, screened in kept]
            largest = max(largest, *map(abs, effects))
    assert largest > 0.01, "the case is too dull to prove anything"
    for unit in mask.unique().tolist():
        value = float(stats.effect[0, stats.unit_ids.tolist().index(unit), 1])
        torch.testing.assert_close(attr[0][mask[0] == unit], torch.full_like(attr[0][mask[0] == unit], value))


@pytest.mark.parametrize("screening", [0, 2])
@pytest.mark.parametrize(("d", "kind"), [(2, "channel"), (2, "block"), (3, "channel_block")])
def test_stratified_effects_equal_the_weighted_literal_loop(d, kind, screening):
    model, images, labels, donors, roi = case(d)
    donors = torch.cat([donors, donors.flip(2), donors.flip(3)])
    face = LayerAverageTreatmentEffect(SegmentationTarget(model, roi=roi, reference=labels), model.middle)
    arguments = {"layer_baselines": donors, "units": kind, "block_size": 4 if "block" in kind else None, "n_draws": 5}
    arguments |= {"n_screening_draws": screening, "target": 1, "sampling": "stratified", "support": None}
    _, stats = face.attribute(images, **arguments, screening_threshold=0.0, return_statistics=True)
    mask = unit_mask(kind, (5, *images.shape[2:]))
    planned = face.plan(images, **arguments)
    assert len({step.weight for step in planned}) > 1
    moved: dict[tuple[int, int], list[np.ndarray]] = {}
    for step in planned:
        image, label, donor = images[step.example : step.example + 1], labels[step.example], step.donors[0][1]
        logits = literal(model, "middle", image, donors[donor : donor + 1], mask, step.unit)
        observed = oracle.dice_scores(model, (image,), label, [roi])
        intervened = oracle.dice_scores(lambda x, logits=logits: logits, (image,), label, [roi])
        moved.setdefault((step.example, step.unit), []).append(observed - intervened)
    expected = oracle.weighted_effects(moved, planned)
    assert {unit for _, unit in expected} == set(mask.unique().tolist())
    for (example, unit), value in expected.items():
        np.testing.assert_allclose(stats.effect[example, stats.unit_ids.tolist().index(unit)], value, atol=1e-6)
    assert max(np.abs(value).max() for value in expected.values()) > 0.01, "the case is too dull to prove anything"


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
@pytest.mark.parametrize("name", ["early", "middle"])
def test_leaving_out_what_cannot_reach_the_roi_changes_no_effect(name, sampling):
    model = Net(2).eval()
    generator = torch.Generator().manual_seed(1)
    images, donors = (torch.rand((n, 1, 32, 30), generator=generator) for n in (2, 6))
    labels = torch.randint(0, 3, (2, 32, 30), generator=generator)
    target = SegmentationTarget(model, roi=regions.box((32, 30), start=4, size=5), reference=labels)
    face = LayerAverageTreatmentEffect(target, getattr(model, name))
    arguments = {"layer_baselines": donors, "units": "block", "block_size": 4, "n_draws": 4, "n_screening_draws": 0}
    arguments |= {"target": 1, "sampling": sampling, "return_statistics": True}
    _, whole = face.attribute(images, **arguments, support=None)
    _, local = face.attribute(images, **arguments, support="auto")
    outside = local.status == Status.OUTSIDE_SUPPORT
    assert 0.5 < outside.double().mean() < 1
    assert local.settings["window"] is not None
    assert (whole.effect[outside] == 0).all()
    assert (local.effect[outside] == 0).all()
    for field in ("effect", "standard_error", "n_draws"):
        torch.testing.assert_close(getattr(local, field)[~outside], getattr(whole, field)[~outside], atol=1e-6, rtol=0)
    assert whole.effect[~outside].abs().max() > 0.01


def test_models_that_look_at_values():
    class Branching(Net):
        def forward(self, x: Tensor) -> Tensor:
            early = self.early(x)
            if bool(early.amax() > 1e9):  # looks at values downstream of the layer
                early = early * 0
            return self.late(torch.cat([early, self.middle(early)], 1))

    _, images, labels, donors, roi = case(2)
    model = Branching().eval()
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    face = LayerAverageTreatmentEffect(target, model.early)
    attr = face.attribute(images, layer_baselines=donors, target=1, n_draws=6, n_screening_draws=0)
    mask = unit_mask("channel", (4, 12, 10))
    moved = []
    with torch.no_grad():
        for donor in donors:
            logits = literal(model, "early", images[:1], donor[None], mask, 2)
            moved.append(_score(labels, roi, logits))
        observed = float(target(images)[0, 1])
    assert float(attr[0, 2, 0, 0]) == pytest.approx(observed - np.mean(moved), abs=1e-6)


def _score(labels: Tensor, roi: Tensor, logits: Tensor) -> float:
    alone = SegmentationTarget(nn.Identity(), roi=roi, reference=labels[:1], metric="soft_dice", activation="softmax")
    return float(alone(logits)[0, 1])


@pytest.mark.parametrize("d", [2, 3])
def test_a_layer_that_is_the_identity_at_the_input_has_the_inputs_effects(d):
    inner, images, labels, donors, roi = case(d)
    model = nn.Sequential(nn.Identity(), inner)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    mask = regions.grid(images.shape[2:], 4)[None, None]
    # Fewer than half of the donors: of a layer, more would be all of them.
    arguments = {"target": 1, "n_draws": 2, "seed": 5, "return_statistics": True}
    _, at_input = AverageTreatmentEffect(target).attribute(
        images, baselines=PatchBank(donors, "aligned"), feature_mask=mask, exclude=None, **arguments
    )
    for choice in ({"units": "block", "block_size": 4}, {"layer_mask": mask}):
        _, at_layer = LayerAverageTreatmentEffect(target, model[0]).attribute(
            images, layer_baselines=donors, **choice, **arguments
        )
        torch.testing.assert_close(at_layer.effect, at_input.effect, atol=1e-6, rtol=0)
        torch.testing.assert_close(at_layer.standard_error, at_input.standard_error, atol=1e-6, rtol=0)
    attr = LayerAverageTreatmentEffect(target, inner.early).attribute(
        images, layer_baselines=donors, attribute_to_layer_input=True, units="block", block_size=4, target=1, n_draws=2, seed=5
    )
    torch.testing.assert_close(attr.double(), at_input.to_map("effect", 1), atol=1e-6, rtol=0)


class Pair(nn.Module):
    """Returns two tensors and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, str, Tensor]:
        return self.a(x), "kept", self.b(x)


class UsesPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        first, kept, second = self.pair(x)
        assert kept == "kept"
        return (first.sum(1) * torch.sin(second).sum(1)).mean((1, 2))


def test_tuple_activations_give_tuples_and_their_donors_belong_together():
    torch.manual_seed(0)
    model, images, donors = UsesPair().eval(), torch.rand(2, 1, 6, 6), torch.rand(4, 1, 6, 6)
    face = LayerAverageTreatmentEffect(model, model.pair)
    first, second = face.attribute(images, layer_baselines=donors, n_draws=4, n_screening_draws=0)
    assert first.shape == (2, 2, 6, 6)
    assert second.shape == (2, 3, 6, 6)
    whole = face.attribute(images, layer_baselines=donors, units="layer", n_draws=4, n_screening_draws=0)
    with torch.no_grad():
        truth = model(images) - model(donors).mean()  # all of it replaced: the donor's own score
    for part in whole:
        torch.testing.assert_close(part, truth.view(-1, 1, 1, 1).expand(part.shape), atol=1e-6, rtol=0)
    zeros = face.attribute(images, layer_baselines=(0, 1.0), units="layer")
    torch.testing.assert_close(zeros[0][:, 0, 0, 0], model(images).detach(), atol=1e-6, rtol=0)


def test_integer_scores_are_compared_exactly(caplog):
    caplog.set_level("INFO")
    model, images, _, donors, _ = case(2)
    face = LayerAverageTreatmentEffect(lambda x: (model(x)[:, 1] > 0).sum((1, 2)), model.middle)
    attr = face.attribute(images, layer_baselines=donors, n_draws=6, n_screening_draws=0)
    assert "once per intervention" not in caplog.text
    assert float(attr.abs().max()) >= 1 / 6


def test_per_example_masks_and_additional_arguments_go_with_their_example():
    class Shifted(Net):
        def forward(self, x: Tensor, shift: Tensor, scale: float) -> Tensor:
            return super().forward(x * scale) + shift[:, None, None, None]

    _, images, labels, _donors, roi = case(2)
    model = Shifted().eval()
    rois = torch.stack([roi, roi.flip(0)])[:, None]
    arguments = {"target": 1, "n_draws": 3, "n_screening_draws": 0}
    target = SegmentationTarget(model, roi=rois, reference=labels, metric="soft_dice")
    activations = torch.rand(4, 5, 12, 10)
    together = LayerAverageTreatmentEffect(target, model.middle).attribute(
        images, layer_baselines=activations, additional_forward_args=(torch.tensor([0.1, -0.3]), 0.9), **arguments
    )
    for n in range(2):
        alone = SegmentationTarget(model, roi=rois[n, 0], reference=labels[n], metric="soft_dice")
        single = LayerAverageTreatmentEffect(alone, model.middle).attribute(
            images[n : n + 1],
            layer_baselines=activations,
            additional_forward_args=(torch.tensor([[0.1, -0.3][n]]), 0.9),
            **arguments,
        )
        torch.testing.assert_close(together[n], single[0], atol=1e-6, rtol=0)


def test_hooks_are_gone_also_when_the_model_fails_midway():
    model, images, labels, donors, roi = case(2)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    face = LayerAverageTreatmentEffect(target, model.middle)
    for error in (RuntimeError, KeyboardInterrupt):
        calls = []

        def fail(module, args, calls=calls, error=error):
            calls.append(1)
            if len(calls) >= 4:
                raise error("midway")

        handle = model.late.register_forward_pre_hook(fail)
        with pytest.raises(error, match="midway"):
            face.attribute(images, layer_baselines=ActivationBank(donors, batch_size=3), target=1)
        handle.remove()
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_layers_without_one_activation_are_refused():
    class Odd(Net):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.twice = nn.Conv2d(1, 1, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(super().forward(self.twice(x)))

    _, images, *_ = case(2)
    model = Odd().eval()

    def score(x: Tensor) -> Tensor:
        return model(x).sum((1, 2, 3))

    with pytest.raises(ValueError, match="layer: Conv2d is not called when the model runs"):
        LayerAverageTreatmentEffect(score, model.unused).attribute(images)
    with pytest.raises(ValueError, match="layer: ReLU is called 2 times in one forward pass"):
        LayerAverageTreatmentEffect(score, model.twice).attribute(images)
    with pytest.raises(TypeError, match=r"layer: expected a torch\.nn\.Module, got str"):
        LayerAverageTreatmentEffect(score, "late")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_layers_inside_torchscript_are_refused_with_the_reason():
    model, images, *_ = case(2)
    scripted = torch.jit.trace(model, images)
    with pytest.raises(ValueError, match="hooks do not run inside TorchScript; give the eager module"):
        LayerAverageTreatmentEffect(scripted, scripted.middle).attribute(images, target=(0, 0, 0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"units": "voxel"}, ValueError, "units: expected .*'voxel'"),
        ({"units": "block"}, ValueError, "block_size: units='block' needs it"),
        ({"block_size": 4}, ValueError, "block_size: it works only with units"),
        ({"units": "block", "block_size": 40}, ValueError, "block_size: a block of .* is larger than the image"),
        ({"layer_mask": torch.zeros(1, 3, 1, 1, dtype=torch.int64)}, ValueError, "layer_mask: shape .* the activation's"),
        ({"layer_mask": torch.zeros(1, 5, 1, 1)}, TypeError, "layer_mask: expected a tensor of integers"),
        ({"layer_baselines": float("nan")}, ValueError, "layer_baselines: expected a finite number"),
        ({"layer_baselines": "zero"}, TypeError, "layer_baselines: expected a donor source"),
        ({"layer_baselines": torch.rand(3, 4, 12, 10)}, ValueError, r"layer_baselines: expected a tensor \(D, 5, 12, 10\)"),
        ({"layer_baselines": (0, 1)}, ValueError, r"layer_baselines: expected one per tensor of the activation \(1\), got 2"),
        ({"layer_baselines": ActivationBank(torch.rand(2, 1, 9, 9))}, ValueError, "layer_baselines: on the donor images"),
        ({"sampling": "other"}, ValueError, "sampling: expected"),
        ({"support": "other"}, ValueError, "support: expected"),
        ({"precision": 0}, ValueError, "precision: expected a positive number"),
        ({"decide": float("nan")}, ValueError, "decide: expected a finite number, got nan"),
        ({"alpha": 1}, ValueError, "alpha: expected a number between 0 and 1, got 1"),
        ({"n_draws": 0}, ValueError, "n_draws: expected at least 1"),
        ({"target": 7}, ValueError, "target: 7 does not pick"),
    ],
)
def test_bad_arguments_are_explained(arguments, error, message):
    model, images, labels, _, roi = case(2)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    with pytest.raises(error, match=message):
        LayerAverageTreatmentEffect(target, model.middle).attribute(images, **{"target": 1} | arguments)
