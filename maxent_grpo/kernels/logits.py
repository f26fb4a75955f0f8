"""Token log-probabilities, sequence log-probabilities and the weighted NLL of given logits.

Peak memory beside the inputs, N rows, `itemsize` bytes to a logit:

    N·V·itemsize            the gradient, where one is needed and not written over the logits
  + b·block                 torch backend only: block = `BLOCK_BYTES`, but at least one row and at most all of them;
                            b = 1, one more for an entropy and one more if rows are dropped
  + 64·N                    results, indices and masks
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from maxent_grpo._checks import expect
from maxent_grpo.kernels._checks import expect_ids, expect_rows, expect_token_weights
from maxent_grpo.kernels.rows import (
    Backend,
    LogitMap,
    WeightedNLL,
    accumulation_dtype,
    kept_rows,
    once,
    outside_graphs,
    row_backend,
)


@outside_graphs
def token_logps(
    logits: Tensor,
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    backend: Backend = "auto",
) -> Tensor:
    """Log-probability of every token, without a second `[..., V]` tensor in the forward (the module says how much).

    log p(y_t) = z_t[y_t] / T − log Σ_v exp(z_t[v] / T), the same as
    `(logits.float() / T).log_softmax(-1).gather(-1, ids[..., None])[..., 0]`.

    Args:
        logits: `[..., V]` of any strides; `logits[:, :-1]` costs no copy.
        ids: `[...]` int64 or int32; −100 marks a row as none.
        mask: `[...]` bool, rows to score; None scores all.
        temperature: T > 0.
        backend: `"auto"`, `"torch"` or `"triton"`.

    Returns:
        `[...]` float32 (float64 for float64 logits), 0 at rows not scored. Differentiable once with respect to the
        logits.

    Raises:
        ValueError: for shapes, dtypes or settings that do not fit, and for an id outside the vocabulary if the ids
            are on the CPU (on a GPU its row is NaN).

    >>> token_logps(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))
    tensor([[-1.3863,  0.0000]])
    """
    keep, rows = _checked(logits, ids, mask, backend)
    flat: Tensor = _TokenLogps.apply(logits, ids.flatten(), keep, LogitMap.checked(temperature), rows)  # type: ignore[no-untyped-call]
    return flat.view(ids.shape)


@outside_graphs
def sequence_logps(
    logits: Tensor,
    ids: Tensor,
    mask: Tensor | None = None,
    *,
    length_normalize: bool = False,
    temperature: float = 1.0,
    backend: Backend = "auto",
) -> Tensor:
    """Log-probability of every sequence: the sum of its tokens', or their mean, in the memory of `token_logps`.

    log p(y) = Σ_t m_t log p(y_t), divided by Σ_t m_t when `length_normalize`; the same as the masked sum (mean) over
    the last dimension of `token_logps`.

    Args:
        logits: `[..., T, V]`.
        ids: `[..., T]` int64 or int32; −100 marks a token as none.
        mask: `[..., T]` bool, tokens to count; None counts all.
        length_normalize: divide by the number of tokens counted.
        temperature: as in `token_logps`.
        backend: as in `token_logps`.

    Returns:
        `[...]` float32 (float64 for float64 logits), 0 for a sequence without tokens. Differentiable once.

    Raises:
        ValueError: as `token_logps`.

    >>> sequence_logps(torch.zeros(1, 3, 4), torch.tensor([[3, 2, -100]]), length_normalize=True)
    tensor([-1.3863])
    """
    expect(logits.ndim >= 3, "logits of shape [..., T, V]", logits=list(logits.shape))
    keep, rows = _checked(logits, ids, mask, backend)
    odds = LogitMap.checked(temperature)
    sums: Tensor = _SequenceLogps.apply(logits, ids.flatten(), keep, odds, rows, length_normalize)  # type: ignore[no-untyped-call]
    return sums.view(ids.shape[:-1])


@outside_graphs
def weighted_nll(
    logits: Tensor,
    ids: Tensor,
    token_weights: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    inplace: bool = False,
    entropy: bool = False,
    backend: Backend = "auto",
) -> WeightedNLL:
    """Eq. (7) and its gradient at once, without the softmax that a backward would need.

    L = −Σ_t c_t log p(y_t) and ∂L/∂z_t = c_t (p_t − onehot(y_t)) / T, both known at once because the coefficients are
    constants; the same as `-(token_weights * token_logps(logits, ids)).sum()`.

    Args:
        logits: `[..., V]` of any strides.
        ids: `[...]` int64 or int32; −100 marks a row as none.
        token_weights: `[...]` c of every token, of either sign; never differentiated. Rows with c = 0 are not read.
        mask: `[...]` bool, rows to count; None counts all.
        temperature: T > 0.
        inplace: write the gradient over the logits, so that no second `[..., V]` tensor exists. The logits are then
            gone; whoever saved them for a backward of their own gets autograd's error.
        entropy: also return every kept row's entropy.
        backend: as in `token_logps`.

    Returns:
        Loss, token log-probabilities and entropy. Without gradients (under `no_grad`) none are computed and the
        logits stay as they are. The gradient is consumed by the first backward.

    Raises:
        ValueError: as `token_logps`; for `inplace` logits that are a leaf or overlap themselves.

    >>> weighted_nll(torch.zeros(2, 4), torch.tensor([3, 1]), torch.tensor([1.0, -0.5])).loss
    tensor(0.6931)
    """
    keep, rows = _checked(logits, ids, mask, backend, token_weights)
    odds = LogitMap.checked(temperature)
    factor = _row_factors(token_weights, keep.view(ids.shape), accumulation_dtype(logits.dtype))
    if torch.is_grad_enabled() and logits.requires_grad:
        expect(
            not (inplace and logits.is_leaf), "logits that another operation computed with inplace=True", leaf=True
        )
        base = logits._base
        expect(
            not (inplace and base is not None and base.is_leaf and base.requires_grad),
            "logits that are no view of a leaf with inplace=True, which would write over it",
            leaf=None if base is None else list(base.shape),
        )
        overlaps = inplace and _may_overlap(logits)
        expect(not overlaps, "logits without shared memory with inplace=True", stride=logits.stride())
        outputs = _WeightedNLL.apply(logits, ids.flatten(), factor, odds, rows, inplace, entropy)  # type: ignore[no-untyped-call]
        loss, logps, entropies = outputs
    else:
        logps, _, entropies = rows.row_logps(logits.detach(), ids.flatten(), factor != 0, odds, entropy=entropy)
        loss = weighted_sum(factor, logps)
    return WeightedNLL(loss, logps.view(ids.shape), None if entropies is None else entropies.view(ids.shape))


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, keep: Tensor, odds: LogitMap, rows: ModuleType) -> Tensor:
        logps: Tensor
        logps, normaliser, _ = rows.row_logps(logits, ids, keep, odds)
        ctx.save_for_backward(logits, ids, keep, normaliser)
        ctx.odds, ctx.rows = odds, rows
        return logps

    @staticmethod
    @once
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, ids, keep, normaliser = ctx.saved_tensors
        return _logits_gradient(ctx, logits, ids, normaliser, torch.where(keep, -upstream, 0)), None, None, None, None


class _SequenceLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ids: Tensor,
        keep: Tensor,
        odds: LogitMap,
        rows: ModuleType,
        length_normalize: bool,
    ) -> Tensor:
        sums, normaliser = rows.sequence_row_logps(logits, ids, keep, odds)
        per_sequence = keep.view(logits.shape[:-1])
        scale = torch.ones_like(sums)
        if length_normalize:
            scale = scale / per_sequence.sum(-1).clamp_min(1).flatten()
        ctx.save_for_backward(logits, ids, keep, normaliser, scale)
        ctx.odds, ctx.rows = odds, rows
        result: Tensor = sums * scale
        return result

    @staticmethod
    @once
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, ids, keep, normaliser, scale = ctx.saved_tensors
        per_row = (-upstream * scale)[:, None].expand(-1, logits.shape[-2]).reshape(-1)
        return _logits_gradient(ctx, logits, ids, normaliser, torch.where(keep, per_row, 0)), *[None] * 5


class _WeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ids: Tensor,
        factor: Tensor,
        odds: LogitMap,
        rows: ModuleType,
        inplace: bool,
        entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        values = logits.detach()
        gradient = values if inplace else torch.empty_like(values, memory_format=torch.contiguous_format)
        logps, _, entropies = rows.row_logps_and_gradient(values, ids, factor, odds, gradient, entropy=entropy)
        if inplace:
            torch.autograd.graph.increment_version(values)
        ctx.gradient, ctx.rows = gradient, rows
        ctx.mark_non_differentiable(*(values for values in (logps, entropies) if values is not None))
        return weighted_sum(factor, logps), logps, entropies

    @staticmethod
    @once
    def backward(ctx: Any, upstream: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient = consumed_once(ctx)
        ctx.rows.scale_(gradient, upstream)
        return gradient, *[None] * 6


def consumed_once(ctx: Any) -> Any:
    """Take what the forward left in `ctx.gradient`; the second backward to come here is told why it cannot."""
    if ctx.gradient is None:
        raise RuntimeError(
            "Expected one backward through a weighted NLL, got a second: its gradient is computed in the forward and "
            "handed out once. Compute the loss again, or sum the losses before the backward."
        )
    gradient, ctx.gradient = ctx.gradient, None
    return gradient


def _checked(
    logits: Tensor, ids: Tensor, mask: Tensor | None, backend: Backend, token_weights: Tensor | None = None
) -> tuple[Tensor, ModuleType]:
    """Check the arguments all operations share; return the kept rows `[N]` and the backend's module."""
    expect_rows("logits", logits, ids, mask)
    if token_weights is not None:
        expect_token_weights(token_weights, ids)
    keep = kept_rows(ids, mask, token_weights)
    expect_ids(ids, keep, logits.shape[-1])
    return keep.flatten(), row_backend(backend, logits)


def _row_factors(token_weights: Tensor, keep: Tensor, dtype: torch.dtype) -> Tensor:
    """`[N]` coefficients, 0 where a row is not kept whatever its weight."""
    return torch.where(keep, token_weights.detach(), 0).to(dtype).flatten()


def _may_overlap(tensor: Tensor) -> bool:
    """Whether two elements may share memory: some step does not clear what the smaller steps reach together."""
    reach = 0
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and step <= reach:
            return True
        reach += step * (size - 1)
    return False


def weighted_sum(factor: Tensor, logps: Tensor) -> Tensor:
    """−Σ c·log p, where 0 · (−∞) counts as 0."""
    return -torch.where(factor != 0, factor * logps, 0).sum()


def _logits_gradient(ctx: Any, logits: Tensor, ids: Tensor, normaliser: Tensor, factor: Tensor) -> Tensor:
    """Return the gradient `[..., V]` whose row i is factor_i · (p_i − onehot_i) · slope, in the logits' dtype."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    ctx.rows.row_gradient(logits, ids, normaliser, factor, ctx.odds, gradient)
    return gradient
