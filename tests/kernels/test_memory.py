"""Peak extra memory of every operation stays below its formula, and below eager's by the promised factor."""

import pytest
import torch

from kernel_cases import DEVICE, naive_logps, peak_bytes
from maxent_grpo.kernels import linear_token_logps, linear_weighted_nll, sequence_logps, token_logps, weighted_nll
from maxent_grpo.kernels.torch_rows import BLOCK_BYTES

N, D, V = 512, 64, 8192
CHUNK = 64 * V * 4  # 64 rows
BLOCKS = 3 * BLOCK_BYTES[DEVICE]
ROW_BYTES = 64 * N + (1 << 16)  # per-row results, masks and indices; constants


@pytest.fixture(scope="module")
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, V, device=DEVICE), torch.randint(0, V, (N,), device=DEVICE), torch.randn(N, device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_need_a_few_blocks_forward_and_the_gradient_backward(
    rows: tuple[torch.Tensor, ...], dtype: torch.dtype
) -> None:
    logits, ids = rows[0].to(dtype).requires_grad_(), rows[1]
    assert peak_bytes(lambda: token_logps(logits, ids)) <= BLOCKS + ROW_BYTES
    gradient = N * V * dtype.itemsize
    step = peak_bytes(lambda: torch.autograd.grad(token_logps(logits, ids).sum(), logits))
    assert gradient <= step <= gradient + BLOCKS + ROW_BYTES


def test_sequence_log_probabilities_score_in_an_eighth_of_eagers_memory() -> None:
    width = 32768  # 8 sequences of 128 tokens: half a gigabyte of eager temporaries at [8, 512, V]
    logits = torch.randn(8, 128, width, device=DEVICE, requires_grad=True)
    ids = torch.randint(0, width, (8, 128), device=DEVICE)
    everything = torch.ones_like(ids, dtype=torch.bool)
    eager = peak_bytes(lambda: naive_logps(logits, ids, everything).sum(-1))
    assert peak_bytes(lambda: sequence_logps(logits, ids)) <= eager / 8


def test_one_pass_in_place_needs_no_second_tensor_of_logits(rows: tuple[torch.Tensor, ...]) -> None:
    logits, ids, weights = rows
    leaf = torch.zeros((), device=DEVICE, requires_grad=True)

    def step(inplace: bool) -> int:
        over = logits + leaf
        return peak_bytes(lambda: weighted_nll(over, ids, weights, inplace=inplace))

    assert step(inplace=True) <= BLOCKS + ROW_BYTES
    assert step(inplace=False) <= N * V * 4 + BLOCKS + ROW_BYTES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_needs_one_chunk_beside_its_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(N, D, device=DEVICE).to(dtype).requires_grad_()
    weight = torch.randn(V, D, device=DEVICE).to(dtype).requires_grad_()
    ids, weights = torch.randint(0, V, (N,), device=DEVICE), torch.randn(N, device=DEVICE)
    chunk = CHUNK * dtype.itemsize // 4
    wide = 0 if dtype == torch.float32 or DEVICE == "cuda" else CHUNK + 64 * D * 4  # a CPU multiplies in float32
    products = 3 * 64 * D * 4
    gradients = (N * D + V * D) * dtype.itemsize
    sums = V * D * 4 if dtype != torch.float32 else 0
    blocks = min(BLOCKS, 3 * CHUNK)
    bound = chunk + wide + products + blocks + ROW_BYTES

    def step(operation: str) -> object:
        if operation == "one pass":
            loss = linear_weighted_nll(hidden, weight, ids, weights, chunk_bytes=chunk).loss
        else:
            loss = linear_token_logps(hidden, weight, ids, chunk_bytes=chunk).sum()
        return torch.autograd.grad(loss, (hidden, weight))

    for operation in ("one pass", "two passes"):
        assert peak_bytes(lambda operation=operation: step(operation)) <= bound + gradients + sums
    with torch.no_grad():
        scoring = peak_bytes(lambda: linear_weighted_nll(hidden, weight, ids, weights, chunk_bytes=chunk))
    assert scoring <= chunk + blocks + ROW_BYTES


def test_the_head_at_its_default_chunk_needs_a_quarter_of_eagers_memory() -> None:
    torch.manual_seed(0)
    rows, width, vocabulary = 1024, 64, 32768
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
