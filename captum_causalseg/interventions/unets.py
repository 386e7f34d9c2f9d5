"""The levels and skip connections of U-Nets, as mediators: MONAI's networks, nnU-Net's, and those of segmentation_models_pytorch.

Level ``k`` is all that passes ``k`` halvings of the resolution or more, as it comes back up; the deepest is the bottleneck. Skip ``k`` is what goes over
to the decoder at level ``k``, 0 at full resolution.
"""

from collections.abc import Iterator

from torch import nn

from captum_causalseg.interventions.mediators import LayerPort, Mediator

__all__ = ["levels_and_skips"]

# MONAI's blocks of decoders that are given what comes from below and what comes over, in this order.
_MERGES = ("UpCat", "UnetrUpBlock", "UnetUpBlock", "UpTransition")

# Decoders that hold a list of blocks, the last of which comes back to full resolution, from where nothing goes over.
_DECODERS = (
    ("segmentation_models_pytorch", "UnetDecoder"),
    ("segmentation_models_pytorch", "LinknetDecoder"),
    ("segmentation_models_pytorch", "MAnetDecoder"),
    ("monai", "UNetDecoder"),
)

_Pair = tuple[tuple[LayerPort, ...], tuple[LayerPort, ...], tuple[LayerPort, ...]]
"""Of one joint of decoder and encoder: what comes from below, what comes over (nothing, perhaps), and what has to stay as it is for that."""


def levels_and_skips(model: nn.Module) -> tuple[list[Mediator], list[Mediator]]:
    """The levels from the first halving on, and the skip connections from full resolution on; none where the model is no U-Net that is known."""
    for joints in (_nested(model), _attention(model), _nnunet(model), _seg_res_net(model), _blocks(model), _merges(model)):
        found = list(joints)
        if found:
            levels = [
                Mediator(f"level {k}" if k < len(found) else "bottleneck", below, role="level", depth=k)
                for k, (below, _, _) in enumerate(found, 1)
            ]
            skips = [
                Mediator(f"skip {k}", over, around, role="skip", depth=k) for k, (_, over, around) in enumerate(found) if over
            ]
            return levels, skips
    return [], []


def _is(module: nn.Module, package: str, name: str) -> bool:
    """Known by its name: the package need not be there."""
    return type(module).__name__ == name and type(module).__module__.split(".")[0] == package


def _nested(model: nn.Module) -> Iterator[_Pair]:
    """Each connection holds all that lies below it; the outermost comes first."""
    for module in model.modules():
        if _is(module, "monai", "SkipConnection"):
            below: nn.Module = module.submodule  # type: ignore[assignment]  # registered as such
            yield (LayerPort(below),), (LayerPort(module, at_input=True),), (LayerPort(below),)


def _attention(model: nn.Module) -> Iterator[_Pair]:
    for module in model.modules():
        if _is(module, "monai", "AttentionLayer"):
            below = module.upconv
            assert isinstance(below, nn.Module)
            # What comes over is weighed by what comes from below.
            yield (LayerPort(below),), (LayerPort(module, at_input=True),), (LayerPort(below),)


def _nnunet(model: nn.Module) -> Iterator[_Pair]:
    """The decoder is given all skips in a list, and begins at the bottom."""
    for module in model.modules():
        if _is(module, "dynamic_network_architectures", "UNetDecoder"):
            upward = module.transpconvs
            assert isinstance(upward, nn.ModuleList)
            for k, below in enumerate(reversed(list(upward))):
                yield (LayerPort(below),), (LayerPort(module, at_input=True, slots=(k,)),), ()
            return


def _seg_res_net(model: nn.Module) -> Iterator[_Pair]:
    """What a stage of the encoder returns goes over and, the same tensor, down."""
    for module in model.modules():
        if type(module).__module__ == "monai.networks.nets.segresnet" and hasattr(module, "up_samples"):
            down, upward = module.down_layers, module.up_samples
            assert isinstance(down, nn.ModuleList)
            assert isinstance(upward, nn.ModuleList)
            for k, below in enumerate(reversed(list(upward))):
                yield (LayerPort(below),), (LayerPort(down[k]),), (LayerPort(down[k + 1]),)
            return


def _blocks(model: nn.Module) -> Iterator[_Pair]:
    """The deepest first."""
    for module in model.modules():
        if any(_is(module, *named) for named in _DECODERS):
            blocks = module.blocks
            assert isinstance(blocks, nn.ModuleList)
            for k, block in enumerate(reversed(list(blocks))):
                yield (LayerPort(block, True, (0,)),), (LayerPort(block, True, (1,)),) if k else (), ()
            return


def _merges(model: nn.Module) -> Iterator[_Pair]:
    """Decoders as a list of blocks, the deepest first."""
    blocks = [module for module in model.modules() if any(_is(module, "monai", name) for name in _MERGES)]
    for block in reversed(blocks):
        yield (LayerPort(block, True, (0,)),), (LayerPort(block, True, (1,)),), ()
