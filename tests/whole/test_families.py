"""The families of segmentation models, each explained end to end: scores, a unit's effect and a channel's, all made by hand again."""

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks import nets
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    Status,
    TreatmentEffectStatistics,
    WindowedModel,
    regions,
)

BATCH = ("batch", {"affine": True})


@dataclass(frozen=True)
class Case:
    """A model and how its output is read.

    Args:
        make: builds it, with random weights.
        layer: name of a module of its decoder; None where none is called once.
        spatial: of the image.
        logits: finds the logits in what it returns, by hand.
        block_size: of the units.
        output: what the target is told about the output.
    """

    make: Callable[[], nn.Module]
    layer: str | None
    spatial: tuple[int, ...] = (32, 32)
    logits: Callable[[object], Tensor] = lambda returned: returned
    block_size: int = 16
    output: object = None


def swin(d: int) -> nn.Module:
    # MONAI 1.4 wants to know the image's size, and does nothing with it but check it.
    more = {"img_size": 64} if "img_size" in inspect.signature(nets.SwinUNETR).parameters else {}
    small = {"depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 4, "feature_size": 12}
    return nets.SwinUNETR(in_channels=1, out_channels=2, spatial_dims=d, **small, **more)


def dyn(d: int) -> nn.Module:
    return nets.DynUNet(
        d, 1, 2, (3,) * 4, (1, 2, 2, 2), (2, 2, 2), filters=(4, 4, 8, 8), deep_supervision=True, deep_supr_num=2
    )


class NnUNet(nn.Module):
    """As nnU-Net's networks return deep supervision: a list of logits, each at its own resolution."""

    def __init__(self, d: int, finest_first: bool = True) -> None:
        super().__init__()
        self.net, self.finest_first = dyn(d), finest_first

    def forward(self, x: Tensor) -> list[Tensor]:
        finest = self.net(x)
        returned = [finest, *self.net.heads]
        return returned if self.finest_first else returned[::-1]


class Windows(nn.Module):
    """A network run on overlapping windows of the image."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.model = nets.UNet(d, 1, 2, (4, 8), (2,), num_res_units=0, norm="instance")
        self.inferer = SlidingWindowInferer(16, 4, 0.25, mode="constant")

    def forward(self, x: Tensor) -> Tensor:
        return self.inferer(x, self.model)


class Divisible(nn.Module):
    """Takes images whose sides are multiples of 32, and nothing else."""

    def __init__(self, d: int = 2) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()
        self.net = nets.UNet(d, 1, 2, (4, 4), (2,), num_res_units=0, norm=BATCH)

    def forward(self, x: Tensor) -> Tensor:
        if any(side % 32 for side in x.shape[2:]):
            raise ValueError(f"expected sides that are multiples of 32, got {tuple(x.shape[2:])}")
        self.seen.add(tuple(x.shape[2:]))
        return self.net(x)


def segformer() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    configuration = transformers.SegformerConfig(
        num_channels=1,
        num_labels=2,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        sr_ratios=[4, 2, 1, 1],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=8,
    )
    return transformers.SegformerForSemanticSegmentation(configuration)


def at_a_quarter(returned: object) -> Tensor:
    """As ``SegformerImageProcessor.post_process_semantic_segmentation`` brings logits to the image's size."""
    return functional.interpolate(returned.logits, size=(64, 64), mode="bilinear", align_corners=False)


CUBE = (32, 32, 32)
SMALL = (16, 16, 16)
CASES = {
    "UNet 2D": Case(lambda: nets.UNet(2, 1, 2, (4, 8, 8), (2, 2), num_res_units=1), "model.1.submodule.2"),
    "UNet 3D": Case(lambda: nets.UNet(3, 1, 2, (4, 8), (2,), num_res_units=1, norm=BATCH), "model.2", SMALL, block_size=8),
    "BasicUNetPlusPlus 2D": Case(
        lambda: nets.BasicUNetPlusPlus(2, 1, 2, (4, 4, 4, 4, 4, 4)), "upcat_0_4", logits=lambda returned: returned[0]
    ),
    "BasicUNetPlusPlus 2D, deep supervision": Case(
        lambda: nets.BasicUNetPlusPlus(2, 1, 2, (4, 4, 4, 4, 4, 4), deep_supervision=True),
        "upcat_0_4",
        logits=lambda returned: returned[3],
        output=-1,
    ),
    "BasicUNetPlusPlus 3D": Case(
        lambda: nets.BasicUNetPlusPlus(3, 1, 2, (4, 4, 4, 4, 4, 4), norm=BATCH),
        *("upcat_0_4", SMALL, lambda returned: returned[0], 8),
    ),
    "AttentionUnet 2D": Case(lambda: nets.AttentionUnet(2, 1, 2, (4, 8), (2,)), "model.1.merge"),
    "AttentionUnet 3D": Case(lambda: nets.AttentionUnet(3, 1, 2, (4, 8), (2,)), "model.1.merge", SMALL, block_size=8),
    "SegResNet 2D": Case(
        lambda: nets.SegResNet(2, 4, 1, 2, norm="instance", blocks_down=(1, 1), blocks_up=(1,)), "up_layers.0"
    ),
    "SegResNet 3D": Case(
        lambda: nets.SegResNet(3, 4, 1, 2, norm=BATCH, blocks_down=(1, 1), blocks_up=(1,)), "up_layers.0", SMALL, block_size=8
    ),
    "DynUNet 2D": Case(lambda: dyn(2), "upsamples.1"),
    "DynUNet 3D": Case(lambda: dyn(3), "upsamples.1", SMALL, block_size=8),
    "nnU-Net 2D": Case(lambda: NnUNet(2), "net.upsamples.1", logits=lambda returned: returned[0]),
    "nnU-Net 2D, coarsest first": Case(lambda: NnUNet(2, False), "net.upsamples.1", logits=lambda returned: returned[-1]),
    "nnU-Net 3D": Case(lambda: NnUNet(3), "net.upsamples.1", SMALL, lambda returned: returned[0], 8),
    "VNet 2D": Case(lambda: nets.VNet(2, 1, 2), "up_tr32"),
    "VNet 3D": Case(lambda: nets.VNet(3, 1, 2), "up_tr32", SMALL, block_size=8),
    "SwinUNETR 2D": Case(lambda: swin(2), "decoder1", (64, 64), block_size=32),
    "SwinUNETR 3D": Case(lambda: swin(3), "decoder2", (64, 32, 32), block_size=32),
    "UNETR 2D": Case(lambda: nets.UNETR(1, 2, 32, 4, 12, 16, 2, spatial_dims=2), "decoder2"),
    "UNETR 3D": Case(lambda: nets.UNETR(1, 2, 32, 4, 12, 16, 2), "decoder2", CUBE),
    "FlexibleUNet 2D": Case(
        lambda: nets.FlexibleUNet(1, 2, "efficientnet-b0", decoder_channels=(16, 8, 8, 4, 4)),
        "decoder.blocks.3",
        (64, 64),
        block_size=32,
    ),
    "FlexibleUNet 3D": Case(
        lambda: nets.FlexibleUNet(1, 2, "resnet10", decoder_channels=(8, 8, 4, 4, 4), spatial_dims=3), "decoder.blocks.3", CUBE
    ),
    "SegFormer 2D": Case(segformer, "decode_head.linear_fuse", (64, 64), at_a_quarter, 32),
    "sliding windows 2D": Case(lambda: Windows(2), None, block_size=8),
    "sliding windows 3D": Case(lambda: Windows(3), None, (16, 16, 24), block_size=8),
    "sides divisible by 32, 2D": Case(lambda: Divisible(2), "net.model.2", (64, 96), block_size=8),
    "sides divisible by 32, 3D": Case(lambda: Divisible(3), "net.model.2", (32, 32, 64), block_size=8),
}


class Example:
    """A case with an image, two donors, a reference and a region of interest; and its scores by hand."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(1)
        self.case, self.model = case, case.make().eval()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        d = len(case.spatial)
        self.image, self.donors = torch.randn(1, 1, *case.spatial), 2 * torch.randn(2, 1, *case.spatial)
        self.labels = torch.randint(0, 2, case.spatial)
        self.roi = regions.box(case.spatial, start=2, size=6)
        self._make_it_worth_explaining()
        self.mask = regions.grid(case.spatial, case.block_size)[None, None]
        assert self.mask.ndim == d + 2

    @torch.no_grad()
    def _make_it_worth_explaining(self) -> None:
        """Random weights make most of these networks all but constant; here one class or the other wins, depending on the place."""

        def odds() -> Tensor:
            logits = self.logits(self.image)
            return (logits[:, 1] - logits[:, 0])[..., self.roi]

        heads = [m for m in self.model.modules() if isinstance(m, nn.modules.conv._ConvNd) and m.out_channels == 2]
        before = odds()
        for head in heads[::-1]:  # of deep supervision there are several
            head.weight *= 2 / before.std()
            after = odds()
            if not torch.equal(after, before):
                if head.bias is not None:
                    head.bias[1] -= after.mean()
                return

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        return self.case.logits(self.model(x))

    def score(self, x: Tensor, soft: bool = True) -> Tensor:
        """Dice of both classes in the region of interest, ``(N, 2)``."""
        logits = self.logits(x)
        p = logits.softmax(1) if soft else torch.stack([logits[:, 0] >= logits[:, 1], logits[:, 1] > logits[:, 0]], 1).float()
        r = torch.stack([self.labels == 0, self.labels == 1])[None].float()
        p, r = p[..., self.roi], r[..., self.roi]
        return 2 * (p * r).sum(-1) / (p.sum(-1) + r.sum(-1))

    def target(self, model: nn.Module | None = None, metric: str = "soft_dice") -> SegmentationTarget:
        model = self.model if model is None else model
        return SegmentationTarget(model, self.roi, self.labels, metric=metric, output=self.case.output)

    def explained(self, model: nn.Module | None = None, **options) -> tuple[Tensor, TreatmentEffectStatistics]:
        arguments = {"target": 1, "block_size": self.case.block_size, "n_draws": 2, "return_statistics": True} | options
        bank = PatchBank(self.donors, placement="aligned")
        return AverageTreatmentEffect(self.target(model)).attribute(self.image, bank, **arguments)

    def layer_explained(self, model: nn.Module | None = None, **options) -> tuple[Tensor, TreatmentEffectStatistics]:
        # So few draws as here would not pay for it.
        arguments = {"target": 1, "n_draws": 2, "support": "always", "return_statistics": True} | options
        face = LayerAverageTreatmentEffect(self.target(model), self.layer)
        return face.attribute(self.image, layer_baselines=self.donors, **arguments)

    @property
    def layer(self) -> nn.Module:
        return self.model.get_submodule(self.case.layer)

    def effect_of(self, unit: int) -> Tensor:
        """Of both classes' scores: the unit's pixels are those of one donor, then of the other."""
        changed = torch.where(self.mask == unit, self.donors, self.image)
        return self.score(self.image)[0] - torch.stack([self.score(one[None])[0] for one in changed]).mean(0)

    @torch.no_grad()
    def activations(self, images: Tensor) -> Tensor:
        seen = []
        handle = self.layer.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
        for image in images:
            self.model(image[None])
        handle.remove()
        return torch.cat(seen)

    def effect_of_channel(self, channel: int) -> Tensor:
        """Of both classes' scores: the channel is what it is on one donor, then on the other."""
        donors, scores = self.activations(self.donors), []
        for donor in donors:

            def swap(module, args, output, donor=donor):
                output = output.clone()
                output[:, channel] = donor[channel]
                return output

            handle = self.layer.register_forward_hook(swap)
            scores.append(self.score(self.image)[0])
            handle.remove()
        return self.score(self.image)[0] - torch.stack(scores).mean(0)


def assert_explained(example: Example, model: nn.Module | None = None, **options) -> TreatmentEffectStatistics:
    """The observed scores and every effect are those made by hand; what is disabled has a reason and is in the log."""
    attribution, statistics = example.explained(model, **options)
    torch.testing.assert_close(statistics.observed_score.float(), example.score(example.image), atol=1e-6, rtol=0)
    hard = example.target(model, "dice")(example.image)
    torch.testing.assert_close(hard, example.score(example.image, soft=False), atol=1e-6, rtol=0)
    assert attribution.shape == example.image.shape
    assert bool(attribution.isfinite().all())
    strongest = statistics.effect[0, :, 1].nan_to_num().abs().argmax()
    for unit in {int(strongest), len(statistics.unit_ids) - 1}:
        expected = example.effect_of(int(statistics.unit_ids[unit]))
        torch.testing.assert_close(statistics.effect[0, unit].float(), expected, atol=1e-5, rtol=0)
    assert float(statistics.effect[0, strongest, 1].abs()) > 1e-4, "the case is too dull to prove anything"
    touching = torch.unique(example.mask[0, 0][example.roi])
    assert torch.equal(statistics.unit_ids[(statistics.status[0, :, 1] == Status.EXCLUDED)], touching)
    assert set(statistics.settings["disabled"]) <= {"support", "stratified sampling"}
    return statistics


def assert_layer_explained(example: Example, model: nn.Module | None = None) -> TreatmentEffectStatistics:
    """Every channel has a finite effect, and the strongest has the one that is made by hand."""
    attribution, statistics = example.layer_explained(model)
    assert attribution.shape == example.activations(example.image).shape
    assert bool(attribution.isfinite().all())
    assert bool((statistics.status[..., 1] == Status.ESTIMATED).all())
    assert statistics.effect.shape == (1, attribution.shape[1], 2)
    torch.testing.assert_close(statistics.observed_score.float(), example.score(example.image), atol=1e-6, rtol=0)
    strongest = int(statistics.effect[0, :, 1].abs().argmax())
    for channel in {strongest, attribution.shape[1] - 1}:
        expected = example.effect_of_channel(channel)
        torch.testing.assert_close(statistics.effect[0, channel].float(), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(attribution[0, channel].mean(), expected[1], atol=1e-5, rtol=0)
    assert float(statistics.effect[0, strongest, 1].abs()) > 1e-4, "the case is too dull to prove anything"
    return statistics


@pytest.mark.parametrize("name", CASES)
def test_effects_are_those_made_by_hand(name):
    example = Example(CASES[name])
    statistics = assert_explained(example)
    # All of these let NaN through and have gradients: nothing is disabled.
    assert statistics.settings["disabled"] == {}
    assert statistics.settings["sampling"] == "stratified"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.layer])
