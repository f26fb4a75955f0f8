"""From OpenRLHF's candidates to coefficients: whole groups, verdicts that are missing, keys, the log."""

from pathlib import Path
from typing import Any

import pytest
import torch
from openrlhf.trainer.ppo_trainer import BasePPOTrainer
from torch import Tensor

from maxent_grpo import MaxEntConfig, MaxEntObjective
from maxent_grpo.adapters.openrlhf.workers import _MaxEntTraining
from support.openrlhf_tiny import build_maker, make_sample, read_command

K = 4
SIZES = ("--rollout.n_samples_per_prompt", K, "--rollout.batch_size", 2, "--rollout.max_new_tokens", 8)
REWARDS = [1.0, 0.0, 0.5, 0.0, 0.0, 1.0, 1.0, 0.25]
COMPLETIONS = [[3, 4], [5], [6, 7, 8], [3, 4], [5, 6], [7], [7], [8, 9, 10, 11]]
Rewards = list[float | None]


def score_tokens(sequences: Tensor, action_mask: Tensor, **_: Any) -> Tensor:
    """Return log-probabilities that depend on the token alone."""
    return -sequences[:, 1:].float() / 8 * action_mask


def make_samples(rewards: Rewards, texts: list[str] | None = None) -> list[Any]:
    texts = texts or [f"prompt {row // K}" for row in range(len(rewards))]
    rows = zip(COMPLETIONS, rewards, texts, strict=True)
    return [make_sample([1, 2], completion, reward, text=text, label=text[-1]) for completion, reward, text in rows]


def compute_coefficients(rewards: Rewards, *options: Any, order: list[int] | None = None) -> tuple[Tensor, Any]:
    """Return the coefficients in the order of the samples, and the maker; `order` deals the batches of 3 anew."""
    maker = build_maker(read_command(*SIZES, "--rollout.micro_batch_size", 3, *options), score_tokens, score_tokens)
    batches = maker.make_experience(maker.split_rollout_samples(make_samples(rewards)))
    places = [batch.index for batch in batches]
    experiences = maker.compute_advantages_and_returns([batches[place] for place in order or range(len(batches))])
    coefficients = torch.full((len(rewards),), torch.nan)
    for batch in experiences:
        assert (batch.advantages == batch.advantages[:, :1]).all()
        coefficients[batch.index] = batch.advantages[:, 0]
    assert sorted(place for batch in places for place in batch) == list(range(len(rewards)))
    return coefficients.view(-1, K), maker


def expect_coefficients(rewards: list[float], config: MaxEntConfig, keys: list[int] | None = None) -> Tensor:
    """Return what the objective makes of whole groups; NaN rewards are no verdicts."""
    utilities = torch.tensor(rewards).view(-1, K)
    objective, lengths = MaxEntObjective(config), torch.tensor([len(ids) for ids in COMPLETIONS]).view(-1, K)
    names = None if keys is None else torch.tensor(keys).view(-1, K)
    return objective.coefficients(objective.target(utilities, mask=~utilities.isnan(), lengths=lengths, keys=names))


def test_coefficients_are_the_objectives_on_whole_groups_that_batches_split() -> None:
    assert torch.equal(compute_coefficients(REWARDS)[0], expect_coefficients(REWARDS, MaxEntConfig()))


def test_shuffled_experiences_change_no_coefficient() -> None:
    assert torch.equal(compute_coefficients(REWARDS, order=[2, 0, 1])[0], compute_coefficients(REWARDS)[0])


def test_a_candidate_whose_reward_failed_leaves_its_group_and_no_other() -> None:
    """Stock OpenRLHF drops the rewards of a whole batch, or fails, where the first or another row has none."""
    rewards: Rewards = [None, *REWARDS[1:4], REWARDS[4], None, *REWARDS[6:]]
    maker = build_maker(read_command(*SIZES, "--rollout.micro_batch_size", 3), score_tokens, score_tokens)
    experiences = maker.make_experience_batch(make_samples(rewards))
    coefficients = torch.cat([batch.advantages[:, 0] for batch in experiences]).view(-1, K)
    nan = float("nan")
    known = [nan if reward is None else reward for reward in rewards]
    assert torch.equal(coefficients, expect_coefficients(known, MaxEntConfig()))
    assert maker.statistics["maxent/frac_unscored"] == pytest.approx(2 / 8)
    logged = torch.cat([batch.info["reward"] for batch in experiences])
    assert float(logged.mean()) == pytest.approx(sum(reward for reward in rewards if reward is not None) / 6)


