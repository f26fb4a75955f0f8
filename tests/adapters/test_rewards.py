"""The contract of rewards: what a function may return, how it is called, and who is scored by it."""

import asyncio
import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest
import torch

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters._rewards import (
    call_reward_function,
    hold_to_contract,
    read_rewards,
    weigh_rewards,
)
from maxent_grpo.adapters._warnings import BonusWarning
from maxent_grpo.adapters.torch_loop import MaxEntLoss, Rollout

CPU = torch.device("cpu")
NAMES = ["right", "format", "length"]
WEIGHTS = torch.tensor([0.9, 0.1, 0.0])


def test_a_missing_verdict_of_a_function_with_a_weight_leaves_the_candidate_without_a_utility() -> None:
    rewards = torch.tensor([[1.0, 1.0, 5.0], [math.nan, 1.0, 5.0], [1.0, math.nan, 5.0], [math.nan] * 3])
    utilities = weigh_rewards(rewards, WEIGHTS, NAMES)
    torch.testing.assert_close(utilities, torch.tensor([0.9 + 0.1, math.nan, math.nan, math.nan]), equal_nan=True)


@pytest.mark.parametrize("metric", [math.nan, math.inf, -math.inf, 1e30])
def test_a_function_of_weight_zero_never_counts(metric: float) -> None:
    utilities = weigh_rewards(torch.tensor([[-1.0, 0.5, metric], [1.0, 0.0, 2.0]]), WEIGHTS, NAMES)
    torch.testing.assert_close(utilities, torch.tensor([-0.9 + 0.05, 0.9]))


@pytest.mark.parametrize("verdict", [math.inf, -math.inf])
@pytest.mark.parametrize("function", [0, 1])
def test_an_infinite_reward_is_refused_by_its_functions_name(function: int, verdict: float) -> None:
    rewards = torch.zeros(4, 3)
    rewards[2, function] = verdict
    with pytest.raises(
        ValueError, match=f"finite rewards, or None without a verdict, got {NAMES[function]}={verdict}"
    ):
        weigh_rewards(rewards, WEIGHTS, NAMES)


def test_a_negative_weight_counts() -> None:
    rewards = torch.tensor([[1.0, 0.25], [1.0, math.nan]])
    utilities = weigh_rewards(rewards, torch.tensor([1.0, -2.0]), ["right", "length"])
    torch.testing.assert_close(utilities, torch.tensor([0.5, math.nan]), equal_nan=True)


def test_rewards_may_be_any_kind_of_number_or_none() -> None:
    listed = [True, np.bool_(False), torch.tensor(0.5), np.float32(0.25), 2, None, math.nan]
    expected = torch.tensor([1.0, 0.0, 0.5, 0.25, 2.0, math.nan, math.nan])
    torch.testing.assert_close(read_rewards(listed, CPU), expected, equal_nan=True)
    torch.testing.assert_close(read_rewards(torch.tensor([True, False]), CPU), torch.tensor([1.0, 0.0]))
    assert read_rewards(torch.zeros(1, dtype=torch.float64), CPU).dtype == torch.float64


ALLOWED = [True, np.bool_(False), torch.tensor(0.5), np.float32(0.25), 2, None, math.nan]
READ = torch.tensor([1.0, 0.0, 0.5, 0.25, 2.0, math.nan, math.nan])
ASKED = {"completions": ["x"] * len(ALLOWED), "prompts": ["p"] * len(ALLOWED)}


def give_rewards(completions: list[str], rewards: Any, **_: Any) -> Any:
    return rewards


@pytest.mark.parametrize("kind", [list, tuple, iter, np.array, torch.as_tensor])
def test_a_function_may_return_any_kind_of_sequence(kind: Any) -> None:
    rewards = kind(READ.tolist())
    torch.testing.assert_close(call_reward_function(give_rewards, ASKED | {"rewards": rewards}), READ, equal_nan=True)


@pytest.mark.parametrize(
    ("rewards", "complaint"),
    [
        ([1.0] * 6, "Expected 7 rewards, one per completion, got 6 from give_rewards."),
        ([1.0] * 8, "Expected 7 rewards, one per completion, got 8 from give_rewards."),
        ([], "Expected 7 rewards, one per completion, got 0 from give_rewards."),
        (
            torch.ones(7, 1),
            r"Expected 7 rewards, one per completion, got rewards of shape \[7, 1\] from give_rewards.",
        ),
        (0.5, "Expected a list of rewards, one per completion, got give_rewards=0.5."),
        (None, "Expected a list of rewards, one per completion, got give_rewards=None."),
        ("1111111", "Expected a list of rewards, one per completion, got give_rewards='1111111'."),
        (["1"] * 7, "Expected rewards to be numbers or None, got give_rewards='1'."),
        ([[1.0]] * 7, r"Expected rewards to be numbers or None, got give_rewards=\[1.0\]."),
        ([1j] * 7, "Expected rewards to be numbers or None, got give_rewards=1j."),
    ],
)
@pytest.mark.parametrize("wrap", [False, True])
def test_anything_else_is_refused_by_the_functions_name(rewards: Any, complaint: str, wrap: bool) -> None:
    function = functools.partial(give_rewards, rewards=rewards)
    with pytest.raises(ValueError, match=f"^{complaint}$"):
        hold_to_contract(function)(**ASKED) if wrap else call_reward_function(function, ASKED)


