"""More than 2³¹ elements: offsets are computed in 64 bits, in the interpreter and on a GPU."""

import pytest
import torch

from maxent_grpo.kernels import token_logps, weighted_nll
from maxent_grpo.kernels._rows import LogitMap, load_backend
from support.kernel_cases import DEVICE, precise, whole_rows
from support.kernel_errors import assert_within

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
    case = whole_rows(values.flatten(0, -2), ids, factor)
    logps, gradient = precise(case)
    rows, logit_map = load_backend(backend, logits), LogitMap()

    scored = rows.score_rows(logits, ids, factor != 0, logit_map)
    assert_within(scored.logps, logps, case.row_error)
    rows.write_row_gradient(logits, ids, scored.normalizer, factor, logit_map, logits)
    assert_within(logits.flatten(0, -2), gradient, case.gradient_error(backend))
    logits.copy_(values)
    both = rows.score_and_write_gradient(logits, ids, factor, logit_map, logits)
    assert_within(both.logps, logps, case.row_error)
    assert_within(logits.flatten(0, -2), gradient, case.gradient_error(backend))
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
    case = whole_rows(logits.detach()[last], ids[last], weights[last])
    logps, gradient = precise(case)
    with torch.no_grad():
        scored = token_logps(logits, ids, backend=backend)
    assert_within(scored[last], logps, case.row_error)
    for loss in (
        lambda: weighted_nll(logits, ids, weights, backend=backend).loss,
        lambda: -(weights * token_logps(logits, ids, backend=backend)).sum(),
    ):
        (got,) = torch.autograd.grad(loss(), logits)
        assert_within(got[last], gradient, case.gradient_error(backend))
        del got
