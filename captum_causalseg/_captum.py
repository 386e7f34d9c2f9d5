"""Every private name taken from Captum, in one file, so that a new Captum release is met in one place (0.8 and 0.9)."""

from typing import Any

from captum._utils.common import (
    _format_additional_forward_args as format_additional_forward_args,
)
from captum._utils.common import _select_targets as select_targets
from captum._utils.progress import progress
from captum._utils.typing import TargetType
from captum.attr._utils.attribution import GradientAttribution, LayerAttribution, PerturbationAttribution
from captum.log import log_usage

__all__ = [
    "GradientAttribution",
    "LayerAttribution",
    "PerturbationAttribution",
    "TargetType",
    "format_additional_forward_args",
    "keeps_one_call",
    "log_usage",
    "progress",
    "select_targets",
]

# Hooks of guided backpropagation change the gradient of each call of a module by itself.
_OF_EACH_CALL = ("captum._utils.common", "captum.attr._core.guided_backprop_deconvnet")


def keeps_one_call(hook: Any) -> bool:
    """Whether a module's hook is one of Captum's that keep what the module took or gave in one call, and forget it in the next one."""
    module = getattr(getattr(hook, "func", hook), "__module__", None) or ""
    return module.startswith("captum.") and module not in _OF_EACH_CALL
