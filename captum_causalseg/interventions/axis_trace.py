"""A forward pass is followed function by function, to tell what the axes of its tensors mean.

Every axis of every tensor is an :class:`~captum_causalseg.interventions.axes.Axis`. What a function does with them is one of the
:data:`~captum_causalseg.interventions.axis_rules.RULES`. Of a function that is not known there nothing is concluded: what it returns has axes of
its own.
"""

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from captum_causalseg.interventions.axes import Axes, Axis
from captum_causalseg.interventions.axis_rules import RULES, Call, tensors_in

__all__ = ["AxisTrace"]


class AxisTrace(TorchFunctionMode):
    """Follows the functions that run inside of its context.

    Attributes:
        watches: whether it does so, or lets them pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: Any = WeakTensorKeyDictionary()
        self.watches = True

    def axes(self, tensor: Tensor) -> Axes:
        """The axes of a tensor; new ones if it was never seen."""
        known: Axes | None = self._known.get(tensor)
        if known is None or tuple(axis.length for axis in known) != tuple(tensor.shape):
            known = self._known[tensor] = tuple(map(Axis, tensor.shape))
        return known

    def note_image(self, tensor: Any) -> None:
        """This is an input of the model, ``(N, C, *spatial)``."""
        if not isinstance(tensor, Tensor) or tensor.ndim == 0:
            return
        axes = self.axes(tensor)
        axes[0].batch = True
        if tensor.ndim > 2:
            axes[1].channel = True
            for number, axis in enumerate(axes[2:]):
                axis.space = number

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.watches:
            return func(*args, **kwargs)
        # relu_, __add__
        name = getattr(func, "__name__", "").strip("_")
        rule = RULES.get(name)
        if rule is None:
            return func(*args, **kwargs)
        # As they are now: what runs may change the shape of a tensor in place.
        call = Call(
            func=func, name=name, args=args, kwargs=kwargs, axes={id(x): self.axes(x) for x in tensors_in((args, kwargs))}
        )
        returned = func(*args, **kwargs)
        outputs = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        made = rule(call, [tuple(x.shape) if isinstance(x, Tensor) else () for x in outputs])
        for tensor, axes in zip(outputs, made):
            if isinstance(tensor, Tensor) and tuple(axis.length for axis in axes) == tuple(tensor.shape):
                self._known[tensor] = axes
        return returned
