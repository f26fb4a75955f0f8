"""What a training step through the LM head does beside its matmuls: passes over memory, waits of the host."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maxent_grpo.kernels import linear_sequence_logps, linear_token_logps, linear_weighted_nll
from maxent_grpo.kernels._kept_rows import KeptRows
from support.kernel_cases import DEVICE, Head, standard_head


class CountedPasses(TorchDispatchMode):
    """Notes the operations, no matmuls, that read or write as many elements as the head or the hidden states have."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes, self.seen = sizes, []

    def __torch_dispatch__(self, operation: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = operation(*args, **(kwargs or {}))
        name = operation._schema.name.removeprefix("aten::")
        views = any(result.alias_info and not result.alias_info.is_write for result in operation._schema.returns)
        touched = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)]
        if name not in {"mm", "addmm", "empty", "empty_like", "new_empty"} and not views:
            self.seen += [name for leaf in touched[:1] if leaf.numel() in self.sizes]
        return output


def step(head: Head, backend: str, **more: Any) -> tuple[Tensor, ...]:
    leaves = head.leaves()
    options = {**head.options, "backend": backend, **more}
    loss = linear_weighted_nll(*leaves[:2], head.ids, head.token_weights, **options).loss
    return (loss, *torch.autograd.grad(loss, leaves[:2]))


@pytest.mark.parametrize(
    ("dtype", "chunked", "passes"),
    [
        (torch.bfloat16, False, 0),
        (torch.bfloat16, True, 1),  # rounds the float32 sum of dW
        (torch.float32, True, 0),
        (torch.float16, False, 4),  # H, dH and dW times powers of the coefficients, and the sum rounded
    ],
)
def test_a_step_makes_so_few_passes_over_gradients_and_hidden_states_beside_its_matmuls(
    dtype: torch.dtype, chunked: bool, passes: int
) -> None:
    """With torch's row functions: Triton's kernels are no operations of torch, and its interpreter copies."""
    head = standard_head(dtype)
    with CountedPasses(head.weight.numel(), head.hidden.numel()) as counted:
        step(head, "torch", **({} if chunked else {"chunk_bytes": None}))
    assert len(counted.seen) == passes, counted.seen


def test_a_told_number_of_rows_changes_nothing_but_the_wait(backend: str) -> None:
    head = standard_head()
    head.token_weights[:5] = 0
    for factor in (1, 0):
        head.token_weights.mul_(factor)
        count = int((head.keep & (head.token_weights != 0)).sum())
        for told, counted in zip(step(head, backend, row_count=count), step(head, backend), strict=True):
            assert torch.equal(told, counted)
    scored = int(head.keep.sum())
    for score, shape in ((linear_token_logps, (-1,)), (linear_sequence_logps, (4, -1))):
        hidden, ids = head.hidden.view(*shape, head.hidden.shape[-1]), head.ids.view(shape)
        told = score(hidden, head.weight, ids, row_count=scored, backend=backend)
        assert torch.equal(told, score(hidden, head.weight, ids, backend=backend))


@pytest.mark.parametrize("count", [-1, 0, 15, 17])
def test_a_number_of_rows_that_is_not_true_is_named_where_it_can_be_seen(count: int) -> None:
    head = standard_head()
    if DEVICE == "cpu" or not 0 <= count <= 16:
        with pytest.raises(ValueError, match=f"row_count={count}"):
            step(head, "auto", row_count=count)


@pytest.mark.parametrize("count", [3, 5, 6])
def test_a_number_of_rows_that_is_not_true_makes_every_result_nan(count: int) -> None:
    keep = torch.tensor([True, False, True, True, True, False], device=DEVICE)
    rows, values = KeptRows(keep, count), torch.arange(12.0, device=DEVICE).view(6, 2)
    chosen = rows.select(values)
    assert len(chosen) == count
    assert rows.scatter(chosen[:, 0]).isnan().sum() >= min(count, 4)
    assert rows.distrust(chosen).isnan().all()


def test_the_true_number_of_rows_selects_them_and_puts_them_back() -> None:
    keep = torch.tensor([[True, False, True], [True, True, False]], device=DEVICE)
    values = torch.arange(12.0, device=DEVICE).view(2, 3, 2)
    for rows in (KeptRows(keep), KeptRows(keep, 4)):
        assert torch.equal(rows.select(values), values[keep])
        assert torch.equal(rows.scatter(rows.select(values)[:, 1]), values[..., 1] * keep)
