"""Peak extra memory of every operation stays below its formula, and below eager's by the promised factor.

The blocks are made small beside the logits, so that one tensor of logits too many exceeds every bound.
"""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maxent_grpo.kernels import (
    linear_sequence_logps,
    linear_token_logps,
    linear_weighted_nll,
    sequence_logps,
    token_logps,
    weighted_nll,
)
from maxent_grpo.kernels._matmul import CHUNK_BYTES
from maxent_grpo.kernels._torch_rows import BLOCK_BYTES
from support.kernel_cases import DEVICE, naive_logps, peak_bytes

N, D, V = 8, 64, 32768  # few rows: Triton's interpreter pays for each, hardly for its width
CHUNK_ROWS = 2
BLOCK = 1 << 17  # an eighth of the logits in float32: one row
ROW_BYTES = 64 * N + (1 << 16)  # per-row results, masks and indices; constants


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCK_BYTES, DEVICE, BLOCK)


def blocks(backend: str, *, entropy: bool = False, dropped: bool = False, capped: bool = False) -> int:
    """Bytes that the row operations hold beside their results."""
    return BLOCK * (1 + entropy + dropped + capped) if backend == "torch" else 0


def workspace(rows: int, width: int, vocabulary: int, dtype: torch.dtype, *, backward: bool = True) -> int:
    """Bytes that torch's own matmuls of a chunk hold beside their results, which depends on the processor."""
    hidden, weight, logits = (
        torch.empty(*shape, dtype=dtype, device=DEVICE)
        for shape in ((rows, width), (vocabulary, width), (rows, vocabulary))
    )

    def multiply() -> None:
        torch.mm(hidden, weight.t(), out=logits)
        if backward:
            torch.mm(logits, weight, out=hidden)
            torch.addmm(weight, logits.t(), hidden, out=weight)

    return peak_bytes(multiply)


