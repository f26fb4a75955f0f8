"""The row operations by the Triton kernels, on a GPU or in Triton's interpreter: the functions of `torch_rows`."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, ParamSpec, TypeVar

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from maxent_grpo.kernels import triton_kernels as kernels
from maxent_grpo.kernels.rows import LogitMap, RowLogps, empty_row_logps, row_views

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
WIDEST_BLOCK = 8192
"""Elements a program holds at once. For aligned rows in bfloat16 the best of those timed on an H200, or within 3 %
of it (benchmarks/results/kernels-h200.md)."""
SCALE_BLOCK = 4096


def _on_its_device(operation: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Launch on the first tensor's device and stream: Triton takes the current ones, which may be another GPU's."""

    @functools.wraps(operation)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.cuda.device_of(args[0]):  # type: ignore[no-untyped-call]
            return operation(*args, **kwargs)

    return call


class Launch(NamedTuple):
    """Block and warps of a launch."""

    block: int
    warps: int


def launch(width: int) -> Launch:
    """Return the launch for rows of this width: 16 elements a thread, as far as the row reaches.

    >>> launch(151936), launch(1000)
    (Launch(block=8192, warps=16), Launch(block=1024, warps=2))
    """
    block = min(WIDEST_BLOCK, max(16, 1 << (width - 1).bit_length()))
    return Launch(block, max(1, block // 512))


def lanes(logits: Tensor) -> int:
    """Return how many neighbouring columns one load of a thread takes: 16 bytes where all rows are so aligned.

    >>> lanes(torch.empty(2, 32, dtype=torch.bfloat16)), lanes(torch.empty(2, 32)), lanes(torch.empty(2, 33))
    (8, 4, 1)
    """
    aligned = logits.stride(-1) == 1 and logits.data_ptr() % 16 == 0
    aligned = aligned and all(size % 16 == 0 for size in (logits.shape[-1], *logits.stride()[:-1]))
    return 16 // logits.itemsize if aligned else 1


@_on_its_device
def row_logps(logits: Tensor, ids: Tensor, keep: Tensor, odds: LogitMap, *, entropy: bool = False) -> RowLogps:
    """Log-probability and entropy of every kept row, 0 elsewhere."""
    result = empty_row_logps(logits, entropy=entropy)
    _score(logits, ids, keep, odds, result, None)
    return result


@_on_its_device
def sequence_row_logps(logits: Tensor, ids: Tensor, keep: Tensor, odds: LogitMap) -> tuple[Tensor, Tensor]:
    """Per sequence of `logits [..., T, V]` the sum of its kept rows' log-probabilities; per row the normaliser."""
    result = empty_row_logps(logits, entropy=False)
    sums = result.logps.new_zeros(logits.shape[:-2].numel())
    _score(logits, ids, keep, odds, result, sums)
    return sums, result.normaliser


@_on_its_device
def row_gradient(
    logits: Tensor, ids: Tensor, normaliser: Tensor, factor: Tensor, odds: LogitMap, out: Tensor
) -> None:
    """Write `factor · ∂(−log p)/∂logits` to `out [..., V]`, which may be `logits`; zeros where the factor is 0."""
    ids, factor = ids.contiguous(), factor.contiguous()
    block, warps = launch(logits.shape[-1])
    for span, (source, target) in _row_parts(logits, out):
        kernels.gradient_kernel[(span.stop - span.start,)](
            *(source, ids[span], normaliser[span], factor[span], target),
            *(source.shape[1], *source.stride(), *target.stride()),
            *(logits.shape[-1], *_constants(odds), odds.slope),
            CAPPED=odds.softcap is not None,
            BLOCK=block,
            num_warps=warps,
        )


def row_logps_and_gradient(
    logits: Tensor, ids: Tensor, factor: Tensor, odds: LogitMap, out: Tensor, *, entropy: bool = False
) -> RowLogps:
    """`row_logps` of the rows whose factor is not 0, and `row_gradient` into `out`.

    One launch for both gains less than a tenth at best (benchmarks/NOTES.md).
    """
    result = row_logps(logits, ids, factor != 0, odds, entropy=entropy)
    row_gradient(logits, ids, result.normaliser, factor, odds, out)
    return result


@_on_its_device
def scale_(gradient: Tensor, upstream: Tensor) -> None:
    """Multiply in place by a scalar that stays on the device; a factor of 1 costs no pass over memory."""
    if not gradient.is_contiguous():
        gradient.mul_(upstream)
    elif gradient.numel():
        grid = (triton.cdiv(gradient.numel(), SCALE_BLOCK),)
        kernels.scale_kernel[grid](gradient, upstream, gradient.numel(), BLOCK=SCALE_BLOCK, num_warps=8)


def _score(logits: Tensor, ids: Tensor, keep: Tensor, odds: LogitMap, result: RowLogps, sums: Tensor | None) -> None:
    ids, keep = ids.contiguous(), keep.contiguous()
    block, warps = launch(logits.shape[-1])
    arrivals = None if sums is None else torch.zeros(sums.shape, dtype=torch.int32, device=sums.device)
    for span, (source,) in _row_parts(logits):
        tokens = source.shape[1]
        sequences = slice(span.start // tokens, span.stop // tokens)
        kernels.logps_kernel[(span.stop - span.start,)](
            *(
                source,
                ids[span],
                keep[span],
                result.logps[span],
                result.normaliser[span],
                _part(result.entropy, span),
            ),
            *(_part(sums, sequences), _part(arrivals, sequences)),
            *(tokens, *source.stride()),
            *(logits.shape[-1], *_constants(odds)),
            CAPPED=odds.softcap is not None,
            ENTROPY=result.entropy is not None,
            SEQUENCE=sums is not None,
            BLOCK=block,
            LANES=lanes(source),
            num_warps=warps,
        )


def _constants(odds: LogitMap) -> tuple[float, float, float]:
    """(factor inside the tanh, the cap, log2(e) · the factor on the odds before the powers of 2)."""
    if odds.softcap is None:
        return 1.0, 1.0, odds.slope * math.log2(math.e)
    return odds.scale / odds.softcap, odds.softcap, math.log2(math.e) / odds.temperature


def _row_parts(*tensors: Tensor) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Yield (row numbers, a view `[batch, rows, V]` of each tensor): one launch, or as many as the strides need."""
    start = 0
    for views in row_views(tensors, 3) if tensors[0].numel() else ():
        stop = start + views[0].shape[:-1].numel()
        yield slice(start, stop), views
        start = stop


def _part(values: Tensor | None, span: slice) -> Tensor | None:
    return None if values is None else values[span]
