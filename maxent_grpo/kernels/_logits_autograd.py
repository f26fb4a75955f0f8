"""The autograd functions of the operations on given logits, and what they share with those through the LM head."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from maxent_grpo.kernels._rows import LogitMap, forbid_double_backward


class TokenLogps(torch.autograd.Function):
    """log p of every row; the backward computes the softmax again."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, ids: Tensor, keep: Tensor, logit_map: LogitMap, backend: ModuleType
    ) -> Tensor:
        logps: Tensor
        logps, normalizer, _ = backend.score_rows(logits, ids, keep, logit_map)
        ctx.save_for_backward(logits, ids, keep, normalizer)
        ctx.logit_map, ctx.backend = logit_map, backend
        return logps

    @staticmethod
    @forbid_double_backward
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, ids, keep, normalizer = ctx.saved_tensors
        factor = torch.where(keep, -upstream, 0)
        return _compute_gradient(ctx, logits, ids, normalizer, factor), *[None] * 4


class SequenceLogps(torch.autograd.Function):
    """Sum or mean of every sequence's log p; the backward computes the softmax again."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ids: Tensor,
        keep: Tensor,
        logit_map: LogitMap,
        backend: ModuleType,
        length_normalize: bool,
    ) -> Tensor:
        sums, normalizer = backend.score_sequences(logits, ids, keep, logit_map)
        scale = torch.ones_like(sums)
        if length_normalize:
            scale = scale / keep.view(logits.shape[:-1]).sum(-1).clamp_min(1).flatten()
        ctx.save_for_backward(logits, ids, keep, normalizer, scale)
        ctx.logit_map, ctx.backend = logit_map, backend
        result: Tensor = sums * scale
        return result

    @staticmethod
    @forbid_double_backward
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, ids, keep, normalizer, scale = ctx.saved_tensors
        row_upstream = (upstream * scale)[:, None].expand(-1, logits.shape[-2]).reshape(-1)
        factor = torch.where(keep, -row_upstream, 0)
        return _compute_gradient(ctx, logits, ids, normalizer, factor), *[None] * 5


class WeightedNLLFunction(torch.autograd.Function):
    """−Σ c·log p and its gradient at once; the backward only scales what the forward left."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ids: Tensor,
        factor: Tensor,
        logit_map: LogitMap,
        backend: ModuleType,
        inplace: bool,
        entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        values = logits.detach()
        gradient = values if inplace else torch.empty_like(values, memory_format=torch.contiguous_format)
        logps, _, entropies = backend.score_and_write_gradient(
            values, ids, factor, logit_map, gradient, entropy=entropy
        )
        if inplace:  # whoever saved the logits for a backward of their own must get autograd's error
            torch.autograd.graph.increment_version(values)
        ctx.gradient, ctx.backend = gradient, backend
        ctx.mark_non_differentiable(*(values for values in (logps, entropies) if values is not None))
        return sum_nll(factor, logps), logps, entropies

    @staticmethod
    @forbid_double_backward
    def backward(ctx: Any, upstream: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient = take_gradient(ctx)
        ctx.backend.scale_(gradient, upstream)
        return gradient, *[None] * 6


def take_gradient(ctx: Any) -> Any:
    """Return what the forward left in `ctx.gradient`, once; a second backward raises."""
    if ctx.gradient is None:
        raise RuntimeError(
            "Expected one backward through a weighted NLL, got a second: its gradient is computed in the forward and "
            "handed out once. Compute the loss again, or sum the losses before the backward."
        )
    gradient, ctx.gradient = ctx.gradient, None  # the graph may outlive the backward; its largest tensor need not
    return gradient


def sum_nll(factor: Tensor, logps: Tensor) -> Tensor:
    """Return −Σ c·log p, where 0 · (−∞) counts as 0."""
    return -torch.where(factor != 0, factor * logps, 0).sum()


def _compute_gradient(ctx: Any, logits: Tensor, ids: Tensor, normalizer: Tensor, factor: Tensor) -> Tensor:
    """Return the gradient `[..., V]` whose row i is factor_i · (p_i − onehot_i) · slope, in the logits' dtype."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    ctx.backend.write_row_gradient(logits, ids, normalizer, factor, ctx.logit_map, gradient)
    return gradient