def test_length_penalties_of_openrlhf_are_part_of_the_reward() -> None:
    penalty = ("--reward.overlong_buffer_len", 6, "--reward.overlong_penalty_factor", 0.5)
    lengths = [len(ids) for ids in COMPLETIONS]
    penalized = [u - 0.5 * max(n - (8 - 6), 0) / 6 for u, n in zip(REWARDS, lengths, strict=True)]
    found, expected = compute_coefficients(REWARDS, *penalty)[0], expect_coefficients(penalized, MaxEntConfig())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("rows", "texts", "message"),
    [
        (range(8), ["a", "a", "b", "a", "b", "a", "b", "b"], "candidates of a group to share their prompt"),
        (range(7), None, "whole groups of 4 candidates, got candidates=7"),
    ],
)
def test_groups_that_are_shuffled_or_uneven_are_refused(rows: Any, texts: Any, message: str) -> None:
    maker = build_maker(read_command(*SIZES), score_tokens, score_tokens)
    samples = make_samples(REWARDS, texts)
    with pytest.raises(ValueError, match=message):
        maker.make_experience_batch([samples[row] for row in rows])


def test_a_candidate_that_is_there_twice_is_refused() -> None:
    maker = build_maker(read_command(*SIZES), score_tokens, score_tokens)
    batches = maker.make_experience(maker.split_rollout_samples(make_samples(REWARDS)))
    batches[0].index = batches[1].index
    with pytest.raises(ValueError, match="every candidate of the rollout once"):
        maker.compute_advantages_and_returns(batches)


def test_an_infinite_reward_is_refused() -> None:
    with pytest.raises(ValueError, match="finite rewards, or None without a verdict, got reward=inf"):
        compute_coefficients([float("inf"), *REWARDS[1:]])


def test_equal_tokens_are_the_same_answer_unless_a_key_function_says_otherwise(tmp_path: Path) -> None:
    settings = MaxEntConfig(dedup=1.0)
    tokens = [str(ids) for ids in COMPLETIONS]
    expected = expect_coefficients(REWARDS, settings, [tokens.index(text) for text in tokens])
    assert torch.equal(compute_coefficients(REWARDS, "--maxent.dedup", 1)[0], expected)
    file = tmp_path / "keys.py"
    file.write_text(
        "def key_func(queries, prompts, labels):\n"
        "    assert all(prompt == f'prompt {label}' for prompt, label in zip(prompts, labels, strict=True))\n"
        "    return [str(len(query.split())) for query in queries]\n"
    )
    lengths = [len(ids) for ids in COMPLETIONS]
    options = ("--maxent.dedup", 1, "--maxent.key_func", file)
    assert torch.equal(compute_coefficients(REWARDS, *options)[0], expect_coefficients(REWARDS, settings, lengths))


def test_pruning_draws_by_seed_and_step() -> None:
    def draw(step: int) -> Tensor:
        options = read_command(*SIZES, "--maxent.keep_fraction", 0.4)
        maker = build_maker(options, score_tokens, score_tokens)
        maker.global_step = step
        return torch.cat([row.advantages[:, 0] for row in maker.make_experience_batch(make_samples(REWARDS))])

    assert torch.equal(draw(3), draw(3))
    assert len({str(draw(step).tolist()) for step in range(8)}) > 1


def test_a_step_logs_the_statistics_that_other_adapters_log() -> None:
    """OpenRLHF's trainer is an actor of Ray: what we add to its step is called here without one."""

    class Stock(BasePPOTrainer):
        def __init__(self) -> None:
            self.args = read_command(*SIZES, "--maxent.beta", 0.1)
            self.actor_model_group = self.critic_model_group = self.reward_model_group = None
            self.reference_model_group = self.tokenizer = self.strategy = self.kl_ctl = None
            self.strategy = type("Strategy", (), {"args": self.args})

        def train_step(self, rollout_samples: Any, global_step: int) -> Any:
            return {"policy_loss": 1.0}, global_step + 1

    class Trainer(_MaxEntTraining, Stock): ...

    trainer = Trainer()
    assert trainer.kl_ctl.value == 0
    _, maker = compute_coefficients(REWARDS, "--maxent.beta", 0.1)
    trainer.experience_maker.statistics = maker.statistics
    assert trainer.train_step(make_samples(REWARDS)[: K - 1], 4) == ({}, 4)  # no whole group: no step
    status, step = trainer.train_step(make_samples(REWARDS), 4)
    assert (step, trainer.experience_maker.global_step, status["policy_loss"]) == (5, 4, 1.0)
    names = "ess weight_entropy max_weight potential improvement_gap forward_kl kl_target_anchor frac_unscored"
    assert {f"maxent/{name}" for name in names.split()} <= status.keys()
