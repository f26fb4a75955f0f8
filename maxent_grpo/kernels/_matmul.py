"""The matmuls of the LM head: logits chunk by chunk in one buffer, and the gradients those chunks add up to."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Scale = Callable[[Tensor, Tensor], None]
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30}
"""Default bytes of one chunk of logits, by device; `benchmarks/kernels.py` sweeps them."""
MOST_ROWS = 4096
"""A matmul of 4096 rows fills a big GPU; more rows only cost memory, unless they spare the sum of dW."""
TILE_ROWS = 128
"""Rows of a GPU's matmul tile: a chunk that ends inside one computes the rest of it for nothing."""
PRODUCTS = 12
"""Bytes that the products of a chunk take per element of its hidden states."""
_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
SUMS_IN_FLOAT32 = _VERSION >= (2, 10)
"""Whether CUDA's `addmm` adds a product of halves to a float32 sum."""
PRODUCTS_IN_FLOAT32 = _VERSION >= (2, 8)
"""Whether CUDA's `mm` gives a product of halves in float32."""


def count_chunk_rows(rows: int, row_bytes: int, chunk_bytes: int) -> int:
    """Count the rows of a chunk: within the budget, at least one, even over the chunks, whole tiles if one fits.

    >>> count_chunk_rows(1000, row_bytes=1 << 20, chunk_bytes=64 << 20)
    63
    >>> count_chunk_rows(1000, row_bytes=1 << 20, chunk_bytes=300 << 20)
    256
    """
    limit = max(1, min(MOST_ROWS, chunk_bytes // row_bytes))
    tile = TILE_ROWS if limit >= TILE_ROWS else 1
    # As few chunks as the limit allows, then as even as they can be: a short last one would fill the device badly.
    chunks = max(1, -(-rows // (limit - limit % tile)))
    rows_per_chunk = -(-rows // chunks)
    return max(1, min(rows, -(-rows_per_chunk // tile) * tile))


def _split_range(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


class LogitChunks:
    """`hidden [n, D]` @ `weight [V, D]`ᵀ + bias in `dtype`: (row numbers, logits `[rows, V]`) in one reused buffer.

    The consumer may write over the logits it is given.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        chunk_bytes: int | None,
        *,
        weight_gradient: bool = False,
    ) -> None:
        self.hidden = hidden.to(dtype)
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        rows, row_bytes = len(hidden), len(weight) * dtype.itemsize
        budget = chunk_bytes or CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cuda"])
        bfloat16 = all(tensor.dtype == dtype == torch.bfloat16 for tensor in (weight, bias) if tensor is not None)
        # One chunk of bfloat16 needs no float32 sum of dW. By default it may take as much more.
        sum_bytes = 4 * weight.numel() if chunk_bytes is None else 0
        one_chunk_bytes = rows * (row_bytes + PRODUCTS * hidden.shape[-1])
        one_chunk = bfloat16 and weight_gradient and one_chunk_bytes <= budget + sum_bytes
        self.rows = max(1, rows) if one_chunk else count_chunk_rows(rows, row_bytes, budget)
        self.unsummed = bfloat16 and self.rows >= rows

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        buffer = self.hidden.new_empty(min(self.rows, len(self.hidden)), len(self.weight))
        for span in _split_range(len(self.hidden), self.rows):
            logits = buffer[: span.stop - span.start]
            if self.bias is None:
                torch.mm(self.hidden[span], self.weight.t(), out=logits)
            else:
                torch.addmm(self.bias, self.hidden[span], self.weight.t(), out=logits)
            yield span, logits


def build_head_gradients(
    chunks: LogitChunks, factor: Tensor, needs_gradient: tuple[bool, ...], scale_: Scale
) -> "HeadGradients":
    """Return what collects dH, dW and db of rows with these coefficients, `factor [n]`.

    Args:
        needs_gradient: whether dH, dW and db are wanted.
        scale_: multiplies a tensor in place by a scalar on its device; the backend's.
    """
    kind = SplitHeadGradients if chunks.weight.dtype == torch.float16 else HeadGradients
    return kind(chunks, factor, needs_gradient, scale_)


class HeadGradients:
    """dH = G·W, dW = Gᵀ·H and db = Gᵀ·1 from chunks of logit gradients G, each row times its coefficient.

    dW and db are summed in float32, except over a single chunk with a head in bfloat16, whose range is float32's:
    there they are what the matmul rounds, and an upstream gradient that is no power of 2 rounds them again. So a step
    in one chunk of bfloat16 makes no pass over them, or over dH, beside its matmuls.

    Attributes:
        row_factors: `[n]` what each row of a chunk is to be multiplied by.
    """

    def __init__(self, chunks: LogitChunks, factor: Tensor, needs_gradient: tuple[bool, ...], scale_: Scale) -> None:
        hidden, weight, bias = needs_gradient
        self.row_factors = factor
        self._scale_ = scale_
        self._hidden = torch.empty_like(chunks.hidden) if hidden else None
        self._sum_dtype = torch.bfloat16 if chunks.unsummed else factor.dtype
        self._weight = _Sum(chunks.weight, self._sum_dtype) if weight else None
        self._bias = _Sum(chunks.weight[:, :1], self._sum_dtype) if bias else None

    def add(self, chunks: LogitChunks, span: slice, row_gradients: Tensor) -> None:
        """Take in the rows `span` of G `[rows, V]`. The chunks are not kept: the head is free afterwards."""
        if self._hidden is not None:
            torch.mm(row_gradients, chunks.weight, out=self._hidden[span])
        # A CPU has no matmul that widens, so it gets the factors in the dtype of the sum.
        if not row_gradients.is_cuda and (self._weight is not None or self._bias is not None):
            row_gradients = row_gradients.to(self._sum_dtype)
        if self._weight is not None:
            self._weight.add(row_gradients.t(), self._weigh_rows(chunks.hidden[span], span))
        if self._bias is not None:
            self._bias.add(row_gradients.t(), self._weigh_rows(chunks.hidden.new_ones(len(row_gradients), 1), span))

    def finish(self, upstream: Tensor | None, dtypes: tuple[torch.dtype, ...]) -> tuple[Tensor | None, ...]:
        """Return (dH, dW, db) times a scalar `upstream`, in `dtypes`; the sums are written over."""
        finished: list[Tensor | None] = []
        for gradient, dtype in zip((self._hidden, self._weight, self._bias), dtypes, strict=True):
            values = gradient.total if isinstance(gradient, _Sum) else gradient
            if values is not None and upstream is not None:
                self._scale_(values, upstream)
            finished.append(None if values is None else values.to(dtype))
        hidden, weight, bias = finished
        return hidden, weight, None if bias is None else bias.squeeze(-1)

    def _weigh_rows(self, rows: Tensor, span: slice) -> Tensor:
        """Return the right factor of dW and db, `[rows, D]` or `[rows, 1]`."""
        del span
        return rows


class SplitHeadGradients(HeadGradients):
    """The same in float16, to which a row of G times a coefficient of 1e-5 would be rounded to zeros.

    So the chunks carry only the mantissas ½ <= |m| < 1 of the coefficients f = m·2ᵉ. The powers 2ᵉ, by which nothing
    rounds, enter dW and db through H and 1, relative to the largest one, and enter dH when the gradients are handed
    out, as does the largest power.
    """

    def __init__(self, chunks: LogitChunks, factor: Tensor, needs_gradient: tuple[bool, ...], scale_: Scale) -> None:
        super().__init__(chunks, torch.frexp(factor).mantissa, needs_gradient, scale_)
        self._powers = torch.where(factor == 0, 0, factor / self.row_factors)
        # The smallest normal number stands in where there is no row or no coefficient, so that 0/0 cannot occur.
        self._peak = torch.cat([self._powers, factor.new_full((1,), torch.finfo(factor.dtype).tiny)]).amax()
        self._chunk_rows = chunks.rows

    def finish(self, upstream: Tensor | None, dtypes: tuple[torch.dtype, ...]) -> tuple[Tensor | None, ...]:
        """As `HeadGradients.finish`: the powers come in, in float32, before anything is rounded."""
        upstream = self._peak.new_ones(()) if upstream is None else upstream
        if self._hidden is not None:
            factor = (self._powers * upstream)[:, None]
            # A CPU would multiply all halves into a float32 tensor, and round that into another.
            rows = len(self._hidden) if self._hidden.is_cuda else self._chunk_rows
            for span in _split_range(len(self._hidden), max(1, rows)):
                self._hidden[span].mul_(factor[span])
        for gradient in (self._weight, self._bias):
            if gradient is not None:
                self._scale_(gradient.total, self._peak * upstream)
        return super().finish(None, dtypes)

    def _weigh_rows(self, rows: Tensor, span: slice) -> Tensor:
        return rows * (self._powers[span] / self._peak)[:, None]


class _Sum:
    """Σ a·b over chunks in `dtype`, which may be wider than the factors'."""

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self._sum = torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)
        self._empty = True

    def add(self, a: Tensor, b: Tensor) -> None:
        total, b = self._sum, b.to(a.dtype)
        beta = 0 if self._empty else 1  # with 0 the first product overwrites memory that was never set
        self._empty = False
        if a.dtype == total.dtype:
            torch.addmm(total, a, b, beta=beta, out=total)
        elif SUMS_IN_FLOAT32:
            torch.addmm(total, a, b, total.dtype, beta=beta, out=total)
        else:
            product = _multiply(a, b, total.dtype)
            total.add_(product) if beta else total.copy_(product)

    @property
    def total(self) -> Tensor:
        """The sum; zeros if nothing was added."""
        return self._sum.zero_() if self._empty else self._sum


def _multiply(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a·b of halves in float32; where a product cannot widen them, their copies in float32 do."""
    if PRODUCTS_IN_FLOAT32:
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a.to(dtype), b.to(dtype))
