"""Which of several scores is asked for."""

from collections.abc import Sequence

from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg.statistics import target_index
from captum_causalseg.target.scores import WRAPPED

__all__ = ["chosen_output"]


def chosen_output(
    target: TargetType,
    n_examples: int,
    output_shape: Sequence[int],
    output_axes: Sequence[str],
    spatial: Sequence[int],
) -> Tensor:
    """Per example, the flat index ``(N,)`` of the output that ``target`` picks.

    Args:
        target: in all of Captum's forms.
        n_examples: ``N``.
        output_shape: of one example's scores.
        output_axes: names of its axes.
        spatial: of the image that is segmented.

    Raises:
        ValueError: it picks no output, or several. Of a segmentation in the place of scores, that is said first.
    """
    try:
        return target_index(target, n_examples, output_shape, output_axes)
    except ValueError as error:
        if not _is_map(output_shape, output_axes, spatial):
            raise
        raise ValueError(
            f"forward_func: it returns {tuple(output_shape)} per example, a segmentation and not scores; wrap the model first: {WRAPPED} "
            f"scores a region of it, by classes to pick from ({error})"
        ) from error


def _is_map(shape: Sequence[int], axes: Sequence[str], spatial: Sequence[int]) -> bool:
    """Whether outputs ``(C, *spatial)`` or ``(*spatial)`` are a map of an image, at its resolution or a coarser one."""
    n = len(spatial)
    if not n or len(shape) not in (n, n + 1) or not all(name.startswith("output") for name in axes):
        return False
    own = tuple(shape[-n:])
    ratios = {side / mine for side, mine in zip(spatial, own)}
    return own == tuple(spatial) or (n > 1 and len(ratios) == 1 and min(own) > 1 and max(ratios) > 1)
