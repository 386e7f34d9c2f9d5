"""Attention of PyTorch itself, step by step, so that what its heads say can be seen before it is projected."""

from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg._checks import checked, instance

__all__ = ["RevealedHeads", "reveal_heads"]


@checked(model=instance(nn.Module))
def reveal_heads(model: nn.Module) -> "RevealedHeads":
    """Have every ``torch.nn.MultiheadAttention`` of a model run its output projection as a module, which takes the heads side by side.

    PyTorch computes attention and projection in one function, so that no module takes or returns what the heads say. After this call
    the attention's ``out_proj`` takes it, ``(N, tokens, channels)`` with the images first, whatever ``batch_first`` says: the heads are
    units of ``LayerAverageTreatmentEffect(target, attention.out_proj).attribute(..., units="head", attribute_to_layer_input=True)`` and of
    ``component_effects(level="head")``. The model returns the same to rounding (in another order of sums); parameters, hooks and modes are
    the same. Modules derived from ``torch.nn.MultiheadAttention`` are left as they are, because they may compute something else.

    Args:
        model: it is changed until :meth:`RevealedHeads.remove` is called on what is returned, or the ``with`` statement ends.

    Returns:
        What takes it back.

    Raises:
        ValueError: the model holds no ``torch.nn.MultiheadAttention``.

    Example:
        >>> import torch
        >>> from captum_causalseg import reveal_heads
        >>> attention = torch.nn.MultiheadAttention(8, num_heads=2, batch_first=True).eval()
        >>> tokens = torch.rand(1, 5, 8)
        >>> before = attention(tokens, tokens, tokens)[0]
        >>> with reveal_heads(attention):
        ...     handle = attention.out_proj.register_forward_pre_hook(lambda module, args: print(args[0].shape))
        ...     after = attention(tokens, tokens, tokens)[0]
        torch.Size([1, 5, 8])
        >>> torch.allclose(before, after, atol=1e-6), type(attention).__name__
        (True, 'MultiheadAttention')
    """
    found = [module for module in model.modules() if type(module) is nn.MultiheadAttention]
    if not found and not any(isinstance(module, _StepByStep) for module in model.modules()):
        raise ValueError(
            f"model: expected one that holds torch.nn.MultiheadAttention, got {type(model).__name__} without any; heads of other attention "
            "modules lie in the input of their output projections as they are"
        )
    for module in found:
        module.__class__ = _StepByStep
    return RevealedHeads(found)


class RevealedHeads:
    """Attention modules that run step by step; as a context manager, until it ends.

    Args:
        modules: they.
    """

    def __init__(self, modules: list[nn.MultiheadAttention]) -> None:
        self._revealed = modules

    def remove(self) -> None:
        """Have them run as they did before."""
        for module in self._revealed:
            module.__class__ = nn.MultiheadAttention

    def __enter__(self) -> "RevealedHeads":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.remove()


class _StepByStep(nn.MultiheadAttention):
    # A class rather than a forward of the instance: copies, pickles and replicas of DataParallel have it as well.

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As of ``torch.nn.MultiheadAttention``; ``is_causal`` is a hint of what the mask is, and the mask is what counts."""
        if query.is_nested or key.is_nested or value.is_nested:
            return super().forward(
                query,
                key,
                value,
                key_padding_mask=key_padding_mask,
                need_weights=need_weights,
                attn_mask=attn_mask,
                average_attn_weights=average_attn_weights,
                is_causal=is_causal,
            )
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask: expected the causal mask, which is_causal=True is a hint of, got None")
        is_batch = query.ndim == 3
        given = [self._images_first(tensor, is_batch) for tensor in (query, key, value)]
        q, k, v = (functional.linear(x, *parameters) for x, parameters in zip(given, self._projections()))
        n, length = q.shape[:2]
        mask = self._mask(attn_mask, key_padding_mask, n, like=q)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = torch.cat([k, self.bias_k.expand(n, -1, -1)], 1), torch.cat([v, self.bias_v.expand(n, -1, -1)], 1)
        q, k, v = (x.reshape(n, x.shape[1], self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = (torch.cat([x, x.new_zeros(n, self.num_heads, 1, x.shape[-1])], 2) for x in (k, v))
        if mask is not None and mask.shape[-1] < k.shape[2]:
            mask = functional.pad(mask, (0, k.shape[2] - mask.shape[-1]))  # what was added is masked nowhere
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * (1 / q.shape[-1]) ** 0.5 @ k.transpose(2, 3)
            weights = functional.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            found = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if is_batch else weights[0]
        else:
            found = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        projected = self.out_proj(found.transpose(1, 2).reshape(n, length, self.embed_dim))
        if not is_batch:
            return projected[0], weights
        return projected if self.batch_first else projected.transpose(0, 1), weights

    def _images_first(self, tensor: Tensor, is_batch: bool) -> Tensor:
        if not is_batch:
            return tensor[None]
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _projections(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weights and biases of queries, keys and values."""
        weights = (
            self.in_proj_weight.chunk(3)
            if self._qkv_same_embed_dim
            else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return list(zip(weights, biases))

    def _mask(self, attention: Tensor | None, padding: Tensor | None, n: int, like: Tensor) -> Tensor | None:
        """What is added to the scores ``(N, heads, L, S)``; boolean masks are true where nothing is looked at."""
        found = []
        if attention is not None:
            found.append(
                attention.reshape(n, self.num_heads, *attention.shape[1:]) if attention.ndim == 3 else attention[None, None]
            )
        if padding is not None:
            found.append(padding.view(n, 1, 1, -1))
        added = [
            torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)
            if mask.dtype == torch.bool
            else mask.to(like.dtype)
            for mask in found
        ]
        return sum(added[1:], added[0]) if added else None
