"""The operations through the LM head, in both backends, against the naive equations in float64."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from maxent_grpo.kernels import WeightedNLL, linear_sequence_logps, linear_token_logps, linear_weighted_nll
from maxent_grpo.kernels import _matmul as matmul
from support.kernel_cases import DEVICE, DTYPES, Exact, Head, heads, naive_head, naive_logps, standard_head
from support.kernel_errors import assert_within, final_rounding, loss_error
from support.precision import count_roundings, evaluate, unit_roundoff


def weighted(head: Head, leaves: list[torch.Tensor], backend: str, **more: object) -> WeightedNLL:
    hidden, weight, *bias = leaves
    options = {"bias": bias[0] if bias else None, "backend": backend, **head.options, **more}
    return linear_weighted_nll(hidden, weight, head.ids, head.token_weights, **options)


def one_pass(head: Head, leaves: list[torch.Tensor], backend: str, **more: object) -> torch.Tensor:
    return weighted(head, leaves, backend, **more).loss


def two_passes(head: Head, leaves: list[torch.Tensor], backend: str) -> torch.Tensor:
    hidden, weight, *bias = leaves
    return linear_token_logps(
        hidden, weight, head.ids, bias=bias[0] if bias else None, backend=backend, **head.options
    )


def assert_gradients_within(loss: torch.Tensor, leaves: list[torch.Tensor], exact: Exact) -> None:
    for got, wanted, error in zip(
        torch.autograd.grad(loss, leaves), exact.gradients, exact.gradient_errors, strict=True
    ):
        assert_within(got, wanted, error)


def dtypes(backend: str) -> tuple[torch.dtype, ...]:
    return (*DTYPES, torch.float64) if backend == "torch" else DTYPES


@given(data=st.data())
def test_one_pass_has_the_loss_the_entropy_and_the_gradients_of_the_naive_equations(
    backend: str, data: st.DataObject
) -> None:
    head = data.draw(heads(dtypes(backend)))
    exact, leaves = head.exact(backend), head.leaves()
    counted, weights = head.keep & (head.token_weights != 0), head.token_weights.double()
    with torch.no_grad():
        scored = weighted(head, leaves, backend, entropy=True)
    trained = weighted(head, leaves, backend, entropy=True)
    for found in (scored, trained):
        assert found.entropy is not None
        assert_within(found.token_logps, exact.logps.where(counted, 0), exact.row_error.where(counted, 0))
        assert_within(found.entropy, exact.entropy.where(counted, 0), exact.entropy_error.where(counted, 0))
        of_loss = loss_error(weights, exact.logps, exact.row_error, head.hidden.dtype)
        assert_within(found.loss, -(weights * exact.logps).sum(), of_loss)
    assert_gradients_within(trained.loss, leaves, exact)


@given(data=st.data())
def test_token_logps_through_the_head_and_their_gradients_are_the_naive_ones(
    backend: str, data: st.DataObject
) -> None:
    head = data.draw(heads(dtypes(backend)))
    exact, leaves = head.exact(backend), head.leaves()
    logps = two_passes(head, leaves, backend)
    assert_within(logps, exact.logps, exact.row_error)
    assert_gradients_within(-(head.token_weights * logps).sum(), leaves, exact)


def test_sequence_logps_through_the_head_sum_or_average_the_tokens_kept(backend: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 4, 8, device=DEVICE)
    weight = torch.randn(20, 8, device=DEVICE)
    ids = torch.randint(0, 20, (3, 4), device=DEVICE)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], device=DEVICE, dtype=torch.bool)
    ids[1, 0] = -100

    def add_tokens() -> list[torch.Tensor]:
        tokens = naive_logps(hidden.double() @ weight.double().T, ids, mask & (ids != -100))
        return [tokens.sum(-1), tokens.sum(-1) / torch.tensor([2, 3, 1], device=DEVICE)]

    for exact, length_normalize in zip(evaluate(add_tokens), (False, True), strict=True):
        options = {"length_normalize": length_normalize, "backend": backend}
        exact.assert_near(linear_sequence_logps(hidden, weight, ids, mask, **options))


def test_the_weight_gradient_is_summed_in_float32_over_many_chunks(backend: str) -> None:
    head = standard_head(torch.bfloat16, rows=96)
    _, _, exact = head.evaluate()

    def error(chunk_rows: int) -> float:
        leaves = head.leaves()
        loss = one_pass(head, leaves, backend, chunk_bytes=chunk_rows * 300 * 2)
        return exact.distance(torch.autograd.grad(loss, leaves[1])[0])

    assert error(6) <= error(96) + 2 * exact.error  # a float32 error next to a tie moves the rounded sum twice as far


def test_a_float32_head_under_autocast_has_a_weight_gradient_in_float32(backend: str) -> None:
    head = standard_head(torch.float32, rows=96)
    leaves = head.leaves()
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = one_pass(head, leaves, backend, chunk_bytes=1 << 20)
    gradient = torch.autograd.grad(loss, leaves[1])[0]
    assert gradient.dtype == torch.float32
    assert not torch.equal(gradient, gradient.bfloat16().float())  # not rounded in between


def test_a_bias_in_float32_has_a_gradient_in_float32_beside_a_head_in_bfloat16(backend: str) -> None:
    head = standard_head(torch.bfloat16, rows=96)
    hidden, weight = head.leaves()[:2]
    bias = torch.zeros(len(weight), device=DEVICE, requires_grad=True)
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = linear_weighted_nll(
            hidden, weight, head.ids, head.token_weights, bias=bias, chunk_bytes=1 << 20, backend=backend
        ).loss
    gradient = torch.autograd.grad(loss, bias)[0]
    assert not torch.equal(gradient, gradient.bfloat16().float())


def test_an_upstream_gradient_over_one_chunk_of_bfloat16_rounds_once_more_and_no_worse(backend: str) -> None:
    head = standard_head(torch.bfloat16, rows=96)
    _, _, exact = head.evaluate(after=1 / 3)

    def error(**more: int) -> float:
        leaves = head.leaves()
        loss = one_pass(head, leaves, backend, **more) / 3
        return exact.distance(torch.autograd.grad(loss, leaves[1])[0])

    rounding = final_rounding(torch.bfloat16, backend) / 3**0.5 * float(exact.value.norm())  # of thousands of entries
    assert error(chunk_bytes=1 << 20) <= math.hypot(error(chunk_bytes=6 * 300 * 2), rounding) + 2 * exact.error


def test_float16_sums_over_one_chunk_do_not_overflow_before_they_are_scaled(backend: str) -> None:
    rows, value = 16, 2.0**14  # whose dW is 65,536 · 3 before the power of 2 of its coefficients comes in
    hidden = torch.full((rows, 8), value, device=DEVICE, dtype=torch.float16)
    weight = torch.zeros(4, 8, device=DEVICE, dtype=torch.float16, requires_grad=True)
    ids = torch.zeros(rows, device=DEVICE, dtype=torch.int64)
    loss = linear_weighted_nll(hidden, weight, ids, torch.full((rows,), 1e-4, device=DEVICE), backend=backend).loss
    slopes = torch.tensor([-0.75, 0.25, 0.25, 0.25], dtype=torch.float64, device=DEVICE)
    expected = slopes[:, None].expand(4, 8) * value * rows * 1e-4
    gradient = torch.autograd.grad(loss, weight)[0]
    rounded = 2 * unit_roundoff(torch.float16) + count_roundings(rows) * unit_roundoff(torch.float32)  # dz and dW
    assert_within(gradient, expected, rounded * expected.abs())


def test_scoring_before_a_backward_takes_the_chunks_of_the_backward(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    mm = torch.mm

    def noted(a: torch.Tensor, b: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        if b.shape[1] == 300:
            sizes.append(len(a))
        return mm(a, b, **more)

    monkeypatch.setattr(torch, "mm", noted)
    monkeypatch.setitem(matmul.CHUNK_BYTES, DEVICE, 95 * 300 * 2)  # one row short
    head = standard_head(torch.bfloat16, rows=96)
    leaves = head.leaves()
    linear_token_logps(*leaves[:2], head.ids, backend=backend).sum().backward()
    assert sizes == [96, 96]


def flops(head: Head, backend: str, operation: str, **frozen: bool) -> float:
    """Floating point operations of a step in units of F = N·D·V."""
    hidden, weight = head.leaves()
    hidden.requires_grad_(not frozen.get("hidden", False))
    weight.requires_grad_(not frozen.get("weight", False))
    with FlopCounterMode(display=False) as counter:
        if operation == "one_pass":
            one_pass(head, [hidden, weight], backend).backward()
        elif operation == "two_pass":
            linear_token_logps(hidden, weight, head.ids, backend=backend, **head.options).sum().backward()
        else:
            with torch.no_grad():
                one_pass(head, [hidden, weight], backend)
    return counter.get_total_flops() / (len(head.ids) * weight.numel())


def test_one_pass_costs_six_operations_per_entry_and_recomputing_eight(backend: str) -> None:
    head = standard_head()
    assert flops(head, backend, "one_pass") == 6
    assert flops(head, backend, "two_pass") == 8
    assert flops(head, backend, "scoring") == 2
    assert flops(head, backend, "one_pass", weight=True) == 4
    assert flops(head, backend, "one_pass", hidden=True) == 4


def test_rows_with_coefficient_zero_are_dropped_before_the_matmul(backend: str) -> None:
    head = standard_head()
    head.token_weights[:12] = 0
    head.hidden[:12] = torch.nan
    assert flops(head, backend, "one_pass") == 6 * 4 / 16
    leaves = head.leaves()
    hidden_gradient, weight_gradient = torch.autograd.grad(one_pass(head, leaves, backend), leaves)
    assert torch.equal(hidden_gradient[:12], torch.zeros(12, 32, device=DEVICE))
    assert bool(weight_gradient.isfinite().all())


@pytest.mark.parametrize("bad", [300, -1])
@pytest.mark.parametrize("dropped_by", ["token_weights", "mask"])
def test_an_id_outside_the_vocabulary_adds_nothing_where_its_row_is_dropped(
    backend: str, bad: int, dropped_by: str
) -> None:
    head = standard_head()
    getattr(head, dropped_by)[3] = 0

    def results() -> list[torch.Tensor]:
        leaves = head.leaves()
        found = weighted(head, leaves, backend, entropy=True)
        values = [found.loss, *([two_passes(head, leaves, backend)] if dropped_by == "mask" else [])]
        gradients = [part for value in values for part in torch.autograd.grad(value.sum(), leaves)]
        return [found.token_logps, found.entropy, *values, *gradients]

    expected = results()
    head.ids[3] = bad
    for got, wanted in zip(results(), expected, strict=True):
        assert torch.equal(got, wanted)


def test_an_all_masked_batch_gives_a_differentiable_zero(backend: str) -> None:
    head = standard_head()
    head.mask[:] = False
    leaves = head.leaves()
    loss = one_pass(head, leaves, backend)
    assert float(loss.detach()) == 0
    assert all(not bool(gradient.any()) for gradient in torch.autograd.grad(loss, leaves))
    logps = linear_token_logps(*leaves, head.ids, mask=head.mask, backend=backend)
    assert all(not bool(gradient.any()) for gradient in torch.autograd.grad(logps.sum(), leaves))


def test_the_upstream_gradient_scales_the_gradients(backend: str) -> None:
    head = standard_head()
    leaves = head.leaves()
    once = torch.autograd.grad(one_pass(head, leaves, backend), leaves)
    scaled = torch.autograd.grad(-2.5 * one_pass(head, leaves, backend), leaves)
    for one, other in zip(once, scaled, strict=True):  # either is rounded once after the sum
        expected = -2.5 * one.double()
        assert_within(other, expected, 2 * unit_roundoff(torch.float32) * expected.abs())


def test_coefficients_too_small_for_float16_gradients_of_logits_still_move_the_head(backend: str) -> None:
    head = standard_head(torch.float16)
    tiny = replace(head, token_weights=1e-7 * head.token_weights)
    leaves = head.leaves()
    gradients = torch.autograd.grad(one_pass(head, leaves, backend), leaves)
    rescaled = torch.autograd.grad(1e7 * one_pass(tiny, leaves, backend), leaves)  # as a loss scaler does
    errors = head.gradient_errors(naive_head(head.hidden, head.weight).double(), backend)  # of the same logits
    for one, other, error in zip(gradients, rescaled, errors, strict=True):
        assert_within(other, one.double(), 2 * error)


def test_autocast_runs_the_matmuls_in_its_dtype_and_returns_float32_gradients(backend: str) -> None:
    head = standard_head()
    leaves, half = head.leaves(), replace(head, hidden=head.hidden.bfloat16(), chunk_rows=2 * head.chunk_rows)
    halves = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves]
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = one_pass(head, leaves, backend)
        token = linear_token_logps(*leaves, head.ids, backend=backend)
    expected = one_pass(half, halves, backend)
    assert torch.equal(loss, expected)  # the same operations on the same chunks
    gradients = torch.autograd.grad(loss, leaves)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    for one, other in zip(gradients, torch.autograd.grad(expected, halves), strict=True):
        assert_within(other, one.double(), unit_roundoff(torch.bfloat16) * one.abs())  # and a last rounding
    (token * head.token_weights).sum().backward()
    assert leaves[0].grad is not None
    assert leaves[0].grad.dtype == torch.float32


def test_a_tied_embedding_gets_both_its_gradients(backend: str) -> None:
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(20, 8, device=DEVICE)
    inputs, ids = torch.randint(0, 20, (2, 12), device=DEVICE).unbind()
    weights = torch.randn(12, device=DEVICE)

    def differentiate() -> list[torch.Tensor]:
        table = embedding.weight.detach().double().requires_grad_()
        hidden = torch.nn.functional.embedding(inputs, table).tanh()
        logps = naive_logps(hidden @ table.T, ids, torch.ones_like(ids, dtype=torch.bool))
        return list(torch.autograd.grad(-(weights.double() * logps).sum(), table))

    (exact,) = evaluate(differentiate)
    hidden = embedding(inputs).tanh()
    loss = linear_weighted_nll(hidden, embedding.weight, ids, weights, backend=backend).loss
    exact.assert_near(torch.autograd.grad(loss, embedding.weight)[0])


def test_a_checkpointed_body_gets_the_same_gradient(backend: str) -> None:
    torch.manual_seed(0)
    body, head = torch.nn.Linear(8, 8, device=DEVICE), torch.nn.Linear(8, 20, bias=False, device=DEVICE)
    inputs, ids = torch.randn(5, 8, device=DEVICE), torch.randint(0, 20, (5,), device=DEVICE)
    weights = torch.randn(5, device=DEVICE)

    def gradient(hidden: torch.Tensor) -> torch.Tensor:
        loss = linear_weighted_nll(hidden, head.weight, ids, weights, backend=backend).loss
        return torch.autograd.grad(loss, body.weight)[0]

    def differentiate() -> list[torch.Tensor]:
        parameter = body.weight.detach().double().requires_grad_()
        hidden = torch.nn.functional.linear(inputs.double(), parameter, body.bias.double())
        logps = naive_logps(hidden @ head.weight.double().T, ids, torch.ones_like(ids, dtype=torch.bool))
        return list(torch.autograd.grad(-(weights.double() * logps).sum(), parameter))

    (exact,) = evaluate(differentiate)
    exact.assert_near(gradient(torch.utils.checkpoint.checkpoint(body, inputs, use_reentrant=False)))
    exact.assert_near(gradient(body(inputs)))


def test_a_second_backward_and_a_double_backward_say_why_not(backend: str) -> None:
    head = standard_head()
    leaves = head.leaves()
    loss = one_pass(head, leaves, backend)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Expected one backward through a weighted NLL, got a second"):
        loss.backward()
    for value in (one_pass(head, leaves, backend), linear_token_logps(*leaves, head.ids, backend=backend).sum()):
        with pytest.raises(RuntimeError, match="Expected a backward without create_graph=True"):
            torch.autograd.grad(value, leaves, create_graph=True)


def test_micro_batches_add_up_to_the_whole_batch(backend: str) -> None:
    head = standard_head()
    hidden, weight = head.leaves()
    for part in (slice(0, 5), slice(5, 16)):
        linear_weighted_nll(
            hidden[part], weight, head.ids[part], head.token_weights[part], backend=backend
        ).loss.backward()
    assert weight.grad is not None
    _, _, exact = head.evaluate()
    exact.assert_near(weight.grad)


def test_a_compiled_caller_gets_the_same_result() -> None:
    head = standard_head()
    leaves = head.leaves()

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return 2 * one_pass(head, [hidden * 1.5, weight], "torch")

    compiled = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(*leaves), leaves)
    _, *exact = replace(head, hidden=1.5 * head.hidden).evaluate(after=2)
    for gradient, wanted, factor in zip(compiled, exact, (1.5, 1.0), strict=True):
        wanted.assert_near(gradient / factor)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_float64_gradients_pass_gradcheck(softcap: float | None) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (6, 4), (6,))]
    ids = torch.tensor([5, -100, 0])
    knobs = {"temperature": 0.7, "logit_scale": 1.3, "softcap": softcap, "chunk_bytes": 6 * 8}
    assert torch.autograd.gradcheck(lambda h, w, b: linear_token_logps(h, w, ids, bias=b, **knobs), inputs)


def test_autocast_leaves_float64_alone() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 8, dtype=torch.float64), torch.randn(20, 8, dtype=torch.float64)
    ids = torch.randint(0, 20, (5,))
    with torch.autocast("cpu", torch.bfloat16):
        logps = linear_token_logps(hidden, weight, ids)
    (exact,) = evaluate(lambda: [naive_logps(hidden @ weight.T, ids, ids >= 0)], torch.float64)
    exact.assert_near(logps)
