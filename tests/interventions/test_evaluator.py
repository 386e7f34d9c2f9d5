"""Sets of units per row, at inputs and at one or two layers, against the literal loop of pasting and running."""

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from captum_causalseg import PatchBank, SegmentationTarget, regions
from captum_causalseg.donors import as_donor_source
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions import replay
from captum_causalseg.interventions.execution import Execution, Part
from captum_causalseg.interventions.frames import Frame
from captum_causalseg.interventions.inputs import InputEvaluator
from captum_causalseg.interventions.layer import LayersEvaluator, Recording
from captum_causalseg.interventions.ledger import Ledger
from captum_causalseg.interventions.sites import InputSite, LayersSite
from captum_causalseg.interventions.unit_donors import UnitDonors
from captum_causalseg.interventions.units import Units
from captum_causalseg.target.scorer import as_scorer

SIZE = {2: 32, 3: 16}


def unet(d: int, norm: str = "batch") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(d)
        return UNet(d, 1, 3, (4, 8, 8), (2, 2), norm=norm).eval()


def images(d: int, n: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, *(SIZE[d],) * d, generator=torch.Generator().manual_seed(seed))


def target_of(model: nn.Module, x: Tensor) -> SegmentationTarget:
    roi = regions.box(tuple(x.shape[2:]), x.shape[2] // 4, x.shape[2] // 4)
    return SegmentationTarget.from_prediction(model, x[:1], roi=roi, metric="soft_dice")


def numbered(masks: list[Tensor]) -> list[Tensor]:
    """No unit lies in two tensors."""
    first, found = 0, []
    for mask in masks:
        found.append(mask + first)
        first = int(found[-1].max()) + 1
    return found


def random_sets(units: Units, donors: tuple, n_rows: int, sizes: tuple[int, ...]) -> Interventions:
    generator = np.random.default_rng(0)
    example = np.arange(n_rows) % units.n_examples
    sets = []
    for row in range(n_rows):
        chosen = generator.choice(len(units), sizes[row % len(sizes)], replace=False).tolist()
        sets.append([(unit, [int(generator.integers(3)) for _ in donors]) for unit in chosen])
    return Interventions.of_sets(example, sets)


def replaced_by_hand(tensors: list[Tensor], given: UnitDonors, interventions: Interventions, row: int) -> list[Tensor]:
    """The tensors of one row, ``(1, C, *spatial)``, unit by unit and in order."""
    example = int(interventions.example[row])
    copies = [tensor[example : example + 1].clone() for tensor in tensors]
    for place in np.flatnonzero(interventions.row == row):
        unit, numbers = int(interventions.unit[place]), interventions.donor[place]
        for slot, copy in enumerate(copies):
            mask = given.units.masks[slot]
            here = (mask[example if len(mask) > 1 else 0] == given.units.ids[unit]).expand(copy.shape[1:])
            for piece in given.units.pieces(example, unit, slot):
                value = copy[0].clone()
                read = given.donors[slot].read(example, piece.box, int(numbers[slot]))
                value[(slice(None), *piece.box)] = read.expand(value[(slice(None), *piece.box)].shape)
                copy[0] = torch.where(here, value, copy[0])
    return copies


def input_evaluator(d: int, norm: str = "batch", mask: str = "blocks"):
    model, x = unet(d, norm), images(d)
    target = target_of(model, x)
    shape = tuple(x.shape[2:])
    units = Units([regions.grid(shape, 8 if d == 2 else 4)[None, None]], [x.shape])
    if mask == "irregular":
        diagonal = sum(torch.arange(shape[0]).view([-1 if a == axis else 1 for a in range(d)]) for axis in range(d))
        units = Units([(diagonal // 7)[None, None]], [x.shape])
    donors = (PatchBank(images(d, 3, 9)).bind(x),)
    site = InputSite((x,))
    evaluator = InputEvaluator(site, as_scorer(target), Execution(), UnitDonors(units, donors), Ledger())
    with torch.no_grad():
        evaluator.observe(np.arange(2))
    return target, evaluator, units, donors, x


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("mask", ["blocks", "irregular"])
@pytest.mark.parametrize("local", [False, True])
def test_sets_of_units_of_inputs(d, mask, local):
    target, evaluator, units, donors, x = input_evaluator(d, mask=mask)
    evaluator = evaluator.localized() if local else evaluator
    assert (evaluator.local is not None) == local
    asked = random_sets(units, donors, 7, (1, 2, 3, 0))
    with torch.no_grad():
        found = evaluator(asked)
        expected = torch.cat([target(*replaced_by_hand([x], evaluator.unit_donors, asked, row)) for row in range(7)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found[0], found[3])


def test_sets_of_units_on_a_window():
    d = 2
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    x = images(d)
    target = target_of(model, x)
    units = Units([regions.grid((32, 32), 4)[None, None]], [x.shape])
    donors = (PatchBank(images(d, 3, 9)).bind(x),)
    whole = InputEvaluator(InputSite((x,)), as_scorer(target), Execution(), UnitDonors(units, donors), Ledger())
    with torch.no_grad():
        whole.observe(np.arange(2))
        whole = whole.localized()
        window = whole.windowed(Frame(np.array([[4, 4], [5, 2]]), (20, 24)), torch.Size((32, 32)))
        asked = random_sets(units, donors, 12, (2, 3, 0))
        torch.testing.assert_close(window(asked), whole(asked), rtol=1e-6, atol=1e-7)
    assert whole.execution.window is None
    assert window.execution.window.size == (20, 24)
    assert window.ledger is whole.ledger
    assert [tuple(tensor.shape) for tensor in window.site.tensors] == [(2, 1, 20, 24)]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """One in the encoder, and one in the decoder, behind it."""
    return [model.model[0], model.model[2][0]]


def layer_evaluator(d: int, n_layers: int, replayed: bool, norm: str = "batch"):
    model, x = unet(d, norm), images(d)
    target = target_of(model, x)
    with torch.no_grad():
        observed = target(x)
        site = LayersSite.recorded(target, layers_of(model)[:n_layers], (x,))
    masks = [torch.arange(t.shape[1]).view(1, -1, *(1,) * d) for t in site.tensors]
    units = Units(numbered(masks), [t.shape for t in site.tensors])
    generator = torch.Generator().manual_seed(3)
    banks = [torch.rand((3, *t.shape[1:]), generator=generator) for t in site.tensors]
    donors = tuple(as_donor_source(bank, tensor).bind(tensor) for bank, tensor in zip(banks, site.tensors))
    given = UnitDonors(units, donors)
    evaluator = LayersEvaluator(
        site, as_scorer(target), Execution(replay=replayed), given, Ledger(), recording=Recording(observed)
    )
    return target, evaluator, units, donors, banks, x


def by_hooks(
    target: SegmentationTarget, modules: list[nn.Module], units: Units, banks: list[Tensor], x: Tensor, pairs
) -> Tensor:
    """The literal loop: in the order in which they run, hooks write the donors' channels into what the layers return."""
    first = np.cumsum([0] + [bank.shape[1] for bank in banks])

    def write(slot: int):
        def hook(module, args, out):
            out = out.clone()
            for unit, numbers in pairs:
                channel = units.ids[unit] - first[slot]
                if 0 <= channel < banks[slot].shape[1]:
                    out[0, channel] = banks[slot][numbers[slot], channel]
            return out

        return hook

    handles = [module.register_forward_hook(write(slot)) for slot, module in enumerate(modules)]
    try:
        return target(x)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("replayed", [False, True])
def test_sets_of_units_of_layers(d, n_layers, replayed, monkeypatch):
    monkeypatch.setattr(replay, "COMPARED", 0)  # whatever it saves
    target, evaluator, units, donors, banks, x = layer_evaluator(d, n_layers, replayed)
    asked = random_sets(units, donors, 8, (2, 3, 1, 0))
    with torch.no_grad():
        found = evaluator(asked)
        expected = []
        for row in range(len(asked)):
            mine = asked.row == row
            pairs = list(zip(asked.unit[mine].tolist(), asked.donor[mine].tolist()))
            one = x[asked.example[row]][None]
            expected.append(by_hooks(target, layers_of(target.model)[:n_layers], units, banks, one, pairs))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-6)
    assert ("replay compared" in evaluator.ledger.forwards) == replayed
    assert "replay" not in evaluator.ledger.disabled
    assert "window" in evaluator.ledger.disabled


def test_what_follows_from_a_layer_is_not_frozen_in_one_behind_it():
    """A unit of the first of two layers has the effect that it has where the first layer is all that there is."""
    _, one, *_ = layer_evaluator(2, 1, False)
    _, two, *_ = layer_evaluator(2, 2, False)
    asked = Interventions.single(np.array([0, 1, 1]), np.array([0, 2, 3]), np.array([[0], [1], [2]]))
    both = Interventions.single(asked.example, asked.unit, np.repeat(asked.donor, 2, axis=1))
    with torch.no_grad():
        assert torch.equal(one(asked), two(both))
        frozen = two.scorer(*two.site.call(np.array([0])))
        assert not torch.equal(two(both)[:1], frozen)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_site_runs_any_function(n_layers):
    """Tensors that require a gradient in the layers' place: the gradient of the scores by them."""
    target, evaluator, _, _, _, x = layer_evaluator(2, n_layers, False)
    leaves = [tensor.clone().requires_grad_() for tensor in evaluator.site.tensors]
    scores = evaluator.site.run(target, leaves, np.arange(2))
    gradients = torch.autograd.grad(scores[:, 1].sum(), leaves, allow_unused=True)
    assert gradients[-1].abs().sum() > 0
    seen = []
    with torch.no_grad():
        torch.testing.assert_close(scores.detach(), target(x), rtol=1e-5, atol=1e-6)
        evaluator.site.run(lambda *call: seen.append(target.logits(*call)), evaluator.site.tensors, np.arange(2))
        torch.testing.assert_close(seen[0], target.logits(x), rtol=1e-4, atol=1e-5)


def test_an_evaluator_does_not_change_under_ones_hands():
    _, evaluator, units, donors, _ = input_evaluator(2)
    asked = random_sets(units, donors, 4, (1,))
    with torch.no_grad():
        before = evaluator(asked)
        local = evaluator.localized()
        windowed = local.windowed(Frame(np.zeros((2, 2)), (32, 24)), torch.Size((32, 32)))
        assert (evaluator.local, evaluator.execution.window, local.execution.window) == (None, None, None)
        assert windowed.execution.window.size == (32, 24)
        assert evaluator.windowed(Frame(np.zeros((2, 2)), (32, 24)), torch.Size((32, 32))) is None, "it does not score locally"
        assert torch.equal(evaluator(asked), before)
    windowed.ledger.count("a purpose", 2)
    assert evaluator.ledger.forwards == {"a purpose": 2}


def test_parts_share_all_units_out():
    assert sum(Part(number, 3).units(10).astype(int) for number in range(3)).tolist() == [1] * 10
    with pytest.raises(ValueError, match=r"number: expected 0 to 2 for 3 part\(s\), got 3"):
        Part(3, 3)
