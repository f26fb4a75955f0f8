"""The oracle against numbers worked out by hand, and its gradients against differences of its losses."""

import inspect
from math import exp, inf, log, nan, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import support.reference_gradients as gradients
from maxent_grpo import reference

HALVES = np.array([log(0.5), log(0.25), log(0.25)])


def assert_close(actual: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)


def assert_slopes(function, grad, at: npt.NDArray[np.float64], step: float = 1e-6) -> None:
    differences = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        nudge = np.zeros(at.shape)
        nudge[index] = step
        differences[index] = (function(at + nudge) - function(at - nudge)) / (2 * step)
    np.testing.assert_allclose(grad(at), differences, atol=1e-8)


def test_listwise_q_mixes_the_softmax_with_the_floor() -> None:
    q = reference.listwise_q([2 * log(3), 0.0], temperature=2.0, eps=0.1)
    assert_close(q, [0.8 * 3 / 4 + 0.1, 0.8 / 4 + 0.1])
    assert_close(np.exp(reference.listwise_log_q([2 * log(3), 0.0], temperature=2.0, eps=0.1)), q)


def test_listwise_log_q_stays_finite_where_q_underflows() -> None:
    assert_close(reference.listwise_log_q([1000.0, 0.0], eps=0.0), [0.0, -1000.0])
    assert_close(reference.listwise_log_q([1000.0, 0.0], eps=0.5), [log(0.5), log(0.5)])


def test_temperature_and_tau_may_differ_between_groups() -> None:
    q = reference.listwise_q([[log(4), 0.0], [log(4), 0.0]], temperature=[1.0, 2.0], eps=0.0)
    assert_close(q, [[0.8, 0.2], [2 / 3, 1 / 3]])
    assert_close(reference.tempered_target(q, tau=[2.0, 0.0]), [[2 / 3, 1 / 3], [1.0, 0.0]])


def test_tempered_target_is_the_geometric_mean_of_q_and_anchor() -> None:
    # τ + β = 1: q · ρ^{1/2} with ρ = (4, 1, 4)/9, whatever is added to the anchors.
    weights = reference.tempered_target([0.2, 0.6, 0.2], [7 + log(4), 7.0, 7 + log(4)], tau=0.5, beta=0.5)
    assert_close(weights, [0.4 / 1.4, 0.6 / 1.4, 0.4 / 1.4])


@pytest.mark.parametrize(
    ("tau", "beta", "expected"),
    [
        (0.0, 0.0, [1 / 2, 1 / 2, 0.0]),
        (inf, 0.0, [1 / 3, 1 / 3, 1 / 3]),
        (inf, 2.0, [1 / 3, 1 / 3, 1 / 3]),
        (0.5, inf, [0.5, 0.25, 0.25]),
        (0.0, inf, [0.5, 0.25, 0.25]),
        (1.0, 0.0, [1 / 2, 1 / 2, 0.0]),
        (0.0, 1.0, [2 / 3, 1 / 3, 0.0]),
        (1e-300, 0.0, [1 / 2, 1 / 2, 0.0]),
    ],
)
def test_tempered_target_reaches_its_limits_exactly(tau: float, beta: float, expected: list[float]) -> None:
    assert_close(reference.tempered_target([0.5, 0.5, 0.0], HALVES, tau=tau, beta=beta), expected)