def test_layer_effects_are_those_made_by_hand(name):
    statistics = assert_layer_explained(Example(CASES[name]))
    # Upstream of the layer everything is computed once.
    assert statistics.settings["disabled"] == {}


@pytest.mark.parametrize("name", ["UNet 2D", "UNet 3D", "SwinUNETR 2D", "nnU-Net 2D", "SegFormer 2D"])
def test_gradients_of_every_kind_of_output(name):
    """``<gradient, image - mean donor>`` summed over the block, by autograd on the model's own output."""
    example = Example(CASES[name])
    found = GradientTreatmentEffect(example.target()).attribute(
        example.image, PatchBank(example.donors, placement="aligned"), target=1, block_size=example.case.block_size
    )
    image = example.image.clone().requires_grad_()
    p = example.case.logits(example.model(image)).softmax(1)[:, 1][..., example.roi]
    r = (example.labels == 1)[example.roi].float()
    (gradient,) = torch.autograd.grad((2 * (p * r).sum(-1) / (p.sum(-1) + r.sum(-1))).sum(), image)
    products = gradient * (example.image - example.donors.mean(0, keepdim=True))
    unit = int(example.mask.max())
    expected = products[example.mask == unit].sum()
    torch.testing.assert_close(found[example.mask == unit].mean(), expected, atol=1e-6, rtol=1e-4)


