"""The rollout: whole groups, one coefficient per candidate."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from torch import Tensor

from maxent_grpo._checks import expect
from maxent_grpo.adapters._groups import (
    Answers,
    Candidates,
    Groups,
    build_keys,
    call_key_function,
    gather_groups,
)
from maxent_grpo.adapters._rewards import read_rewards, weigh_rewards
from maxent_grpo.adapters._warnings import RolloutWarnings
from maxent_grpo.adapters.openrlhf.options import load_key_function
from maxent_grpo.groups import answer_keys
from maxent_grpo.objective import MaxEntObjective, Target


class MaxEntExperienceMaker(RemoteExperienceMaker):  # type: ignore[misc]
    """OpenRLHF's experience maker with a coefficient in place of each candidate's advantages.

    Attributes:
        global_step: number of the rollout, set by the trainer: pruning draws by it.
        statistics: of the latest rollout, by the names under which they are logged.
    """

    def __init__(self, *models_and_settings: Any) -> None:
        super().__init__(*models_and_settings)
        self.objective = MaxEntObjective(self.args.maxent.config)
        self.key_function = load_key_function(self.args.maxent.key_file)
        self.warnings = RolloutWarnings(prefix="--maxent.")
        self.global_step, self.statistics = 0, dict[str, float]()

    def make_experience_batch(self, rollout_samples: list[Any]) -> list[Any]:
        """Return experiences with coefficients; a candidate whose reward failed counts as unscored."""
        if self.args.reward.remote_url:
            mark_unscored(rollout_samples)
        experiences: list[Any] = super().make_experience_batch(rollout_samples)
        return experiences

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Any]) -> list[Any]:
        """Return the experiences with each candidate's coefficient at all its tokens.

        Raises:
            ValueError: on groups that are torn, of uneven size or out of order, and on infinite rewards.
        """
        # Whole groups first: OpenRLHF's next step reshapes rewards into groups, whatever they are.
        groups, places = self.gather_groups(experiences)
        # OpenRLHF's length penalties are rewards like others, but no verdict; its advantages are dropped.
        unscored = torch.cat([batch.rewards.isnan() for batch in experiences])
        experiences = super().compute_advantages_and_returns(experiences)
        rewards = torch.cat([read_rewards(batch.rewards, torch.device("cpu")) for batch in experiences])
        rewards = rewards.masked_fill(unscored, torch.nan)
        utilities = weigh_rewards(rewards.unsqueeze(-1), rewards.new_ones(1), ["reward"])
        utilities = utilities[places.argsort()].view(groups.lengths.shape)
        target = groups.build_target(self.objective, utilities)
        generator = groups.seed_generator(self.args.train.seed, self.global_step)
        coefficients = self.objective.coefficients(target, old_logps=groups.old_logps, generator=generator)
        self.warnings.check_rollout(self.objective, target, utilities)
        self.statistics = self.measure_rollout(groups, target, utilities)
        # One constant per candidate, which travels with its row from here on.
        sizes = [len(batch.index) for batch in experiences]
        constants_by_batch = torch.split(coefficients.flatten()[places], sizes)
        for batch, constants in zip(experiences, constants_by_batch, strict=True):
            batch.advantages = constants.unsqueeze(-1).expand(batch.action_mask.shape).contiguous()
        fill_logs(experiences)
        return experiences

    def gather_groups(self, experiences: list[Any]) -> tuple[Groups, Tensor]:
        """Return the rollout's groups, [G, K], and for each row of the experiences its place among the candidates."""
        parts = [self.reduce_experience(batch) for batch in experiences]
        places = torch.tensor([place for batch in experiences for place in batch.index])
        order = places.argsort()
        expect(
            bool((places[order] == torch.arange(len(places))).all()),
            "every candidate of the rollout once",
            places=places.tolist(),
        )

        def join(name: str) -> Any:
            columns = [getattr(part, name) for part in parts]
            return None if columns[0] is None else torch.cat(columns)[order]

        candidates = Candidates(**{field.name: join(field.name) for field in fields(Candidates)})
        return gather_groups(candidates, self.args.rollout.n_samples_per_prompt, lambda columns: columns), places

    def reduce_experience(self, batch: Any) -> Candidates:
        """Return what the groups need of a batch of rows, a number each."""
        mask = batch.action_mask.bool()
        keys = build_keys(self.ask_answers(batch), batch.sequences[:, 1:], mask)
        assert keys is not None  # there are tokens

        def sum_tokens(logps: Tensor | None) -> Tensor | None:
            return None if logps is None else logps.float().masked_fill(~mask, 0.0).sum(-1)

        return Candidates(
            prompts=answer_keys(batch.prompts),
            keys=keys,
            lengths=mask.sum(-1),
            ref_logps=sum_tokens(batch.base_action_log_probs),
            old_logps=sum_tokens(batch.action_log_probs),
        )

    def ask_answers(self, batch: Any) -> Answers | None:
        """Return what the key function says of a batch of rows, called as OpenRLHF calls a reward function."""
        if self.key_function is None:
            return None
        whole = zip(batch.sequences, batch.attention_mask.bool(), strict=True)
        queries = [self.tokenizer.decode(row[real], skip_special_tokens=False) for row, real in whole]
        columns = {"queries": queries, "prompts": batch.prompts, "labels": batch.labels}
        return call_key_function(self.key_function, columns, len(queries))

    def measure_rollout(self, groups: Groups, target: Target, utilities: Tensor) -> dict[str, float]:
        """Return the statistics of the rollout's groups, as the other adapters name them."""
        statistics = {"maxent/frac_unscored": utilities.isnan().float().mean()}
        if target.mask.any():
            statistics |= self.objective.statistics(target, policy_logps=groups.old_logps).as_dict()
            statistics["maxent/frac_distinct"] = groups.measure_distinct(target.mask)
        return {name: float(value) for name, value in statistics.items()}


def mark_unscored(samples: Sequence[Any]) -> None:
    """Give candidates whose reward could not be had a reward of NaN: OpenRLHF would drop the rewards of others.

    Args:
        samples: one candidate each; those that a reward function, server or agent failed on have no reward.
    """
    names = {name: value for sample in samples for name, value in sample.info.items()}
    has_scores = any(sample.scores is not None for sample in samples)
    for sample in samples:
        unknown = torch.full((1,), torch.nan)
        sample.rewards = unknown if sample.rewards is None else sample.rewards
        if has_scores and sample.scores is None:
            sample.scores = unknown
        # Rows are merged entry by entry, so every row needs every entry.
        sample.info = {name: sample.info.get(name, unknown) for name in ["reward", *names]}


def fill_logs(experiences: Sequence[Any]) -> None:
    """Log unscored candidates at the mean of the others: OpenRLHF's means are then those of the scored."""
    for name in experiences[0].info:
        column = [batch.info[name] for batch in experiences]
        mean = torch.cat([values.flatten().float() for values in column]).nanmean().nan_to_num()
        for batch, values in zip(experiences, column, strict=True):
            batch.info[name] = values.masked_fill(values.isnan(), mean) if values.is_floating_point() else values