def test_masked_candidates_may_hold_anything_and_weigh_nothing() -> None:
    mask = [[True, False, True], [False, False, False]]
    utilities = [[0.0, nan, log(3)], [nan, nan, nan]]
    log_q = reference.listwise_log_q(utilities, eps=0.0, mask=mask)
    assert_close(log_q, [[log(1 / 4), -inf, log(3 / 4)], [-inf, -inf, -inf]])
    weights = reference.tempered_target([[0.25, nan, 0.75], [nan, -1.0, 2.0]], tau=0.5, mask=mask)
    assert_close(weights, [[0.1, 0.0, 0.9], [0.0, 0.0, 0.0]])
    assert_close(reference.center_weights(weights, mask=mask), [[-0.4, 0.0, 0.4], [0.0, 0.0, 0.0]])
    assert_close(reference.rank_utilities(utilities, mask=mask), [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert reference.informative_groups(utilities, mask=mask).tolist() == [True, False]
    assert_close(reference.effective_sample_size(weights), [1 / 0.82, 0.0])
    assert_close(reference.optimal_potential(log_q, tau=1.0, mask=mask), [0.0, 0.0])


def test_a_nan_of_a_counted_candidate_takes_its_whole_group() -> None:
    mask = [[True, True, False], [True, True, True]]
    for tau in (0.0, 0.2, inf):
        log_q = reference.listwise_log_q([[nan, 0.0, 1.0], [0.0, 0.0, 0.0]], mask=mask)
        weights = np.exp(reference.tempered_log_target(log_q, tau=tau, mask=mask))
        assert_close(weights, [[nan, nan, 0.0], [1 / 3, 1 / 3, 1 / 3]])


def test_bad_entries_of_arrays_show_as_nan_in_their_group() -> None:
    q, anchor = [[0.5, 0.5]] * 3, [[0.0, 0.0]] * 3
    weights = reference.tempered_target(q, anchor, tau=[1.0, -1.0, inf], beta=[1.0, 1.0, inf])
    assert_close(weights, [[0.5, 0.5], [nan, nan], [nan, nan]])
    q = reference.listwise_q([[0.0, 0.0, 0.0]] * 2, eps=0.4, mask=[[True, True, True], [True, True, False]])
    assert_close(q, [[nan, nan, nan], [0.5, 0.5, 0.0]])


def test_a_q_of_zeros_has_neither_target_nor_optimum() -> None:
    for tau in (0.0, 0.2, inf):
        assert_close(reference.tempered_target([[0.0, 0.0], [0.0, 1.0]], tau=tau)[0], [nan, nan])
    assert_close(reference.optimal_potential([[-inf, -inf]] * 2, tau=[0.0, 0.2]), [nan, nan])
    assert_close(reference.tau_for_ess([-inf, -inf], ess=1.5), nan)


def test_anchors_have_no_say_where_beta_is_zero() -> None:
    assert_close(reference.tempered_target([0.8, 0.2], [nan, -inf], tau=1.0), [0.8, 0.2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reference.tempered_target([1.0], tau=-1.0), "Expected tau >= 0, got tau=-1."),
        (lambda: reference.tempered_target([1.0], tau=nan), "Expected tau >= 0, got tau=nan."),
        (lambda: reference.tempered_target([1.0], [0.0], tau=0.0, beta=-2), "Expected beta >= 0, got beta=-2."),
        (
            lambda: reference.tempered_target([1.0], tau=0.0, beta=1.0),
            "Expected anchor_logps with beta > 0, got beta=1.0.",
        ),
        (
            lambda: reference.tempered_target([1.0], [0.0], tau=inf, beta=inf),
            "Expected finite tau or finite beta, got tau=inf, beta=inf.",
        ),
        (lambda: reference.optimal_potential([0.0], tau=inf), "Expected finite tau, got tau=inf."),
        (lambda: reference.tau_for_ess([0.0], [0.0], ess=1, beta=inf), "Expected finite beta, got beta=inf."),
        (lambda: reference.tau_for_ess([0.0], ess=0.5), "Expected ess >= 1, got ess=0.5."),
        (lambda: reference.listwise_q([1.0], temperature=0.0), "Expected temperature > 0, got temperature=0."),
        (lambda: reference.listwise_q([1.0], eps=-0.5), "Expected eps >= 0, got eps=-0.5."),
        (lambda: reference.listwise_q([1, 1, 1], eps=0.5), "Expected K * eps <= 1, got K=3, eps=0.5."),
        (
            lambda: reference.discount_duplicates([1.0], [1], strength=2.0),
            "Expected 0 <= strength <= 1, got strength=2.",
        ),
        (
            lambda: reference.maxent_weighted_nll([[0.0]], [1.0], [[1]], length_normalize=True, max_length=2),
            "Expected length_normalize or max_length, got both, max_length=2.",
        ),
        (
            lambda: reference.maxent_weighted_nll([[0.0]], [1.0], [[1]], num_groups=0),
            "Expected num_groups > 0, got num_groups=0.",
        ),
    ],
)
def test_bad_scalars_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert str(caught.value) == message


def test_duplicates_are_counted_among_the_counted_only() -> None:
    big = 2**62  # neighbours here are the same number in float64
    keys, mask = [big, big + 1, big, big], [True, True, True, False]
    counts = reference.duplicate_counts(keys, mask=mask)
    assert counts.tolist() == [2, 1, 2, 0]
    weights = reference.discount_duplicates([0.4, 0.2, 0.4, 0.0], counts, strength=1.0, mask=mask)
    assert_close(weights, [1 / 3, 1 / 3, 1 / 3, 0.0])
    weights = reference.discount_duplicates([0.25, 0.5, 0.25, 0.0], counts, strength=0.5)
    share = 0.25 / sqrt(2)
    assert_close(weights, np.array([share, 0.5, share, 0.0]) / (2 * share + 0.5))


def test_informative_groups_are_those_whose_utilities_differ() -> None:
    utilities = [[1.0, 1.0], [1.0, 2.0], [nan, 1.0], [inf, inf]]
    assert reference.informative_groups(utilities).tolist() == [False, True, True, False]


def test_ranks_share_ties_and_put_a_lone_candidate_in_the_middle() -> None:
    assert_close(reference.rank_utilities([5.0, 1.0, 5.0, 9.0, 9.0]), [1.5 / 4, 0.0, 1.5 / 4, 3.5 / 4, 3.5 / 4])
    assert_close(reference.rank_utilities([[3.0], [-1.0]]), [[0.5], [0.5]])
    assert_close(reference.rank_utilities([2.0, 2.0]), [0.5, 0.5])


def test_tau_for_ess_inverts_the_effective_sample_size() -> None:
    # Weights (x, 1)/(1 + x) have size (1 + x)²/(1 + x²), which is 9/5 at x = 2 = 16^{1/4}.
    assert_close(reference.tau_for_ess([log(16), 0.0], ess=9 / 5), 4.0)
    anchored = reference.tau_for_ess([log(4), 0.0], [log(2), 0.0], ess=9 / 5, beta=2.0)  # x = 16^{1/(τ + 2)}
    assert_close(anchored, 2.0)
    tiny = reference.tau_for_ess([1e-9 * log(16), 0.0], ess=9 / 5)
    np.testing.assert_allclose(tiny, 4e-9, rtol=1e-9)


def test_tau_for_ess_is_zero_below_reach_and_infinite_above() -> None:
    log_q = [0.0, 0.0, -1.0, -inf]
    assert_close(reference.tau_for_ess([log_q] * 4, ess=[1.0, 2.0, 3.0, 4.0]), [0.0, 0.0, inf, inf])
    assert_close(reference.tau_for_ess([0.0, 0.0, 0.0], ess=2.9), 0.0)
    # At τ = 0 the anchored target is (4, 1)/5 already, of size 25/17.
    assert_close(reference.tau_for_ess([log(4), 0.0], [0.0, 0.0], ess=1.4, beta=1.0), 0.0)


def test_potential_is_score_plus_entropy_less_divergence() -> None:
    policy, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.5, 0.25])
    score = 0.5 * log(0.25) + 0.5 * log(0.5)
    divergence = 0.5 * log(0.5 / 0.5) + 0.5 * log(0.5 / 0.25)
    J = reference.regularized_potential(policy, np.log(q), HALVES, tau=0.3, beta=0.7)
    assert_close(J, score + 0.3 * log(2) - 0.7 * divergence)


