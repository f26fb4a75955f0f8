"""The Triton kernels: one program per row, one read of its logits per kernel, nothing stored but the result.

Rows that are not kept are never read; their gradient is written as zeros. A label outside the vocabulary makes its
row NaN. Reductions have a fixed order, so results repeat bit by bit.
"""
# ruff: noqa: PLR0917 - a kernel takes its pointers and strides by position
# mypy: ignore-errors

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
TWO_LOG2E = tl.constexpr(2.8853900817779268)


@triton.jit
def _tanh(x):
    # 1 − 2/(1 + e^2x): e^2x may overflow to infinity, whose reciprocal is the 0 wanted. It cancels near 0, where the
    # odd polynomial of Cephes' tanhf (|x| < 0.625, error below 2^-23) takes its place.
    square = x * x
    series = -5.70498872745e-3 * square + 2.06390887954e-2
    series = series * square - 5.37397155531e-2
    series = series * square + 1.33314422036e-1
    series = series * square - 3.33332819422e-1
    return tl.where(square < 0.390625, series * square * x + x, 1.0 - 2.0 / (1.0 + tl.exp2(x * TWO_LOG2E)))


@triton.jit
def _find_row(row, per_batch, batch_stride, row_stride):
    # 64-bit: N·V and the strides may exceed 2³¹.
    return (row // per_batch).to(tl.int64) * batch_stride + (row % per_batch).to(tl.int64) * row_stride


@triton.jit
def _cap_logits(z, inner, softcap, CAPPED: tl.constexpr):
    # The maximum is subtracted before the scale log2(e)/T: z·scale would round by an ulp of z where z − max is small.
    if CAPPED:
        return _tanh(z * inner) * softcap
    return z


@triton.jit
def _scan_row(
    start,
    column_stride,
    width,
    inner,
    softcap,
    scale,
    CAPPED: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    # Online softmax of every group of LANES columns, which one thread loads at once: within the loop no thread waits
    # for another, and an element costs one exponential and 1/LANES more. The groups are joined at the end.
    tops = tl.full([BLOCK // LANES], -float("inf"), tl.float32)
    sums = tl.full([BLOCK // LANES], 0.0, tl.float32)
    weighted = tl.full([BLOCK // LANES], 0.0, tl.float32)
    offsets = tl.arange(0, BLOCK // LANES)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    for first in range(0, width, BLOCK):
        columns = first + offsets
        inside = columns < width
        z = tl.load(start + columns.to(tl.int64) * column_stride, mask=inside, other=-float("inf")).to(tl.float32)
        y = tl.where(inside, _cap_logits(z, inner, softcap, CAPPED), -float("inf"))
        higher = tl.maximum(tops, tl.max(y, axis=1))
        # While every value is −∞ the differences would be NaN; any finite maximum does.
        finite = tl.where(higher == -float("inf"), 0.0, higher)
        x = (y - finite[:, None]) * scale
        powers = tl.exp2(x)
        lower = (tops - finite) * scale
        shrink = tl.exp2(lower)
        if ENTROPY:  # sums that shrink to 0 are worth 0, however low: 0 · (−∞) would be NaN
            moved = weighted + sums * tl.where(shrink > 0.0, lower, 0.0)
            weighted = moved * shrink + tl.sum(powers * tl.where(powers > 0.0, x, 0.0), axis=1)
        sums = sums * shrink + tl.sum(powers, axis=1)
        tops = higher
    # Join the groups' sums at the row's maximum.
    top = tl.max(tops, axis=0)
    lower = tl.where(tops == -float("inf"), 0.0, (tops - top) * scale)
    shrink = tl.exp2(lower)
    total = tl.sum(sums * shrink, axis=0)
    log_total = tl.where(total > 0.0, tl.log2(total), float("nan"))
    moved = weighted + sums * tl.where(shrink > 0.0, lower, 0.0)
    entropy = log_total - tl.sum(moved * shrink, axis=0) / total
    return top, log_total, entropy


@triton.jit
def _load_label(start, column_stride, label, width, inner, softcap, CAPPED: tl.constexpr):
    inside = (label >= 0) & (label < width)
    z = tl.load(start + label.to(tl.int64) * column_stride, mask=inside, other=float("nan")).to(tl.float32)
    return _cap_logits(z, inner, softcap, CAPPED)


@triton.jit
def logps_kernel(
    logits, ids, keep, logps, tops, entropies, sums, arrivals,
    per_batch, batch_stride, row_stride, column_stride, width, inner, softcap, scale,
    CAPPED: tl.constexpr, ENTROPY: tl.constexpr, SEQUENCE: tl.constexpr, BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Score one row; with SEQUENCE the last row of a sequence to finish also adds up the sequence."""
    row = tl.program_id(0)
    if tl.load(keep + row) != 0:
        start = logits + _find_row(row, per_batch, batch_stride, row_stride)
        top, log_total, entropy = _scan_row(
            start, column_stride, width, inner, softcap, scale, CAPPED, ENTROPY, BLOCK, LANES
        )
        label = _load_label(start, column_stride, tl.load(ids + row), width, inner, softcap, CAPPED)
        tl.store(logps + row, ((label - top) * scale - log_total) * LN2)
        tl.store(tops + 2 * row, top)
        tl.store(tops + 2 * row + 1, log_total)
        if ENTROPY:
            tl.store(entropies + row, entropy * LN2)
    if SEQUENCE:
        sequence = row // per_batch
        if tl.atomic_add(arrivals + sequence, 1, sem="acq_rel") == per_batch - 1:
            total = tl.full([256], 0.0, tl.float32)
            for first in range(0, per_batch, 256):
                tokens = first + tl.arange(0, 256)
                # Other programs wrote these: past the first-level cache, which may hold older values.
                total += tl.load(
                    logps + sequence * per_batch + tokens, mask=tokens < per_batch, other=0.0, cache_modifier=".cg"
                )
            tl.store(sums + sequence, tl.sum(total, axis=0))


@triton.jit
def gradient_kernel(
    logits, ids, tops, factors, out,
    per_batch, batch_stride, row_stride, column_stride, out_batch_stride, out_row_stride, out_column_stride,
    width, inner, softcap, scale, slope,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one row of the gradient from what `logps_kernel` kept of it.

    factor · (p − onehot) · slope in float32, rounded once by the store; NaN for a label outside the vocabulary. `out`
    may be `logits`: every element is read by the thread that writes it.
    """
    row = tl.program_id(0)
    factor = tl.load(factors + row)
    target = out + _find_row(row, per_batch, out_batch_stride, out_row_stride)
    if factor == 0.0:  # the row is not kept: its logits are not read
        for first in range(0, width, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            zeros = tl.full([BLOCK], 0.0, tl.float32).to(out.dtype.element_ty)
            tl.store(target + columns.to(tl.int64) * out_column_stride, zeros, mask=columns < width)
    else:
        start = logits + _find_row(row, per_batch, batch_stride, row_stride)
        label = tl.load(ids + row)
        top = tl.load(tops + 2 * row)
        log_total = tl.load(tops + 2 * row + 1)
        factor = tl.where((label >= 0) & (label < width), factor * slope, float("nan"))
        for first in range(0, width, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            inside = columns < width
            z = tl.load(start + columns.to(tl.int64) * column_stride, mask=inside, other=0.0).to(tl.float32)
            # The maximum and the sum were kept by the first kernel, so one read of the logits is enough.
            p = tl.exp2((_cap_logits(z, inner, softcap, CAPPED) - top) * scale - log_total)
            gradient = factor * (p - tl.where(columns == label, 1.0, 0.0))
            if CAPPED:
                t = _tanh(z * inner)
                gradient *= 1.0 - t * t
            gradient = gradient.to(out.dtype.element_ty)
            tl.store(target + columns.to(tl.int64) * out_column_stride, gradient, mask=inside)


@triton.jit
def scale_kernel(values, factor, count, BLOCK: tl.constexpr):
    """Multiply by a factor read on the device; the usual 1 costs no pass over memory, and few programs to see it."""
    scale = tl.load(factor).to(tl.float32)
    if scale != 1.0:
        for first in range(tl.program_id(0).to(tl.int64) * BLOCK, count, tl.num_programs(0).to(tl.int64) * BLOCK):
            offsets = first + tl.arange(0, BLOCK)
            inside = offsets < count
            x = tl.load(values + offsets, mask=inside, other=0.0).to(tl.float32)
            tl.store(values + offsets, (x * scale).to(values.dtype.element_ty), mask=inside)
