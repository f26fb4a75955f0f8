"""The row operations in plain torch: any device, any floating dtype, block by block in one small buffer.

The functions take logits `[..., V]` of any strides and per-row tensors `[N]`, N the product of the leading shape.
Beside their result they hold blocks of `BLOCK_BYTES` (of one row, if that is more): one for the values, and one each
for the slope of a soft cap, for the terms of an entropy and for a copy of the kept rows where some are dropped.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from maxent_grpo.kernels._rows import LogitMap, RowLogps, accumulation_dtype, allocate_row_logps, view_rows

BLOCK_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
"""Bytes of one block in the accumulation dtype: what a CPU's cache holds, what keeps a GPU busy."""


class _BlockLogps(NamedTuple):
    logps: Tensor
    entropy: Tensor | None


def score_rows(logits: Tensor, ids: Tensor, keep: Tensor, logit_map: LogitMap, *, entropy: bool = False) -> RowLogps:
    """Log-probability and entropy of every kept row, 0 elsewhere."""
    result = allocate_row_logps(logits, entropy=entropy)
    scratch = _allocate_scratch(logits)
    for span, (block,) in split_rows(logits):
        rows = _index_rows(keep[span])
        scores, _ = _fill_softmax(block[rows], ids[span][rows], logit_map, scratch, entropy=entropy)
        _store_scores(result, span, rows, scores)
    return result


def score_sequences(logits: Tensor, ids: Tensor, keep: Tensor, logit_map: LogitMap) -> tuple[Tensor, Tensor]:
    """Per sequence of `logits [..., T, V]` the sum of its kept rows' log-probabilities; per row the normalizer."""
    logps, normalizer, _ = score_rows(logits, ids, keep, logit_map)
    return logps.view(logits.shape[:-1]).sum(-1).flatten(), normalizer


def write_row_gradient(
    logits: Tensor, ids: Tensor, normalizer: Tensor, factor: Tensor, logit_map: LogitMap, out: Tensor
) -> None:
    """Write `factor · ∂(−log p)/∂logits` to `out [..., V]`, which may be `logits`; zeros where the factor is 0.

    The normalizer has no use here: a softmax over a cached block costs no more than an exponential.
    """
    del normalizer
    score_and_write_gradient(logits, ids, factor, logit_map, out)


def score_and_write_gradient(
    logits: Tensor, ids: Tensor, factor: Tensor, logit_map: LogitMap, out: Tensor, *, entropy: bool = False
) -> RowLogps:
    """Both in one pass: `score_rows` of the rows whose factor is not 0, and `write_row_gradient` into `out`.

    ∂(−log p)/∂z = (p − onehot) · slope is formed in float32 (float64) and rounded once, to the dtype of `out`.
    """
    result = allocate_row_logps(logits, entropy=entropy)
    scratch = _allocate_scratch(logits)
    for span, (block, target) in split_rows(logits, out):
        rows = _index_rows(factor[span] != 0)
        # The gradient is formed where it is to stay, if that has its dtype and layout and takes every row.
        fits = isinstance(rows, slice) and target.dtype == scratch.dtype and target.is_contiguous()
        buffer = target if fits else scratch
        scores = _fill_gradient(block[rows], ids[span][rows], factor[span][rows], logit_map, buffer, entropy=entropy)
        _store_scores(result, span, rows, scores)
        if isinstance(rows, slice):
            target.copy_(buffer[: len(target)])
        else:
            target.zero_().index_copy_(0, rows, buffer[: len(rows)].to(target.dtype))
    return result


def scale_(gradient: Tensor, upstream: Tensor) -> None:
    """Multiply in place, without a pass over memory where the factor can be seen to be 1."""
    if upstream.device.type != "cpu" or upstream != 1:
        multiply_(gradient, upstream)


def multiply_(gradient: Tensor, upstream: Tensor) -> None:
    """Multiply halves in place by a scalar in float32: without a shape it would be rounded to their dtype first."""
    gradient.mul_(upstream.view((1,) * gradient.ndim))


