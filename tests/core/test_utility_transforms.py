"""Transforms of utilities: those of published methods by their formulas, in any order, and a user's own."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from maxent_grpo import TRANSFORMS, MaxEntConfig, MaxEntObjective, transforms
from support.three_groups import LENGTHS, MASK, NAN, UTILITIES

pytestmark = pytest.mark.numerical


@st.composite
def groups(draw):
    """One group of binary rewards, an answer and a log-probability each."""
    K = draw(st.integers(1, 7))
    rewards = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=K, max_size=K))
    answers = draw(st.lists(st.integers(0, 2), min_size=K, max_size=K))
    logps = draw(st.lists(st.floats(-20.0, 0.0, allow_subnormal=False), min_size=K, max_size=K))
    return rewards, [f"{answer} {reward}" for answer, reward in zip(answers, rewards, strict=True)], logps


def transform(names, rewards, answers, logps):
    """The library's utilities of one group, with a masked candidate of junk behind it."""
    junk = torch.tensor([NAN], dtype=torch.float64)
    utilities = torch.cat([torch.tensor(rewards, dtype=torch.float64), junk])
    mask = torch.tensor([True] * len(rewards) + [False])
    counts = torch.tensor([*(answers.count(answer) for answer in answers), 0])
    found = transforms.transform_utilities(
        names, utilities, mask=mask, right=mask & (utilities > 0), counts=counts,
        old_logps=torch.cat([torch.tensor(logps, dtype=torch.float64), junk]),
    )  # fmt: skip
    assert found[-1] == 0
    return found[:-1].tolist()


class TestFormulas:
    @given(groups())
    def test_ips_divides_a_reward_by_the_share_of_its_answer(self, group):
        rewards, answers, _ = group
        K = len(rewards)
        expected = [r / (answers.count(a) / K) for r, a in zip(rewards, answers, strict=True)]
        assert transform(["ips"], *group) == pytest.approx(expected, rel=1e-14)

    @given(groups())
    def test_gapo_rewards_a_right_answer_by_how_far_it_is_from_its_share(self, group):
        rewards, answers, _ = group
        right = [a for a, r in zip(answers, rewards, strict=True) if r == 1]
        expected = [
            1 - (right.count(a) / len(right) - 1 / len(set(right))) if r == 1 else -1.0
            for a, r in zip(answers, rewards, strict=True)
        ]
        assert transform(["gapo"], *group) == pytest.approx(expected, rel=1e-13)

    @given(groups())
    def test_darling_multiplies_by_the_other_right_ones_that_differ(self, group):
        rewards, answers, _ = group
        right = [a for a, r in zip(answers, rewards, strict=True) if r == 1]
        expected = [
            r * max(0.1, sum(a != other for other in right) / (len(right) - 1)) if r == 1 and len(right) > 1 else r
            for a, r in zip(answers, rewards, strict=True)
        ]
        assert transform(["darling"], *group) == pytest.approx(expected, rel=1e-14)

    @given(groups())
    def test_unlikeliness_takes_a_quarter_from_the_likeliest(self, group):
        rewards, _, logps = group
        K = len(rewards)
        ranks = [1 + sum(o < p for o in logps) + (logps.count(p) - 1) / 2 for p in logps]
        expected = [r * (1 - 0.25 * rank / K) for r, rank in zip(rewards, ranks, strict=True)]
        assert transform(["unlikeliness"], *group) == pytest.approx(expected, rel=1e-14)

    @given(groups(), st.sampled_from([0.0, 0.3, 1.0]))
    def test_ucpo_shares_the_gains_of_the_right_ones_by_their_unlikeliness(self, group, strength):
        rewards, _, logps = group
        K, n = len(rewards), int(sum(rewards))
        deviation = math.sqrt(n / K * (1 - n / K))
        gains = [(r - n / K) / deviation if deviation > 0 else 0.0 for r in rewards]
        odds = [math.exp(-p) if r == 1 else 0.0 for r, p in zip(rewards, logps, strict=True)]
        expected = [
            sum(g for g, r in zip(gains, rewards, strict=True) if r == 1)
            * ((1 - strength) / n + strength * odds[i] / sum(odds)) if rewards[i] == 1 else gains[i]
            for i in range(K)
        ]  # fmt: skip
        name = "ucpo of the test"
        TRANSFORMS[name] = functools.partial(transforms.share_by_unlikeliness, strength=strength)
        try:
            found = transform(["zscore", name], *group)
        finally:
            del TRANSFORMS[name]
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-13)
        assert sum(found) == pytest.approx(0.0, abs=1e-12)

    def test_gapo_takes_the_number_of_answers_that_are_known(self):
        three = functools.partial(transforms.reward_rare, valid_answers=4)
        counted = torch.ones(3, dtype=torch.bool)
        right, counts = torch.tensor([True, True, False]), torch.tensor([1, 1, 1])
        found = three(torch.zeros(3), mask=counted, right=right, counts=counts)
        assert_close(found, torch.tensor([1 - (1 / 2 - 1 / 4), 1 - (1 / 2 - 1 / 4), -1.0]))