def test_potential_is_minus_infinite_where_the_policy_holds_what_q_excludes() -> None:
    log_q = [0.0, -inf]
    assert reference.regularized_potential([0.5, 0.5], log_q, tau=0.2) == -inf
    assert reference.improvement_gap(np.log([0.5, 0.5]), log_q, tau=0.2) == inf
    assert reference.regularized_potential([1.0, 0.0], log_q, tau=0.2) == 0


@pytest.mark.parametrize(("tau", "beta"), [(0.2, 0.0), (0.0, 0.5), (1.0, 3.0), (0.0, 0.0), (1e-9, 0.0), (1e3, 1.0)])
def test_gap_is_the_optimum_less_the_potential_and_vanishes_at_the_target(tau: float, beta: float) -> None:
    log_q, policy = np.log([0.2, 0.2, 0.6]), np.array([0.3, 0.5, 0.2])
    optimum = reference.optimal_potential(log_q, HALVES, tau=tau, beta=beta)
    J = reference.regularized_potential(policy, log_q, HALVES, tau=tau, beta=beta)
    np.testing.assert_allclose(
        reference.improvement_gap(np.log(policy), log_q, HALVES, tau=tau, beta=beta), optimum - J, rtol=1e-11
    )
    target = reference.tempered_log_target(log_q, HALVES, tau=tau, beta=beta)
    gap = reference.improvement_gap(target, log_q, HALVES, tau=tau, beta=beta)
    np.testing.assert_allclose(gap, 0, atol=1e-15 * max(1, tau))


