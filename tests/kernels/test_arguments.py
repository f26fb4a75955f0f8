"""What the kernels cannot take is named with its value, the same at every entry point."""

import inspect
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch

from maxent_grpo import kernels
from support.kernel_cases import DEVICE
from support.kernel_errors import assert_within, row_error

FITTING: dict[str, Any] = {
    "logits": torch.zeros(2, 3, 5),
    "hidden": torch.zeros(2, 3, 8),
    "weight": torch.zeros(5, 8),
    "ids": torch.ones(2, 3, dtype=torch.int64),
    "token_weights": torch.ones(2, 3),
}
OPERATIONS = {name: getattr(kernels, name) for name in kernels.__all__ if name != "WeightedNLL"}
NOT_ABOVE_0 = (0.0, -1.0, math.nan)
NO_NUMBERS = ("a", None, True, torch.ones(2), torch.tensor(1.0))
NOT_WHOLE = (0.5, 1e9, "a", True, math.nan)
NO_TENSORS = ([0.0] * 5, None, 1.0)
RANGE = "from 1.2e-38 to 8.5e+37, as float32 holds it"

REFUSED: list[tuple[dict[str, Any], str]] = [
    *[
        ({name: value}, f"Expected {name} > 0, got {name}={value!r}.")
        for name in ("temperature", "logit_scale", "softcap")
        for value in NOT_ABOVE_0
    ],
    *[
        ({name: value}, f"Expected {name} to be a number, got {name}={value!r}.")
        for name in ("temperature", "logit_scale", "softcap")
        for value in NO_NUMBERS
        if not (name == "softcap" and value is None)
    ],
    *[
        ({name: value}, f"Expected {name} {RANGE}, got {name}={value!r}.")
        for name in ("temperature", "logit_scale", "softcap")
        for value in (1e-50, 1e38, 1e300)
    ],
    *[
        ({name: math.inf}, f"Expected {name} to be finite, got {name}=inf.")
        for name in ("temperature", "logit_scale", "softcap")
    ],
    ({"temperature": 10**400}, "Expected temperature <= 3.40282e+38, got an integer of more than 300 digits."),
    ({"logit_scale": 1e20, "temperature": 1e-20}, f"Expected logit_scale / temperature {RANGE}, got temperature=1e"),
    ({"logit_scale": 1e-20, "softcap": 1e20}, f"Expected logit_scale / softcap {RANGE}, got temperature=1.0"),
    ({"softcap": 1e32}, "Expected softcap / temperature <= 1e+31, got temperature=1.0, logit_scale=1.0, softcap=1e+"),
    *[
        ({"chunk_bytes": size}, f"Expected chunk_bytes, a whole number > 0, got chunk_bytes={size!r}.")
        for size in (0, -1, *NOT_WHOLE)
    ],
    *[
        ({"row_count": count}, f"Expected row_count, a whole number in [0, 6], got row_count={count!r}.")
        for count in (-1, 7, *NOT_WHOLE)
    ],
    ({"row_count": 5}, "Expected row_count of the 6 rows kept, got row_count=5."),
    *[
        ({name: value}, f"Expected {name} to be True or False, got {name}={value!r}.")
        for name in ("length_normalize", "inplace", "entropy")
        for value in ("yes", None, 1)
    ],
    *[
        ({"backend": value}, f"Expected backend 'auto', 'torch' or 'triton', got backend={value!r}.")
        for value in ("cuda", None, 3)
    ],
    *[
        ({name: value}, f"Expected {name} to be a torch.Tensor, got {name} of type {type(value).__name__}.")
        for name in FITTING
        for value in NO_TENSORS
    ],
    ({"logits": torch.zeros(2, 3, 0)}, "Expected logits of shape [..., width] with width >= 1"),
    ({"logits": torch.zeros(2, 3, 5, dtype=torch.int64)}, "Expected floating point logits, got dtype=torch.int64."),
    ({"logits": torch.zeros(2, 4, 5)}, "ids of shape [...], got logits=[2, 4, 5], ids=[2, 3]."),
    ({"hidden": torch.zeros(2, 3, 0)}, "Expected hidden of shape [..., width] with width >= 1"),
    ({"hidden": torch.zeros(2, 3, 7)}, "Expected a floating point weight of shape [V, 7] with V >= 1"),
    ({"weight": torch.zeros(0, 8)}, "of shape [V, 8] with V >= 1, got dtype=torch.float32, weight=[0, 8]."),
    ({"weight": torch.zeros(5)}, "of shape [V, 8] with V >= 1, got dtype=torch.float32, weight=[5]."),
    ({"weight": torch.zeros(5, 8).bfloat16()}, "Expected hidden and weight of one dtype outside autocast"),
    ({"bias": torch.zeros(4)}, "Expected bias of shape [5], got bias of shape [4]."),
    ({"bias": torch.zeros(5, dtype=torch.int64)}, "Expected a floating point bias, got dtype=torch.int64."),
    ({"bias": [0.0] * 5}, "Expected bias to be a torch.Tensor, got bias of type list."),
    ({"ids": torch.ones(2, 3)}, "Expected ids of dtype int64 or int32, got dtype=torch.float32."),
    ({"ids": torch.full((2, 3), 5)}, "Expected ids in [0, 5), got ids=[5, 5, 5, 5]."),
    ({"mask": torch.ones(3, dtype=torch.bool)}, "Expected mask of shape [2, 3], got mask of shape [3]."),
    ({"mask": torch.ones(2, 3)}, "Expected mask of dtype torch.bool, got mask of dtype torch.float32."),
    ({"mask": [[True] * 3] * 2}, "Expected mask to be a torch.Tensor, got mask of type list."),
    ({"token_weights": torch.ones(3)}, "Expected token_weights of shape [2, 3], got token_weights of shape [3]."),
    ({"token_weights": torch.ones(2, 3, dtype=torch.int64)}, "Expected floating point token_weights, got dtype="),
]  # fmt: skip