class TestRegistry:
    def test_transforms_follow_one_another_and_the_mean_reward_stays_raw(self):
        twice = MaxEntConfig(utility_transform=("darling", "rank"), success_power=1.0)
        keys = torch.arange(4).expand(3, 4)
        target = MaxEntObjective(twice).target(UTILITIES, mask=MASK, lengths=LENGTHS, keys=keys)
        assert_close(target.utilities, transforms.rank_utilities(UTILITIES, mask=MASK))
        assert_close(target.scale, torch.tensor([1.5 / 4, 1.0, 0.0], dtype=torch.float64))

    def test_takes_a_function_of_ones_own(self, monkeypatch):
        monkeypatch.setitem(TRANSFORMS, "squared", lambda utilities, *, mask: utilities.square())
        target = MaxEntObjective(MaxEntConfig(utility_transform="squared")).target(
            UTILITIES, mask=MASK, lengths=LENGTHS
        )
        assert_close(target.utilities, torch.where(MASK, UTILITIES.square(), 0.0))

    def test_finds_a_function_by_its_path(self):
        config = MaxEntConfig(utility_transform=("torch.sqrt", "maxent_grpo.transforms.reward_unlikely"))
        assert config.needs_old_logps
        assert not config.needs_keys

    def test_refuses_a_result_of_another_shape(self, monkeypatch):
        monkeypatch.setitem(TRANSFORMS, "best", lambda utilities: utilities.amax(-1))
        objective = MaxEntObjective(MaxEntConfig(utility_transform="best"))
        with pytest.raises(ValueError, match="the result of the transform best of shape"):
            objective.target(UTILITIES, mask=MASK, lengths=LENGTHS)

    @pytest.mark.parametrize("name", ["gapo", "darling", "ips", "unlikeliness", "ucpo"])
    def test_a_nan_utility_is_seen_in_its_group_alone(self, name):
        utilities = UTILITIES.clone()
        utilities[0, 1] = NAN
        objective = MaxEntObjective(MaxEntConfig(utility_transform=name))
        target = objective.target(
            utilities, mask=MASK, lengths=LENGTHS, keys=torch.arange(4).expand(3, 4), old_logps=-UTILITIES
        )
        assert target.weights[0].isnan().all()
        assert target.weights[1:].isfinite().all()

    def test_groups_that_are_all_right_can_differ_by_their_answers(self):
        """GAPO moves them where the baseline of plain rewards cannot."""
        counted = torch.ones(1, 3, dtype=torch.bool)
        objective = MaxEntObjective(MaxEntConfig(projection="surrogate", utility_transform="gapo", max_length=1))
        rewards = torch.ones(1, 3, dtype=torch.float64)
        target = objective.target(rewards, mask=counted, lengths=counted.long(), keys=torch.tensor([[1, 1, 2]]))
        expected = torch.tensor([[-1 / 9, -1 / 9, 2 / 9]], dtype=torch.float64) / 3
        assert_close(objective.coefficients(target), expected)
