"""Chunks of the LM head and the sums of their products, whatever torch's matmuls can widen; when the head is free."""

import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maxent_grpo.kernels import _linear_autograd, linear_weighted_nll
from maxent_grpo.kernels import _matmul as matmul
from support.kernel_cases import DEVICE
from support.kernel_errors import assert_within
from support.precision import sum_error


@given(rows=st.integers(1, 10_000), row_bytes=st.integers(1, 1 << 20), chunk_bytes=st.integers(1, 1 << 30))
def test_chunks_stay_within_the_budget_and_end_at_whole_tiles(rows: int, row_bytes: int, chunk_bytes: int) -> None:
    size = matmul.count_chunk_rows(rows, row_bytes, chunk_bytes)
    most = max(1, min(matmul.MOST_ROWS, chunk_bytes // row_bytes))
    assert 1 <= size <= most
    assert size == rows or most < 128 or size % 128 == 0


@pytest.mark.parametrize("widens", ["products", "nothing"])
def test_a_torch_that_cannot_widen_sums_or_products_gets_the_same_float32_sum(
    monkeypatch: pytest.MonkeyPatch, widens: str
) -> None:
    asked = []

    def widening_mm(a: torch.Tensor, b: torch.Tensor, *, out_dtype: torch.dtype) -> torch.Tensor:
        asked.append(out_dtype)
        return a.to(out_dtype) @ b.to(out_dtype)

    monkeypatch.setattr(matmul, "SUMS_IN_FLOAT32", False)
    monkeypatch.setattr(matmul, "PRODUCTS_IN_FLOAT32", widens == "products")
    if widens == "products":
        monkeypatch.setattr(torch, "mm", widening_mm)  # as CUDA's since torch 2.8
    torch.manual_seed(0)
    parts = [(torch.randn(5, 3).bfloat16(), torch.randn(3, 4).bfloat16()) for _ in range(3)]
    total = matmul._Sum(torch.empty(5, 4), torch.float32)
    for a, b in parts:
        total.add(a, b)
    factors = torch.cat([a for a, _ in parts], 1).double(), torch.cat([b for _, b in parts]).double()
    terms = factors[0].unsqueeze(-1) * factors[1]
    assert_within(total.total, terms.sum(1), sum_error(terms, torch.float32, dim=1))
    assert asked == ([torch.float32] * 3 if widens == "products" else [])


@pytest.mark.parametrize("frozen", [False, True])
def test_the_head_and_its_chunks_are_free_before_the_backward(
    backend: str, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    chunks: list[weakref.ref[matmul.LogitChunks]] = []

    class Watched(matmul.LogitChunks):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            chunks.append(weakref.ref(self))

    monkeypatch.setattr(_linear_autograd, "LogitChunks", Watched)
    torch.manual_seed(0)
    hidden, shard = torch.randn(6, 8, device=DEVICE, requires_grad=True), torch.randn(20, 8, device=DEVICE)
    whole = shard.requires_grad_(not frozen) * 1.0  # as a gathered head: not the parameter itself
    ids, weights = torch.randint(0, 20, (6,), device=DEVICE), torch.randn(6, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = linear_weighted_nll(hidden, whole, ids, weights, backend=backend).loss
    gone = weakref.ref(whole)
    del whole
    gc.collect()
    assert gone() is None
    assert [reference() for reference in chunks] == [None]
    loss.backward()
    assert (shard.grad is None) == frozen
