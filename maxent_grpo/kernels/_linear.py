"""The same three operations through the LM head: a chunk of logits at a time, in one reused buffer.

With F = N·D·V over the N kept rows, scoring costs 2F floating point operations, a differentiable score 8F (2F
forward, 2F to compute the logits again, 2F each for dH and dW) and the one-pass `linear_weighted_nll` 6F: its
coefficients are known, so dH and dW follow while a chunk's logits are still in the buffer. A frozen head saves the 2F
of dW, frozen hidden states those of dH.

Peak memory beside the inputs, n of N rows kept, `chunk` rows to a chunk, `itemsize` bytes to a logit:

    chunk·V·itemsize        one chunk of logits: 4096 rows or `chunk_bytes`, whichever is less, or one row; all rows
                            where that spares the sum of dW: they and their products within `chunk_bytes`, by
                            default V·D·4 more, dW wanted, head and any bias in bfloat16
  + b·block                 torch backend only: block = min(BLOCK_BYTES, chunk·V·4), or one row; b = 1, one more for a
                            soft cap with gradients and one more for an entropy
  + n·D·itemsize            a copy of the kept rows, if some are dropped
  + N·D·itemsize            a copy of hidden states whose rows no view `[N, D]` reaches, such as `hidden[:, :-1]`
  + 3·chunk·D·4             products of a chunk
  + (N·D + V·D)·itemsize    the gradients, where they are needed
  + V·D·4                   dW in float32 before it is rounded, for a half precision weight; not if one chunk
                            has all rows, head and any bias in bfloat16
  + chunk·V·4               the chunk in float32, for half precision on a CPU; not in that case either
  + 64·N                    results, indices and masks

Under autocast the copies in its dtype come on top, (n·D + V·D)·2, as for any layer, and the gradients are there in
both dtypes for a moment. CUDA with torch < 2.10 holds a product [V, D] in float32 beside the sum of dW.
"""

import torch
from torch import Tensor

from maxent_grpo._checks import expect, expect_tensor
from maxent_grpo.kernels._checks import (
    expect_chunk_bytes,
    expect_flags,
    expect_head,
    expect_ids,
    expect_row_count,
    expect_rows,
    expect_token_weights,
)
from maxent_grpo.kernels._kept_rows import KeptRows
from maxent_grpo.kernels._linear_autograd import LinearTokenLogps, LinearWeightedNLL, Settings, score_chunks
from maxent_grpo.kernels._logits_autograd import sum_nll
from maxent_grpo.kernels._rows import (
    Backend,
    LogitMap,
    WeightedNLL,
    accumulation_dtype,
    exclude_from_graphs,
    load_backend,
    mark_kept_rows,
)


