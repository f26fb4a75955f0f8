"""Numbers of any size: against mpmath, against definitions that compare every pair, and what has no float at all."""

import math

import mpmath
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.testing import assert_close

import maxent_grpo as mg
from support.precision import unit_roundoff
from support.strategies import INF, values_of

pytestmark = pytest.mark.numerical

FLOAT = torch.float32
U = unit_roundoff(FLOAT)


def exact(values):
    return [mpmath.mpf(float(value)) for value in values]


def average(values):
    return mpmath.fsum(values) / len(values)


@st.composite
def wide_utilities(draw):
    """2 to 6 numbers: an offset plus multiples of a scale, both from 1e-30 to 1e30."""
    offset, scale = (draw(st.sampled_from([1, -1])) * 10.0 ** draw(st.integers(-30, 30)) for _ in range(2))
    multiples = draw(st.lists(st.integers(-8, 8), min_size=2, max_size=6))
    return [draw(st.sampled_from([0.0, offset])) + scale * multiple for multiple in multiples]


class TestStandardization:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @given(utilities=wide_utilities())
    @example(utilities=[1e8, 1e8 + 8, 1e8 + 8])
    @example(utilities=[1000.0, 1000.0001, 1000.0001])
    @example(utilities=[1e30, 2e30, 3e30])
    @example(utilities=[3e38, -3e38, 0.0])
    @example(utilities=[0.0, 1e-23])
    @example(utilities=[0.0, 1e-44, 0.0])
    @mpmath.workdps(60)
    def test_is_that_of_exact_arithmetic_whatever_the_size(self, dtype, utilities):
        """In units of the largest difference a deviation c has an error of 8u: a difference, a division, and means of
        such. z = c/σ then has (1 + |z|)/σ times as much, σ too being a mean of deviations.
        """
        values = torch.tensor(utilities, dtype=dtype)
        numbers = exact(values)
        spread = max(numbers) - min(numbers)
        actual = mg.standardize_utilities(values)
        if spread == 0:
            assert actual.tolist() == [0.0] * len(values)
            return
        deviations = [(number - average(numbers)) / spread for number in numbers]
        sigma = mpmath.sqrt(average([deviation**2 for deviation in deviations]))
        for found, deviation in zip(exact(actual), deviations, strict=True):
            z = deviation / sigma
            assert abs(found - z) <= 8 * unit_roundoff(dtype) * (1 + abs(z)) / sigma

    def test_masked_utilities_have_no_say_and_gradients_are_finite(self):
        values = torch.tensor([[1e30, 3e30, -3e38], [1.0, 1.0, 7.0], [1.0, 2.0, 3.0]], requires_grad=True)
        mask = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
        scores = mg.standardize_utilities(values, mask=mask)
        assert scores.tolist() == [[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        scores.square().sum().backward()
        assert values.grad.isfinite().all()


LOG_Q = values_of((4,), st.floats(-20.0, 0.0, allow_subnormal=False)).map(lambda u: u.float().log_softmax(-1))
ANCHORS = values_of((4,), st.floats(-30.0, 0.0, allow_subnormal=False)).map(torch.Tensor.float)
SCORES = values_of((4,), st.floats(-20.0, 0.0, allow_subnormal=False)).map(lambda s: s.float().log_softmax(-1))
TAU = st.sampled_from([0.0, 0.2, 1.0, 1e3])
BETA = st.integers(-3, 30).map(lambda power: 10.0**power)


class Exact:
    """ρ, π*, J* and the gap of one group at 60 digits."""

    def __init__(self, log_q, anchors, tau, beta):
        self.log_q, a = exact(log_q), exact(anchors)
        self.tau, self.heat = mpmath.mpf(tau), mpmath.mpf(tau) + mpmath.mpf(beta)
        total = mpmath.log(mpmath.fsum(map(mpmath.exp, a)))
        self.log_rho = [each - total for each in a]
        scores = [(lq + beta * lr) / self.heat for lq, lr in zip(self.log_q, self.log_rho, strict=True)]
        log_z = mpmath.log(mpmath.fsum(map(mpmath.exp, scores)))
        self.optimum = self.heat * log_z
        self.log_target = [score - log_z for score in scores]
        # What rounding is relative to: the logarithms, and the terms of J* beside those that cancel.
        self.depth = 1 + max(map(abs, [*a, *self.log_rho, *self.log_target, *(lq / self.heat for lq in self.log_q)]))
        self.terms = max(abs(lq) + tau * abs(lr) for lq, lr in zip(self.log_q, self.log_rho, strict=True))

    def gap(self, log_policy):
        log_pi = exact(log_policy)
        total = mpmath.log(mpmath.fsum(map(mpmath.exp, log_pi)))
        return [(each - total, target) for each, target in zip(log_pi, self.log_target, strict=True)]


class TestLargeBeta:
    @given(LOG_Q, ANCHORS, SCORES, TAU, BETA)
    @mpmath.workdps(60)
    def test_the_gap_is_never_negative_and_exact_to_float32(self, log_q, anchors, log_policy, tau, beta):
        """An error δ of d = log(π*/π), 8u of the logarithms, moves π·(e^d − 1 − d) by |π* − π|·δ + (π* + π)·δ²."""
        pairs = Exact(log_q, anchors, tau, beta)
        heat, delta = pairs.heat, 8 * U * (pairs.depth + max(map(abs, exact(log_policy))))
        gap, error = mpmath.mpf(0), mpmath.mpf(0)
        for log_pi, log_target in pairs.gap(log_policy):
            pi, target = mpmath.exp(log_pi), mpmath.exp(log_target)
            gap += heat * pi * (log_pi - log_target)
            error += heat * (abs(target - pi) * delta + (target + pi) * delta**2)
        actual = float(mg.improvement_gap(log_policy, log_q, anchors, tau=tau, beta=beta))
        assert actual >= 0
        assert abs(actual - gap) <= error + 8 * U * gap

    @given(LOG_Q, ANCHORS, TAU, BETA)
    @mpmath.workdps(60)
    def test_the_optimum_is_exact_to_float32(self, log_q, anchors, tau, beta):
        """J* is a mean of log q − τ·log ρ, or of the size of its largest: 16u of that, times the logarithms' size."""
        whole = Exact(log_q, anchors, tau, beta)
        actual = float(mg.optimal_potential(log_q, anchors, tau=tau, beta=beta))
        assert abs(actual - whole.optimum) <= 16 * U * whole.depth * (1 + whole.terms)

    @given(LOG_Q, ANCHORS, SCORES, TAU, BETA)
    @mpmath.workdps(60)
    def test_the_potential_and_the_gap_add_up_to_the_optimum(self, log_q, anchors, log_policy, tau, beta):
        options = {"tau": tau, "beta": beta}
        here = mg.regularized_potential(log_policy.exp(), log_q, anchors, **options)
        gap = mg.improvement_gap(log_policy, log_q, anchors, **options)
        best = mg.optimal_potential(log_q, anchors, **options)
        whole = Exact(log_q, anchors, tau, beta)
        delta = 16 * U * (whole.depth + max(map(abs, exact(log_policy))))
        bound = delta * (1 + whole.terms) + whole.heat * delta**2 + 16 * delta * float(gap)
        assert abs(float(here) + float(gap) - float(best)) <= bound


class TestCounting:
    @given(st.data())
    def test_counts_and_ranks_are_those_of_comparing_every_pair(self, data):
        shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9)))
        small = st.sampled_from([-INF, -1.0, -0.0, 0.0, 2.0, INF])
        values = data.draw(values_of(shape, small))
        mask = data.draw(values_of(shape, st.sampled_from([0.0, 1.0]))) > 0
        keys = values.clamp(-5, 5).long()
        same = (keys.unsqueeze(-1) == keys.unsqueeze(-2)) & mask.unsqueeze(-1) & mask.unsqueeze(-2)
        assert torch.equal(mg.duplicate_counts(keys, mask=mask), same.sum(-1))
        below = ((values.unsqueeze(-2) < values.unsqueeze(-1)) & mask.unsqueeze(-2)).sum(-1)
        ties = ((values.unsqueeze(-2) == values.unsqueeze(-1)) & mask.unsqueeze(-2)).sum(-1)
        among = mask.sum(-1, keepdim=True)
        expected = torch.where(among > 1, (below + (ties - 1) / 2) / (among - 1).clamp(min=1), 0.5)
        assert_close(mg.rank_utilities(values, mask=mask), torch.where(mask, expected, 0.0).double())

    def test_a_hundred_thousand_candidates_are_one_group(self):
        """Every pair of them would be 10¹⁰ comparisons."""
        size = 100_000
        values = torch.arange(size) // 2
        assert (mg.duplicate_counts(values) == 2).all()
        ranks = mg.rank_utilities(values.double())
        assert_close(ranks, (values * 2 + 0.5).double() / (size - 1))


