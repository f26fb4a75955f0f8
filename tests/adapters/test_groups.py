"""What every adapter makes of rewards, answers and the candidates of several ranks."""

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from maxent_grpo import MaxEntConfig, MaxEntObjective, completion_keys
from maxent_grpo.adapters._groups import (
    Candidates,
    Groups,
    KeyFunction,
    build_keys,
    call_key_function,
    gather_groups,
)
from maxent_grpo.adapters._warnings import RolloutWarnings

CPU = torch.device("cpu")


def test_equal_texts_are_the_same_answer_and_equal_tokens_where_there_is_no_text() -> None:
    ids = torch.tensor([[5, 6], [7, 8], [5, 6], [7, 8], [5, 6]])
    keys = build_keys(["a", "a", None, None, None], ids, torch.ones(5, 2, dtype=torch.bool))
    assert keys is not None
    one, same, tokens, other_tokens, same_tokens = keys.tolist()
    assert one == same
    assert tokens == same_tokens
    assert len({one, tokens, other_tokens}) == 3


def test_keys_are_those_of_tokens_without_answers_and_none_without_either() -> None:
    ids, mask = torch.tensor([[5, 6], [5, 7]]), torch.tensor([[True, True], [True, False]])
    assert torch.equal(build_keys(None, ids, mask), completion_keys(ids, mask))
    assert build_keys(None, None, mask) is None


def test_a_key_function_reads_columns_as_a_reward_does() -> None:
    parity = KeyFunction(lambda numbers, **_: [str(number % 2) for number in numbers], ("numbers",))
    assert call_key_function(parity, {"numbers": [1, 2, 3], "prompts": [""] * 3}, candidates=3) == ["1", "0", "1"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["a"], "key_func to return 2 answers, got answers=1"),
        (["a", 3], r"texts or None of key_func, got key_func=\[3\]"),
    ],
)
def test_answers_that_are_too_few_or_no_texts_are_refused(answers: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call_key_function(lambda **_: answers, {}, candidates=2)


class GatherWith:
    """A fake collective: behind each of its tensors stands what another rank sent."""

    def __init__(self, other: list[Tensor] | None = None) -> None:
        self.other = other
        self.sent: list[Tensor] = []

    def __call__(self, mine: Tensor) -> Tensor:
        self.sent.append(mine)
        return mine if self.other is None else torch.cat([mine, self.other[len(self.sent) - 1]])


def candidates(first: int, prompts: list[int]) -> Candidates:
    """Return a rank's candidates, numbered from `first`."""
    numbers = torch.arange(first, first + len(prompts))
    return Candidates(torch.tensor(prompts), numbers, numbers + 1, ref_logps=-1.0 * numbers, old_logps=-2.0 * numbers)


def test_groups_that_straddle_ranks_are_whole_on_every_rank() -> None:
    """Six candidates of two prompts over two ranks: each rank holds half of a group."""
    first = GatherWith()
    gather_groups(candidates(0, [8, 8, 8]), 3, first)
    groups = gather_groups(candidates(3, [9, 9, 9]), 3, lambda mine: torch.cat([first.sent.pop(0), mine]))
    assert groups.lengths.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert groups.keys is not None
    assert groups.keys.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert groups.ref_logps is not None
    assert groups.ref_logps.tolist() == [[0.0, -1.0, -2.0], [-3.0, -4.0, -5.0]]
    assert groups.old_logps is not None
    assert groups.old_logps.tolist() == [[0.0, -2.0, -4.0], [-6.0, -8.0, -10.0]]


def test_log_probabilities_that_no_rank_has_are_not_gathered() -> None:
    numbers = torch.arange(4)
    gather = GatherWith()
    groups = gather_groups(Candidates(torch.zeros_like(numbers), numbers, numbers), 2, gather)
    assert (groups.ref_logps, groups.old_logps, len(gather.sent)) == (None, None, 1)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([8, 8, 9, 9, 9, 8], "the candidates of a group to share their prompt, got torn_groups=2"),
        ([8, 8, 8, 9], "whole groups of 3 candidates, got candidates=4"),
    ],
)
def test_groups_that_are_torn_or_not_whole_are_refused(prompts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather_groups(candidates(0, prompts), 3, GatherWith())


def groups(first: int = 0) -> Groups:
    return gather_groups(candidates(first, [8] * 4), 4, GatherWith())


def test_utilities_that_are_no_rates_are_refused_with_a_power_of_success() -> None:
    utilities = torch.tensor([[1.0, -1.0, 0.0, math.nan]])
    with pytest.raises(ValueError, match=r"utilities in \[0, 1\] with success_power=1\.0, got utilities=\[-1\.0\]"):
        groups().build_target(MaxEntObjective(MaxEntConfig(success_power=1.0)), utilities)
    assert groups().build_target(MaxEntObjective(MaxEntConfig()), utilities).weights.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_reference_scores_that_are_not_finite_are_refused_unless_their_candidate_does_not_count(value: float) -> None:
    objective = MaxEntObjective(MaxEntConfig(beta=0.1))
    broken = Groups(torch.ones(1, 3), torch.tensor([[-1.0, value, -2.0]]), None, None)
    with pytest.raises(ValueError, match="finite ref_logps, got candidates_without=1"):
        broken.build_target(objective, torch.tensor([[0.0, 1.0, 0.0]]))
    target = broken.build_target(objective, torch.tensor([[0.0, math.nan, 0.0]]))
    torch.testing.assert_close(target.weights.sum(-1), torch.ones(1))


def draw_four(rollout: Groups, seed: int, step: int) -> tuple[float, ...]:
    return tuple(torch.rand(4, generator=rollout.seed_generator(seed, step)).tolist())


def test_chance_differs_between_seeds_steps_and_rollouts_and_is_the_same_when_repeated() -> None:
    draws = [
        draw_four(groups(), 0, 0),
        draw_four(groups(), 1, 0),
        draw_four(groups(), 0, 1),
        draw_four(groups(1), 0, 0),
    ]
    assert len(set(draws)) == 4
    assert draw_four(groups(), 0, 0) == draws[0]


def skip_messages(caplog: pytest.LogCaptureFixture, rollouts: list[list[float]], **settings: Any) -> list[str]:
    """Return what is warned of over some rollouts of one group each."""
    objective, warning = MaxEntObjective(MaxEntConfig(**settings)), RolloutWarnings(every=3)
    for row in rollouts:
        utilities = torch.tensor([row])
        whole = Groups(torch.ones_like(utilities), None, None, None)
        warning.check_rollout(objective, whole.build_target(objective, utilities), utilities)
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_rollouts_that_are_skipped_altogether_are_warned_of_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """Failures at -1 and successes at 0: with min_utility=0 no group has a success."""
    messages = skip_messages(caplog, [[0.0, -1.0, math.nan]] * 4, skip="all_min")
    assert len(messages) == 2  # of the first and of the fourth
    assert "maxent_skip='all_min'" in messages[0]
    assert "maxent_min_utility=0 and utilities from -1 to 0" in messages[0]


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ([0.0, -1.0], {}),
        ([0.0, -1.0], {"skip": "all_min", "min_utility": -1.0}),
        ([0.0, -1.0], {"skip": "equal"}),
        ([math.nan, math.nan], {"skip": "all_min"}),
    ],
)
def test_rollouts_that_are_trained_on_or_not_scored_at_all_are_not_warned_of(
    row: list[float], settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert skip_messages(caplog, [row], **settings) == []