def test_optimum_is_the_log_partition_function() -> None:
    assert_close(reference.optimal_potential(np.log([0.36, 0.64]), tau=2.0), 2 * log(0.6 + 0.8))
    assert_close(reference.optimal_potential(np.log([0.36, 0.64]), tau=0.0), log(0.64))


def test_forward_kl_ignores_what_the_target_excludes() -> None:
    target, policy = np.array([[0.5, 0.5, 0.0]] * 2), np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    with np.errstate(divide="ignore"):
        divergence = reference.forward_kl(np.log(target), np.log(policy))
    assert_close(divergence, [0.5 * log(2), inf])


def test_nll_is_summed_averaged_or_divided_by_a_constant() -> None:
    logps = [[[-1.0, -2.0], [-3.0, nan], [nan, nan]]]
    mask = [[[1, 1], [1, 0], [0, 0]]]
    weights = [[0.5, -0.25, 0.75]]
    assert_close(reference.maxent_weighted_nll(logps, weights, mask), 0.5 * 3 - 0.25 * 3)
    mean = reference.maxent_weighted_nll(logps, weights, mask, length_normalize=True)
    assert_close(mean, 0.5 * 3 / 2 - 0.25 * 3)
    assert_close(reference.maxent_weighted_nll(logps, weights, mask, max_length=4, num_groups=2), 0.75 / 8)
    tilted = reference.maxent_weighted_nll(logps, weights, mask, token_scale=[[[1, 3], [2, nan], [nan, nan]]])
    assert_close(tilted, 0.5 * (1 + 3 * 2) - 0.25 * 2 * 3)


def test_a_candidate_without_weight_adds_nothing_at_infinite_nll() -> None:
    assert reference.maxent_weighted_nll([[-inf], [-2.0]], [0.0, 1.0], [[1], [1]]) == 2
    assert reference.maxent_weighted_nll([[-inf], [-2.0]], [0.5, 0.5], [[1], [1]]) == inf
    assert_close(reference.listwise_cross_entropy([-inf, 0.0, 0.0], [0.0, 1.0, 0.0]), log(2))


def test_groups_without_candidates_do_not_count() -> None:
    logps, weights = [[[-1.0]], [[-3.0]], [[nan]]], [[1.0], [1.0], [0.0]]
    assert reference.maxent_weighted_nll(logps, weights, [[[1]], [[1]], [[0]]]) == (1 + 3) / 2
    assert reference.maxent_weighted_nll(logps, weights, [[[0]], [[0]], [[0]]]) == 0
    scores, mask = [[log(3), 0.0], [nan, nan]], [[1, 1], [0, 0]]
    loss = reference.listwise_cross_entropy(scores, [[1.0, 0.0], [nan, 0.0]], mask=mask)
    assert_close(loss, -log(3 / 4))


def test_surrogate_clips_only_what_would_gain() -> None:
    ratios = np.array([[2.0, 0.5, 1.1], [2.0, 0.5, 9.0]])
    mask = [[1, 1, 1], [1, 1, 0]]
    loss = reference.clipped_surrogate(
        np.log(ratios), np.zeros((2, 3)), [0.25, -1.5], mask, clip_low=0.2, clip_high=0.3, max_length=5
    )
    assert_close(loss, -(0.25 * (1.3 + 0.5 + 1.1) - 1.5 * (2.0 + 0.8)) / 5)


@pytest.mark.parametrize("options", [{}, {"length_normalize": True}, {"max_length": 7.0, "num_groups": 5}])
def test_gradient_of_the_nll_matches_its_differences(options: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    logps, weights, mask = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3)), rng.random((2, 3, 4)) < 0.7
    options = {**options, "token_scale": rng.random((2, 3, 4))}
    assert_slopes(
        lambda x: reference.maxent_weighted_nll(x, weights, mask, **options),
        lambda x: gradients.maxent_weighted_nll_grad(x, weights, mask, **options),
        logps,
    )


