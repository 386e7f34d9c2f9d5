"""Models of volumes that are prompted and give one volume per prompt: VISTA3D."""

from typing import Any

from torch import Tensor

from captum_causalseg._checks import shown

__all__ = ["of_prompts"]


def of_prompts(returned: Any, image: Tensor | None) -> Tensor:
    """Logits ``(1, B, *spatial)`` of the ``B`` classes or points that one image was prompted with.

    Args:
        returned: by VISTA3D: ``(B, 1, *spatial)``, or ``(1, B, *spatial)`` with ``transpose=True``.
        image: that was given to the model, ``(1, C, *spatial)``.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(returned, Tensor):
        raise ValueError(f"output: 'vista3d' expects a tensor (prompts, 1, *spatial), got {shown(type(returned).__name__)}")
    if image is not None and len(image) != 1:
        raise ValueError(f"output: 'vista3d' expects one image at a time, got {len(image)}")
    if 1 not in returned.shape[:2] or (image is not None and returned.ndim != image.ndim):
        raise ValueError(
            f"output: 'vista3d' expects (prompts, 1, *spatial), or (1, prompts, *spatial), got {tuple(returned.shape)}"
        )
    return returned if len(returned) == 1 else returned.transpose(0, 1)
