"""A batch of verl's rows: sessions of several outputs, groups of any size, padding, missing verdicts and keys."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters.torch_loop import MaxEntLoss, Rollout
from maxent_grpo.adapters.verl.sessions import sort_sessions
from maxent_grpo.adapters.verl.trainers import take_coefficients
from support.verl_golden import ONE_CHANGE, build_trainer

KEYS = ["a_0_0", "b_1_0", "a_1_1", "pad_0_0", "a_1_0", "b_0_0", "a_2_0", "c_0_0"]
TAGS: list[dict[str, Any]] = [{"is_padding": True} if key.startswith("pad") else {} for key in KEYS]
REWARDS = {"a_0": 1.0, "a_1": 0.0, "a_2": 0.5, "b_0": 1.0, "b_1": 0.0, "c_0": 1.0}
LENGTHS = [2, 3, 1, 0, 3, 2, 3, 1]
MASK = torch.arange(3) < torch.tensor(LENGTHS).unsqueeze(-1)


def make_data(rewards: dict[str, float] | None = None) -> dict[str, Tensor]:
    """Return the padded rows; a session's score stands at the end of each of its outputs, as in verl."""
    scores = torch.zeros(len(KEYS), 3)
    for row, key in enumerate(KEYS):
        scores[row, max(LENGTHS[row], 1) - 1] = (REWARDS | (rewards or {})).get(key.rsplit("_", 1)[0], 0.0)
    ids = torch.arange(len(KEYS) * 3).view(-1, 3)
    return {
        "response_mask": MASK.long(),
        "responses": ids,
        "rm_scores": scores,
        "old_log_probs": -(ids + 1.0) / 8 * MASK,  # whose sums are exact
    }


def weigh(*overrides: str, data: dict[str, Tensor] | None = None, answers: Any = None) -> Tensor:
    trainer = build_trainer([*ONE_CHANGE, *overrides])
    weights = trainer.weigh_rows(data or make_data(), sort_sessions(KEYS, TAGS), answers)
    assert weights.shape == MASK.shape
    return weights


def expect_weights(config: MaxEntConfig, sizes: list[int], sessions: list[str]) -> dict[str, Tensor]:
    """Return each session's coefficient as the plain loop computes it, times rows per prompt."""
    outputs = [[row for row, key in enumerate(KEYS) if key.rsplit("_", 1)[0] == session] for session in sessions]
    lengths = torch.tensor([sum(LENGTHS[row] for row in rows) for rows in outputs])
    mask = torch.arange(6) < lengths.unsqueeze(-1)
    rollout = Rollout([REWARDS[session] for session in sessions], mask, group_sizes=sizes)
    logps = make_data()["old_log_probs"]
    sums = torch.stack([logps[rows].sum() for rows in outputs])
    at_first_token = sums.unsqueeze(-1) * (torch.arange(6) == 0)
    constants = MaxEntLoss(config).prepare(rollout, policy_logps=at_first_token)
    return dict(zip(sessions, constants.coefficients * (len(KEYS) / len(sizes)), strict=True))


SESSIONS = ["a_0", "a_1", "a_2", "b_1", "b_0", "c_0"]


def assert_weights(weights: Tensor, expected: dict[str, Tensor]) -> None:
    for row, key in enumerate(KEYS):
        weight = 0.0 if key.startswith("pad") else expected[key.rsplit("_", 1)[0]]
        assert torch.equal(weights[row], weight * MASK[row])


def test_groups_of_any_size_have_their_own_targets_and_padding_has_none() -> None:
    config = MaxEntConfig(nll_reduction="max_length", max_length=5)
    assert_weights(weigh(), expect_weights(config, [3, 2, 1], SESSIONS))


def test_a_session_of_several_outputs_is_one_candidate() -> None:
    config = MaxEntConfig(projection="listwise", nll_reduction="sum")
    found = weigh("+algorithm.maxent.projection=listwise", "+algorithm.maxent.nll_reduction=sum")
    assert_weights(found, expect_weights(config, [3, 2, 1], SESSIONS))
    assert found[4, 0] == found[2, 0] != 0


def test_a_mean_over_tokens_is_refused_where_a_session_has_several_outputs() -> None:
    with pytest.raises(ValueError, match=r"one output per session with algorithm\.maxent\.nll_reduction=mean"):
        weigh("+algorithm.maxent.nll_reduction=mean")


def test_a_session_without_a_verdict_leaves_its_group() -> None:
    weights = weigh(data=make_data({"a_1": math.nan}))
    assert weights[[2, 4]].abs().max() == 0
    assert weights[0, 0] > weights[6, 0] > 0


def test_an_infinite_reward_is_refused() -> None:
    with pytest.raises(ValueError, match="finite rewards"):
        weigh(data=make_data({"a_1": math.inf}))


def test_answers_decide_which_sessions_are_the_same() -> None:
    dedup = "+algorithm.maxent.dedup=1.0"
    same = weigh(dedup, answers=["x", "y", "x", "x", "y", "x"])
    different = weigh(dedup, answers=["x", "y", "z", "x", "y", "x"])
    assert same[0, 0] < different[0, 0]
    assert torch.equal(weigh(dedup), different)  # without answers equal tokens decide, and no two are alike


def test_a_missing_reference_is_named() -> None:
    with pytest.raises(ValueError, match="ref_logps"):
        weigh("+algorithm.maxent.beta=0.1")


@pytest.mark.parametrize("key", ["prompt", "prompt_0", "prompt_0_x"])
def test_a_row_that_names_no_session_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="prompt_session_output"):
        sort_sessions([key], [{}])


def test_the_estimator_is_refused_outside_our_trainers() -> None:
    with pytest.raises(ValueError, match=r"trainer\.v1\.trainer_mode"):
        take_coefficients(response_mask=MASK)


def test_statistics_have_the_names_of_every_adapter() -> None:
    trainer = build_trainer(ONE_CHANGE)
    trainer.weigh_rows(make_data(), sort_sessions(KEYS, TAGS), None)
    (statistics,) = trainer._statistics
    assert {"maxent/ess", "maxent/forward_kl", "maxent/frac_unscored", "maxent/frac_distinct"} <= statistics.keys()
