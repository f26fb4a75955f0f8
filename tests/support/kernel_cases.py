"""What the kernels' tests share: the naive equations, inputs of every layout, a memory counter."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import _measure
from maxent_grpo.kernels._rows import accumulation_dtype
from support.kernel_errors import entropy_error, gradient_error, least_number, product_error, row_error
from support.precision import Bounded, evaluate, sum_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1,), (7,), (2, 3), (3, 0), (4, 4), (2, 3, 2))
"""Of per-row tensors. Few are empty: of sizes drawn one by one, most examples would have no row to be wrong about."""


@dataclass(frozen=True)
class Rows:
    """Logits of some layout with their labels, mask and coefficients."""

    logits: Tensor
    ids: Tensor
    mask: Tensor
    token_weights: Tensor
    temperature: float

    @property
    def keep(self) -> Tensor:
        return self.mask & (self.ids != -100)

    @property
    def odds(self) -> Tensor:
        return self.logits.double() / self.temperature

    @property
    def row_error(self) -> Tensor:
        return row_error(self.odds, self.logits.dtype)

    @property
    def entropy_error(self) -> Tensor:
        return entropy_error(self.odds, self.logits.dtype)

    def sum_error(self, factor: Tensor | float = 1.0) -> Tensor:
        """How far sums of factor·log p over the last dimension may be off, `[...]`."""
        terms = factor * naive_logps(self.logits.double(), self.ids, self.keep, self.temperature)
        of_rows = (torch.as_tensor(factor).abs() * self.row_error * self.keep).sum(-1)
        return of_rows + sum_error(terms, accumulation_dtype(self.logits.dtype))

    def gradient_error(self, backend: str) -> Tensor:
        """How far the gradient of −Σ c·log p may be off, `[..., V]`."""
        dtype, c = self.logits.dtype, self.token_weights.double().abs() / self.temperature
        off = c[..., None] * gradient_error(self.odds, self.ids.where(self.keep, 0), dtype, backend)
        return (off + least_number(dtype)).where(self.keep[..., None], 0)


def naive_logps(logits: Tensor, ids: Tensor, keep: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / T)[ids] in the dtype of the logits; 0 where not kept."""
    logps = (logits / temperature).log_softmax(-1).gather(-1, ids.where(keep, 0).long()[..., None])[..., 0]
    return logps.where(keep, 0)