# --- Deep supervision as MONAI trains it -----------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3])
def test_a_network_in_training_mode_is_explained_as_it_predicts(d):
    """In training mode DynUNet stacks its heads on an axis of their own; it is evaluated in evaluation mode."""
    example = Example(CASES[f"DynUNet {d}D"])
    expected = example.explained()[1]
    example.model.train()
    assert example.model(example.image).ndim == d + 3
    found = example.explained()[1]
    torch.testing.assert_close(found.effect, expected.effect, equal_nan=True)
    assert example.model.training
    with pytest.raises(ValueError, match="`output` says where to find them"):
        example.target()(example.image)


def test_deep_supervision_of_the_same_resolution_gives_its_first_by_default():
    example = Example(CASES["BasicUNetPlusPlus 2D, deep supervision"])
    first = SegmentationTarget(example.model, example.roi, example.labels)
    assert torch.equal(first.logits(example.image), example.model(example.image)[0])
    assert not torch.equal(first.logits(example.image), example.logits(example.image))


# --- TorchScript, torch.compile, DataParallel ------------------------------------------------------------------------


class Net(nn.Module):
    """Small enough to be scripted and compiled quickly."""

    def __init__(self, d: int) -> None:
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[d]
        self.encoder, self.decoder, self.head = (
            convolution(1, 4, 3, padding=1),
            convolution(4, 4, 3, padding=1),
            convolution(4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.decoder(torch.relu(self.encoder(x)))))


