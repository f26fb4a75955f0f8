"""The closed form is the optimum of the potential, with its gap, its limits and its invariances.

Whatever a property compares the library with is written out here in plain arithmetic.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize
from torch.testing import assert_close

import maxent_grpo as mg
from support.strategies import INF, finite_temperings, mild_problems, policies, problems

pytestmark = pytest.mark.numerical


def log_rho(anchor_logps, mask):
    return anchor_logps.masked_fill(~mask, -INF).log_softmax(-1)


def plain_potential(policy, log_q, anchor_logps, tau, beta, mask):
    """Eq. (3) of one group: <π, log q> + τ·H(π) − β·KL(π‖ρ), by a loop."""
    rho = log_rho(anchor_logps, mask)
    total = 0.0
    for i in range(len(policy)):
        if mask[i] and policy[i] > 0:
            p = float(policy[i])
            total += p * float(log_q[i]) - tau * p * math.log(p) - beta * p * (math.log(p) - float(rho[i]))
    return total


def target_of(problem, **changes):
    knobs = {**problem.knobs, **changes}
    return mg.tempered_log_target(problem.log_q, problem.anchor_logps, **knobs, mask=problem.mask)


class TestOptimality:
    @given(mild_problems(), st.data())
    def test_no_point_of_the_simplex_has_more_potential(self, problem, data):
        best = target_of(problem).exp()
        rival = data.draw(policies(problem.mask)).exp()
        for other in (rival, 0.99 * best + 0.01 * rival):
            for g, mask in enumerate(problem.mask):
                if mask.any():
                    args = (problem.log_q[g], problem.anchor_logps[g], problem.tau, problem.beta, mask)
                    at_best, at_other = plain_potential(best[g], *args), plain_potential(other[g], *args)
                    assert at_best >= at_other - 1e-12 * (1 + abs(at_best))

    @pytest.mark.parametrize("seed", range(12))
    def test_an_independent_convex_solver_finds_the_same_point(self, seed):
        """SLSQP on the simplex itself: no softmax, no closed form."""
        rng = np.random.default_rng(seed)
        K = int(rng.integers(2, 7))
        log_q = np.log(rng.dirichlet(np.ones(K)))
        rho = rng.dirichlet(np.ones(K))
        tau, beta = rng.uniform(0.05, 1.0), rng.uniform(0.0, 1.0) * (seed % 3 > 0)
        tau *= seed % 4 > 0 or beta == 0

        def loss(p):
            return -(p @ log_q - tau * (p @ np.log(p)) - beta * (p @ np.log(p / rho)))

        def slope(p):
            return -(log_q - tau * (np.log(p) + 1) - beta * (np.log(p / rho) + 1))

        found = minimize(
            loss,
            np.full(K, 1 / K),
            jac=slope,
            method="SLSQP",
            bounds=[(1e-12, 1)] * K,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        args = (torch.from_numpy(log_q), torch.from_numpy(np.log(rho)))
        weights = mg.tempered_log_target(*args, tau=tau, beta=beta).exp().numpy()
        best = float(mg.optimal_potential(*args, tau=tau, beta=beta))
        np.testing.assert_allclose(found.x, weights, atol=1e-4)
        assert -1e-9 <= best + found.fun <= 1e-6

    @given(mild_problems())
    def test_the_gradient_is_constant_at_the_optimum(self, problem):
        """KKT inside the simplex: ∂J/∂π_i = log q_i − τ(log π_i + 1) + β(log ρ_i − log π_i) = J* − τ for every i.

        KL(π‖ρ) is Σ π·log(π/ρ) + Σ(ρ − π), which has no slope where π = ρ.
        """
        weights = target_of(problem).exp().requires_grad_()
        args = (problem.log_q, problem.anchor_logps)
        mg.regularized_potential(weights, *args, **problem.knobs, mask=problem.mask).sum().backward()
        best = mg.optimal_potential(*args, **problem.knobs, mask=problem.mask)
        multiplier = (best - problem.tau).unsqueeze(-1).expand_as(weights)
        inner = problem.mask & (weights > 1e-290)
        assert_close(weights.grad[inner], multiplier[inner], rtol=0.0, atol=1e-10)

    @given(problems(tempering=st.just((0.0, 0.0))))
    def test_without_temperature_only_the_largest_slopes_hold_weight(self, problem):
        """KKT at a corner: J is <π, log q>, so the support lies in the argmax of q and J* is the maximum."""
        weights = target_of(problem).exp()
        peak = problem.log_q.masked_fill(~problem.mask, -INF).amax(-1, keepdim=True)
        assert ((weights > 0) == (problem.mask & (problem.log_q == peak))).all()
        best = mg.optimal_potential(problem.log_q, tau=0.0, mask=problem.mask)
        present = problem.mask.any(-1)
        assert torch.equal(best[present], peak.squeeze(-1)[present])


class TestImprovementGap:
    @given(mild_problems(), st.data())
    def test_is_heat_times_reverse_kl_and_never_negative(self, problem, data):
        log_policy = data.draw(policies(problem.mask))
        args = (problem.log_q, problem.anchor_logps)
        gap = mg.improvement_gap(log_policy, *args, **problem.knobs, mask=problem.mask)
        heat, log_best = problem.tau + problem.beta, target_of(problem)
        divergence = torch.where(log_policy > -INF, log_policy.exp() * (log_policy - log_best), 0.0).sum(-1)
        best = mg.optimal_potential(*args, **problem.knobs, mask=problem.mask)
        here = mg.regularized_potential(log_policy.exp(), *args, **problem.knobs, mask=problem.mask)
        present = problem.mask.any(-1)
        size = 1 + best[present].abs().max() if present.any() else 1.0
        assert_close(gap, heat * divergence, rtol=1e-10, atol=1e-10)
        assert_close(gap[present], (best - here)[present], rtol=1e-10, atol=float(1e-12 * size) * 100)
        assert (gap >= -1e-12 * size).all()
        assert (gap[~present] == 0).all()

    @given(mild_problems())
    def test_vanishes_at_the_target_alone(self, problem):
        args = (problem.log_q, problem.anchor_logps)
        gap = mg.improvement_gap(target_of(problem), *args, **problem.knobs, mask=problem.mask)
        assert_close(gap, torch.zeros_like(gap), rtol=0.0, atol=1e-12 * max(1.0, problem.range_of_target) * 10)

    @given(mild_problems(), st.data(), st.floats(0.05, 0.95))
    def test_lowering_the_divergence_raises_the_potential_heat_times_as_much(self, problem, data, step):
        """J(π') − J(π) = (τ+β)·(KL(π‖π*) − KL(π'‖π*)), here for a step from π towards π*."""
        log_policy, log_best = data.draw(policies(problem.mask)), target_of(problem)
        moved = ((1 - step) * log_policy.exp() + step * log_best.exp()).log()
        args = (problem.log_q, problem.anchor_logps)
        present = problem.mask.any(-1)

        def divergence(log_pi):
            return torch.where(log_pi > -INF, log_pi.exp() * (log_pi - log_best), 0.0).sum(-1)[present]

        def potential(log_pi):
            return mg.regularized_potential(log_pi.exp(), *args, **problem.knobs, mask=problem.mask)[present]

        lowered = (problem.tau + problem.beta) * (divergence(log_policy) - divergence(moved))
        assert_close(potential(moved) - potential(log_policy), lowered, rtol=1e-9, atol=1e-9)
        assert (lowered >= -1e-9).all()


class TestLimits:
    """Each limit of (τ, β) equals its formula, and the finite settings go there."""

    @given(problems())
    def test_infinite_tau_is_uniform_over_the_counted(self, problem):
        uniform = problem.mask.double() / problem.mask.sum(-1, keepdim=True).clamp(min=1)
        for beta in (0.0, 3.0):
            assert_close(target_of(problem, tau=INF, beta=beta).exp(), uniform, rtol=1e-14, atol=0.0)

    def test_infinite_tau_counts_candidates_of_q_zero_too(self):
        weights = mg.tempered_target(torch.tensor([1.0, 0.0]), tau=INF)
        assert weights.tolist() == [0.5, 0.5]

    @given(problems())
    def test_infinite_beta_is_the_anchor(self, problem):
        rho = log_rho(problem.anchor_logps, problem.mask).exp().masked_fill(~problem.mask, 0.0)
        for tau in (0.0, 0.7):
            assert_close(target_of(problem, tau=tau, beta=INF).exp(), rho, rtol=1e-12, atol=1e-300)

    @given(mild_problems(), st.floats(0.05, 5.0))
    def test_without_beta_it_is_q_tempered_by_tau(self, problem, tau):
        powers = torch.where(problem.mask, (problem.log_q / tau).exp(), 0.0)
        expected = powers / powers.sum(-1, keepdim=True).clamp(min=1e-300)
        assert_close(target_of(problem, tau=tau, beta=0.0).exp(), expected, rtol=1e-11, atol=1e-300)

    @given(mild_problems(), st.floats(0.05, 5.0))
    def test_without_tau_it_is_the_kl_regularised_optimum(self, problem, beta):
        rho = log_rho(problem.anchor_logps, problem.mask)
        tilted = torch.where(problem.mask, (rho + problem.log_q / beta).exp(), 0.0)
        expected = tilted / tilted.sum(-1, keepdim=True).clamp(min=1e-300)
        assert_close(target_of(problem, tau=0.0, beta=beta).exp(), expected, rtol=1e-10, atol=1e-300)

    @given(problems())
    def test_without_either_ties_of_the_best_share(self, problem):
        weights = target_of(problem, tau=0.0, beta=0.0).exp()
        for g, mask in enumerate(problem.mask):
            if mask.any():
                best = mask & (problem.log_q[g] == problem.log_q[g][mask].max())
                assert_close(weights[g], best.double() / best.sum(), rtol=1e-14, atol=0.0)

    @given(mild_problems(epsilons=(0.0,), temperatures=(0.3, 1.0)))
    def test_without_a_floor_it_is_the_tilted_anchor(self, problem):
        """ε = 0: π* ∝ exp(u / (T(τ+β))) · ρ^{β/(τ+β)}."""
        heat = problem.tau + problem.beta
        q = mg.listwise_log_q(problem.utilities, temperature=problem.temperature, eps=0.0, mask=problem.mask)
        log_weights = mg.tempered_log_target(q, problem.anchor_logps, **problem.knobs, mask=problem.mask)
        tilt = problem.utilities / (problem.temperature * heat) + problem.beta / heat * log_rho(
            problem.anchor_logps, problem.mask
        )
        expected = tilt.masked_fill(~problem.mask, -INF).log_softmax(-1).masked_fill(~problem.mask, -INF)
        assert_close(log_weights, expected, rtol=0.0, atol=problem.tolerance(1e-11))

    @pytest.mark.parametrize(
        ("limit", "close"),
        [
            ((INF, 0.0), (1e9, 0.0)),
            ((INF, 1.0), (1e9, 1.0)),
            ((0.0, INF), (0.0, 1e9)),
            ((1.0, INF), (1.0, 1e9)),
            ((0.0, 0.0), (1e-9, 0.0)),
            ((0.0, 0.5), (1e-9, 0.5)),
            ((0.5, 0.0), (0.5, 1e-9)),
        ],
    )
    def test_finite_settings_approach_the_limit(self, limit, close):
        log_q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
        anchors = torch.tensor([-2.0, -1.0, -4.0], dtype=torch.float64)
        at_limit, nearby = (
            mg.tempered_log_target(log_q, anchors, tau=tau, beta=beta).exp() for tau, beta in (limit, close)
        )
        assert_close(nearby, at_limit, rtol=0.0, atol=1e-7)


class TestInvariances:
    @given(mild_problems(), st.floats(-100.0, 100.0), st.floats(-100.0, 100.0))
    def test_constants_added_to_a_group_change_nothing(self, problem, to_utilities, to_anchors):
        def weights(utilities, anchors):
            q = mg.listwise_q(utilities, mask=problem.mask)
            return mg.tempered_target(q, anchors, **problem.knobs, mask=problem.mask)

        moved = weights(problem.utilities + to_utilities, problem.anchor_logps + to_anchors)
        assert_close(moved, weights(problem.utilities, problem.anchor_logps), rtol=0.0, atol=1e-10)

    @given(problems(), st.randoms(use_true_random=False))
    def test_permuting_the_candidates_permutes_the_weights(self, problem, random):
        order = list(range(problem.mask.shape[-1]))
        random.shuffle(order)
        permuted = mg.tempered_log_target(
            problem.log_q[:, order], problem.anchor_logps[:, order], **problem.knobs, mask=problem.mask[:, order]
        )
        assert_close(permuted, target_of(problem)[:, order], rtol=0.0, atol=problem.tolerance(1e-13))

    @given(problems())
    def test_weights_sum_to_one_over_the_counted_and_are_zero_elsewhere(self, problem):
        weights = target_of(problem).exp()
        assert_close(weights.sum(-1), problem.mask.any(-1).double(), rtol=0.0, atol=1e-12)
        assert (weights[~problem.mask] == 0).all()

    @given(problems())
    def test_q_sums_to_one_and_respects_its_floor(self, problem):
        q = mg.listwise_q(problem.utilities, temperature=problem.temperature, eps=problem.eps, mask=problem.mask)
        assert_close(q.sum(-1), problem.mask.any(-1).double(), rtol=0.0, atol=1e-12)
        assert (q[problem.mask] >= problem.eps * (1 - 1e-12)).all()


class TestEntropy:
    @given(problems(tempering=st.just((0.0, 0.0))), st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=5))
    def test_of_the_target_grows_with_tau(self, problem, taus):
        entropies = []
        for tau in [0.0, *sorted(taus), INF]:
            log_weights = target_of(problem, tau=tau, beta=0.0)
            weights = log_weights.exp()
            entropies.append(-torch.where(weights > 0, weights * log_weights, 0.0).sum(-1))
        rises = torch.stack(entropies).diff(dim=0)
        assert (rises >= -1e-12).all()

    def test_strictly_so_unless_the_group_is_constant(self):
        log_q = torch.tensor([[0.6, 0.4], [0.5, 0.5]], dtype=torch.float64).log()
        sizes = [mg.effective_sample_size(mg.tempered_log_target(log_q, tau=tau).exp()) for tau in (0.1, 0.2, 0.4)]
        assert (sizes[0][0] < sizes[1][0]) & (sizes[1][0] < sizes[2][0])
        assert_close(sizes[0][1], sizes[2][1])


class TestDuplicates:
    @given(mild_problems(), st.data(), st.floats(0.0, 1.0))
    def test_discounting_equals_shifting_log_q(self, problem, data, strength):
        """Eq. (4b): the target of log q_i − (τ+β)·κ·log n_i."""
        keys = data.draw(hnp.arrays(np.int64, tuple(problem.mask.shape), elements=st.integers(0, 2)))
        counts = mg.duplicate_counts(torch.from_numpy(keys), mask=problem.mask)
        discounted = mg.discount_duplicates(target_of(problem).exp(), counts, strength=strength, mask=problem.mask)
        heat = problem.tau + problem.beta
        shifted = problem.log_q - heat * strength * counts.clamp(min=1).double().log()
        expected = mg.tempered_target(shifted.exp(), problem.anchor_logps, **problem.knobs, mask=problem.mask)
        assert_close(discounted, expected, rtol=1e-9, atol=1e-12)

    @given(problems(), st.data(), st.floats(0.0, 1.0))
    def test_discounted_weights_are_the_definition(self, problem, data, strength):
        keys = data.draw(hnp.arrays(np.int64, tuple(problem.mask.shape), elements=st.integers(0, 2)))
        weights = target_of(problem).exp()
        counts = mg.duplicate_counts(torch.from_numpy(keys), mask=problem.mask)
        actual = mg.discount_duplicates(weights, counts, strength=strength, mask=problem.mask)
        for g, mask in enumerate(problem.mask):
            n = [sum(bool(mask[j]) and keys[g, j] == keys[g, i] for j in range(len(mask))) for i in range(len(mask))]
            powers = [float(weights[g, i]) * n[i] ** -strength if mask[i] else 0.0 for i in range(len(mask))]
            expected = [power / (sum(powers) or 1.0) for power in powers]
            assert_close(actual[g].tolist(), expected, rtol=1e-10, atol=1e-300)

    @given(problems(), st.data())
    def test_no_strength_or_no_duplicates_changes_nothing(self, problem, data):
        weights = target_of(problem).exp()
        counts = data.draw(st.just(problem.mask.long()) | st.just(2 * problem.mask.long()))
        for strength in (0.0, 0.5):
            same = mg.discount_duplicates(weights, counts, strength=strength, mask=problem.mask)
            assert_close(same, weights, rtol=0.0, atol=1e-13)


class TestCentring:
    @given(problems())
    def test_centred_weights_sum_to_zero(self, problem):
        centred = mg.center_weights(target_of(problem).exp(), mask=problem.mask)
        assert_close(centred.sum(-1), torch.zeros(len(centred), dtype=torch.float64), rtol=0.0, atol=1e-12)
        assert (centred[~problem.mask] == 0).all()

    @given(problems(tempering=finite_temperings().map(lambda pair: (pair[0] or 0.1, 0.0))))
    def test_an_uninformative_group_moves_nothing(self, problem):
        """Centred with β = 0, κ = 0: equal utilities give π* = 1/K, so every coefficient is 0."""
        equal = torch.where(problem.mask, torch.ones_like(problem.utilities), problem.utilities)
        q = mg.listwise_q(equal, temperature=problem.temperature, eps=problem.eps, mask=problem.mask)
        weights = mg.tempered_target(q, **problem.knobs, mask=problem.mask)
        assert mg.center_weights(weights, mask=problem.mask).abs().max() <= 1e-12

    @given(
        problems(utilities=("binary",), epsilons=(0.0, 1e-6), temperatures=(0.3, 1.0)), st.sampled_from([0.0, 1e-3])
    )
    def test_scaled_by_the_success_rate_at_zero_tau_is_dr_grpo(self, problem, tau):
        """a = 1, κ = 0, τ → 0, binary rewards: p̂·(π*_i − 1/K) = (u_i − p̂)/K, Dr.GRPO's advantage over K."""
        weights = mg.tempered_target(
            mg.listwise_q(problem.utilities, temperature=problem.temperature, eps=problem.eps, mask=problem.mask),
            tau=tau,
            mask=problem.mask,
        )
        centred = mg.center_weights(weights, mask=problem.mask)
        for g, mask in enumerate(problem.mask):
            if mask.any():
                u = problem.utilities[g][mask]
                assert_close(u.mean() * centred[g][mask], (u - u.mean()) / len(u), rtol=0.0, atol=1e-12)
