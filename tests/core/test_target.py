"""The target functions: against the oracle, alone in a batch, under padding, at their limits of precision."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.testing import assert_close

import maxent_grpo as mg
from maxent_grpo import reference
from maxent_grpo.kernels._rows import accumulation_dtype
from support.precision import FUNCTION, evaluate, unit_roundoff
from support.strategies import INF, Problem, policies, problems, temperings

pytestmark = pytest.mark.numerical

NAN = math.nan
TIED = Problem(
    utilities=torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64),
    anchor_logps=torch.tensor([[-3.0, -1.0, NAN]], dtype=torch.float64),
    mask=torch.tensor([[True, True, False]]),
    temperature=1.0,
    eps=0.0,
    tau=0.0,
    beta=0.0,
)
COLD = replace(TIED, utilities=torch.zeros(1, 3, dtype=torch.float64), beta=1e-6)
EMPTY = replace(TIED, mask=torch.zeros(1, 3, dtype=torch.bool), tau=INF)


def assert_equals_oracle(actual, expected, atol=0.0):
    assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0.0, atol=atol, equal_nan=True)


class TestAgainstTheOracle:
    @given(problems())
    @example(TIED)
    @example(EMPTY)
    def test_log_q(self, problem):
        actual = mg.listwise_log_q(
            problem.utilities, temperature=problem.temperature, eps=problem.eps, mask=problem.mask
        )
        expected = reference.listwise_log_q(
            problem.utilities, temperature=problem.temperature, eps=problem.eps, mask=problem.mask
        )
        assert_equals_oracle(actual, expected, 1e-12 * max(1.0, problem.range_of_q))

    @given(problems())
    def test_q(self, problem):
        actual = mg.listwise_q(problem.utilities, temperature=problem.temperature, eps=problem.eps, mask=problem.mask)
        expected = reference.listwise_q(
            problem.utilities, temperature=problem.temperature, eps=problem.eps, mask=problem.mask
        )
        assert_equals_oracle(actual, expected, 1e-12 * max(1.0, problem.range_of_q))

    @given(problems())
    @example(TIED)
    @example(EMPTY)
    @example(replace(TIED, tau=0.5, beta=INF))
    @example(replace(TIED, tau=INF, beta=1.0))
    @example(COLD)
    def test_log_target(self, problem):
        actual = mg.tempered_log_target(problem.log_q, problem.anchor_logps, **problem.knobs, mask=problem.mask)
        expected = reference.tempered_log_target(
            problem.log_q, problem.anchor_logps, **problem.knobs, mask=problem.mask
        )
        assert_equals_oracle(actual, expected, problem.tolerance())

    @given(problems())
    @example(COLD)
    def test_target(self, problem):
        q = problem.log_q.exp()
        actual = mg.tempered_target(q, problem.anchor_logps, **problem.knobs, mask=problem.mask)
        expected = reference.tempered_target(q, problem.anchor_logps, **problem.knobs, mask=problem.mask)
        assert_equals_oracle(actual, expected, problem.tolerance())

    @given(problems(), st.lists(temperings(), min_size=3, max_size=3), st.lists(st.floats(0.01, 10), min_size=3))
    def test_one_temperature_a_group(self, problem, pairs, temperatures):
        groups = len(problem.mask)
        tau, beta = torch.tensor(pairs, dtype=torch.float64)[:groups].T
        heat = torch.tensor(temperatures, dtype=torch.float64)[:groups]
        log_q = mg.listwise_log_q(problem.utilities, temperature=heat, eps=problem.eps, mask=problem.mask)
        actual = mg.tempered_log_target(log_q, problem.anchor_logps, tau=tau, beta=beta, mask=problem.mask)
        for g in range(groups):
            alone = slice(g, g + 1)
            alone_q = mg.listwise_log_q(
                problem.utilities[alone], temperature=float(heat[g]), eps=problem.eps, mask=problem.mask[alone]
            )
            assert torch.equal(log_q[alone], alone_q)
            expected = reference.tempered_log_target(
                alone_q, problem.anchor_logps[alone], tau=float(tau[g]), beta=float(beta[g]), mask=problem.mask[alone]
            )
            part = replace(problem, tau=float(tau[g]), beta=float(beta[g]), temperature=float(heat[g]))
            assert_equals_oracle(actual[alone], expected, part.tolerance())

    @given(problems())
    def test_ranks_centring_and_informative_groups(self, problem):
        for name in ("rank_utilities", "center_weights", "informative_groups"):
            actual = getattr(mg, name)(problem.utilities, mask=problem.mask)
            expected = getattr(reference, name)(problem.utilities, mask=problem.mask)
            assert_equals_oracle(actual, expected, 1e-15)

    @given(problems(utilities=("binary", "graded", "real")))
    def test_z_scores(self, problem):
        actual = mg.standardize_utilities(problem.utilities, mask=problem.mask)
        for scores, utilities, mask in zip(actual, problem.utilities, problem.mask, strict=True):
            assert (scores[~mask] == 0).all()
            u = utilities[mask].numpy()
            if len(u) and u.max() > u.min() + 1e-6:
                assert_close(scores[mask].numpy(), (u - u.mean()) / np.std(u), rtol=0, atol=1e-8)

    @given(problems(), st.data(), st.floats(0.0, 1.0))
    def test_duplicates(self, problem, data, strength):
        keys = data.draw(hnp.arrays(np.int64, tuple(problem.mask.shape), elements=st.integers(-2, 1)))
        counts = mg.duplicate_counts(torch.from_numpy(keys), mask=problem.mask)
        assert counts.dtype == torch.int64
        assert_equals_oracle(counts, reference.duplicate_counts(keys, mask=problem.mask))
        weights = mg.tempered_target(problem.log_q.exp(), problem.anchor_logps, **problem.knobs, mask=problem.mask)
        actual = mg.discount_duplicates(weights, counts, strength=strength, mask=problem.mask)
        expected = reference.discount_duplicates(weights, counts, strength=strength, mask=problem.mask)
        assert_equals_oracle(actual, expected, 1e-12)


class TestGroupsAreAlone:
    @given(problems(max_groups=4))
    def test_batch_equals_loop(self, problem):
        together = mg.tempered_log_target(problem.log_q, problem.anchor_logps, **problem.knobs, mask=problem.mask)
        for g in range(len(together)):
            alone = mg.tempered_log_target(
                problem.log_q[g], problem.anchor_logps[g], **problem.knobs, mask=problem.mask[g]
            )
            assert torch.equal(together[g], alone)

    @given(problems(max_groups=4))
    def test_masked_equals_truncated(self, problem):
        q = mg.listwise_q(problem.utilities, temperature=problem.temperature, eps=problem.eps, mask=problem.mask)
        padded = mg.tempered_target(q, problem.anchor_logps, **problem.knobs, mask=problem.mask)
        assert (padded[~problem.mask] == 0).all()
        for g, mask in enumerate(problem.mask):
            if mask.any():
                short_q = mg.listwise_q(problem.utilities[g][mask], temperature=problem.temperature, eps=problem.eps)
                short = mg.tempered_target(short_q, problem.anchor_logps[g][mask], **problem.knobs)
                assert_close(padded[g][mask], short, rtol=0.0, atol=problem.tolerance())

    @given(problems())
    def test_leading_shapes_are_only_shapes(self, problem):
        flat = mg.tempered_log_target(problem.log_q, problem.anchor_logps, **problem.knobs, mask=problem.mask)
        nested = mg.tempered_log_target(
            problem.log_q[None, :, None],
            problem.anchor_logps[None, :, None],
            **problem.knobs,
            mask=problem.mask[None, :, None],
        )
        assert torch.equal(nested, flat[None, :, None])

    def test_a_group_without_candidates_has_no_weight(self):
        weights = mg.tempered_target(torch.full((1, 3), 1 / 3), tau=1.0, mask=torch.zeros(1, 3, dtype=torch.bool))
        assert torch.equal(weights, torch.zeros(1, 3))

    @pytest.mark.parametrize("knobs", [{"tau": 0.2}, {"tau": 0.0}, {"tau": INF}, {"tau": 0.0, "beta": 1.0}])
    def test_a_nan_utility_shows_in_its_group_alone(self, knobs):
        utilities = torch.tensor([[1.0, NAN, 0.0], [1.0, 0.0, NAN], [1.0, 0.0, 0.0]])
        mask = torch.tensor([[True] * 3, [True, True, False], [True] * 3])
        q = mg.listwise_q(utilities, mask=mask)
        weights = mg.tempered_target(q, torch.zeros(3, 3), **knobs, mask=mask)
        assert weights[0].isnan().all()
        assert_close(weights[1:].sum(-1), torch.ones(2))
        for transform in (mg.rank_utilities, mg.standardize_utilities):
            transformed = transform(utilities, mask=mask)
            assert transformed[0].isnan().all()
            assert transformed[1:].isfinite().all()

    def test_a_bad_temperature_of_one_group_shows_as_nan_there(self):
        q = torch.full((4, 2), 0.5)
        anchors = torch.zeros(4, 2)
        tau = torch.tensor([-1.0, NAN, INF, 1.0])
        beta = torch.tensor([1.0, 1.0, INF, 1.0])
        weights = mg.tempered_target(q, anchors, tau=tau, beta=beta)
        assert weights.isnan().all(-1).tolist() == [True, True, True, False]
        heats = torch.tensor([0.0, -1.0, NAN, 1.0])
        assert mg.listwise_q(q, temperature=heats).isnan().all(-1).tolist() == [True, True, True, False]
        sizes = mg.tau_for_ess(torch.tensor([[0.9, 0.1]] * 3).log(), ess=torch.tensor([0.5, NAN, 1.5]))
        assert sizes.isnan().tolist() == [True, True, False]

    def test_more_candidates_than_eps_allows_show_as_nan_where_only_the_mask_knows(self):
        mask = torch.tensor([[True, True, True], [True, True, False]])
        q = mg.listwise_q(torch.zeros(2, 3), eps=0.5, mask=mask)
        assert q[0].isnan().all()
        assert q[1].tolist() == [0.5, 0.5, 0.0]


class TestNumerics:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_halves_are_as_good_as_their_inputs(self, dtype):
        """Calculated in float32, so that only the inputs' and the result's rounding is lost."""
        torch.manual_seed(0)
        utilities, anchors = torch.rand(5, 7, dtype=torch.float64).to(dtype), -torch.rand(5, 7).to(dtype)
        counts = torch.randint(1, 3, (5, 7))

        def compute(utilities, anchors, q, weights):
            return [
                mg.listwise_q(utilities, temperature=0.1, eps=1e-4),
                mg.tempered_target(q, anchors, tau=0.1, beta=0.05),
                mg.discount_duplicates(weights, counts, strength=0.5),
            ]

        q = mg.listwise_q(utilities, temperature=0.1, eps=1e-4)
        inputs = [utilities, anchors, q, mg.tempered_target(q, anchors, tau=0.1, beta=0.05)]
        widened = [values.double() for values in inputs]
        bounds = evaluate(lambda: compute(*widened), accumulation_dtype(dtype))
        for actual, exact in zip(compute(*inputs), bounds, strict=True):
            assert actual.dtype == dtype
            exact.round_to(dtype).assert_near(actual)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("tau", "beta"), [(1e-6, 0.0), (5e-7, 5e-7), (0.0, 1e-6), (0.2, 0.1)])
    def test_no_underflow_at_extreme_settings(self, dtype, tau, beta):
        """T = 1e-3, u = ±1e4, τ+β = 1e-6, K = 4096: log-weights finite, two winners share by their anchors."""
        K = 4096
        utilities = torch.full((K,), -1e4, dtype=dtype)
        utilities[:2] = 1e4
        anchors = torch.linspace(-1, 0, K, dtype=dtype)
        anchors[:2] = torch.tensor([0.0, -1.0])
        log_q = mg.listwise_log_q(utilities, temperature=1e-3, eps=0.0)
        log_weights = mg.tempered_log_target(log_q, anchors, tau=tau, beta=beta)
        assert log_q.isfinite().all()
        assert log_weights.isfinite().all()
        odds = math.exp(-beta / (tau + beta))  # q ties, so only the anchors tell the two apart
        shares = torch.tensor([1, odds], dtype=torch.float64) / (1 + odds)
        # Their gap to the peak is 0, exactly; the anchors' share of at most 1 is rounded 5 times, the rest 4 times.
        error = (9 + 3 * FUNCTION) * unit_roundoff(dtype)
        assert_close(log_weights.exp()[:2].double(), shares, rtol=error, atol=0.0)
        assert (log_weights.exp()[2:] == 0).all()

    def test_uniform_over_many_candidates(self):
        weights = mg.tempered_target(mg.listwise_q(torch.zeros(4096)), tau=1e-6)
        assert_close(weights, torch.full((4096,), 1 / 4096))

    def test_eps_of_one_share_each_is_uniform(self):
        for K in (1, 3, 49, 4096):
            assert_close(mg.listwise_q(torch.linspace(0, 1, K), eps=1 / K), torch.full((K,), 1 / K))

    def test_integers_are_cast(self):
        assert torch.equal(mg.listwise_q(torch.tensor([0, 1, 2])), mg.listwise_q(torch.tensor([0.0, 1.0, 2.0])))
        assert torch.equal(mg.rank_utilities(torch.tensor([5, 9])), torch.tensor([0.0, 1.0]))
        assert torch.equal(mg.standardize_utilities(torch.tensor([5, 9])), torch.tensor([-1.0, 1.0]))
        assert mg.informative_groups(torch.tensor([5, 9]))


class TestTauForEss:
    @given(problems(utilities=("binary", "graded", "real")), st.floats(1.0, 6.0), st.sampled_from([0.0, 0.1, 1.0]))
    def test_gives_the_size_where_it_can_be_reached(self, problem, ess, beta):
        log_q = problem.log_q
        tau = mg.tau_for_ess(log_q, problem.anchor_logps, ess=ess, beta=beta, mask=problem.mask)

        def size_at(tau):
            log_weights = mg.tempered_log_target(log_q, problem.anchor_logps, tau=tau, beta=beta, mask=problem.mask)
            return mg.effective_sample_size(log_weights.exp())

        size, coldest = size_at(tau), size_at(0.0)
        possible = (problem.mask & (log_q > -INF)).sum(-1)
        for g in range(len(tau)):
            if ess >= possible[g]:
                assert tau[g] == INF
            elif coldest[g] >= ess:
                assert tau[g] == 0
            else:
                assert 0 < tau[g] < INF
                assert_close(size[g], torch.tensor(ess, dtype=torch.float64), rtol=1e-6, atol=0.0)

    @given(problems(utilities=("binary", "graded", "real")), st.floats(1.0, 6.0), st.sampled_from([0.0, 0.1, 1.0]))
    def test_equals_the_oracle(self, problem, ess, beta):
        actual = mg.tau_for_ess(problem.log_q, problem.anchor_logps, ess=ess, beta=beta, mask=problem.mask)
        expected = reference.tau_for_ess(problem.log_q, problem.anchor_logps, ess=ess, beta=beta, mask=problem.mask)
        assert_close(actual, torch.from_numpy(expected), rtol=1e-7, atol=1e-9)

    def test_ties_give_the_number_of_winners_and_no_less(self):
        log_q = torch.tensor([0.4, 0.4, 0.2]).log()
        assert mg.tau_for_ess(log_q, ess=1.0) == 0
        assert mg.tau_for_ess(log_q, ess=2.0) == 0
        assert 0 < mg.tau_for_ess(log_q, ess=2.5) < INF
        assert mg.tau_for_ess(log_q, ess=3.0) == INF
        assert mg.tau_for_ess(log_q, ess=3.5) == INF

    def test_a_constant_group_is_cold_enough_and_never_too_cold(self):
        sizes = torch.tensor([1.0, 3.0, 4.0, 5.0])
        tau = mg.tau_for_ess(torch.full((4, 4), 0.25).log(), ess=sizes)
        assert tau.tolist() == [0.0, 0.0, INF, INF]

    def test_broken_groups_are_nan_alone(self):
        log_q = torch.tensor([[NAN, 0.1], [0.9, 0.1]]).log()
        tau = mg.tau_for_ess(log_q, ess=1.5)
        assert tau.isnan().tolist() == [True, False]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_keeps_the_dtype(self, dtype):
        log_q = torch.tensor([0.7, 0.2, 0.1]).log().to(dtype)
        tau = mg.tau_for_ess(log_q, ess=2.0)
        exact = reference.tau_for_ess(log_q.double(), ess=2.0)
        assert tau.dtype == dtype
        assert_close(tau.double(), torch.from_numpy(exact), rtol=4 * torch.finfo(dtype).eps, atol=0.0)

    def test_extreme_utilities_in_float32(self):
        log_q = mg.listwise_log_q(torch.tensor([1e4, 0.0, -1e4]), temperature=1e-3, eps=0.0)
        tau = mg.tau_for_ess(log_q, ess=2.0)
        assert_close(mg.effective_sample_size(mg.tempered_target(log_q.exp(), tau=tau)), torch.tensor(1.0))  # q is 0
        weights = mg.tempered_log_target(log_q, tau=tau).exp()
        assert_close(mg.effective_sample_size(weights), torch.tensor(2.0))


class TestSmallFunctions:
    def test_ranks_average_ties(self):
        ranks = mg.rank_utilities(torch.tensor([[2.0, 2.0, 7.0, -1.0, 2.0]]))
        middle = (1 + (3 - 1) / 2) / 4  # one below, two more of the same, among four others
        assert_close(ranks, torch.tensor([[middle, middle, 1.0, 0.0, middle]]))

    def test_a_lone_candidate_ranks_in_the_middle(self):
        assert mg.rank_utilities(torch.tensor([3.0])).tolist() == [0.5]
        masked = mg.rank_utilities(torch.tensor([3.0, NAN]), mask=torch.tensor([True, False]))
        assert masked.tolist() == [0.5, 0.0]

    @given(problems(utilities=("graded",)))
    def test_ranks_see_the_order_alone(self, problem):
        stretched = problem.utilities**3 * 7 + 1
        ranks = mg.rank_utilities(problem.utilities, mask=problem.mask)
        assert torch.equal(ranks, mg.rank_utilities(stretched, mask=problem.mask))

    def test_constant_groups_have_z_scores_of_zero_whatever_the_rounding(self):
        assert mg.standardize_utilities(torch.full((2, 3), 0.1)).tolist() == [[0.0] * 3] * 2

    def test_counts_stay_within_their_group_and_mask(self):
        keys = torch.tensor([[5, 5, 5], [5, 6, 5]])
        mask = torch.tensor([[True, True, False], [True, True, True]])
        assert mg.duplicate_counts(keys, mask=mask).tolist() == [[2, 2, 0], [2, 1, 2]]
        assert mg.duplicate_counts(keys).tolist() == [[3, 3, 3], [2, 1, 2]]

    def test_full_discount_weighs_answers_not_copies(self):
        weights = mg.discount_duplicates(torch.full((5,), 0.2), torch.tensor([3, 3, 3, 1, 1]), strength=1.0)
        assert_close(weights, torch.tensor([1 / 9, 1 / 9, 1 / 9, 1 / 3, 1 / 3]))

    def test_informative_needs_two_different_counted_utilities(self):
        utilities = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [NAN, 0.0]])
        mask = torch.tensor([[True, True], [True, True], [True, False], [False, False], [True, True]])
        assert mg.informative_groups(utilities, mask=mask).tolist() == [True, False, False, False, True]
        assert mg.informative_groups(utilities[:2]).tolist() == [True, False]

    @given(st.data(), problems())
    def test_policies_drawn_for_other_tests_are_normalised(self, data, problem):
        log_policy = data.draw(policies(problem.mask))
        counted = problem.mask.any(-1)
        assert_close(log_policy.exp().sum(-1)[counted], torch.ones(int(counted.sum()), dtype=torch.float64))