def net_example(d: int) -> Example:
    return Example(Case(lambda: Net(d), "decoder", (16,) * d, block_size=8))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript(d, how, tmp_path):
    example = net_example(d)
    scripted = torch.jit.script(example.model) if how == "script" else torch.jit.trace(example.model, example.image)
    torch.jit.save(scripted, tmp_path / "model.ts")
    loaded = torch.jit.load(tmp_path / "model.ts")
    statistics = assert_explained(example, loaded)
    torch.testing.assert_close(statistics.effect, example.explained()[1].effect, atol=1e-6, rtol=0, equal_nan=True)
    with pytest.raises(ValueError, match="hooks do not run inside TorchScript; give the eager module"):
        LayerAverageTreatmentEffect(example.target(loaded), loaded.decoder).attribute(example.image, target=1)


@pytest.fixture
def compiled():
    """Compiles without a compiler: graphs are captured and guarded, and then run as they are."""
    yield lambda model: torch.compile(model, backend="eager")
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("d", [2, 3])
def test_compiled(d, compiled):
    example = net_example(d)
    assert_explained(example, compiled(example.model))
    if hasattr(torch.compiler, "set_stance"):
        assert_layer_explained(example, compiled(example.model))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA it spreads the batch")
@pytest.mark.parametrize("d", [2, 3])
def test_data_parallel(d):
    example = net_example(d)
    assert_explained(example, nn.DataParallel(example.model))
    assert_layer_explained(example, nn.DataParallel(example.model))