def test_a_held_function_keeps_its_name_and_may_be_async() -> None:
    async def judge(**columns: Any) -> list[Any]:
        return ALLOWED

    held = hold_to_contract(judge)
    assert (held.__name__, hold_to_contract(functools.partial(give_rewards)).__name__) == ("judge", "give_rewards")
    torch.testing.assert_close(torch.tensor(asyncio.run(held(**ASKED))), READ, equal_nan=True)
    torch.testing.assert_close(call_reward_function(judge, ASKED), READ, equal_nan=True)
    model = torch.nn.Linear(1, 1)
    assert (hold_to_contract(model), hold_to_contract("org/model")) == (model, "org/model")


@pytest.mark.parametrize(
    ("rewards", "min_utility"),
    [([-1.0] * 4, 0.0), ([0.1] * 4, 0.1), ([0.1, 0.0, 0.1, 0.1], 0.1), ([-5.0, -1.0, -1.0, -2.0], -1.0)],
)
def test_a_group_without_a_success_is_skipped_whatever_failures_score(
    rewards: list[float], min_utility: float
) -> None:
    config = dataclasses.replace(MaxEntConfig.diverse(max_length=2), min_utility=min_utility)
    rollout = Rollout(rewards, torch.ones(4, 2, dtype=torch.bool), group_sizes=4, keys=["a", "b", "c", "d"])
    assert MaxEntLoss(config).prepare(rollout).coefficients.tolist() == [0.0] * 4


VERDICTS = [1.0, 0.0, 0.0, 1.0]
BONUSES = [0.0, 1.0, 0.0, 1.0]


def warn_of_bonuses(
    weights: list[float],
    *,
    verdicts: list[float] = VERDICTS,
    skip: Any = "all_min",
    min_utility: float = 0.0,
    **rest: Any,
) -> BonusWarning:
    """Return what has seen a rollout twice: the verdicts of a verifier beside a bonus for the format."""
    config = MaxEntConfig(skip=skip, min_utility=min_utility, **rest)
    rewards, weighed_by = torch.tensor([verdicts, BONUSES]).T, torch.tensor(weights)
    warning = BonusWarning(weighed_by, ["right", "format"], config)
    for _ in range(2):
        warning.check_rollout(rewards, weigh_rewards(rewards, weighed_by, ["right", "format"]))
    return warning


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"skip": "none", "bank_weight": 0.1},
        {"skip": "none", "soft_dedup": 0.25},
        {"skip": "none", "distinct_power": 1.0},
        {"skip": "none", "pass_k": 2},
        {"skip": "none", "projection": "surrogate", "utility_transform": ("gapo", "zscore")},
    ],
)
def test_a_bonus_that_makes_failures_count_as_right_is_warned_of_once(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_bonuses([1.0, 0.5], **settings)
    (message,) = caplog.messages
    assert message == (
        "1 of 4 candidates count as right, with a utility over maxent_min_utility=0, though right alone leaves them "
        "at or under it: other rewards lift them. Set maxent_min_utility to the highest utility of a failure (here "
        "0.5) and the weight of right above that, or give the other functions a weight of 0."
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": [1.0, 0.5], "min_utility": 0.5},
        {"weights": [1.0, 0.0]},
        {"weights": [1.0, 0.5], "skip": "none"},
        {"weights": [1.0, -2.0]},
        {"weights": [1.0, 0.5], "verdicts": [1.0, 1.0, 0.0, 1.0]},
        {"weights": [1.0, 0.5], "verdicts": [1.0, -1.0, 0.0, 1.0]},
        {"weights": [1.0, 0.5], "verdicts": [1.0, math.nan, 0.0, 1.0]},
    ],
)
def test_bonuses_that_lift_no_failure_are_no_matter(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_bonuses(**settings)
    assert caplog.messages == []


def test_the_function_of_the_largest_weight_is_the_verifier_and_else_the_first() -> None:
    assert warn_of_bonuses([0.1, 0.9]).name == "format"
    assert warn_of_bonuses([0.5, 0.5]).name == "right"
    assert warn_of_bonuses([1.0, 0.5], verdicts=[1.0, 0.0, 0.0, 1.0]).is_due is False


def test_logits_in_place_of_log_probabilities_are_blamed_on_logps() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    constants = MaxEntLoss().prepare(Rollout([True, np.bool_(False)], mask, group_sizes=2))
    with pytest.raises(ValueError, match=r"^Expected logps of shape \[2, 3\], got logps of shape \[2, 3, 11\]\.$"):
        constants.loss(torch.zeros(2, 3, 11))
