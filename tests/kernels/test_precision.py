"""Errors against float64 are of the size of eager torch's in the same dtype, or of what float32 may lose at all."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from maxent_grpo.kernels import (
    WeightedNLL,
    linear_token_logps,
    linear_weighted_nll,
    sequence_logps,
    token_logps,
    weighted_nll,
)
from support.kernel_cases import DEVICE, DTYPES, naive_head, naive_logps
from support.kernel_errors import final_rounding
from support.precision import DEVIATIONS, evaluate, unit_roundoff

ROWS, WIDTH, VOCABULARY = 16, 32, 1000
Settings = dict[str, float | None]
Scored = torch.Tensor | WeightedNLL
SETTINGS: dict[str, Settings] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "scale": {"logit_scale": 0.2},
    "cap": {"softcap": 2.0},
    "cap far above the logits": {"softcap": 50.0, "logit_scale": 0.01},
    "all": {"softcap": 20.0, "logit_scale": 1.5, "temperature": 1.3},
}


@dataclass(frozen=True)
class Sample:
    """Leaves, labels and coefficients."""

    leaves: list[torch.Tensor]
    ids: torch.Tensor
    weights: torch.Tensor

    def run(self, function: Callable[..., Scored], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """(values, gradients of the loss) in float64, from leaves of `dtype`; without a loss that of −Σ c·value."""
        leaves = [leaf.to(dtype).requires_grad_() for leaf in self.leaves]
        scored = function(*leaves)
        if isinstance(scored, WeightedNLL):
            values, loss = scored.token_logps, scored.loss
        else:
            values, loss = scored, -(self.weights[: len(scored)] * scored).sum()
        return tuple(tensor.detach().double() for tensor in (values, *torch.autograd.grad(loss, leaves)))


def assert_no_worse_than_eager(
    sample: Sample,
    kernel: Callable[..., Scored],
    naive: Callable[..., torch.Tensor],
    dtype: torch.dtype,
    backend: str,
) -> None:
    """Check that an error's norm is at most eager's in the same dtype, but for luck, plus what float32 may lose.

    The norm of n random errors has a relative standard deviation of 1/√(2n); truncation doubles a rounding.
    """
    exact, eager = evaluate(lambda: sample.run(naive, torch.float64)), sample.run(naive, dtype)
    roundings = final_rounding(dtype, backend) / unit_roundoff(dtype)
    for got, other, wanted in zip(sample.run(kernel, dtype), eager, exact, strict=True):
        error, allowed = float((got - wanted.value).norm()), float((other - wanted.value).norm())
        luck = 1 + DEVIATIONS / (2 * got.numel()) ** 0.5
        assert error <= luck * roundings * allowed + wanted.error


def sample_logits(dtype: torch.dtype, scale: float) -> Sample:
    torch.manual_seed(0)
    logits = (scale * torch.randn(ROWS, VOCABULARY, device=DEVICE)).to(dtype)
    ids = torch.randint(0, VOCABULARY, (ROWS,), device=DEVICE)
    return Sample([logits], ids, torch.randn(ROWS, device=DEVICE))


def sample_head(dtype: torch.dtype, biased: bool, coefficient: float) -> Sample:
    torch.manual_seed(0)
    leaves = [
        torch.randn(ROWS, WIDTH, device=DEVICE),
        torch.randn(VOCABULARY, WIDTH, device=DEVICE) / WIDTH**0.5,
        *([torch.randn(VOCABULARY, device=DEVICE)] if biased else []),
    ]
    ids = torch.randint(0, VOCABULARY, (ROWS,), device=DEVICE)
    return Sample([leaf.to(dtype) for leaf in leaves], ids, coefficient * torch.randn(ROWS, device=DEVICE))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_operations_on_logits(backend: str, dtype: torch.dtype, scale: float, temperature: float) -> None:
    sample = sample_logits(dtype, scale)
    ids, options = sample.ids, {"temperature": temperature, "backend": backend}
    everything = torch.ones_like(ids, dtype=torch.bool)

    def naive(z: torch.Tensor) -> torch.Tensor:
        return naive_logps(z, ids, everything, temperature)

    def sums(values: torch.Tensor) -> torch.Tensor:
        return values.view(4, -1).sum(-1)

    for kernel in (
        lambda z: token_logps(z, ids, **options),
        lambda z: weighted_nll(z, ids, sample.weights, **options),
    ):
        assert_no_worse_than_eager(sample, kernel, naive, dtype, backend)
    assert_no_worse_than_eager(
        sample,
        lambda z: sequence_logps(z.view(4, -1, VOCABULARY), ids.view(4, -1), **options),
        lambda z: sums(naive(z)),
        dtype,
        backend,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("biased", "coefficient"), [(False, 1.0), (True, 1e-4)])
def test_the_operations_through_the_head(
    backend: str, dtype: torch.dtype, settings: Settings, biased: bool, coefficient: float
) -> None:
    sample = sample_head(dtype, biased, coefficient)
    ids, everything = sample.ids, torch.ones_like(sample.ids, dtype=torch.bool)
    options = {**settings, "backend": backend, "chunk_bytes": 6 * VOCABULARY * dtype.itemsize}

    def naive(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        logits = naive_head(hidden, weight, bias, settings.get("logit_scale", 1.0), settings.get("softcap"))
        return naive_logps(logits, ids, everything, settings.get("temperature", 1.0))

    def two_pass(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return linear_token_logps(hidden, weight, ids, bias=bias, **options)

    def weighted(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> WeightedNLL:
        return linear_weighted_nll(hidden, weight, ids, sample.weights, bias=bias, **options)

    for kernel in (two_pass, weighted):
        assert_no_worse_than_eager(sample, kernel, naive, dtype, backend)