# --- Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3])
def test_windows_have_only_sizes_that_the_model_takes(d):
    example = Example(CASES[f"sides divisible by 32, {d}D"])
    model, whole = example.model, example.case.spatial
    model.seen.clear()
    statistics = assert_explained(example)
    assert statistics.settings["window"] == [32] * d
    assert model.seen == {whole, (32,) * d}
    model.seen.clear()
    layer = example.layer_explained()[1]
    assert layer.settings["window"] == [32] * d
    torch.testing.assert_close(layer.effect, example.layer_explained(support=None)[1].effect, atol=1e-6, rtol=0)


@pytest.mark.parametrize("spatial", [(48, 64), (31, 32), (32, 32, 40)])
def test_what_a_model_says_of_a_size_is_what_one_reads(spatial):
    model = Divisible(len(spatial)).eval()
    image, bank = torch.randn(1, 1, *spatial), PatchBank(torch.randn(2, 1, *spatial))
    target = SegmentationTarget(model, regions.box(spatial, start=2, size=6), torch.zeros(spatial))
    for call in (
        lambda: target(image),
        lambda: AverageTreatmentEffect(target).attribute(image, bank, target=1),
        lambda: LayerAverageTreatmentEffect(target, model.net).attribute(image, target=1),
    ):
        with pytest.raises(ValueError, match="expected sides that are multiples of 32, got"):
            call()


