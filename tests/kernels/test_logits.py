"""The operations on given logits, in both backends, against the naive equations in float64."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given

from maxent_grpo.kernels import sequence_logps, token_logps, weighted_nll
from support.kernel_cases import DEVICE, Rows, precise, rows, whole_rows
from support.kernel_errors import assert_within, loss_error, row_error
from support.precision import unit_roundoff


def gradient_of(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits)[0].double()


@given(case=rows())
def test_token_logps_and_their_gradient_are_those_of_log_softmax_and_gather(backend: str, case: Rows) -> None:
    logits = case.logits.detach().requires_grad_()
    logps = token_logps(logits, case.ids, mask=case.mask, temperature=case.temperature, backend=backend)
    expected, gradient = precise(case)
    assert_within(logps, expected, case.row_error)
    assert_within(gradient_of(-(case.token_weights * logps).sum(), logits), gradient, case.gradient_error(backend))


@given(case=rows())
def test_weighted_nll_has_the_loss_and_gradient_of_the_two_pass_form(backend: str, case: Rows) -> None:
    expected, gradient = precise(case)
    logits = case.logits.detach().requires_grad_()
    result = weighted_nll(
        logits, case.ids, case.token_weights, mask=case.mask, temperature=case.temperature, backend=backend
    )
    counted, weights = case.keep & (case.token_weights != 0), case.token_weights.double()
    assert_within(result.token_logps, expected.where(counted, 0), case.row_error.where(counted, 0))
    loss = -(weights * expected).sum()
    assert_within(result.loss, loss, loss_error(weights, expected, case.row_error, case.logits.dtype))
    assert_within(gradient_of(result.loss, logits), gradient, case.gradient_error(backend))


@given(case=rows(least_dims=2))
def test_sequence_logps_sum_or_average_the_tokens_kept(backend: str, case: Rows) -> None:
    for length_normalize, divisor in ((False, 1), (True, case.keep.sum(-1).clamp_min(1))):
        logits = case.logits.detach().requires_grad_()
        found = sequence_logps(
            logits,
            case.ids,
            case.mask,
            length_normalize=length_normalize,
            temperature=case.temperature,
            backend=backend,
        )
        upstream = torch.linspace(-2, 1, found.numel(), device=DEVICE).view(case.ids.shape[:-1])
        weights = -(upstream.double() / divisor)[..., None].expand(case.ids.shape)
        tokens, gradient = precise(replace(case, token_weights=weights))
        expected = tokens.sum(-1) / divisor
        assert_within(found, expected, case.sum_error() / divisor + unit_roundoff(torch.float32) * expected.abs())
        error = replace(case, token_weights=weights).gradient_error(backend)
        assert_within(gradient_of((upstream * found).sum(), logits), gradient, error)


@pytest.mark.parametrize("width", [1, 7, 151936])
def test_vocabularies_of_any_width(backend: str, width: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, width, device=DEVICE, requires_grad=True)
    ids = torch.tensor([0, width - 1, width // 2], device=DEVICE)
    case = whole_rows(logits.detach(), ids, torch.tensor([1.0, -2.0, 0.5], device=DEVICE))
    logps, gradient = precise(case)
    result = weighted_nll(logits, ids, case.token_weights, entropy=True, backend=backend)
    assert_within(result.token_logps, logps, case.row_error)
    assert_within(gradient_of(result.loss, logits), gradient, case.gradient_error(backend))
    entropy = torch.special.entr(case.odds.softmax(-1)).sum(-1)
    assert_within(result.entropy, entropy, case.entropy_error)


def test_minus_infinity_anywhere_leaves_the_other_entries_exact(backend: str) -> None:
    torch.manual_seed(0)
    width = 40000
    logits = torch.randn(4, width, device=DEVICE)
    logits[0, : width - 3] = -torch.inf  # whole first blocks
    logits[1, 3:] = -torch.inf
    logits[2, ::2] = -torch.inf
    logits[3, 11] = -torch.inf
    ids = torch.tensor([width - 1, 0, 1, 11], device=DEVICE)
    found = token_logps(logits, ids, backend=backend)
    assert found[3] == -torch.inf
    case = whole_rows(logits[:3], ids[:3])
    logps, gradient = precise(case)
    assert_within(found[:3], logps, case.row_error)
    leaf = logits[:3].clone().requires_grad_()
    result = weighted_nll(leaf, ids[:3], torch.ones(3, device=DEVICE), entropy=True, backend=backend)
    assert_within(gradient_of(result.loss, leaf), gradient, case.gradient_error(backend))
    assert_within(result.entropy, torch.special.entr(case.odds.softmax(-1)).sum(-1), case.entropy_error)


@pytest.mark.parametrize("width", [64, 65, 1000, 8256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("low", ["least", "infinite"])
def test_logits_masked_by_the_lowest_number_add_nothing(
    backend: str, width: int, dtype: torch.dtype, low: str
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, width, device=DEVICE).to(dtype)
    masked = torch.finfo(dtype).min if low == "least" else -torch.inf
    logits[0, 8:16] = masked  # all that a thread loads at once
    logits[1, 3] = masked
    logits[2, : width - 1] = masked
    ids = torch.tensor([0, 1, width - 1], device=DEVICE)
    case = whole_rows(logits.clone(), ids, temperature=0.5)
    weights = torch.ones(3, device=DEVICE)
    result = weighted_nll(logits.requires_grad_(), ids, weights, temperature=0.5, entropy=True, backend=backend)
    assert result.entropy is not None
    assert_within(result.entropy, torch.special.entr(case.odds.softmax(-1)).sum(-1), case.entropy_error)
    assert_within(result.token_logps, precise(case)[0], case.row_error)


def test_a_label_without_probability_and_without_weight_costs_nothing(backend: str) -> None:
    logits = torch.tensor([[-torch.inf, 0.0], [0.0, 0.0]], device=DEVICE, requires_grad=True)
    weights = torch.tensor([0.0, 1.0], device=DEVICE)
    loss = weighted_nll(logits, torch.tensor([0, 0], device=DEVICE), weights, backend=backend).loss
    even = torch.zeros(2, dtype=torch.float64, device=DEVICE)
    assert_within(loss, -even.log_softmax(-1)[0], row_error(even, torch.float32))


def test_rows_outside_the_mask_without_label_or_weight_are_never_read(backend: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 50, device=DEVICE)
    logits[:3] = torch.nan
    ids = torch.tensor([1, -100, 2, 3], device=DEVICE)
    mask = torch.tensor([False, True, True, True], device=DEVICE)
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0], device=DEVICE)
    leaf = logits.requires_grad_()
    result = weighted_nll(leaf, ids, weights, mask=mask, entropy=True, backend=backend)
    gradient = gradient_of(result.loss, leaf)
    assert torch.equal(gradient[:3], torch.zeros(3, 50, dtype=torch.float64, device=DEVICE))
    assert torch.equal(result.token_logps[:3], torch.zeros(3, device=DEVICE))
    assert float(gradient[3].abs().sum()) > 0
    mask[2] = False
    logps = token_logps(leaf, ids, mask=mask, backend=backend)
    assert torch.equal(logps[:3], torch.zeros(3, device=DEVICE))
    assert torch.equal(gradient_of(logps.sum(), leaf)[:3], gradient[:3])


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0, 3, 5)])
def test_no_rows_give_a_differentiable_zero(backend: str, shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape, device=DEVICE, requires_grad=True)
    ids = torch.zeros(shape[:-1], dtype=torch.int64, device=DEVICE)
    loss = weighted_nll(logits, ids, torch.zeros_like(ids, dtype=torch.float32), backend=backend).loss
    assert float(loss.detach()) == 0
    assert gradient_of(loss, logits).shape == shape
    assert gradient_of(token_logps(logits, ids, backend=backend).sum(), logits).shape == shape
    if len(shape) == 3:
        sums = sequence_logps(logits, ids, length_normalize=True, backend=backend)
        assert torch.equal(sums, torch.zeros(shape[0], device=DEVICE))
        assert gradient_of(sums.sum(), logits).shape == shape


def test_an_all_masked_batch_gives_a_differentiable_zero(backend: str) -> None:
    logits = torch.full((2, 3, 5), torch.nan, device=DEVICE, requires_grad=True)
    ids = torch.zeros(2, 3, dtype=torch.int64, device=DEVICE)
    nothing = torch.zeros(2, 3, dtype=torch.bool, device=DEVICE)
    for value in (
        weighted_nll(logits, ids, torch.ones(2, 3, device=DEVICE), mask=nothing, backend=backend).loss,
        token_logps(logits, ids, mask=nothing, backend=backend).sum(),
        sequence_logps(logits, ids, nothing, length_normalize=True, backend=backend).sum(),
    ):
        assert float(value.detach()) == 0
        assert torch.equal(gradient_of(value, logits), torch.zeros(2, 3, 5, dtype=torch.float64, device=DEVICE))


@pytest.mark.parametrize("bad", [5, -1])
def test_an_id_outside_the_vocabulary_is_an_error_unless_masked_or_without_weight(backend: str, bad: int) -> None:
    logits = torch.zeros(2, 5, device=DEVICE, requires_grad=True)
    ids = torch.tensor([0, bad], device=DEVICE)
    scored = token_logps(logits, ids, mask=torch.tensor([True, False], device=DEVICE), backend=backend)
    weighted = weighted_nll(logits, ids, torch.tensor([1.0, 0.0], device=DEVICE), entropy=True, backend=backend)
    for values, total in ((scored, -scored.sum()), (weighted.token_logps, weighted.loss)):
        assert values[1] == 0
        assert gradient_of(total, logits).any(-1).tolist() == [True, False]
    assert weighted.entropy[1] == 0
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match=r"Expected ids in \[0, 5\), got ids=\[" + str(bad)):
            token_logps(logits, ids, backend=backend)
    else:
        result = weighted_nll(logits, ids, torch.ones(2, device=DEVICE), backend=backend)
        assert bool(result.loss.isnan())
        assert gradient_of(result.loss, logits).isnan().all(-1).tolist() == [False, True]


def test_inplace_writes_the_gradient_over_the_logits_and_bumps_their_version(backend: str) -> None:
    torch.manual_seed(0)
    leaf = torch.randn(2, 4, 9, device=DEVICE, requires_grad=True)
    ids = torch.randint(0, 9, (2, 3), device=DEVICE)
    weights = torch.randn(2, 3, device=DEVICE)
    logits = leaf * 1.0
    version = logits._version
    loss = weighted_nll(logits[:, :-1], ids, weights, inplace=True, backend=backend).loss
    assert logits._version > version
    case, gradient = whole_rows(leaf.detach()[:, :-1], ids, weights), gradient_of(loss, leaf)
    assert_within(logits[:, :-1], precise(case)[1], case.gradient_error(backend))
    assert torch.equal(gradient[:, :-1], logits[:, :-1].double())
    assert not bool(gradient[:, -1].any())


def test_inplace_writes_over_logits_that_no_flat_view_reaches(backend: str) -> None:
    torch.manual_seed(0)
    leaf = torch.randn(2, 3, 4, 9, device=DEVICE, requires_grad=True)
    ids = torch.randint(0, 9, (2, 2, 4), device=DEVICE)
    weights = torch.randn(2, 2, 4, device=DEVICE)
    logits = leaf * 1.0
    loss = weighted_nll(logits[:, :-1], ids, weights, inplace=True, backend=backend).loss
    case, gradient = whole_rows(leaf.detach()[:, :-1], ids, weights), gradient_of(loss, leaf)
    assert_within(logits[:, :-1], precise(case)[1], case.gradient_error(backend))
    assert torch.equal(gradient[:, :-1], logits[:, :-1].double())
    assert not bool(gradient[:, -1].any())


def test_inplace_is_noticed_by_whoever_needs_the_logits(backend: str) -> None:
    leaf = torch.randn(2, 9, device=DEVICE, requires_grad=True)
    logits = leaf * 1.0
    other = logits.square().sum()  # saves the logits for its backward
    loss = weighted_nll(
        logits, torch.tensor([0, 1], device=DEVICE), torch.ones(2, device=DEVICE), inplace=True, backend=backend
    ).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()


def test_inplace_refuses_leaves_and_shared_memory(backend: str) -> None:
    ids, weights = torch.tensor([0, 1], device=DEVICE), torch.ones(2, device=DEVICE)
    leaf = torch.randn(2, 9, device=DEVICE, requires_grad=True)
    with pytest.raises(ValueError, match="logits that another operation computed"):
        weighted_nll(leaf, ids, weights, inplace=True, backend=backend)
    with pytest.raises(ValueError, match=r"no view of a leaf with inplace=True.*leaf=\[2, 9\]"):
        weighted_nll(leaf[:, :8], ids, weights, inplace=True, backend=backend)
    with pytest.raises(ValueError, match="without shared memory"):
        weighted_nll((leaf[:1] * 1.0).expand(2, 9), ids, weights, inplace=True, backend=backend)
    with pytest.raises(ValueError, match="without shared memory"):
        weighted_nll((leaf * 1.0).as_strided((2, 9), (8, 1)), ids, weights, inplace=True, backend=backend)


def test_without_gradients_none_are_computed_and_the_logits_stay(backend: str) -> None:
    logits = torch.randn(2, 9, device=DEVICE)
    before = logits.clone()
    ids, weights = torch.tensor([0, 1], device=DEVICE), torch.ones(2, device=DEVICE)
    with torch.no_grad():
        result = weighted_nll(logits.requires_grad_() * 1.0, ids, weights, inplace=True, backend=backend)
    assert not result.loss.requires_grad
    assert torch.equal(logits, before)
    case = whole_rows(before, ids, weights)
    logps = precise(case)[0]
    assert_within(result.loss, -logps.sum(), loss_error(weights, logps, case.row_error, torch.float32))


def test_the_upstream_gradient_scales_the_gradient(backend: str) -> None:
    logits = torch.randn(2, 9, device=DEVICE, requires_grad=True)
    ids, weights = torch.tensor([0, 1], device=DEVICE), torch.tensor([0.5, -1.0], device=DEVICE)
    once = gradient_of(weighted_nll(logits, ids, weights, backend=backend).loss, logits)
    scaled = gradient_of(-2.5 * weighted_nll(logits, ids, weights, backend=backend).loss, logits)
    assert_within(scaled, -2.5 * once, unit_roundoff(torch.float32) * scaled.abs())  # of the one product


def test_a_second_backward_and_a_double_backward_say_why_not(backend: str) -> None:
    logits = torch.randn(2, 9, device=DEVICE, requires_grad=True)
    ids, weights = torch.tensor([0, 1], device=DEVICE), torch.ones(2, device=DEVICE)
    loss = weighted_nll(logits, ids, weights, backend=backend).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Expected one backward through a weighted NLL, got a second"):
        loss.backward()
    for value in (
        weighted_nll(logits, ids, weights, backend=backend).loss,
        token_logps(logits, ids, backend=backend).sum(),
    ):
        with pytest.raises(RuntimeError, match="Expected a backward without create_graph=True"):
            torch.autograd.grad(value, logits, create_graph=True)


def test_results_beside_the_loss_are_detached(backend: str) -> None:
    logits = torch.randn(2, 9, device=DEVICE, requires_grad=True)
    ids = torch.tensor([0, 1], device=DEVICE)
    result = weighted_nll(logits, ids, torch.ones(2, device=DEVICE), entropy=True, backend=backend)
    assert (result.loss.requires_grad, result.token_logps.requires_grad) == (True, False)
    assert not result.entropy.requires_grad
    assert weighted_nll(logits, ids, torch.ones(2, device=DEVICE), backend=backend).entropy is None


def test_strided_and_expanded_labels_and_masks_score_their_own_rows(backend: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 6, 30, device=DEVICE)
    pairs = torch.randint(0, 30, (4, 6, 2), device=DEVICE)
    masks = torch.rand(4, 6, 2, device=DEVICE) < 0.5
    for ids, mask in ((pairs[..., 0], masks[..., 0]), (pairs[:, :1, 1].expand(4, 6), masks[:1, :, 1].expand(4, 6))):
        case = replace(whole_rows(logits, ids), mask=mask)
        logps = precise(case)[0]
        assert_within(token_logps(logits, ids, mask=mask, backend=backend), logps, case.row_error)
        assert_within(sequence_logps(logits, ids, mask, backend=backend), logps.sum(-1), case.sum_error())
    column = Rows(logits[:, 0], pairs[:, 0, 0], masks[:, 0, 0], torch.ones(4, device=DEVICE), 1.0)
    found = token_logps(column.logits, column.ids, mask=column.mask, backend=backend)
    assert_within(found, precise(column)[0], column.row_error)


def test_results_repeat_bit_by_bit(backend: str) -> None:
    logits = torch.randn(4, 6, 300, device=DEVICE)
    ids = torch.randint(0, 300, (4, 6), device=DEVICE)
    first = sequence_logps(logits, ids, backend=backend)
    assert all(torch.equal(first, sequence_logps(logits, ids, backend=backend)) for _ in range(3))


def test_logits_that_need_no_gradient_get_none() -> None:
    loss = weighted_nll(torch.zeros(1, 4), torch.tensor([1]), torch.ones(1)).loss
    assert not loss.requires_grad


def test_float64_gradients_pass_gradcheck() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 6, (2, 3))
    mask = torch.tensor([[True, True, False], [False, False, False]])
    for function in (
        lambda z: token_logps(z[:, :-1], ids, mask=mask, temperature=0.7),
        lambda z: sequence_logps(z[:, :-1], ids, mask, length_normalize=True),
    ):
        assert torch.autograd.gradcheck(function, logits)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_one_pass_gradient_is_that_of_central_differences(inplace: bool) -> None:
    torch.manual_seed(0)
    leaf = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    ids, weights = torch.randint(0, 5, (2, 2)), torch.randn(2, 2, dtype=torch.float64)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return weighted_nll((values * 1.0)[:, :-1], ids, weights, temperature=0.7, inplace=inplace).loss

    size = 1e-6
    with torch.no_grad():
        steps = size * torch.eye(30, dtype=torch.float64).view(30, 2, 3, 5)
        slopes = torch.stack([(loss(leaf + step) - loss(leaf - step)) / (2 * size) for step in steps])
    case = whole_rows(leaf.detach()[:, :-1], ids, weights, temperature=0.7)
    of_loss = loss_error(weights, precise(case)[0], case.row_error, torch.float64)
    third_derivative = weights.abs().sum() / 0.7**3
    assert_within(gradient_of(loss(leaf), leaf).flatten(), slopes, of_loss / size + size**2 * third_derivative)
