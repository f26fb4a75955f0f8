"""The row operations by the Triton kernels, on a GPU or in Triton's interpreter: the functions of `_torch_rows`."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, ParamSpec, TypeVar

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from maxent_grpo.kernels import _triton_kernels as kernels
from maxent_grpo.kernels._rows import LogitMap, RowLogps, allocate_row_logps, view_rows
from maxent_grpo.kernels._torch_rows import multiply_

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
WIDEST_BLOCK = 8192
"""Elements a program holds at once. For aligned rows in bfloat16 the best of those timed on an H200, or within 3 %
of it; `benchmarks/run_gpu.sh` times them again."""
SCALE_BLOCK = 4096
SCALE_PROGRAMS = 1056
"""Eight for each of an H200's 132 multiprocessors: to learn that the factor is 1, they take .015 ms where one program
for each block of a head's gradient takes .20."""


def _use_first_device(operation: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
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


def choose_launch(width: int) -> Launch:
    """Return the launch for rows of this width: 16 elements per thread, as far as the row reaches.

    >>> choose_launch(151936), choose_launch(1000)
    (Launch(block=8192, warps=16), Launch(block=1024, warps=2))
    """
    block = min(WIDEST_BLOCK, max(16, 1 << (width - 1).bit_length()))
    return Launch(block, max(1, block // 512))  # 32 threads per warp


def count_lanes(logits: Tensor) -> int:
    """Count the neighboring columns that one load of a thread takes: 16 bytes where all rows are so aligned.

    >>> [count_lanes(logits) for logits in (torch.empty(2, 32).bfloat16(), torch.empty(2, 32), torch.empty(2, 33))]
    [8, 4, 1]
    """
    aligned = logits.stride(-1) == 1 and logits.data_ptr() % 16 == 0
    aligned = aligned and all(size % 16 == 0 for size in (logits.shape[-1], *logits.stride()[:-1]))
    return 16 // logits.itemsize if aligned else 1


@_use_first_device
def score_rows(logits: Tensor, ids: Tensor, keep: Tensor, logit_map: LogitMap, *, entropy: bool = False) -> RowLogps:
    """Log-probability and entropy of every kept row, 0 elsewhere."""
    result = allocate_row_logps(logits, entropy=entropy)
    _launch_scores(logits, ids, keep, logit_map, result, None)
    return result


@_use_first_device
def score_sequences(logits: Tensor, ids: Tensor, keep: Tensor, logit_map: LogitMap) -> tuple[Tensor, Tensor]:
    """Per sequence of `logits [..., T, V]` the sum of its kept rows' log-probabilities; per row the normalizer."""
    result = allocate_row_logps(logits, entropy=False)
    sums = result.logps.new_zeros(logits.shape[:-2].numel())
    _launch_scores(logits, ids, keep, logit_map, result, sums)
    return sums, result.normalizer


@_use_first_device
def write_row_gradient(
    logits: Tensor, ids: Tensor, normalizer: Tensor, factor: Tensor, logit_map: LogitMap, out: Tensor
) -> None:
    """Write `factor · ∂(−log p)/∂logits` to `out [..., V]`, which may be `logits`; zeros where the factor is 0."""
    ids, factor = ids.contiguous(), factor.contiguous()
    block, warps = choose_launch(logits.shape[-1])
    for span, (source, target) in _split_launches(logits, out):
        kernels.gradient_kernel[(span.stop - span.start,)](
            *(source, ids[span], normalizer[span], factor[span], target),
            *(source.shape[1], *source.stride(), *target.stride()),
            *(logits.shape[-1], *_compute_constants(logit_map), logit_map.slope),
            CAPPED=logit_map.softcap is not None,
            BLOCK=block,
            num_warps=warps,
        )


def score_and_write_gradient(
    logits: Tensor, ids: Tensor, factor: Tensor, logit_map: LogitMap, out: Tensor, *, entropy: bool = False
) -> RowLogps:
    """`score_rows` of the rows whose factor is not 0, and `write_row_gradient` into `out`.

    One launch for both gains less than a tenth at best (benchmarks/NOTES.md).
    """
    result = score_rows(logits, ids, factor != 0, logit_map, entropy=entropy)
    write_row_gradient(logits, ids, result.normalizer, factor, logit_map, out)
    return result


@_use_first_device
def scale_(gradient: Tensor, upstream: Tensor) -> None:
    """Multiply in place by a scalar that stays on the device; a factor of 1 costs no pass over memory."""
    if not gradient.is_contiguous():
        multiply_(gradient, upstream)
    elif gradient.numel():
        grid = (min(SCALE_PROGRAMS, triton.cdiv(gradient.numel(), SCALE_BLOCK)),)
        kernels.scale_kernel[grid](gradient, upstream, gradient.numel(), BLOCK=SCALE_BLOCK, num_warps=8)


def _launch_scores(
    logits: Tensor, ids: Tensor, keep: Tensor, logit_map: LogitMap, result: RowLogps, sums: Tensor | None
) -> None:
    """Write the scores of the rows to `result`, and those of the sequences to `sums` where it is given."""
    ids, keep = ids.contiguous(), keep.contiguous()
    block, warps = choose_launch(logits.shape[-1])
    # Counts the rows of each sequence that are done: the program that makes it full adds up the sequence.
    arrivals = None if sums is None else torch.zeros(sums.shape, dtype=torch.int32, device=sums.device)
    for span, (source,) in _split_launches(logits):
        tokens = source.shape[1]
        sequences = slice(span.start // tokens, span.stop // tokens)  # a view holds whole sequences
        kernels.logps_kernel[(span.stop - span.start,)](
            *(source, ids[span], keep[span], result.logps[span], result.normalizer[span]),
            *(_slice_rows(result.entropy, span), _slice_rows(sums, sequences), _slice_rows(arrivals, sequences)),
            *(tokens, *source.stride()),
            *(logits.shape[-1], *_compute_constants(logit_map)),
            CAPPED=logit_map.softcap is not None,
            ENTROPY=result.entropy is not None,
            SEQUENCE=sums is not None,
            BLOCK=block,
            LANES=count_lanes(source),
            num_warps=warps,
        )


def _compute_constants(logit_map: LogitMap) -> tuple[float, float, float]:
    """Return (factor inside the tanh, the cap, log2(e) · the factor on the log-odds before the powers of 2)."""
    if logit_map.softcap is None:
        return 1.0, 1.0, logit_map.slope * math.log2(math.e)
    return logit_map.scale / logit_map.softcap, logit_map.softcap, math.log2(math.e) / logit_map.temperature


def _split_launches(*tensors: Tensor) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Yield (row numbers, a view `[batch, rows, V]` of each tensor): one launch, or as many as the strides need."""
    start = 0
    for views in view_rows(tensors, 3) if tensors[0].numel() else ():
        stop = start + views[0].shape[:-1].numel()
        yield slice(start, stop), views
        start = stop


def _slice_rows(values: Tensor | None, span: slice) -> Tensor | None:
    return None if values is None else values[span]