@exclude_from_graphs
def linear_token_logps(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    row_count: int | None = None,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_bytes: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Log-probability of every token from hidden states and the LM head; logits exist a chunk at a time.

    log p(y_t) = log softmax(cap(scale · (W h_t + b)) / T)[y_t] with cap(x) = softcap · tanh(x / softcap), the same as
    `token_logps(hidden @ weight.T + bias, ids)` without scale and cap.

    Args:
        hidden: `[..., D]`.
        weight: `[V, D]` of the dtype of `hidden`; any floating dtype under autocast.
        ids: `[...]` int64 or int32; −100 marks a row as none.
        mask: `[...]` bool, rows to score; None scores all. Other rows are dropped before the matmul, whose size the
            host must know: on a GPU the call waits for the device once, in which nothing new reaches it.
        row_count: how many rows are scored, where the caller knows: then nobody waits.
        bias: `[V]` or None.
        temperature: T > 0.
        logit_scale: factor on the raw logits.
        softcap: bound of a final tanh soft cap, or None.
        chunk_bytes: memory for one chunk of logits, of 4096 rows at most unless one chunk of bfloat16 has all; None
            takes the device's default, and as much more as dW's float32 sum would take where that makes one chunk
            of bfloat16.
        backend: `"auto"`, `"torch"` or `"triton"`.

    Returns:
        `[...]` float32 (float64 for float64 inputs), 0 at rows not scored. Differentiable once with respect to
        hidden, weight and bias; the backward computes the logits again.

    Raises:
        ValueError: for shapes, dtypes or settings that do not fit, and on a CPU for an id outside the vocabulary or a
            row_count that is not true (on a GPU the id's row or all rows are NaN).

    >>> linear_token_logps(torch.zeros(1, 2, 8), torch.ones(4, 8), torch.tensor([[3, -100]]))
    tensor([[-1.3863,  0.0000]])
    """
    keep = _check_inputs(hidden, weight, bias, ids, mask, row_count=row_count)
    logit_map = LogitMap.build(temperature, logit_scale, softcap)
    settings = _build_settings(hidden, logit_map, chunk_bytes, backend)
    rows = KeptRows(keep, row_count)
    inputs = rows.select(hidden), weight, bias, rows.select(ids)
    if _wants_gradient(hidden, weight, bias):
        logps: Tensor = LinearTokenLogps.apply(*inputs, settings)  # type: ignore[no-untyped-call]
    else:
        logps = score_chunks(*inputs, settings).logps
    return rows.scatter(logps)


@exclude_from_graphs
def linear_sequence_logps(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    mask: Tensor | None = None,
    *,
    length_normalize: bool = False,
    row_count: int | None = None,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_bytes: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Log-probability of every sequence from hidden states `[..., T, D]` and the LM head.

    The sum (mean, when `length_normalize`) over the last dimension of `linear_token_logps`, of which it takes all
    other arguments.

    Returns:
        `[...]` float32 (float64 for float64 inputs), 0 for a sequence without tokens. Differentiable once.

    Raises:
        ValueError: as `linear_token_logps`.

    >>> linear_sequence_logps(torch.zeros(1, 2, 8), torch.ones(4, 8), torch.tensor([[3, 0]]))
    tensor([-2.7726])
    """
    expect_tensor("hidden", hidden)
    expect(hidden.ndim >= 3, "hidden of shape [..., T, D]", hidden=list(hidden.shape))
    expect_flags(length_normalize=length_normalize)
    logps = linear_token_logps(
        hidden,
        weight,
        ids,
        mask=mask,
        row_count=row_count,
        bias=bias,
        temperature=temperature,
        logit_scale=logit_scale,
        softcap=softcap,
        chunk_bytes=chunk_bytes,
        backend=backend,
    )
    sums = logps.sum(-1)
    return sums / mark_kept_rows(ids, mask).sum(-1).clamp_min(1) if length_normalize else sums


@exclude_from_graphs
def linear_weighted_nll(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    token_weights: Tensor,
    *,
    mask: Tensor | None = None,
    row_count: int | None = None,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    chunk_bytes: int | None = None,
    backend: Backend = "auto",
) -> WeightedNLL:
    """Eq. (7) through the LM head, loss and all gradients in one pass of 6·N·D·V floating point operations.

    L = −Σ_t c_t log p(y_t), dZ_t = c_t (p_t − onehot(y_t)) · ∂odds/∂z, dH = dZ·W, dW = dZᵀ·H, db = Σ_t dZ_t; the same
    as `-(token_weights * linear_token_logps(hidden, weight, ids)).sum()`. dW is summed in float32,
    or is what the matmul rounds where one chunk has all rows, head and any bias in bfloat16.

    Args:
        hidden: `[..., D]`; needs no gradient if the body is frozen.
        weight: `[V, D]` of the dtype of `hidden`; any floating dtype under autocast. May be tied to the embedding.
        ids: `[...]` int64 or int32; −100 marks a row as none.
        token_weights: `[...]` c of every token, of either sign; never differentiated. Rows with c = 0 are dropped
            before the matmul.
        mask: as in `linear_token_logps`.
        row_count: how many rows are kept, as in `linear_token_logps`.
        bias: `[V]` or None.
        temperature: T > 0.
        logit_scale: as in `linear_token_logps`.
        softcap: as in `linear_token_logps`.
        entropy: also return every kept row's entropy.
        chunk_bytes: as in `linear_token_logps`.
        backend: `"auto"`, `"torch"` or `"triton"`.

    Returns:
        Loss, token log-probabilities and entropy. The gradients are computed with the loss, only where needed (none
        under `no_grad`), and handed out by the first backward.

    Raises:
        ValueError: as `linear_token_logps`.

    >>> linear_weighted_nll(torch.zeros(2, 8), torch.ones(4, 8), torch.tensor([3, 1]), torch.tensor([1.0, -0.5])).loss
    tensor(0.6931)
    """
    expect_tensor("token_weights", token_weights)
    keep = _check_inputs(hidden, weight, bias, ids, mask, token_weights, row_count=row_count)
    expect_flags(entropy=entropy)
    logit_map = LogitMap.build(temperature, logit_scale, softcap)
    settings = _build_settings(hidden, logit_map, chunk_bytes, backend)._replace(entropy=entropy)
    rows = KeptRows(keep, row_count)  # only rows with a weight meet the head
    factor = rows.distrust(rows.select(token_weights.detach()).to(accumulation_dtype(settings.dtype)))
    inputs = rows.select(hidden), weight, bias, rows.select(ids)
    if _wants_gradient(hidden, weight, bias):
        loss, logps, entropies = LinearWeightedNLL.apply(*inputs, factor, settings)  # type: ignore[no-untyped-call]
    else:
        # Nobody wants a gradient, which would be two thirds of the work.
        logps, _, entropies = score_chunks(*inputs, settings)
        loss = sum_nll(factor, logps)
    return WeightedNLL(
        loss,
        rows.scatter(logps),
        None if entropies is None else rows.scatter(entropies),
    )


def _check_inputs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    mask: Tensor | None,
    token_weights: Tensor | None = None,
    *,
    row_count: int | None = None,
) -> Tensor:
    """Check the arguments all operations share; return the kept rows `[...]`."""
    expect_rows("hidden", hidden, ids, mask)
    expect_head(hidden, weight, bias)
    if token_weights is not None:
        expect_token_weights(token_weights, ids)
    keep = mark_kept_rows(ids, mask, token_weights)
    expect_ids(ids, keep, len(weight))
    expect_row_count(row_count, keep)
    return keep


def _build_settings(hidden: Tensor, logit_map: LogitMap, chunk_bytes: int | None, backend: Backend) -> Settings:
    """Gather the settings of one call: under autocast the matmuls run in its dtype."""
    expect_chunk_bytes(chunk_bytes)
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device) and hidden.dtype != torch.float64  # autocast leaves float64 alone
    dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
    return Settings(logit_map, load_backend(backend, hidden), device, dtype, chunk_bytes)


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
