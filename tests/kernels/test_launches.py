"""What a launch of the Triton kernels spreads over programs, blocks of tokens and devices."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from maxent_grpo.kernels import sequence_logps, token_logps, weighted_nll
from support.kernel_cases import DEVICE, precise, whole_rows
from support.kernel_errors import assert_within
from support.precision import sum_error, unit_roundoff

triton_rows = pytest.importorskip("maxent_grpo.kernels._triton_rows", reason="Triton is published for Linux only")


@pytest.mark.parametrize("tokens", [256, 257, 600])
def test_a_sequence_longer_than_a_block_of_tokens_sums_all_of_them(tokens: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, tokens, 3, device=DEVICE)
    ids = torch.randint(0, 3, (1, tokens), device=DEVICE)
    mask = torch.rand(1, tokens, device=DEVICE) < 0.8
    case = replace(whole_rows(logits, ids), mask=mask)
    found = sequence_logps(logits, ids, mask, backend="triton")
    assert_within(found, precise(case)[0].sum(-1), case.sum_error())


def test_sequences_whose_programs_run_at_once_sum_what_their_tokens_say() -> None:
    repeats, shape = (50, (16, 2048, 1000)) if DEVICE == "cuda" else (1, (4, 40, 50))
    torch.manual_seed(0)
    logits = torch.randn(shape, device=DEVICE)
    ids = torch.randint(0, shape[-1], shape[:-1], device=DEVICE)
    tokens = token_logps(logits, ids, backend="triton")  # the same numbers, summed in another order
    for _ in range(repeats):
        found = sequence_logps(logits, ids, backend="triton")
        assert_within(found, tokens.double().sum(-1), sum_error(tokens, torch.float32))


@pytest.mark.parametrize("width", [triton_rows.SCALE_BLOCK, 10_001])
@pytest.mark.parametrize("programs", [2, triton_rows.SCALE_PROGRAMS])
def test_an_upstream_gradient_scales_what_every_program_holds(
    width: int, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_rows, "SCALE_PROGRAMS", programs)  # which take several blocks each
    torch.manual_seed(0)
    logits = torch.randn(3, width, device=DEVICE, requires_grad=True)
    ids, weights = torch.randint(0, width, (3,), device=DEVICE), torch.randn(3, device=DEVICE)

    def gradient(factor: float) -> torch.Tensor:
        loss = weighted_nll(logits, ids, weights, backend="triton").loss
        return torch.autograd.grad(factor * loss, logits)[0]

    expected = -2.5 * gradient(1.0).double()
    assert_within(gradient(-2.5), expected, unit_roundoff(torch.float32) * expected.abs())  # of the one product


@pytest.mark.parametrize(
    ("operation", "launches"),
    [
        (lambda z, ids: token_logps(z, ids, backend="triton").sum(), 2),
        (lambda z, ids: sequence_logps(z[None], ids[None], backend="triton").sum(), 2),
        (lambda z, ids: weighted_nll(z, ids, torch.ones(2, device=DEVICE), backend="triton").loss, 3),  # and a scale
    ],
)
def test_every_launch_is_on_the_device_of_its_logits(
    operation: Callable[..., torch.Tensor], launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded: list[torch.device] = []
    guard = torch.cuda.device_of

    def noted(tensor: torch.Tensor) -> object:
        guarded.append(tensor.device)
        return guard(tensor)

    monkeypatch.setattr(torch.cuda, "device_of", noted)
    logits = torch.randn(2, 5, device=DEVICE, requires_grad=True)
    (2 * operation(logits, torch.tensor([0, 4], device=DEVICE))).backward()
    assert len(guarded) == launches
    assert set(guarded) == {logits.device}
