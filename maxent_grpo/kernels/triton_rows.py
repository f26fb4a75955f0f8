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
"""Elements a program holds at once: 16 a thread of 16 warps, so that loads overlap and nothing spills."""
WIDEST_REREAD_BLOCK = 16384
"""The same where a row is read twice: 32 warps of so many registers leave room for one program an SM, so that a GPU
has a row an SM under way and not two. 132 rows of 151936 halves are 40 MB, which the second-level cache of an H200
(60 MB) still holds for the second read; 264 rows are 80 MB."""
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


def launch(width: int, *, reread: bool = False) -> Launch:
    """Return the launch for rows of this width: 16 elements a thread, as far as the row reaches.

    >>> launch(151936), launch(151936, reread=True)
    (Launch(block=8192, warps=16), Launch(block=16384, warps=32))
    """
    widest = WIDEST_REREAD_BLOCK if reread else WIDEST_BLOCK
    block = min(widest, max(16, 1 << (width - 1).bit_length()))
    return Launch(block, max(1, block // 512))


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


@_on_its_device
def row_logps_and_gradient(
    logits: Tensor, ids: Tensor, factor: Tensor, odds: LogitMap, out: Tensor, *, entropy: bool = False
) -> RowLogps:
    """Both in one launch: `row_logps` of the rows whose factor is not 0, and `row_gradient` into `out`."""
    result = empty_row_logps(logits, entropy=entropy)
    ids, factor = ids.contiguous(), factor.contiguous()
    block, warps = launch(logits.shape[-1], reread=True)
    for span, (source, target) in _row_parts(logits, out):
        kernels.one_pass_kernel[(span.stop - span.start,)](
            *(source, ids[span], factor[span], result.logps[span], _part(result.entropy, span), target),
            *(source.shape[1], *source.stride(), *target.stride()),
            *(logits.shape[-1], *_constants(odds), odds.slope),
            CAPPED=odds.softcap is not None,
            ENTROPY=entropy,
            BLOCK=block,
            num_warps=warps,
        )
    return result


@_on_its_device
def scale_(gradient: Tensor, upstream: Tensor) -> None:
    """Multiply in place by a scalar that stays on the device; a factor of 1 costs no pass over memory."""
    if not gradient.is_contiguous():
        gradient.mul_(upstream)
    elif gradient.numel():
        grid = (triton.cdiv(gradient.numel(), SCALE_BLOCK),)
        kernels.scale_kernel[grid](gradient, upstream, gradient.numel(), BLOCK=SCALE_BLOCK)


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
