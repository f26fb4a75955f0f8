"""Known methods are settings: each against its own published formula, written here as a loop over one batch.

Nothing of the library appears on the side of the formula; both sides must have the same gradient in the
policy's token log-probabilities.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from maxent_grpo import MaxEntConfig, MaxEntObjective

pytestmark = pytest.mark.numerical

INF = math.inf
G, K, T, LIMIT = 4, 5, 6, 8


class Batch:
    """Rollouts of four groups: mixed, graded, all right, all wrong; at the policy and after a drift."""

    def __init__(self):
        generator = torch.Generator().manual_seed(11)
        draw = lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
        self.rewards = torch.tensor(
            [[1, 0, 0, 1, 0], [0.5, 1, 0.25, 0, 0.75], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.float64
        )
        self.lengths = torch.randint(1, T + 1, (G, K), generator=generator)
        self.tokens = torch.arange(T) < self.lengths.unsqueeze(-1)
        self.old = -2 * draw(G, K, T)
        self.ref = -2 * draw(G, K, T)
        self.drifted = self.old + draw(G, K, T) - 0.5
        self.mask = torch.ones(G, K, dtype=torch.bool)

    def summed(self, logps):
        return (logps * self.tokens).sum(-1)

    def gradient(self, config, logps, *, clipped=False):
        """The gradient that the library gives under a setting."""
        objective = MaxEntObjective(config)
        target = objective.target(
            self.rewards,
            mask=self.mask,
            lengths=self.lengths,
            ref_logps=self.summed(self.ref),
            old_logps=self.summed(self.old),
        )
        c = objective.coefficients(target, old_logps=self.summed(self.old))
        logps = logps.clone().requires_grad_()
        loss = objective.loss(
            logps.flatten(0, 1),
            c.flatten(),
            self.tokens.flatten(0, 1),
            num_groups=G,
            old_logps=self.old.flatten(0, 1) if clipped else None,
        )
        return torch.autograd.grad(loss, logps)[0]

    def gradient_of(self, loss, logps):
        """The gradient of a formula: a function of one group's policy log-probs, index and lengths, averaged."""
        logps = logps.clone().requires_grad_()
        total = sum(loss(logps[g], g) for g in range(G)) / G
        return torch.autograd.grad(total, logps)[0]


BATCH = Batch()


def sequence_logp(logps, g, i):
    """log π(y_i | x), the sum over the candidate's own tokens."""
    return sum(logps[i, t] for t in range(int(BATCH.lengths[g, i])))


def softmax(scores):
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def clipped_term(logps, g, i, advantage, low=0.2, high=0.2):
    """PPO's clipped sum over one candidate's tokens."""
    total = 0.0
    for t in range(int(BATCH.lengths[g, i])):
        ratio = (logps[i, t] - BATCH.old[g, i, t]).exp()
        total = total + torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    return total


def raft(logps, g):
    """RAFT / best of K: maximum likelihood of the best candidates alone, if any has a reward."""
    rewards = BATCH.rewards[g].tolist()
    best = [i for i in range(K) if rewards[i] == max(rewards)] if max(rewards) > 0 else []
    return -sum(sequence_logp(logps, g, i) for i in best) / max(len(best), 1)


def reward_weighted_regression(temperature):
    def loss(logps, g):
        """RWR / AWR normalised in the group: weights exp(r/λ) / Σ exp(r/λ); a baseline in r cancels."""
        baseline = float(BATCH.rewards[g].mean())
        powers = [math.exp((float(r) - baseline) / temperature) for r in BATCH.rewards[g]]
        return -sum(power / sum(powers) * sequence_logp(logps, g, i) for i, power in enumerate(powers))

    return loss


def kl_regularised(beta):
    def loss(logps, g):
        """π* ∝ ρ·exp(r/β), ρ the reference's normalised likelihoods per token among the candidates."""
        rho = softmax([
            sum(float(BATCH.ref[g, i, t]) for t in range(int(BATCH.lengths[g, i]))) / int(BATCH.lengths[g, i])
            for i in range(K)
        ])  # fmt: skip
        powers = [rho[i] * math.exp(float(BATCH.rewards[g, i]) / beta) for i in range(K)]
        return -sum(power / sum(powers) * sequence_logp(logps, g, i) for i, power in enumerate(powers))

    return loss


def tpo(logps, g):
    """TPO: cross-entropy of the candidate policy to p_old·exp(z), z the rewards' z-scores in the group."""
    rewards = BATCH.rewards[g].tolist()
    mean = sum(rewards) / K
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / K)
    z = [(r - mean) / deviation if deviation > 0 else 0.0 for r in rewards]
    old = [float(sequence_logp(BATCH.old[g], g, i)) for i in range(K)]
    target = softmax([old[i] + z[i] for i in range(K)])
    scores = torch.stack([sequence_logp(logps, g, i) for i in range(K)])
    return -sum(target[i] * (scores[i] - scores.logsumexp(0)) for i in range(K))


