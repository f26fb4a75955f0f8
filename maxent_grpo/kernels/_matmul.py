"""The matmuls of the LM head: logits chunk by chunk in one buffer, and the gradients those chunks add up to."""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
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


class HeadGradients:
    """dH = diag(f)·G·W, dW = Gᵀ·diag(f)·H and db = Gᵀ·f from chunks of logit gradients diag(m)·G, f = m·2ᵉ.

    Rounded to float16, f·G would lose coefficients f of 1e-5. So the chunks carry only the mantissas ½ <= |m| < 1.
    The powers 2ᵉ, by which nothing rounds, enter dW and db through H and 1, relative to the largest one, and enter
    dH when the gradients are handed out, as does the largest power.

    dW and db are summed in float32, except over a single chunk with a head in bfloat16, whose range is float32's:
    there they are what the matmul rounds, and an upstream gradient that is no power of 2 rounds them again.
    """

    def __init__(self, chunks: LogitChunks, factor: Tensor, needs_gradient: tuple[bool, ...]) -> None:
        hidden, weight, bias = needs_gradient
        self.mantissas = torch.frexp(factor).mantissa
        self._powers = torch.where(factor == 0, 0, factor / self.mantissas)
        # The smallest normal number stands in where there is no row or no coefficient, so that 0/0 cannot occur.
        self._peak = torch.cat([self._powers, factor.new_full((1,), torch.finfo(factor.dtype).tiny)]).amax()
        self._chunk_rows = chunks.rows
        self._hidden = torch.empty_like(chunks.hidden) if hidden else None
        self._sum_dtype = torch.bfloat16 if chunks.unsummed else factor.dtype
        self._weight = _Sum(chunks.weight, self._sum_dtype) if weight else None
        self._bias = _Sum(chunks.weight[:, :1], self._sum_dtype) if bias else None

    def add(self, chunks: LogitChunks, span: slice, row_gradients: Tensor) -> None:
        """Take in the rows `span` of diag(m)·G `[rows, V]`. The chunks are not kept: the head is free afterwards."""
        if self._hidden is not None:
            torch.mm(row_gradients, chunks.weight, out=self._hidden[span])
        if self._weight is None and self._bias is None:
            return
        relative = (self._powers[span] / self._peak)[:, None]
        # A CPU has no matmul that widens, so it gets the factors in the dtype of the sum.
        if not row_gradients.is_cuda:
            row_gradients = row_gradients.to(self._sum_dtype)
        if self._weight is not None:
            self._weight.add(row_gradients.t(), chunks.hidden[span] * relative)
        if self._bias is not None:
            self._bias.add(row_gradients.t(), relative)

    def finish(self, upstream: Tensor | float, dtypes: tuple[torch.dtype, ...]) -> tuple[Tensor | None, ...]:
        """Return (dH, dW, db) times `upstream`, in `dtypes`; the sums are written over."""
        hidden, weight, bias = dtypes
        return (
            None if self._hidden is None else self._scale_hidden(self._hidden, upstream).to(hidden),
            None if self._weight is None else self._weight.finish(self._peak * upstream, weight),
            None if self._bias is None else self._bias.finish(self._peak * upstream, bias).squeeze(-1),
        )

    def _scale_hidden(self, gradient: Tensor, upstream: Tensor | float) -> Tensor:
        factor = (self._powers * upstream)[:, None]
        # A CPU would multiply all halves into a float32 tensor, and round that into another.
        at_once = gradient.is_cuda or gradient.dtype == factor.dtype
        for span in _split_range(len(gradient), max(1, len(gradient) if at_once else self._chunk_rows)):
            gradient[span].mul_(factor[span])
        return gradient


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

    def finish(self, scale: Tensor | float, dtype: torch.dtype) -> Tensor:
        """Return the sum times `scale`; zeros if nothing was added."""
        if self._empty:
            return torch.zeros_like(self._sum, dtype=dtype)
        if not self._sum.is_cuda:
            return self._sum.mul_(scale).to(dtype)  # a CPU would multiply into a second float32 tensor
        out = self._sum if dtype == self._sum.dtype else torch.empty_like(self._sum, dtype=dtype)
        # A scalar on a GPU would be rounded to the dtype of halves; a matrix of one element is not.
        return torch.mul(self._sum, torch.as_tensor(scale, device=out.device).view(1, 1), out=out)


def _multiply(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a·b of halves in float32; where a product cannot widen them, their copies in float32 do."""
    if PRODUCTS_IN_FLOAT32:
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a.to(dtype), b.to(dtype))