class WidestFloat32(TorchDispatchMode):
    """Keeps the bytes of the largest float32 tensor that any of torch's operations returns."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.bytes = max(self.bytes, *(leaf.nbytes for leaf in tensors if leaf.dtype == torch.float32), 0)
        return result


@pytest.fixture(scope="module")
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, V, device=DEVICE), torch.randint(0, V, (N,), device=DEVICE), torch.randn(N, device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_log_probabilities_need_a_few_blocks_forward_and_the_gradient_backward(
    backend: str, rows: tuple[torch.Tensor, ...], dtype: torch.dtype, masked: bool
) -> None:
    logits, ids = rows[0].to(dtype).requires_grad_(), rows[1]
    mask = torch.arange(N, device=DEVICE) % 8 > 0 if masked else None
    bound = blocks(backend, dropped=masked) + ROW_BYTES

    def score() -> torch.Tensor:
        return token_logps(logits, ids, mask=mask, backend=backend)

    gradient = N * V * dtype.itemsize
    assert bound < gradient
    assert peak_bytes(score) <= bound
    step = peak_bytes(lambda: torch.autograd.grad(score().sum(), logits))
    assert gradient <= step <= gradient + bound


@pytest.mark.parametrize("cut", [(slice(None), slice(-1)), (slice(None), slice(None), slice(-1))])
def test_logits_cut_in_any_dimension_are_not_copied(backend: str, cut: tuple[slice, ...]) -> None:
    logits, ids = (
        torch.randn(2, 3, 4, V, device=DEVICE)[cut],
        torch.zeros(2, 3, 4, dtype=torch.int64, device=DEVICE),
    )
    bound = blocks(backend) + ROW_BYTES
    assert peak_bytes(lambda: token_logps(logits, ids[cut], backend=backend)) <= bound < logits.numel() * 4


def test_sequence_log_probabilities_score_in_an_eighth_of_eagers_memory() -> None:
    width = 32768  # 8 sequences of 128 tokens: half a gigabyte of eager temporaries at [8, 512, V]
    logits = torch.randn(8, 128, width, device=DEVICE, requires_grad=True)
    ids = torch.randint(0, width, (8, 128), device=DEVICE)
    everything = torch.ones_like(ids, dtype=torch.bool)
    eager = peak_bytes(lambda: naive_logps(logits, ids, everything).sum(-1))
    assert peak_bytes(lambda: sequence_logps(logits, ids)) <= eager / 8


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pass_in_place_needs_no_second_tensor_of_logits(
    backend: str, rows: tuple[torch.Tensor, ...], entropy: bool, dropped: bool, dtype: torch.dtype
) -> None:
    logits, ids, weights = rows[0].to(dtype), rows[1], rows[2]
    if dropped:
        weights = weights * (torch.arange(N, device=DEVICE) % 8 > 0)
    leaf = torch.zeros((), dtype=dtype, device=DEVICE, requires_grad=True)
    bound = blocks(backend, entropy=entropy, dropped=dropped) + ROW_BYTES

    def step(inplace: bool) -> int:
        over = logits + leaf
        return peak_bytes(lambda: weighted_nll(over, ids, weights, inplace=inplace, entropy=entropy, backend=backend))

    assert step(inplace=True) <= bound
    assert bound < step(inplace=False) <= logits.nbytes + bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("softcap", "entropy", "dropped"), [(None, False, False), (5.0, False, True), (5.0, True, False)]
)
def test_the_head_needs_one_chunk_beside_its_gradients(
    backend: str, dtype: torch.dtype, softcap: float | None, entropy: bool, dropped: bool
) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(N, D, device=DEVICE).to(dtype).requires_grad_()
    weight = torch.randn(V, D, device=DEVICE).to(dtype).requires_grad_()
    ids, weights = torch.randint(0, V, (N,), device=DEVICE), torch.randn(N, device=DEVICE)
    mask = torch.arange(N, device=DEVICE) % 4 > 0 if dropped else None
    chunk = CHUNK_ROWS * V * dtype.itemsize
    wide = 0 if dtype == torch.float32 or DEVICE == "cuda" else CHUNK_ROWS * V * 4  # a CPU multiplies in float32
    products = 3 * CHUNK_ROWS * D * 4 + workspace(CHUNK_ROWS, D, V, dtype)
    products += N * D * dtype.itemsize if dropped else 0
    gradients = (N * D + V * D) * dtype.itemsize
    sums = V * D * 4 if dtype != torch.float32 else 0
    bound = chunk + products + ROW_BYTES
    options = {"mask": mask, "softcap": softcap, "chunk_bytes": chunk, "backend": backend}

    def one_pass() -> torch.Tensor:
        return linear_weighted_nll(hidden, weight, ids, weights, entropy=entropy, **options).loss

    def two_passes() -> torch.Tensor:
        return linear_token_logps(hidden, weight, ids, **options).sum()

    def sequences() -> torch.Tensor:
        rows, ids_of, mask_of = hidden.view(4, -1, D), ids.view(4, -1), None if mask is None else mask.view(4, -1)
        scored = linear_sequence_logps(rows, weight, ids_of, length_normalize=True, **options | {"mask": mask_of})
        return scored.sum()

    def differentiate(loss: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        value = loss()
        gc.collect(1)  # Triton's interpreter leaves cycles behind that hold the forward's chunk
        return torch.autograd.grad(value, (hidden, weight))

    for loss in (one_pass, two_passes, sequences):
        held = blocks(backend, entropy=entropy, capped=softcap is not None)
        step = peak_bytes(lambda loss=loss: differentiate(loss))
        assert step <= bound + held + wide + gradients + sums
        with torch.no_grad():
            assert peak_bytes(loss) <= bound + blocks(backend, entropy=entropy)


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
)
def test_many_wide_hidden_states_cost_their_gradient_and_no_float32_beside_it(
    backend: str, dtype: torch.dtype, autocast: bool
) -> None:
    torch.manual_seed(0)
    rows, width, vocabulary = 32, 16384, 16
    hidden = torch.randn(rows, width, device=DEVICE).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, device=DEVICE).to(dtype).requires_grad_()
    ids, weights = torch.randint(0, vocabulary, (rows,), device=DEVICE), torch.randn(rows, device=DEVICE)
    cast = torch.bfloat16 if autocast else dtype
    chunk, leaves = CHUNK_ROWS * vocabulary * cast.itemsize, (rows + vocabulary) * width
    products = 3 * CHUNK_ROWS * width * 4 + workspace(CHUNK_ROWS, width, vocabulary, cast)
    bound = chunk + blocks(backend) + products + leaves * cast.itemsize + 64 * rows + (1 << 16)
    if cast == torch.bfloat16:
        bound += vocabulary * width * 4 + CHUNK_ROWS * vocabulary * 4
    if autocast:  # copies of the leaves in bfloat16, their gradients in float32
        bound += leaves * cast.itemsize + leaves * dtype.itemsize

    def step() -> object:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            loss = linear_weighted_nll(hidden, weight, ids, weights, chunk_bytes=chunk, backend=backend).loss
        return torch.autograd.grad(loss, (hidden, weight))

    assert peak_bytes(step) <= bound


def test_one_chunk_of_bfloat16_takes_the_place_of_the_float32_sum(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(N, 4 * D, device=DEVICE).bfloat16().requires_grad_()
    weight = torch.randn(V, 4 * D, device=DEVICE).bfloat16().requires_grad_()
    ids, weights = torch.randint(0, V, (N,), device=DEVICE), torch.randn(N, device=DEVICE)
    logits, sums, leaves = N * V * 2, V * 4 * D * 4, (N + V) * 4 * D
    monkeypatch.setitem(CHUNK_BYTES, DEVICE, logits // 4)
    assert logits // 4 < logits < logits // 4 + sums  # what the sum would take makes room for one chunk

    def step(**options: int) -> object:
        loss = linear_weighted_nll(hidden, weight, ids, weights, backend=backend, **options).loss
        return torch.autograd.grad(loss, (hidden, weight))

    products = 3 * N * 4 * D * 4 + workspace(N, 4 * D, V, torch.bfloat16)
    assert peak_bytes(step) <= logits + products + blocks(backend) + leaves * 2 + ROW_BYTES
    # The bytes alone do not show a sum where torch's own matmul holds as much.
    with WidestFloat32() as at_once:
        step()
    with WidestFloat32() as in_chunks:
        step(chunk_bytes=logits // 4)
    assert at_once.bytes < in_chunks.bytes == sums
    with torch.no_grad():  # without dW there is no sum to spare
        scored = peak_bytes(lambda: linear_weighted_nll(hidden, weight, ids, weights, backend=backend))
    chunk = logits // 4 + blocks(backend) + ROW_BYTES
    assert chunk < logits
    assert scored <= chunk + workspace(N // 4, 4 * D, V, torch.bfloat16, backward=False)


def test_the_head_at_its_default_chunk_needs_a_quarter_of_eagers_memory() -> None:
    torch.manual_seed(0)
    rows, vocabulary = (8192, 65536) if DEVICE == "cuda" else (1024, 32768)  # the default chunk goes by the device
    width = 64
    hidden = torch.randn(rows, width, device=DEVICE, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=DEVICE, requires_grad=True)
    ids, weights = torch.randint(0, vocabulary, (rows,), device=DEVICE), torch.randn(rows, device=DEVICE)
    everything = torch.ones_like(ids, dtype=torch.bool)
    leaves = (hidden, weight)

    def eager() -> object:
        return torch.autograd.grad(-(weights * naive_logps(hidden @ weight.T, ids, everything)).sum(), leaves)

    def fused() -> object:
        return torch.autograd.grad(linear_weighted_nll(hidden, weight, ids, weights).loss, leaves)

    gradient = weight.numel() * 4
    assert peak_bytes(fused) - gradient <= (peak_bytes(eager) - gradient) / 4
