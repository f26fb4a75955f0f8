"""The operations on given logits, in both backends, against the naive equations in float64."""

import pytest
import torch
from hypothesis import given

from maxent_grpo.kernels import sequence_logps, token_logps, weighted_nll
from support.kernel_cases import DEVICE, Rows, assert_within, naive_logps, precise, rows


def gradient_of(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits)[0].double()


def tolerance(case: Rows) -> dict[str, float]:
    """Halves round once, relative to the gradient; p − 1 cancels to two ulps of 1 times the slope."""
    largest = float(case.token_weights.abs().max()) if case.token_weights.numel() else 0.0
    return {
        "rtol": 4 * torch.finfo(case.logits.dtype).eps,
        "atol": 1e-5 + 2 * torch.finfo(torch.float32).eps * largest / case.temperature,
    }


@given(case=rows())
def test_token_logps_and_their_gradient_are_those_of_log_softmax_and_gather(backend: str, case: Rows) -> None:
    logits = case.logits.detach().requires_grad_()
    logps = token_logps(logits, case.ids, mask=case.mask, temperature=case.temperature, backend=backend)
    expected, gradient = precise(case)
    assert_within(logps, expected, case.row_error)
    got = gradient_of(-(case.token_weights * logps).sum(), logits)
    torch.testing.assert_close(got, gradient, **tolerance(case))


@given(case=rows())
def test_weighted_nll_has_the_loss_and_gradient_of_the_two_pass_form(backend: str, case: Rows) -> None:
    expected, gradient = precise(case)
    logits = case.logits.detach().requires_grad_()
    result = weighted_nll(
        logits, case.ids, case.token_weights, mask=case.mask, temperature=case.temperature, backend=backend
    )
    counted, weights = case.keep & (case.token_weights != 0), case.token_weights.double()
    assert_within(result.token_logps, expected.where(counted, 0), case.row_error.where(counted, 0))
    assert_within(result.loss, -(weights * expected).sum(), (weights.abs() * case.row_error).sum())
    torch.testing.assert_close(gradient_of(result.loss, logits), gradient, **tolerance(case))


@given(case=rows(least_dims=2))
def test_sequence_logps_sum_or_average_the_tokens_kept(backend: str, case: Rows) -> None:
    tokens = naive_logps(case.logits.double(), case.ids, case.keep, case.temperature)
    for length_normalize, divisor in ((False, 1), (True, case.keep.sum(-1).clamp_min(1))):
        logits = case.logits.detach().requires_grad_()
        sums = sequence_logps(
            logits,
            case.ids,
            case.mask,
            length_normalize=length_normalize,
            temperature=case.temperature,
            backend=backend,
        )
        assert sums.shape == case.ids.shape[:-1]
        torch.testing.assert_close(sums.double(), tokens.sum(-1) / divisor, rtol=1e-5, atol=1e-4)
        precise_logits = case.logits.double().detach().requires_grad_()
        wanted = naive_logps(precise_logits, case.ids, case.keep, case.temperature).sum(-1) / divisor
        got = gradient_of(sums.square().sum(), logits)
        torch.testing.assert_close(
            got, gradient_of(wanted.square().sum(), precise_logits), rtol=8 * torch.finfo(logits.dtype).eps, atol=1e-3
        )