def grpo(logps, g):
    """GRPO summed over the group, its rewards z-scored with the population deviation; the limit divides."""
    gains = [float(r) for r in BATCH.rewards[g] - BATCH.rewards[g].mean()]
    deviation = math.sqrt(sum(gain**2 for gain in gains) / K)
    gains = [gain / deviation if deviation > 0 else 0.0 for gain in gains]
    return -sum(clipped_term(logps, g, i, gains[i]) for i in range(K)) / K / LIMIT


def dr_grpo(logps, g):
    """Dr.GRPO summed over the group: no length and no deviation divides; the limit does."""
    mean = float(BATCH.rewards[g].mean())
    return -sum(clipped_term(logps, g, i, float(BATCH.rewards[g, i]) - mean) for i in range(K)) / K / LIMIT


def x_dr_grpo(temperature):
    def loss(logps, g):
        """xDr.GRPO: candidates weighted by the softmax of their surrogate at the rollout policy."""
        mean = float(BATCH.rewards[g].mean())
        gains = [float(BATCH.rewards[g, i]) - mean for i in range(K)]
        weights = softmax([gains[i] * int(BATCH.lengths[g, i]) / LIMIT / temperature for i in range(K)])
        return -sum(weights[i] * clipped_term(logps, g, i, gains[i]) for i in range(K)) / LIMIT

    return loss


ON_POLICY = {
    "RAFT": (MaxEntConfig(tau=0.0, beta=0.0, skip="all_min"), raft),
    "RWR": (MaxEntConfig(tau=0.4, beta=0.0, q_eps=0.0), reward_weighted_regression(0.4)),
    "AWR at another temperature of q": (
        MaxEntConfig(tau=0.4, q_temperature=0.5, q_eps=0.0), reward_weighted_regression(0.2)
    ),
    "KL-regularised optimum": (MaxEntConfig(tau=0.0, beta=0.3, q_eps=0.0), kl_regularised(0.3)),
    "TPO": (
        MaxEntConfig(
            tau=0.0, beta=1.0, anchor="old", projection="listwise", utility_transform="zscore", q_eps=0.0
        ),
        tpo,
    ),
    "GRPO": (MaxEntConfig(projection="surrogate", utility_transform="zscore", max_length=LIMIT), grpo),
    "Dr.GRPO": (MaxEntConfig(projection="surrogate", surrogate_tau=INF, max_length=LIMIT), dr_grpo),
    "xDr.GRPO": (MaxEntConfig(projection="surrogate", surrogate_tau=0.1, max_length=LIMIT), x_dr_grpo(0.1)),
}  # fmt: skip


@pytest.mark.parametrize("name", ON_POLICY)
def test_has_the_gradient_of_its_formula_at_the_rollout_policy(name):
    config, formula = ON_POLICY[name]
    expected = BATCH.gradient_of(formula, BATCH.old)
    assert expected.abs().max() > 1e-3
    assert_close(BATCH.gradient(config, BATCH.old), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["RAFT", "RWR", "KL-regularised optimum"])
def test_maximum_likelihood_has_it_anywhere(name):
    config, formula = ON_POLICY[name]
    assert_close(
        BATCH.gradient(config, BATCH.drifted), BATCH.gradient_of(formula, BATCH.drifted), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("name", ["GRPO", "Dr.GRPO", "xDr.GRPO"])
def test_surrogates_have_it_after_a_drift_that_clips(name):
    config, formula = ON_POLICY[name]
    expected = BATCH.gradient_of(formula, BATCH.drifted)
    informative = BATCH.tokens & (BATCH.rewards != BATCH.rewards.mean(-1, keepdim=True)).unsqueeze(-1)
    assert (expected[informative] == 0).any()
    assert_close(BATCH.gradient(config, BATCH.drifted, clipped=True), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("drifted", [False, True])
def test_dr_grpo_is_the_scaled_end_of_the_centred_family(drifted):
    """a = 1, κ = 0, τ → 0, centred, divided by the limit, binary rewards: the gradient of Dr.GRPO, clip included."""
    binary = Batch()
    binary.rewards[1] = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
    config = MaxEntConfig(tau=0.0, center=True, success_power=1.0, nll_reduction="max_length", max_length=LIMIT)
    logps = binary.drifted if drifted else binary.old

    def formula(policy, g):
        mean = float(binary.rewards[g].mean())
        return -sum(clipped_term(policy, g, i, float(binary.rewards[g, i]) - mean) for i in range(K)) / K / LIMIT

    expected = binary.gradient_of(formula, logps)
    assert_close(binary.gradient(config, logps, clipped=drifted), expected, rtol=1e-12, atol=1e-14)
    nearly = MaxEntConfig(tau=1e-2, center=True, success_power=1.0, nll_reduction="max_length", max_length=LIMIT)
    assert_close(binary.gradient(nearly, logps, clipped=drifted), expected, rtol=0.0, atol=1e-12)


def test_groups_of_equal_rewards_move_only_methods_without_a_baseline():
    """The all-right group pulls RAFT and RWR; the centred and surrogate settings leave it alone."""
    for name, moves in {"RAFT": True, "RWR": True, "TPO": False, "Dr.GRPO": False, "xDr.GRPO": False}.items():
        gradient = BATCH.gradient(ON_POLICY[name][0], BATCH.old)
        assert (gradient[2].abs().max() > 1e-12) == moves