@pytest.mark.parametrize("d", [2, 3])
def test_layers_inside_sliding_windows_have_no_one_activation(d):
    example = Example(CASES[f"sliding windows {d}D"])
    for layer in (example.model.model, example.model.model.model[2]):
        face = LayerAverageTreatmentEffect(example.target(), layer)
        with pytest.raises(ValueError, match=r"is called . times in one forward pass|one entry per example"):
            face.attribute(example.image, target=1)


def test_a_sliding_window_inferer_and_a_network_as_a_callable():
    example = Example(CASES["sliding windows 2D"])
    network, inferer = example.model.model, example.model.inferer
    assert_explained(example, lambda x: inferer(x, network))


@pytest.mark.parametrize("d", [2, 3])
def test_a_sliding_window_that_knows_its_windows(d):
    example = Example(CASES[f"sliding windows {d}D"])
    statistics = assert_explained(example, WindowedModel.from_monai(example.model.inferer, example.model.model.eval()))
    assert statistics.settings["disabled"] == {}
    assert statistics.settings["sampling"] == "stratified"
    assert statistics.settings["windows"]["per_image"] > 1


# --- What is disabled, and why ---------------------------------------------------------------------------------------


class Gated(nn.Module):
    """NaN does not get through."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.net = Net(d)
        self.decoder = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.decoder(self.net(torch.nan_to_num(x)))
        return logits if float(logits.detach().nan_to_num().sum()) > -math.inf else -logits


@pytest.mark.parametrize("d", [2, 3])
def test_settings_and_log_say_what_is_disabled_and_why(d, caplog):
    example = Example(Case(lambda: Gated(d), "decoder", (16,) * d, block_size=8))
    with caplog.at_level(logging.INFO, logger="captum_causalseg"):
        statistics = assert_explained(example)
        layer = assert_layer_explained(example)
    told = [record.getMessage() for record in caplog.records]
    doubt = statistics.settings["disabled"]["support"]
    assert doubt.startswith("NaN does not pass through this model: ")
    assert any(line.startswith("support: disabled") and line.endswith(doubt) for line in told)
    assert statistics.settings["window"] is None
    assert layer.settings["window"] is None


@pytest.mark.parametrize("d", [2, 3])
def test_without_gradients_donors_are_drawn_uniformly_and_the_settings_say_why(d, caplog):
    example = net_example(d)
    model = torch.no_grad()(example.model.forward)
    with caplog.at_level(logging.WARNING, logger="captum_causalseg"):
        # Three donors for two draws: there is something to choose.
        bank = PatchBank(torch.cat([example.donors, example.image.flip(2)]), placement="aligned")
        statistics = AverageTreatmentEffect(example.target(model)).attribute(
            example.image, bank, target=1, block_size=8, n_draws=2, return_statistics=True
        )[1]
    assert statistics.settings["sampling"] == "uniform"
    reason = statistics.settings["disabled"]["stratified sampling"]
    assert [record.getMessage() for record in caplog.records] == [
        f"sampling: donors are drawn uniformly, because there is no gradient to rank them by (forward_func: {reason})"
    ]