class TestSettingsOutsideFloat32:
    def test_the_smallest_temperatures_are_their_limit(self):
        utilities = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
        expected = torch.tensor([[0.0, 0.5, 0.5], [1 / 3] * 3])
        assert_close(mg.listwise_q(utilities, temperature=1e-50, eps=0.0), expected)
        assert_close(mg.tempered_target(utilities.softmax(-1), tau=1e-50), expected)
        config = mg.MaxEntConfig(projection="surrogate", max_length=4, surrogate_tau=1e-50)
        target = mg.MaxEntObjective(config).target(
            utilities, mask=torch.ones_like(utilities, dtype=torch.bool), lengths=torch.full((2, 3), 4)
        )
        assert_close(target.weights, expected)

    def test_an_eps_below_the_smallest_float_keeps_its_logarithm(self):
        log_q = mg.listwise_log_q(torch.tensor([0.0, 1.0]), temperature=1e-3, eps=1e-50)
        assert_close(log_q, torch.tensor([-50 * math.log(10), 0.0]))

    def test_a_beta_near_the_largest_float_gives_the_anchor_and_its_tau(self):
        log_q, anchors = torch.tensor([0.2, 0.8]).log(), torch.tensor([-30.0, -31.0])
        assert_close(mg.tempered_target(log_q.exp(), anchors, tau=1e37, beta=3e38), (anchors * 30 / 31).softmax(-1))
        assert mg.tau_for_ess(log_q, anchors, ess=1.9, beta=3e37).isfinite()

    @pytest.mark.parametrize(
        ("call", "complaint"),
        [
            (
                lambda: mg.MaxEntConfig(tau=1e39),
                "Expected tau <= 3.40282e+38, the largest number of float32, got tau",
            ),
            (
                lambda: mg.MaxEntConfig(tau=3e38, beta=1e38),
                "Expected tau + beta <= 3.40282e+38, or inf, got tau=3e+38",
            ),
            (lambda: mg.MaxEntConfig(min_utility=1e39), "Expected min_utility <= 3.40282e+38"),
            (lambda: mg.MaxEntConfig(max_length=INF), "Expected max_length <= 3.40282e+38"),
            (lambda: mg.MaxEntConfig(q_temperature=10**400), "Expected q_temperature <= 3.40282e+38, got an integer"),
            (lambda: mg.tempered_target(torch.ones(2), tau=1e39), "Expected tau <= 3.40282e+38, the largest torch"),
            (lambda: mg.tempered_target(torch.ones(2), torch.ones(2), tau=3e38, beta=3e38), "Expected tau + beta <="),
            (
                lambda: mg.tau_for_ess(torch.ones(2), torch.ones(2), ess=1.5, beta=1e39),
                "Expected beta <= 3.40282e+38",
            ),
        ],
    )
    def test_others_are_refused_by_name(self, call, complaint):
        with pytest.raises(ValueError) as refused:  # noqa: PT011
            call()
        assert complaint in str(refused.value)

    def test_inside_a_tensor_they_are_nan_in_their_group(self):
        q, taus = torch.tensor([[0.2, 0.8]] * 4), torch.tensor([1.0, -1.0, 1e39, math.nan], dtype=torch.float64)
        assert mg.tempered_target(q, tau=taus).isnan().any(-1).tolist() == [False, True, True, True]
        zero = torch.tensor([1.0, 0.0, -1.0, INF])
        assert mg.listwise_q(q, temperature=zero).isnan().any(-1).tolist() == [False, True, True, False]