def naive_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    """softcap · tanh(scale · (W h + b) / softcap)."""
    logits = torch.nn.functional.linear(hidden, weight, bias) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def spread(shape: tuple[int, ...], layout: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Random values of some memory layout."""

    def values(*size: int) -> Tensor:
        return (3 * torch.randn(size, generator=generator)).to(DEVICE, dtype)

    *rest, tokens, width = shape
    if layout == "sliced":
        return values(*rest, tokens + 1, width)[..., :-1, :]
    if layout == "strided":
        return values(*rest, 2 * tokens, width + 3)[..., ::2, 1 : width + 1]
    if layout == "transposed":
        return values(*rest, width, tokens).transpose(-1, -2)
    if layout == "outer" and rest:  # with two dimensions before the tokens, no view has the rows in one
        return values(*rest[:-1], rest[-1] + 1, tokens, width)[..., :-1, :, :]
    return values(*shape)


def per_row(values: Tensor, layout: str) -> Tensor:
    """The values `[...]` as they lie in a wider tensor, or the last dimension's first one shared by all."""
    if layout == "strided":
        return torch.stack([values, values.roll(1)], -1)[..., 0]
    return values[..., :1].expand(values.shape) if layout == "expanded" else values


@st.composite
def rows(draw: st.DrawFn, *, least_dims: int = 1) -> Rows:
    """Small logits of any layout and dtype, masked and ignored labels, coefficients of every size and sign."""
    lead = draw(st.sampled_from([shape for shape in SHAPES if len(shape) >= least_dims]))
    width = draw(st.sampled_from([1, 2, 7, 64, 130]))
    layout = draw(st.sampled_from(["contiguous", "sliced", "strided", "transposed", "outer"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    ids = torch.randint(0, width, lead, generator=generator)
    ids[torch.rand(lead, generator=generator) < 0.2] = -100
    weights = torch.tensor([-1.0, 0.0, 1e-12, 1e4, 0.3])[torch.randint(0, 5, lead, generator=generator)]
    mask = torch.rand(lead, generator=generator) < draw(st.sampled_from([1.0, 0.7]))
    row_layouts = st.sampled_from(["contiguous", "strided", "expanded"])
    return Rows(
        spread((*lead, width), layout, draw(st.sampled_from(DTYPES)), generator),
        per_row(ids.to(DEVICE, draw(st.sampled_from([torch.int64, torch.int32]))), draw(row_layouts)),
        per_row(mask.to(DEVICE), draw(row_layouts)),
        per_row(weights.to(DEVICE), draw(row_layouts)),
        draw(st.sampled_from([1.0, 0.3, 2.5])),
    )


def whole_rows(logits: Tensor, ids: Tensor, token_weights: Tensor | None = None, *, temperature: float = 1.0) -> Rows:
    """Logits of which every row counts, by the same weight if none is given."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    return Rows(logits, ids, mask, mask.double() if token_weights is None else token_weights, temperature)


def precise(rows: Rows) -> tuple[Tensor, Tensor]:
    """(log-probabilities, gradient of −Σ c·log p) of the logits in float64, by autograd of the naive equations."""
    logits = rows.logits.double().detach().requires_grad_()
    logps = naive_logps(logits, rows.ids, rows.keep, rows.temperature)
    (gradient,) = torch.autograd.grad(-(rows.token_weights.double() * logps).sum(), logits)
    return logps.detach(), gradient


@dataclass(frozen=True)
class Head:
    """Hidden states, LM head, labels, coefficients and the settings of the map from logits to log-odds."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    ids: Tensor
    mask: Tensor
    token_weights: Tensor
    knobs: dict[str, float | None]
    chunk_rows: int

    @property
    def keep(self) -> Tensor:
        return self.mask & (self.ids != -100)

    @property
    def options(self) -> dict[str, object]:
        row_bytes = self.weight.shape[0] * self.hidden.dtype.itemsize
        return {**self.knobs, "mask": self.mask, "chunk_bytes": self.chunk_rows * row_bytes}

    def leaves(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        tensors = [tensor for tensor in (self.hidden, self.weight, self.bias) if tensor is not None]
        return [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in tensors]

    def evaluate(self, *, after: float = 1.0) -> list[Bounded]:
        """Loss times `after` and its gradients in float64, and what float32 loses, of whatever values."""

        def differentiate() -> list[Tensor]:
            leaves = self.leaves(torch.float64)
            odds = naive_head(*leaves, scale=self.knobs["logit_scale"], softcap=self.knobs["softcap"])
            logps = naive_logps(odds, self.ids, self.keep, self.knobs["temperature"])
            loss = -after * (self.token_weights.double() * logps).sum()
            return [loss, *torch.autograd.grad(loss, leaves)]

        return evaluate(differentiate)

    def exact(self, backend: str = "torch") -> "Exact":
        """Autograd of the naive equations in float64; the errors are those of exact logits, such as `heads` gives."""
        softcap, temperature, dtype = self.knobs["softcap"], self.knobs["temperature"], self.hidden.dtype
        leaves = self.leaves(torch.float64)
        capped = naive_head(*leaves, scale=self.knobs["logit_scale"], softcap=softcap)
        logps = naive_logps(capped, self.ids, self.keep, temperature)
        gradients = torch.autograd.grad(-(self.token_weights.double() * logps).sum(), leaves)
        odds = capped.detach() / temperature
        return Exact(
            logps.detach(),
            torch.special.entr(odds.softmax(-1)).sum(-1),
            row_error(odds, dtype),
            entropy_error(odds, dtype),
            list(gradients),
            self.gradient_errors(odds, backend),
        )

    def gradient_errors(self, odds: Tensor, backend: str) -> list[Tensor]:
        """How far dH, dW and db may be off.

        The rows of dz have a factor ½ <= |m| < 1 in place of c = m·2ᵉ: where they underflow, they are off by the
        least number times 2ᵉ <= 2c, for dW and db times the largest 2ᵉ.
        """
        dtype, softcap, temperature = self.hidden.dtype, self.knobs["softcap"], self.knobs["temperature"]
        cap_slope = 1.0 if softcap is None else 1 - (odds * temperature / softcap).square()
        ids, c = self.ids.where(self.keep, 0).long(), self.token_weights.double().abs() * self.keep
        factor = (c * self.knobs["logit_scale"] / temperature)[..., None]
        off = factor * gradient_error(odds, ids, dtype, backend, cap_slope)
        dz = factor * cap_slope * (odds.softmax(-1) - torch.nn.functional.one_hot(ids, odds.shape[-1])).abs()
        underflow = 2 * least_number(dtype) * c[..., None]
        underflow_of_sum = 2 * least_number(dtype) * max(c.flatten().tolist(), default=0.0)
        hidden, weight = self.hidden.double().abs().flatten(0, -2), self.weight.double().abs()
        of_sum, flat = (off + underflow_of_sum).flatten(0, -2).T, dz.flatten(0, -2).T
        errors = [
            product_error(off + underflow, dz, weight, dtype, backend),
            product_error(of_sum, flat, hidden, dtype, backend),
            product_error(of_sum, flat, torch.ones_like(hidden[:, :1]), dtype, backend).squeeze(-1),
        ]
        return errors[: len(self.leaves())]


@dataclass(frozen=True)
class Exact:
    """Results in float64 and how far those of a kernel may be from them, element by element."""

    logps: Tensor
    entropy: Tensor
    row_error: Tensor
    entropy_error: Tensor
    gradients: list[Tensor]
    gradient_errors: list[Tensor]


@st.composite
def heads(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...]) -> Head:
    """Small heads of dyadic values: logits are multiples of ¼ below 2⁶, exact in every dtype in any order."""
    lead = draw(st.sampled_from(SHAPES))
    width, vocabulary = draw(st.sampled_from([8, 24])), draw(st.sampled_from([1, 7, 130]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(dtypes))

    def values(*shape: int) -> Tensor:
        return (torch.randint(-2, 3, shape, generator=generator) / 2).to(DEVICE, dtype)

    ids = torch.randint(0, vocabulary, lead, generator=generator)
    ids[torch.rand(lead, generator=generator) < 0.2] = -100
    large = 1e3 if dtype == torch.float16 else 1e4  # 16 rows with a slope of 2 add up to 32,000
    weights = torch.tensor([-1.0, 0.0, 1e-12, large, 0.3])[torch.randint(0, 5, lead, generator=generator)]
    return Head(
        values(*lead, 2 * width)[..., ::2],
        values(vocabulary, width),
        values(vocabulary) if draw(st.booleans()) else None,
        ids.to(DEVICE),
        (torch.rand(lead, generator=generator) < draw(st.sampled_from([1.0, 0.7]))).to(DEVICE),
        weights.to(DEVICE),
        {
            "temperature": draw(st.sampled_from([1.0, 0.5])),
            "logit_scale": draw(st.sampled_from([1.0, 0.3])),
            "softcap": draw(st.sampled_from([None, 4.0])),
        },
        draw(st.sampled_from([1, 3, 100])),
    )


def standard_head(dtype: torch.dtype = torch.float32, rows: int = 16, width: int = 32, vocabulary: int = 300) -> Head:
    torch.manual_seed(0)
    return Head(
        torch.randn(rows, width, device=DEVICE).to(dtype),
        (torch.randn(vocabulary, width, device=DEVICE) / width**0.5).to(dtype),
        None,
        torch.randint(0, vocabulary, (rows,), device=DEVICE),
        torch.ones(rows, dtype=torch.bool, device=DEVICE),
        torch.randn(rows, device=DEVICE),
        {"temperature": 1.0, "logit_scale": 1.0, "softcap": None},
        6,
    )


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes held at once by what `function` allocates: its result and its operators' temporaries too."""
    if DEVICE == "cuda":
        function()  # the first call's workspaces and compiled kernels stay
    return _measure.measure_peak_bytes(function, DEVICE)