def test_gradient_of_the_cross_entropy_matches_its_differences() -> None:
    rng = np.random.default_rng(1)
    scores, weights, mask = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.random((3, 4)) < 0.7
    mask[2] = False
    assert_slopes(
        lambda x: reference.listwise_cross_entropy(x, weights, mask=mask),
        lambda x: gradients.listwise_cross_entropy_grad(x, weights, mask=mask),
        scores,
    )


@pytest.mark.parametrize("reduction", [{}, {"length_normalize": True}, {"max_length": 6}])
def test_gradient_of_the_surrogate_matches_its_differences(reduction: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    logps, old, mask = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4)), rng.random((2, 3, 4)) < 0.7
    fixed = (old, rng.normal(size=(2, 3)), mask)
    options = {"clip_low": 0.2, "clip_high": 0.3, "token_scale": rng.random((2, 3, 4)), **reduction}
    assert_slopes(
        lambda x: reference.clipped_surrogate(x, *fixed, **options),
        lambda x: gradients.clipped_surrogate_grad(x, *fixed, **options),
        logps,
    )


@pytest.mark.parametrize("loss", ["maxent_weighted_nll", "listwise_cross_entropy", "clipped_surrogate"])
def test_gradients_take_the_arguments_of_their_losses(loss: str) -> None:
    theirs = inspect.signature(getattr(gradients, loss + "_grad")).parameters
    assert list(theirs) == list(inspect.signature(getattr(reference, loss)).parameters)


def test_centred_greedy_coefficients_scaled_by_the_mean_are_those_of_dr_grpo() -> None:
    u = np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    c = reference.group_coefficients(u, tau=0.0, center=True, success_power=1.0)
    assert_close(c, (u - 2 / 5) / 5)


def test_listwise_coefficients_are_target_less_policy() -> None:
    c = reference.group_coefficients(
        [log(4), 0.0], tau=1.0, eps=0.0, projection="listwise", policy_scores=[log(3) - 5, -5.0]
    )
    assert_close(c, [4 / 5 - 3 / 4, 1 / 5 - 1 / 4])


def test_coefficients_transform_utilities_before_the_target() -> None:
    u = [3.0, 1.0, 1.0]
    ranked = np.exp([1.0, 0.25, 0.25])
    c = reference.group_coefficients(u, transform="rank", tau=1.0, eps=0.0)
    assert_close(c, ranked / ranked.sum())
    standard = np.exp([sqrt(2), -1 / sqrt(2), -1 / sqrt(2)])
    c = reference.group_coefficients(u, transform="zscore", tau=1.0, eps=0.0)
    assert_close(c, standard / standard.sum())
    assert_close(reference.group_coefficients([0.1] * 3, transform="zscore"), [1 / 3] * 3)


def test_coefficients_discount_duplicates() -> None:
    c = reference.group_coefficients([1.0, 1.0, 1.0], keys=[4, 4, 9], dedup=1.0)
    assert_close(c, [1 / 4, 1 / 4, 1 / 2])
    # Weights (¼, ¼, ½) of advantages ⅓, ⅓ and −⅔.
    c = reference.group_coefficients([1.0, 1.0, 0.0], keys=[4, 4, 9], dedup=1.0, projection="surrogate")
    assert_close(c, [1 / 12, 1 / 12, -1 / 3])


def test_coefficients_of_skipped_groups_are_zero() -> None:
    for skip, utilities, skipped in [
        ("equal", [1.0, 1.0], True),
        ("all_min", [1.0, 1.0], False),
        ("all_min", [0.0, 0.0], True),
        ("all_min", [0.0, 1.0], False),
        ("all_min", [-1.0, 0.0], True),
        ("none", [0.0, 0.0], False),
    ]:
        assert reference.group_coefficients(utilities, skip=skip).any() != skipped


def test_surrogate_weights_tilt_towards_long_gains() -> None:
    # A = ±½, len/T_max = (1, ½): U = (½, −¼), and c = w·A.
    c = reference.group_coefficients(
        [1.0, 0.0], projection="surrogate", lengths=[8, 4], max_length=8, surrogate_tau=0.5
    )
    assert_close(c, np.array([exp(1.0), -exp(-0.5)]) / (exp(1.0) + exp(-0.5)) / 2)
    assert_close(reference.group_coefficients([1.0, 0.0], projection="surrogate"), [1 / 4, -1 / 4])
    standard = reference.group_coefficients([4.0, 0.0], projection="surrogate", transform="zscore")
    assert_close(standard, [1 / 2, -1 / 2])
