"""Every private name taken from Captum, in one file, so that a new Captum release is met in one place (0.8 and 0.9)."""

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
    "log_usage",
    "progress",
    "select_targets",
]