TENSOR = torch.tensor([1.0, 0.5])
TOKENS = torch.ones(2, 2, 3, dtype=torch.bool)
NUMBERS = {
    "eps": lambda value: mg.listwise_q(torch.eye(2), eps=value),
    "strength": lambda value: mg.discount_duplicates(torch.eye(2), torch.ones(2, 2), strength=value),
    "beta": lambda value: mg.tau_for_ess(torch.zeros(2, 2), torch.zeros(2, 2), ess=1.5, beta=value),
    "max_length": lambda value: mg.maxent_weighted_nll(TOKENS.float(), torch.eye(2), TOKENS, max_length=value),
    "clip_low": lambda value: mg.clipped_surrogate(
        TOKENS.float(), TOKENS.float(), torch.eye(2), TOKENS, clip_low=value, clip_high=0.2
    ),
    "keep": lambda value: mg.prune_candidates(torch.eye(2), keep=value, generator=torch.Generator()),
    **{name: lambda value, name=name: mg.MaxEntConfig(**{name: value}) for name in ("tau", "dedup", "min_utility")},
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [torch.tensor(0.5), TENSOR, True, "0.5"], ids=["scalar", "vector", "bool", "text"])
def test_what_is_a_number_is_no_tensor(name, value):
    with pytest.raises(ValueError, match=f"^Expected {name} to be a number, got {name}="):
        NUMBERS[name](value)


@pytest.mark.parametrize("groups", [torch.tensor([1.0, 2.0]), torch.tensor([[2]])])
def test_the_number_of_groups_is_one(groups):
    with pytest.raises(ValueError, match=r"^Expected num_groups of shape \[\], got num_groups of shape"):
        mg.maxent_weighted_nll(TOKENS.float(), torch.eye(2), TOKENS, num_groups=groups)


def test_a_number_of_groups_that_is_none_is_nan():
    assert mg.maxent_weighted_nll(TOKENS.float(), torch.eye(2), TOKENS, num_groups=torch.tensor(-2)).isnan()


def test_integer_log_probabilities_give_a_float_loss():
    whole, weights = torch.tensor([[[-1, -2]], [[-2, -1]]]), torch.tensor([[0.25], [0.5]])
    mask = torch.ones(2, 1, 2, dtype=torch.bool)
    clips = {"clip_low": 0.2, "clip_high": 0.2}
    for loss in (
        mg.maxent_weighted_nll(whole, weights, mask, num_groups=1),
        -3 * mg.clipped_surrogate(whole, whole, weights, mask, **clips, max_length=2, num_groups=1),
    ):
        assert_close(loss, torch.tensor(2.25))  # 3·(0.25 + 0.5)