@pytest.mark.parametrize("width", [1, 7, 151936])
def test_vocabularies_of_any_width(backend: str, width: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, width, device=DEVICE, requires_grad=True)
    ids = torch.tensor([0, width - 1, width // 2], device=DEVICE)
    everything = torch.ones(3, dtype=torch.bool, device=DEVICE)
    weights = torch.tensor([1.0, -2.0, 0.5], device=DEVICE)
    logps, gradient = precise(Rows(logits, ids, everything, weights, 1.0))
    result = weighted_nll(logits, ids, weights, entropy=True, backend=backend)
    torch.testing.assert_close(result.token_logps.double(), logps, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(gradient_of(result.loss, logits), gradient, rtol=1e-5, atol=1e-7)
    p = logits.detach().double().softmax(-1)
    torch.testing.assert_close(result.entropy.double(), -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-5)


def test_minus_infinity_anywhere_leaves_the_other_entries_exact(backend: str) -> None:
    torch.manual_seed(0)
    width = 40000
    logits = torch.randn(4, width, device=DEVICE)
    logits[0, : width - 3] = -torch.inf  # whole first blocks
    logits[1, 3:] = -torch.inf
    logits[2, ::2] = -torch.inf
    logits[3, 11] = -torch.inf
    ids = torch.tensor([width - 1, 0, 1, 11], device=DEVICE)
    case = Rows(logits, ids, torch.ones(4, dtype=torch.bool, device=DEVICE), torch.ones(4, device=DEVICE), 1.0)
    expected = naive_logps(logits.double(), ids, case.keep)
    got = token_logps(logits, ids, backend=backend)
    assert got[3] == -torch.inf
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    leaf = logits[:3].clone().requires_grad_()
    result = weighted_nll(leaf, ids[:3], case.token_weights[:3], entropy=True, backend=backend)
    gradient = gradient_of(result.loss, leaf)
    onehot = torch.nn.functional.one_hot(ids[:3], width)
    torch.testing.assert_close(gradient, logits[:3].double().softmax(-1) - onehot, rtol=1e-5, atol=1e-7)
    assert bool(result.entropy.isfinite().all())


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
    weights = torch.ones(3, device=DEVICE)
    leaf = logits.requires_grad_()
    result = weighted_nll(leaf, ids, weights, temperature=0.5, entropy=True, backend=backend)
    p = (logits.detach().double() / 0.5).softmax(-1)
    assert result.entropy is not None
    torch.testing.assert_close(result.entropy.double(), torch.special.entr(p).sum(-1), rtol=1e-4, atol=1e-5)
    expected = naive_logps(logits.detach().double(), ids, torch.ones(3, dtype=torch.bool, device=DEVICE), 0.5)
    torch.testing.assert_close(result.token_logps.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_label_without_probability_and_without_weight_costs_nothing(backend: str) -> None:
    logits = torch.tensor([[-torch.inf, 0.0], [0.0, 0.0]], device=DEVICE, requires_grad=True)
    weights = torch.tensor([0.0, 1.0], device=DEVICE)
    loss = weighted_nll(logits, torch.tensor([0, 0], device=DEVICE), weights, backend=backend).loss
    assert float(loss.detach()) == pytest.approx(torch.tensor(2.0).log().item())


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
    expected = gradient_of(weighted_nll(leaf[:, :-1], ids, weights, backend=backend).loss, leaf)
    logits = leaf * 1.0
    version = logits._version
    loss = weighted_nll(logits[:, :-1], ids, weights, inplace=True, backend=backend).loss
    assert logits._version > version
    torch.testing.assert_close(logits.detach()[:, :-1].double(), expected[:, :-1])
    torch.testing.assert_close(gradient_of(loss, leaf), expected)


def test_inplace_writes_over_logits_that_no_flat_view_reaches(backend: str) -> None:
    torch.manual_seed(0)
    leaf = torch.randn(2, 3, 4, 9, device=DEVICE, requires_grad=True)
    ids = torch.randint(0, 9, (2, 2, 4), device=DEVICE)
    weights = torch.randn(2, 2, 4, device=DEVICE)
    logps = naive_logps(leaf[:, :-1].double(), ids, torch.ones_like(ids, dtype=torch.bool))
    expected = gradient_of(-(weights * logps).sum(), leaf)
    logits = leaf * 1.0
    loss = weighted_nll(logits[:, :-1], ids, weights, inplace=True, backend=backend).loss
    torch.testing.assert_close(logits.detach()[:, :-1].double(), expected[:, :-1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient_of(loss, leaf), expected, rtol=1e-5, atol=1e-6)


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
    torch.testing.assert_close(result.loss, weighted_nll(logits, ids, weights, backend=backend).loss.detach())


def test_the_upstream_gradient_scales_the_gradient(backend: str) -> None:
    logits = torch.randn(2, 9, device=DEVICE, requires_grad=True)
    ids, weights = torch.tensor([0, 1], device=DEVICE), torch.tensor([0.5, -1.0], device=DEVICE)
    once = gradient_of(weighted_nll(logits, ids, weights, backend=backend).loss, logits)
    scaled = gradient_of(-2.5 * weighted_nll(logits, ids, weights, backend=backend).loss, logits)
    torch.testing.assert_close(scaled, -2.5 * once, rtol=1e-6, atol=0)


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
        expected = naive_logps(logits.double(), ids, mask)
        torch.testing.assert_close(token_logps(logits, ids, mask=mask, backend=backend).double(), expected)
        torch.testing.assert_close(sequence_logps(logits, ids, mask, backend=backend).double(), expected.sum(-1))
    column, row_mask = pairs[:, 0, 0], masks[:, 0, 0]
    flat = token_logps(logits[:, 0], column, mask=row_mask, backend=backend)
    torch.testing.assert_close(flat.double(), naive_logps(logits[:, 0].double(), column, row_mask))


def test_results_repeat_bit_by_bit(backend: str) -> None:
    logits = torch.randn(4, 6, 300, device=DEVICE)
    ids = torch.randint(0, 300, (4, 6), device=DEVICE)
    first = sequence_logps(logits, ids, backend=backend)
    assert all(torch.equal(first, sequence_logps(logits, ids, backend=backend)) for _ in range(3))


def test_logits_that_need_no_gradient_get_none() -> None:
    loss = weighted_nll(torch.zeros(1, 4), torch.tensor([1]), torch.ones(1)).loss
    assert not loss.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "Expected temperature > 0, got temperature=0.0."),
        ({"temperature": float("inf")}, "Expected temperature to be finite, got temperature=inf."),
        ({"backend": "cuda"}, "Expected backend 'auto', 'torch' or 'triton', got backend='cuda'."),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"Expected mask of shape \[2\], got mask of shape \[3\]."),
        ({"ids": torch.zeros(3, dtype=torch.int64)}, "Expected logits of shape"),
        ({"ids": torch.zeros(2)}, "Expected ids of dtype int64 or int32, got dtype=torch.float32."),
        ({"logits": torch.zeros(2, 5, dtype=torch.int64)}, "Expected floating point logits, got dtype=torch.int64."),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"logits": torch.zeros(2, 5), "ids": torch.zeros(2, dtype=torch.int64)} | change
    with pytest.raises(ValueError, match=message):
        token_logps(arguments.pop("logits"), arguments.pop("ids"), **arguments)


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

    steps = 1e-6 * torch.eye(30, dtype=torch.float64).view(30, 2, 3, 5)
    with torch.no_grad():
        slopes = torch.stack([(loss(leaf + step) - loss(leaf - step)) / 2e-6 for step in steps])
    torch.testing.assert_close(gradient_of(loss(leaf), leaf).flatten(), slopes, rtol=1e-6, atol=1e-8)
