"""What is said of discounts that do nothing, over enough groups, and of those that leave one answer."""

import logging
from typing import Any

import pytest
import torch

from maxent_grpo import MaxEntConfig, MaxEntObjective
from maxent_grpo.adapters._groups import Groups
from maxent_grpo.adapters._warnings import ENOUGH_GROUPS, RolloutWarnings

EQUAL, DIFFERENT = [7, 7, 8], [7, 8, 9]


def read_warnings(
    caplog: pytest.LogCaptureFixture,
    rewards: list[float],
    keys: list[int],
    groups: int = ENOUGH_GROUPS,
    **fields: Any,
) -> list[str]:
    """Return what is said of this many equal groups, half of them in each of two rollouts."""
    objective, warnings = MaxEntObjective(MaxEntConfig(**fields)), RolloutWarnings()
    for _ in range(2):
        utilities = torch.tensor([rewards] * (groups // 2))
        logps = torch.tensor([[-1.0, -9.0, -1.0]] * len(utilities))
        whole = Groups(torch.ones_like(utilities), None, logps, torch.tensor([keys] * len(utilities)))
        warnings.check_rollout(objective, whole.build_target(objective, utilities), utilities)
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("revisited", [False, True])
def test_a_bank_that_never_sees_a_prompt_twice_is_said_to_be_idle(
    revisited: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warnings = RolloutWarnings(prefix="", every=3)
    for _ in range(2):
        warnings.check_bank(is_revisited=False)
    assert not caplog.records
    for _ in range(5):
        warnings.check_bank(is_revisited=revisited)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (0 if revisited else 1)
    assert all("idle so far: in 3 rollouts no prompt came twice" in message for message in messages)


@pytest.mark.parametrize("fields", [{"dedup": 0.5}, {"distinct_power": 1.0}, {"utility_transform": "gapo"}])
def test_no_two_equal_answers_are_said_to_leave_keys_idle(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (message,) = read_warnings(caplog, [1.0, 1.0, 0.0], DIFFERENT, **fields)
    assert "idle: no two answers of a group are equal" in message


@pytest.mark.parametrize("keys", [EQUAL, [7, 7, 7]])
def test_right_answers_that_are_all_one_are_said_to_leave_them_idle(
    keys: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    (message,) = read_warnings(caplog, [1.0, 1.0, 0.0], keys, dedup=1.0)
    assert "idle: all right answers of a group are one" in message
    assert "equation_skeleton" in message


@pytest.mark.parametrize(
    ("rewards", "keys", "fields"),
    [
        ([1.0, 1.0, 1.0], EQUAL, {"dedup": 1.0}),  # two kinds, one of them twice
        ([1.0, 0.0, 0.0], [7, 8, 8], {"dedup": 1.0}),  # one right answer is no sign
        ([1.0, 1.0, 0.0], DIFFERENT, {}),
    ],
)
def test_nothing_is_said_where_keys_have_something_to_do_or_no_part(
    rewards: list[float], keys: list[int], fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert read_warnings(caplog, rewards, keys, **fields) == []


def test_few_groups_are_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    assert read_warnings(caplog, [1.0, 1.0, 0.0], DIFFERENT, groups=ENOUGH_GROUPS - 2, dedup=1.0) == []


def test_soft_kappa_that_leaves_one_right_answer_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """log-probabilities of -1 and -9: α = 1 discounts the first by five nats, α = 0.05 by less than one."""
    assert read_warnings(caplog, [1.0, 1.0, 0.0], EQUAL, soft_dedup=0.05) == []
    (message,) = read_warnings(caplog, [1.0, 1.0, 0.0], EQUAL, soft_dedup=1.0)
    assert "maxent_soft_dedup leaves one right answer in most groups" in message
