"""The row operations in plain torch: any device, any floating dtype, block by block in one small buffer.

The functions take logits `[..., V]` of any strides and per-row tensors `[N]`, N the product of the leading shape.
Beside their result they hold blocks of `BLOCK_BYTES` (of one row, if that is more): one for the values, and one each
for the slope of a soft cap, for the terms of an entropy and for a copy of the kept rows where some are dropped.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from maxent_grpo.kernels.rows import LogitMap, RowLogps, accumulation_dtype, empty_row_logps, row_views

BLOCK_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
"""Bytes of one block in the accumulation dtype: what a CPU's cache holds, what keeps a GPU busy."""


class _BlockLogps(NamedTuple):
    logps: Tensor
    entropy: Tensor | None


def row_logps(logits: Tensor, ids: Tensor, keep: Tensor, odds: LogitMap, *, entropy: bool = False) -> RowLogps:
    """Log-probability and entropy of every kept row, 0 elsewhere."""
    result = empty_row_logps(logits, entropy=entropy)
    scratch = _scratch(logits)
    for span, (block,) in row_blocks(logits):
        rows = _kept(keep[span])
        found, _ = _softmax(block[rows], ids[span][rows], odds, scratch, entropy=entropy)
        _store(result, span, rows, found)
    return result


def sequence_row_logps(logits: Tensor, ids: Tensor, keep: Tensor, odds: LogitMap) -> tuple[Tensor, Tensor]:
    """Per sequence of `logits [..., T, V]` the sum of its kept rows' log-probabilities; per row the normaliser."""
    logps, normaliser, _ = row_logps(logits, ids, keep, odds)
    return logps.view(logits.shape[:-1]).sum(-1).flatten(), normaliser


def row_gradient(
    logits: Tensor, ids: Tensor, normaliser: Tensor, factor: Tensor, odds: LogitMap, out: Tensor
) -> None:
    """Write `factor · ∂(−log p)/∂logits` to `out [..., V]`, which may be `logits`; zeros where the factor is 0.

    The normaliser has no use here: a softmax over a cached block costs no more than an exponential.
    """
    del normaliser
    row_logps_and_gradient(logits, ids, factor, odds, out)


def row_logps_and_gradient(
    logits: Tensor, ids: Tensor, factor: Tensor, odds: LogitMap, out: Tensor, *, entropy: bool = False
) -> RowLogps:
    """Both in one pass: `row_logps` of the rows whose factor is not 0, and `row_gradient` into `out`.

    ∂(−log p)/∂z = (p − onehot) · slope is formed in float32 (float64) and rounded once, to the dtype of `out`.
    """
    result = empty_row_logps(logits, entropy=entropy)
    scratch = _scratch(logits)
    for span, (block, target) in row_blocks(logits, out):
        rows = _kept(factor[span] != 0)
        direct = isinstance(rows, slice) and target.dtype == scratch.dtype and target.is_contiguous()
        work = target if direct else scratch
        found = _gradient(block[rows], ids[span][rows], factor[span][rows], odds, work, entropy=entropy)
        _store(result, span, rows, found)
        if isinstance(rows, slice):
            target.copy_(work[: len(target)])
        else:
            target.zero_().index_copy_(0, rows, work[: len(rows)].to(target.dtype))
    return result


def scale_(gradient: Tensor, upstream: Tensor) -> None:
    """Multiply in place, without a pass over memory where the factor can be seen to be 1."""
    if upstream.device.type != "cpu" or upstream != 1:
        gradient.mul_(upstream)


def row_blocks(*tensors: Tensor) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Yield (row numbers, a view `[n, V]` of each tensor) over the rows of `[..., V]`; no strides force a copy."""
    logits = tensors[0]
    row_bytes = logits.shape[-1] * accumulation_dtype(logits.dtype).itemsize
    size = max(1, BLOCK_BYTES.get(logits.device.type, BLOCK_BYTES["cpu"]) // row_bytes)
    start = 0
    for matrices in row_views(tensors, 2):
        for first in range(0, len(matrices[0]), size):
            blocks = tuple(matrix[first : first + size] for matrix in matrices)
            yield slice(start, start + len(blocks[0])), blocks
            start += len(blocks[0])


def _kept(keep: Tensor) -> slice | Tensor:
    """Return the indices where `keep [n]` holds; where that is everywhere, a slice, which copies nothing."""
    return slice(None) if bool(keep.all()) else keep.nonzero().squeeze(-1)


def _scratch(logits: Tensor) -> Tensor:
    """Return a buffer for the values of one block."""
    rows = max((len(block) for _, (block,) in row_blocks(logits)), default=0)
    return logits.new_empty(rows, logits.shape[-1], dtype=accumulation_dtype(logits.dtype))


def _gradient(
    block: Tensor, ids: Tensor, factor: Tensor, odds: LogitMap, work: Tensor, *, entropy: bool
) -> _BlockLogps:
    """Leave `factor · ∂(−log p)/∂block` in the first rows of `work`; return the rows' results."""
    work = work[: len(block)]
    found, slope = _softmax(block, ids, odds, work, entropy=entropy, gradient=True)
    row_factor = torch.where(found.logps.isnan(), torch.nan, factor * odds.slope)[:, None]
    _subtract_onehot_(work, ids)
    work.mul_(row_factor if slope is None else slope.mul_(row_factor))
    return found


def _softmax(
    block: Tensor, ids: Tensor, odds: LogitMap, work: Tensor, *, entropy: bool, gradient: bool = False
) -> tuple[_BlockLogps, Tensor | None]:
    """Leave the probabilities of `block [n, V]` in the first rows of `work`.

    Return the rows' results and, for a gradient, the slope of a soft cap.
    log p(id) = z(id) − max z + log max p: no second exponential, no second buffer.
    """
    work = work[: len(block)]
    values, slope = block, None
    if odds != LogitMap() or block.dtype != work.dtype or not block.is_contiguous():
        values = work.copy_(block)  # a softmax would copy other strides into a block of its own
        if odds.softcap is None:
            values.mul_(odds.slope)
        else:
            values.mul_(odds.scale / odds.softcap).tanh_()
            slope = values.square().neg_().add_(1) if gradient else None
            values.mul_(odds.softcap / odds.temperature)
    inside = (ids >= 0) & (ids < block.shape[-1])
    target = values.gather(-1, torch.where(inside, ids, 0).long()[:, None]).squeeze(-1)
    top = values.amax(-1)
    torch.softmax(values, -1, out=work)
    logps = torch.where(inside, target - top + work.amax(-1).log(), torch.nan)
    entropies = torch.special.entr(work).sum(-1) if entropy else None
    return _BlockLogps(logps, entropies), slope


def _subtract_onehot_(probabilities: Tensor, ids: Tensor) -> None:
    """Subtract 1 at each row's id, clamped into the vocabulary: the others' rows are NaN already."""
    at = ids.long().clamp(0, probabilities.shape[-1] - 1)[:, None]
    probabilities.scatter_add_(-1, at, probabilities.new_full(at.shape, -1.0))


def _store(result: RowLogps, span: slice, rows: slice | Tensor, found: _BlockLogps) -> None:
    """Write the results of some rows of a block into those of all rows."""
    result.logps[span][rows] = found.logps
    if result.entropy is not None and found.entropy is not None:
        result.entropy[span][rows] = found.entropy