def call(operation: Callable[..., Any], change: dict[str, Any]) -> Any:
    return operation(**{name: FITTING[name] for name in list_names(operation) if name in FITTING} | change)


def list_names(operation: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(operation).parameters)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_does_not_fit_is_named_with_its_value(name: str) -> None:
    operation, refused = OPERATIONS[name], 0
    for change, message in REFUSED:
        if change.keys() <= set(list_names(operation)):
            with pytest.raises(ValueError, match=re.escape(message)):
                call(operation, change)
            refused += 1
    assert refused >= 30


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_argument_is_refused_with_some_value(name: str) -> None:
    assert set(list_names(OPERATIONS[name])) <= {argument for change, _ in REFUSED for argument in change}


@pytest.mark.parametrize("name", OPERATIONS)
def test_any_kind_of_number_is_one(name: str) -> None:
    for temperature in (1, Fraction(1), torch.tensor(1.0).numpy()[()]):
        call(OPERATIONS[name], {"temperature": temperature})


@pytest.mark.parametrize("logit", [1e-7, 1.0, 1e4])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_a_cap_as_high_as_may_be_caps_nothing(logit: float, temperature: float, backend: str) -> None:
    """It changes a logit z by z³/(3·softcap²), which no float32 shows."""
    hidden, weight = torch.tensor([[logit]], device=DEVICE), torch.tensor([[0.0], [1.0]], device=DEVICE)
    softcap = 1e31 * temperature
    options = {"temperature": temperature, "softcap": softcap, "backend": backend}
    found = kernels.linear_token_logps(hidden, weight, torch.tensor([0], device=DEVICE), **options)
    odds = torch.cat([torch.zeros_like(hidden), hidden], -1).double() / temperature
    lost = softcap / temperature * torch.finfo(torch.float32).tiny
    assert_within(found, odds.log_softmax(-1)[:, 0], row_error(odds, torch.float32) + lost)
