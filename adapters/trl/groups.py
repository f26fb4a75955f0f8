"""The whole groups of a rollout on every rank: what targets are made of, gathered as one number a candidate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maxent_grpo._checks import expect
from maxent_grpo.adapters.trl.rows import Rows, summed, token_mask
from maxent_grpo.groups import answer_keys, completion_keys
from maxent_grpo.objective import MaxEntObjective, Target
from maxent_grpo.target import duplicate_counts


@dataclass(frozen=True)
class Groups:
    """The candidates of all ranks, [G, K] each, the same on every rank.

    Attributes:
        lengths: number of tokens that count.
        ref_logps: reference log-probabilities summed over them, or None.
        old_logps: those of the rollout policy, or None.
        keys: equal where two candidates are the same answer.
    """

    lengths: Tensor
    ref_logps: Tensor | None
    old_logps: Tensor | None
    keys: Tensor

    def target(self, objective: MaxEntObjective, rewards: Tensor, reward_weights: Tensor) -> Target:
        """Return the groups' target for raw rewards.

        A reward that is missing (NaN) is left out of its candidate's weighted sum; a candidate that has none
        is left out of its group.

        Args:
            objective: the method.
            rewards: [G·K, F], in the order of the groups.
            reward_weights: [F].

        Raises:
            ValueError: on negative utilities with a group scale.
        """
        utilities = (rewards * reward_weights.to(rewards.device)).nansum(-1)
        objective.expect_utilities(utilities)
        return objective.target(
            utilities.view_as(self.lengths),
            mask=~rewards.isnan().all(-1).view_as(self.lengths),
            lengths=self.lengths,
            ref_logps=self.ref_logps,
            old_logps=self.old_logps,
            keys=self.keys,
        )

    def frac_distinct(self, mask: Tensor) -> Tensor:
        """Return the share of different answers among a group's candidates; where it is 1, κ does nothing."""
        counts = duplicate_counts(self.keys, mask=mask)
        return (1 / counts[mask]).mean()

    def generator(self, seed: int, step: int) -> torch.Generator:
        """Return the source of chance for this rollout: alike on all ranks and in a run that is resumed."""
        return torch.Generator().manual_seed(hash((seed, step, int(self.keys.sum()))) % 2**63)


Answers = Sequence[str | None]
KeyFunction = Callable[..., Answers]


def answers_of(function: KeyFunction, inputs: Sequence[dict[str, Any]], **completions: Any) -> Answers:
    """Return what a key function says of this rank's completions; it is called as a reward function is.

    Raises:
        ValueError: if it returns another number of answers.
    """
    columns = {name: [row[name] for row in inputs] for name in inputs[0] if name not in ("prompt", "completion")}
    answers = function(**columns | completions)
    expect(len(answers) == len(inputs), f"key_func to return {len(inputs)} answers", answers=len(answers))
    return answers


def gathered_groups(
    accelerator: Any, rows: Rows, old_logps: Tensor | None, generations: int, answers: Answers | None = None
) -> Groups:
    """Return the groups of all ranks' rows.

    Sums over tokens are taken before gathering, because ranks pad to different widths.

    Args:
        accelerator: that of the trainer.
        rows: this rank's rows of the rollout; groups are consecutive over the ranks in order.
        old_logps: [B, T] token log-probabilities of the rollout policy, or None.
        generations: K.
        answers: [B] what makes two candidates the same; where it is None, and without it, their tokens do.

    Raises:
        ValueError: on every rank, if the candidates of a group do not share their prompt, or any has images.
    """
    mask = token_mask(rows)
    ref_logps = rows.get("ref_per_token_logps")
    local = torch.stack([mask.sum(-1).float(), summed(ref_logps, mask), summed(old_logps, mask)], -1)
    parts = [completion_keys(rows[f"{part}_ids"], rows[f"{part}_mask"].bool()) for part in ("prompt", "completion")]
    if answers is not None:
        told = torch.tensor([answer is not None for answer in answers], device=mask.device)
        keys = answer_keys(["" if answer is None else answer for answer in answers]).to(mask.device)
        parts[1] = torch.where(told, keys, parts[1])
    local_keys = torch.stack([*parts, torch.full_like(parts[0], "pixel_values" in rows)], -1)
    lengths, ref_sums, old_sums = accelerator.gather(local).unflatten(0, (-1, generations)).unbind(-1)
    prompts, keys, images = accelerator.gather(local_keys).unflatten(0, (-1, generations)).unbind(-1)
    expect(not bool(images.any()), "prompts and tool results of text", candidates_with_images=int(images.sum()))
    torn = (prompts != prompts[:, :1]).any(-1)
    expect(not bool(torn.any()), "the candidates of a group to share their prompt", torn_groups=int(torn.sum()))
    return Groups(
        lengths=lengths.long(),
        ref_logps=None if ref_logps is None else ref_sums,
        old_logps=None if old_logps is None else old_sums,
        keys=keys,
    )
