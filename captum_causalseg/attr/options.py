"""What a face was asked for, made once from its keywords and handed on whole."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from captum_causalseg._captum import TargetType
from captum_causalseg.attr.effort import Effort
from captum_causalseg.attr.progress import Report
from captum_causalseg.donors import MovedPrompts
from captum_causalseg.engine.contexts import Context
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.interventions.reach import ImageSearch
from captum_causalseg.layout import UNIT_KINDS, UnitKind
from captum_causalseg.target.scorer import Scorer

__all__ = ["InputAndLayerUnits", "InputUnits", "LayerUnits", "Options", "PromptArguments", "PromptUnits"]


@dataclass(frozen=True, kw_only=True)
class InputUnits:
    """Which parts of the inputs are units, and which of them are left as they are. See ``AverageTreatmentEffect.attribute``."""

    feature_mask: Any = None
    block_size: Any = None
    exclude: Any = "roi"
    channels: Any = None
    kind: UnitKind = "block"
    region: Any = None
    """Ids of units, or a boolean mask: these are one unit together, and all else is left as it is. See :mod:`captum_causalseg.attr.one_region`."""
    whole_blocks_only: bool = False
    """Leave out what remains of blocks at the edges, as the published protocol does."""

    @property
    def asked(self) -> str:
        """What units are, in a word."""
        return self.kind if self.feature_mask is None else "feature_mask"


@dataclass(frozen=True, kw_only=True)
class LayerUnits:
    """Which layer is meant, and which parts of its activation are units. See ``LayerAverageTreatmentEffect.attribute``."""

    layer: nn.Module
    device_ids: Any = None
    at_input: bool = False
    layer_mask: Any = None
    kind: UnitKind = "channel"
    block_size: Any = None
    layout: Any = "auto"

    @property
    def asked(self) -> str:
        """What units are, in a word."""
        return "layer_mask" if self.layer_mask is not None else self.kind

    @property
    def by_heads(self) -> bool:
        """Whether units are attention heads."""
        return self.layer_mask is None and self.kind == "head"

    @property
    def in_blocks(self) -> bool:
        """Whether units are blocks, which need a size."""
        return self.layer_mask is None and UNIT_KINDS[self.kind].in_blocks


@dataclass(frozen=True, kw_only=True)
class InputAndLayerUnits:
    """Units of the inputs, and units of layers, which are numbered on in the order of the layers."""

    inputs: InputUnits
    layers: tuple[LayerUnits, ...]
    layer_baselines: Any = None


@dataclass(frozen=True, kw_only=True)
class PromptArguments:
    """Where in a call prompts stand. See ``PromptTreatmentEffect``."""

    points: str | int | None = None
    labels: str | int | None = None
    boxes: str | int | None = None
    masks: str | int | None = None
    texts: str | int | None = None
    maps: tuple[int | tuple[int, int], ...] | None = None
    no_text: Tensor | None = None
    padding_label: int | None = None
    indexing: Literal["xy", "ij"] = "xy"


@dataclass(frozen=True, kw_only=True)
class PromptUnits:
    """Prompts, and which units of the images stand beside them.

    Args:
        prompts: where they stand.
        moved: where they are moved; ``None``: they are left out.
        regions: of the images, whose units come first; ``None``: none.
    """

    prompts: PromptArguments
    moved: MovedPrompts | None = None
    regions: InputUnits | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of ``attribute``, ``plan`` and their like, as the user gave them; nothing is checked yet.

    Args:
        forward_func: what is explained.
        inputs, additional_forward_args, target: likewise, as in Captum.
        baselines: what units are replaced by.
        units: which parts, of the inputs, of a layer, or of both.
        effort: how donors are drawn; of no matter where none are.
        context: which other units are replaced as well when a unit is; ``None`` where that is no question.
        execution: how the model is run.
        name: of the method, for progress bars and the log.
        show_progress, return_statistics: what is shown and returned besides.
        controls: which controls are measured besides; they are in the statistics.
        images: what calls about other layers of the model have found out about the same images.
    """

    forward_func: Callable[..., Any]
    inputs: Any
    units: InputUnits | LayerUnits | InputAndLayerUnits | PromptUnits
    baselines: Any = None
    additional_forward_args: Any = None
    target: TargetType = None
    effort: Effort = field(default_factory=Effort)
    context: Context | None = None
    execution: Execution = field(default_factory=Execution)
    name: str = ""
    show_progress: bool | Report = False
    return_statistics: bool = False
    controls: Literal["edge"] | None = None
    images: ImageSearch | None = None

    @property
    def joint(self) -> Context | None:
        """The context, where in it other units are replaced as well."""
        return None if self.context is None or self.context.alone else self.context

    @property
    def executed(self) -> Scorer:
        """The function as it is run: with one perturbation at a time, every image alone."""
        return self.execution.scorer(self.forward_func)
