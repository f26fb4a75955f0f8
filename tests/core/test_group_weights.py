"""Group weights: powers of the success rate and of the number of answers, and pass@k."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import maxent_grpo as mg
from maxent_grpo import MaxEntConfig, MaxEntObjective
from support.strategies import INF
from support.three_groups import KEYS, LENGTHS, MASK, NAN, UTILITIES, build

pytestmark = pytest.mark.numerical
POWERS = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0])
BINARY = st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=7)


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


class TestPowers:
    @given(BINARY, st.integers(0, 5), POWERS, POWERS, POWERS)
    def test_are_a_product_and_zero_wherever_a_factor_is_zero(self, rewards, answers, a, b, d):
        rate = sum(rewards) / len(rewards)
        expected = 1.0
        for base, power in ((rate, a), (1 - rate, b), (float(answers), d)):
            expected *= 1.0 if power == 0 else 0.0 if base == 0 else base**power
        found = mg.power_weights(
            vector(rewards), success_power=a, failure_power=b, distinct_power=d, answers=vector(answers)
        )
        assert_close(found, vector(expected), rtol=1e-12, atol=0.0)

    def test_count_no_masked_candidate(self):
        mask = torch.tensor([True, True, False, False])
        found = mg.power_weights(vector([1.0, 0.0, NAN, 7.0]), success_power=2.0, failure_power=1.0, mask=mask)
        assert_close(found, vector(0.125))

    @pytest.mark.parametrize("options", [{"success_power": 1.0}, {"failure_power": -1.0}])
    @pytest.mark.parametrize("outside", [-0.5, 1.5, NAN])
    def test_show_where_the_mean_utility_is_no_rate(self, options, outside):
        weights = mg.power_weights(vector([[outside, 1.0], [0.5, 0.25]]), **options)
        assert weights.isnan().tolist() == [True, False]

    def test_a_sum_of_rewards_may_round_beyond_one(self):
        rewards = torch.tensor([0.7, 0.2, 0.1]).cumsum(0)[-1:] + 2 * torch.finfo(torch.float32).eps
        assert rewards > 1
        assert mg.power_weights(rewards, success_power=1.0) == rewards
        assert mg.power_weights(rewards, failure_power=-0.5) == 0

    def test_too_large_for_the_dtype_stay_numbers(self):
        weight = mg.power_weights(torch.tensor([1.0] + [0.0] * 7), success_power=-1e6)
        assert float(weight) == torch.finfo(torch.float32).max

    @pytest.mark.parametrize("power", [INF, NAN])
    def test_must_be_finite(self, power):
        with pytest.raises(ValueError, match="failure_power"):
            mg.power_weights(vector([1.0]), failure_power=power)

    def test_of_answers_need_them(self):
        with pytest.raises(ValueError, match=r"Expected answers with distinct_power, got distinct_power=1\."):
            mg.power_weights(vector([1.0]), distinct_power=1)


def estimate_pass_at_k(rewards, k):
    """The share of all k-subsets with a success."""
    subsets = list(combinations(rewards, k))
    return sum(max(subset) for subset in subsets) / len(subsets)


class TestPassAtK:
    @given(BINARY, st.data())
    def test_turn_the_direction_of_maxrl_into_the_gradient_of_the_estimate(self, rewards, data):
        """PKPO: the slope of the unbiased estimate of pass@k in n₊ successes, by score function and group mean.

        Σ_i (s_i − mean s)·∇log π(y_i)/K, s_i the mean over the k-subsets with i of their best reward, times k.
        """
        K, k = len(rewards), data.draw(st.integers(1, len(rewards) - 1))
        gains = []
        for i in range(K):
            others = rewards[:i] + rewards[i + 1 :]
            subsets = list(combinations(others, k - 1))
            gains.append(sum(max((rewards[i], *subset)) for subset in subsets) / len(subsets))
        mean = sum(gains) / K
        n = sum(rewards)
        direction = [r / n - 1 / K if n else 0.0 for r in rewards]
        weight = float(mg.pass_at_k_weights(vector(rewards), vector(rewards) > 0, k=k))
        assert_close(vector([weight * c for c in direction]), vector([k * (g - mean) / K for g in gains]),
                     rtol=1e-12, atol=1e-14)  # fmt: skip
        # Normalized, the advantages of the two kinds have mean 0 and the deviation of pass@k.
        passes = estimate_pass_at_k(rewards, k)
        deviation = math.sqrt(passes * (1 - passes))
        weight = float(mg.pass_at_k_weights(vector(rewards), vector(rewards) > 0, k=k, normalize=True))
        expected = [(g - mean) / deviation / K if deviation > 0 else 0.0 for g in gains]
        assert_close(vector([weight * c for c in direction]), vector(expected), rtol=1e-12, atol=1e-14)

    def test_have_no_signal_where_every_draw_of_k_succeeds(self):
        rewards = vector([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
        weights = mg.pass_at_k_weights(rewards, rewards > 0, k=2)
        assert weights[0] == 0
        assert weights[1] > 0

    def test_have_none_where_masking_leaves_k_candidates(self):
        rewards, mask = vector([1.0, 0.0, NAN, 0.0]), torch.tensor([True, True, False, False])
        assert mg.pass_at_k_weights(rewards, rewards > 0, k=2, mask=mask) == 0

    @pytest.mark.parametrize("k", [0, 4, 5, 1.5])
    def test_need_k_below_the_group_size(self, k):
        with pytest.raises(ValueError, match="Expected pass_k >= 1 and < K=4 candidates"):
            mg.pass_at_k_weights(vector([1.0, 0.0, 0.0, 0.0]), torch.ones(4, dtype=torch.bool), k=k)


class TestInAnObjective:
    def test_multiply_the_coefficients(self):
        fields = {"tau": 0.0, "center": True}
        plain, target = build(**fields)
        powers = {"success_power": 0.5, "failure_power": -0.25, "distinct_power": 2.0, "pass_k": 2}
        objective, weighted = build(**fields, **powers)
        counts = mg.duplicate_counts(KEYS, mask=MASK)
        right = MASK & (UTILITIES > 0)
        answers = mg.count_answers(counts.double(), right)
        scale = mg.power_weights(
            UTILITIES, success_power=0.5, failure_power=-0.25, distinct_power=2.0, answers=answers, mask=MASK
        ) * mg.pass_at_k_weights(UTILITIES, right, k=2, mask=MASK)
        assert_close(objective.coefficients(weighted), plain.coefficients(target) * scale.unsqueeze(-1))

    @pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, 1.0])
    def test_leave_groups_without_information_at_exactly_zero(self, reward):
        """In float32 a zero direction is ±1e-8, and times a huge weight it is not zero."""
        objective = MaxEntObjective(MaxEntConfig(center=True, success_power=-1e3, failure_power=-1e3))
        counted = torch.ones(1, 7, dtype=torch.bool)
        target = objective.target(torch.full((1, 7), reward), mask=counted, lengths=counted.long())
        assert torch.equal(objective.coefficients(target), torch.zeros(1, 7))

    def test_a_nan_utility_is_seen_whatever_the_weight(self):
        utilities = UTILITIES.clone()
        utilities[0] = vector([NAN, 0.0, 0.0, 0.0])
        for fields in ({"distinct_power": 1.0}, {"failure_power": 1.0}, {"pass_k": 2}):
            objective = MaxEntObjective(MaxEntConfig(center=True, **fields))
            c = objective.coefficients(objective.target(utilities, mask=MASK, lengths=LENGTHS, keys=KEYS))
            assert c[0].isnan().all()
            assert c[1:].isfinite().all()

    @pytest.mark.parametrize("fields", [{"success_power": -1.0}, {"failure_power": 0.5}, {"pass_k": 2}])
    @pytest.mark.parametrize("outside", [-1.0, 1.5])
    def test_by_a_rate_refuse_utilities_that_are_none_once_per_rollout(self, fields, outside):
        objective = MaxEntObjective(MaxEntConfig(center=True, **fields))
        objective.expect_utilities(vector([[1.0, NAN, 0.0]]))
        (name,) = fields
        with pytest.raises(
            ValueError, match=rf"Expected utilities in \[0, 1\] with {name}=.*utilities=\[{outside}\]"
        ):
            objective.expect_utilities(vector([[outside, NAN, 0.5]]))

    def test_by_pass_at_k_refuse_groups_that_are_too_small(self):
        with pytest.raises(ValueError, match="Expected pass_k >= 1 and < K=4 candidates, got pass_k=4"):
            build(pass_k=4)
