"""From what a model documents that it returns to logits per class or per prompt, one kind of model a file; open to the user's own."""

from captum_causalseg.target.adapters.candidates import best_candidate
from captum_causalseg.target.adapters.queries import class_scores, object_masks
from captum_causalseg.target.adapters.table import (
    ADAPTERS,
    Adapter,
    Reading,
    adapter_for,
    model_adapter,
    register_adapter,
)
from captum_causalseg.target.adapters.volumes import of_prompts

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Reading",
    "adapter_for",
    "best_candidate",
    "class_scores",
    "model_adapter",
    "object_masks",
    "of_prompts",
    "register_adapter",
]