def split_rows(*tensors: Tensor) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Yield (row numbers, a view `[n, V]` of each tensor) over the rows of `[..., V]`; no strides force a copy."""
    logits = tensors[0]
    row_bytes = logits.shape[-1] * accumulation_dtype(logits.dtype).itemsize
    size = max(1, BLOCK_BYTES.get(logits.device.type, BLOCK_BYTES["cpu"]) // row_bytes)
    start = 0
    for matrices in view_rows(tensors, 2):
        for first in range(0, len(matrices[0]), size):
            blocks = tuple(matrix[first : first + size] for matrix in matrices)
            yield slice(start, start + len(blocks[0])), blocks
            start += len(blocks[0])


def _index_rows(keep: Tensor) -> slice | Tensor:
    """Return the indices where `keep [n]` holds; where that is everywhere, a slice, which copies nothing."""
    return slice(None) if bool(keep.all()) else keep.nonzero().squeeze(-1)


def _allocate_scratch(logits: Tensor) -> Tensor:
    """Return a buffer for the values of one block."""
    rows = max((len(block) for _, (block,) in split_rows(logits)), default=0)
    return logits.new_empty(rows, logits.shape[-1], dtype=accumulation_dtype(logits.dtype))


def _fill_gradient(
    block: Tensor, ids: Tensor, factor: Tensor, logit_map: LogitMap, buffer: Tensor, *, entropy: bool
) -> _BlockLogps:
    """Leave `factor · ∂(−log p)/∂block` in the first rows of `buffer`; return the rows' results."""
    buffer = buffer[: len(block)]
    scores, slope = _fill_softmax(block, ids, logit_map, buffer, entropy=entropy, gradient=True)
    # A row whose id lies outside the vocabulary shows as NaN, as its log-probability does.
    row_factor = torch.where(scores.logps.isnan(), torch.nan, factor * logit_map.slope)[:, None]
    _subtract_onehot_(buffer, ids)
    buffer.mul_(row_factor if slope is None else slope.mul_(row_factor))
    return scores


def _fill_softmax(
    block: Tensor, ids: Tensor, logit_map: LogitMap, buffer: Tensor, *, entropy: bool, gradient: bool = False
) -> tuple[_BlockLogps, Tensor | None]:
    """Leave the probabilities of `block [n, V]` in the first rows of `buffer`.

    Return the rows' results and, for a gradient, the slope of a soft cap.
    """
    buffer = buffer[: len(block)]
    values, slope = block, None
    if logit_map != LogitMap() or block.dtype != buffer.dtype or not block.is_contiguous():
        values = buffer.copy_(block)  # a softmax would copy other strides into a block of its own
        if logit_map.softcap is None:
            values.mul_(logit_map.slope)
        else:
            values.mul_(logit_map.scale / logit_map.softcap).tanh_()
            slope = values.square().neg_().add_(1) if gradient else None
            values.mul_(logit_map.softcap / logit_map.temperature)
    inside = (ids >= 0) & (ids < block.shape[-1])
    target = values.gather(-1, torch.where(inside, ids, 0).long()[:, None]).squeeze(-1)
    top = values.amax(-1)
    torch.softmax(values, -1, out=buffer)
    # log p(id) = z(id) − max z + log max p needs no second exponential and no second buffer.
    logps = torch.where(inside, target - top + buffer.amax(-1).log(), torch.nan)
    entropies = torch.special.entr(buffer).sum(-1) if entropy else None
    return _BlockLogps(logps, entropies), slope


def _subtract_onehot_(probabilities: Tensor, ids: Tensor) -> None:
    """Subtract 1 at each row's id, clamped into the vocabulary: the others' rows are NaN already."""
    columns = ids.long().clamp(0, probabilities.shape[-1] - 1)[:, None]
    probabilities.scatter_add_(-1, columns, probabilities.new_full(columns.shape, -1.0))


def _store_scores(result: RowLogps, span: slice, rows: slice | Tensor, scores: _BlockLogps) -> None:
    """Write the results of some rows of a block into those of all rows."""
    result.logps[span][rows] = scores.logps
    if result.entropy is not None and scores.entropy is not None:
        result.entropy[span][rows] = scores.entropy
