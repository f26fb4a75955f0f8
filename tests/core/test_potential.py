"""The potential, its optimum, the gap and the divergences: against the oracle and at their edges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import maxent_grpo as mg
from maxent_grpo import reference
from maxent_grpo.kernels._rows import accumulation_dtype
from support.precision import evaluate
from support.strategies import INF, finite_temperings, policies, problems

pytestmark = pytest.mark.numerical

ANY_FINITE = st.sampled_from([(0.0, 0.0), (0.0, 0.5), (0.5, 0.0), (1e-6, 0.0), (0.0, 1e-6)]) | finite_temperings()


def assert_equals_oracle(actual, expected, size):
    """Equal to 1e-12 of the largest term."""
    assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=1e-12, atol=1e-12 * size, equal_nan=True)


def size_of_terms(problem):
    """How large log q + β·log ρ and (τ+β)·log π get: what cancels in a potential."""
    return 1.0 + problem.range_of_q + 10.0 * (problem.tau + problem.beta) + 1e3 * problem.beta


class TestAgainstTheOracle:
    @given(problems(tempering=ANY_FINITE), st.data())
    def test_potential(self, problem, data):
        policy = data.draw(policies(problem.mask)).exp()
        args, options = (policy, problem.log_q, problem.anchor_logps), {**problem.knobs, "mask": problem.mask}
        actual = mg.regularized_potential(*args, **options)
        assert_equals_oracle(actual, reference.regularized_potential(*args, **options), size_of_terms(problem))

    @given(problems(tempering=ANY_FINITE))
    def test_optimum(self, problem):
        args, options = (problem.log_q, problem.anchor_logps), {**problem.knobs, "mask": problem.mask}
        actual = mg.optimal_potential(*args, **options)
        assert_equals_oracle(actual, reference.optimal_potential(*args, **options), size_of_terms(problem))

    @given(problems(tempering=ANY_FINITE), st.data())
    def test_gap(self, problem, data):
        log_policy = data.draw(policies(problem.mask))
        args, options = (log_policy, problem.log_q, problem.anchor_logps), {**problem.knobs, "mask": problem.mask}
        actual = mg.improvement_gap(*args, **options)
        assert_equals_oracle(actual, reference.improvement_gap(*args, **options), size_of_terms(problem))

    @given(problems(), st.data())
    def test_forward_kl(self, problem, data):
        log_policy = data.draw(policies(problem.mask))
        log_weights = mg.tempered_log_target(problem.log_q, problem.anchor_logps, **problem.knobs, mask=problem.mask)
        actual = mg.forward_kl(log_weights, log_policy, mask=problem.mask)
        expected = reference.forward_kl(log_weights, log_policy, mask=problem.mask)
        assert_equals_oracle(actual, expected, 1e3)
        assert (actual >= -1e-9).all()

    @given(problems())
    def test_effective_sample_size(self, problem):
        weights = mg.tempered_target(problem.log_q.exp(), problem.anchor_logps, **problem.knobs, mask=problem.mask)
        actual = mg.effective_sample_size(weights)
        assert_equals_oracle(actual, reference.effective_sample_size(weights), 1.0)
        candidates = problem.mask.sum(-1)
        assert ((actual >= candidates.clamp(max=1) - 1e-12) & (actual <= candidates + 1e-12)).all()


class TestEdges:
    def test_gap_is_finite_in_float32_where_the_divergence_is_not(self):
        """As τ+β → 0 log π* leaves float32, but the gap tends to max log q − <π, log q>."""
        log_q = mg.listwise_log_q(torch.tensor([1e4, 0.0, -1e4]), temperature=1e-3, eps=0.0)
        log_policy = torch.full((3,), 1 / 3).log()
        assert_close(mg.improvement_gap(log_policy, log_q, tau=1e-36), -log_q.mean())
        log_weights = mg.tempered_log_target(log_q, tau=1e-36)
        assert (log_policy.exp() * (log_policy - log_weights)).sum() == INF

    def test_weight_on_impossible_candidates_costs_everything(self):
        log_q, uniform = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.5, 0.5])
        assert mg.regularized_potential(uniform, log_q, tau=1.0) == -INF
        assert mg.improvement_gap(uniform.log(), log_q, tau=1.0) == INF
        assert mg.forward_kl(uniform.log(), log_q) == INF
        sure = torch.tensor([1.0, 0.0])
        assert mg.regularized_potential(sure, log_q, tau=1.0) == 0
        assert mg.improvement_gap(sure.log(), log_q, tau=1.0) == 0
        assert_close(mg.forward_kl(log_q, uniform.log()), torch.tensor(math.log(2)))

    def test_divergences_are_not_symmetric(self):
        one, other = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
        forward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
        reverse = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
        assert_close(mg.forward_kl(one, other), torch.tensor(forward))
        assert_close(mg.improvement_gap(other, one, tau=1.0), torch.tensor(reverse))

    def test_anchors_without_beta_have_no_say(self):
        log_q, wild = torch.tensor([[0.3, 0.7]]).log(), torch.tensor([[-INF, 0.0]])
        for function, first in (
            (mg.regularized_potential, log_q.exp()),
            (mg.improvement_gap, log_q.flip(-1)),
        ):
            assert torch.equal(function(first, log_q, wild, tau=0.5), function(first, log_q, tau=0.5))
        assert torch.equal(mg.optimal_potential(log_q, wild, tau=0.5), mg.optimal_potential(log_q, tau=0.5))

    def test_one_temperature_a_group(self):
        log_q = torch.tensor([[0.3, 0.7], [0.6, 0.4], [0.5, 0.5]]).log()
        anchors, policy = torch.tensor([[-1.0, -2.0]] * 3), torch.tensor([[0.2, 0.8]] * 3)
        tau, beta = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 1.0, 0.0])
        together = mg.regularized_potential(policy, log_q, anchors, tau=tau, beta=beta)
        best = mg.optimal_potential(log_q, anchors, tau=tau, beta=beta)
        gap = mg.improvement_gap(policy.log(), log_q, anchors, tau=tau, beta=beta)
        for g in range(3):
            knobs = {"tau": float(tau[g]), "beta": float(beta[g])}
            assert_close(together[g], mg.regularized_potential(policy[g], log_q[g], anchors[g], **knobs))
            assert_close(best[g], mg.optimal_potential(log_q[g], anchors[g], **knobs))
            assert_close(gap[g], mg.improvement_gap(policy[g].log(), log_q[g], anchors[g], **knobs))

    def test_nan_stays_in_its_group(self):
        log_q = torch.tensor([[math.nan, 0.5], [0.5, 0.5]]).log()
        policy = torch.full((2, 2), 0.5)
        for values in (
            mg.regularized_potential(policy, log_q, tau=1.0),
            mg.optimal_potential(log_q, tau=1.0),
            mg.improvement_gap(policy.log(), log_q, tau=1.0),
            mg.forward_kl(log_q, policy.log()),
            mg.effective_sample_size(log_q.exp()),
        ):
            assert values.isnan().tolist() == [True, False]

    def test_groups_without_candidates(self):
        nobody = torch.zeros(1, 2, dtype=torch.bool)
        log_q = torch.full((1, 2), math.nan)
        assert mg.regularized_potential(log_q, log_q, tau=1.0, mask=nobody).tolist() == [0.0]
        assert mg.optimal_potential(log_q, tau=1.0, mask=nobody).tolist() == [0.0]
        assert mg.improvement_gap(log_q, log_q, tau=1.0, mask=nobody).tolist() == [0.0]
        assert mg.forward_kl(log_q, log_q, mask=nobody).tolist() == [0.0]
        assert mg.effective_sample_size(torch.zeros(1, 2)).tolist() == [0.0]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_dtype_comes_back_calculated_in_float32(self, dtype):
        generator = torch.Generator().manual_seed(0)
        log_q, log_policy, anchors = (
            torch.randn(4, 50, generator=generator).log_softmax(-1).to(dtype) for _ in range(3)
        )
        knobs = {"tau": 0.3, "beta": 0.2}

        def compute(log_q, log_policy, anchors, policy, q):
            return [
                mg.regularized_potential(policy, log_q, anchors, **knobs),
                mg.optimal_potential(log_q, anchors, **knobs),
                mg.improvement_gap(log_policy, log_q, anchors, **knobs),
                mg.forward_kl(log_q, log_policy),
                mg.effective_sample_size(q),
            ]

        inputs = [log_q, log_policy, anchors, log_policy.exp(), log_q.exp()]
        widened = [values.double() for values in inputs]
        bounds = evaluate(lambda: compute(*widened), accumulation_dtype(dtype))
        for actual, exact in zip(compute(*inputs), bounds, strict=True):
            assert actual.dtype == dtype
            exact.round_to(dtype).assert_near(actual)
