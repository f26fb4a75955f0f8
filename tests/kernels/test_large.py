"""More than 2³¹ elements: offsets are computed in 64 bits, in the interpreter and on a GPU."""

import pytest
import torch

from maxent_grpo.kernels import token_logps, weighted_nll
from maxent_grpo.kernels._rows import LogitMap, load_backend
from support.kernel_cases import DEVICE, naive_logps

STEP = 2**30 + 8  # fits 32 bits; twice the step does not, nor any product formed in 32 bits


def far_apart(shape: tuple[int, ...], steps: tuple[int, ...]) -> torch.Tensor:
    """Random values in an area of 4 GiB, of which only the touched pages take memory."""
    torch.manual_seed(0)
    reach = sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    area = torch.empty(reach + 1, dtype=torch.bfloat16, device=DEVICE)
    return area.as_strided(shape, steps).copy_(torch.randn(shape))


@pytest.mark.parametrize(
    ("shape", "steps"),
    [((3, 7), (STEP, 1)), ((3, 1, 7), (STEP, 7, 1)), ((2, 3), (1, STEP))],
    ids=["rows", "batches", "columns"],
)
def test_elements_further_than_two_to_the_31_apart_are_addressed_right(
    backend: str, shape: tuple[int, ...], steps: tuple[int, ...]
) -> None:
    logits = far_apart(shape, steps)
    values = logits.clone()
    ids = torch.tensor([2, 0, 1], dtype=torch.int32, device=DEVICE)[: values[..., 0].numel()]
    factor = torch.tensor([0.5, -1.0, 2.0], device=DEVICE)[: len(ids)]
    flat = values.double().view(len(ids), -1)
    expected = naive_logps(flat, ids, factor != 0)
    gradient = factor[:, None] * (flat.softmax(-1) - torch.nn.functional.one_hot(ids.long(), flat.shape[-1]))
    rows, logit_map = load_backend(backend, logits), LogitMap()

    scored = rows.score_rows(logits, ids, factor != 0, logit_map)
    torch.testing.assert_close(scored.logps.double(), expected, rtol=1e-6, atol=1e-6)
    rows.write_row_gradient(logits, ids, scored.normalizer, factor, logit_map, logits)
    torch.testing.assert_close(logits.double().view(gradient.shape), gradient, rtol=2**-7, atol=1e-6)
    logits.copy_(values)
    both = rows.score_and_write_gradient(logits, ids, factor, logit_map, logits)
    torch.testing.assert_close(both.logps.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits.double().view(gradient.shape), gradient, rtol=2**-7, atol=1e-6)
    rows.write_row_gradient(logits, ids, scored.normalizer, torch.zeros_like(factor), logit_map, logits)
    assert not bool(logits.any())


@pytest.mark.skipif(DEVICE != "cuda", reason="runs on a GPU only: twice 4 GiB of logits, minutes on a CPU")
def test_more_than_two_to_the_31_logits_are_scored_and_differentiated_to_the_last_row(backend: str) -> None:
    rows, width, last = 16640, 131072, slice(-3, None)
    assert rows * width > 2**31
    torch.manual_seed(0)
    logits = torch.randn(rows, width, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    ids = torch.randint(0, width, (rows,), device=DEVICE)
    weights = torch.randn(rows, device=DEVICE)
    exact = logits.detach()[last].double().requires_grad_()
    expected = naive_logps(exact, ids[last], weights[last].isfinite())
    (gradient,) = torch.autograd.grad(-(weights[last] * expected).sum(), exact)
    with torch.no_grad():
        scored = token_logps(logits, ids, backend=backend)
    torch.testing.assert_close(scored[last].double(), expected.detach(), rtol=1e-5, atol=1e-5)
    for loss in (
        lambda: weighted_nll(logits, ids, weights, backend=backend).loss,
        lambda: -(weights * token_logps(logits, ids, backend=backend)).sum(),
    ):
        (got,) = torch.autograd.grad(loss(), logits)
        torch.testing.assert_close(got[last].double(), gradient, rtol=2**-7, atol=1e-7)
        del got
