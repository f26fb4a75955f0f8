"""The whole groups of a rollout on every rank: what targets are made of, gathered as one number a candidate."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maxent_grpo._checks import expect
from maxent_grpo.adapters._trl_rows import Rows, summed, token_mask
from maxent_grpo.groups import completion_keys
from maxent_grpo.objective import MaxEntObjective, Target


@dataclass(frozen=True)
class Groups:
    """The candidates of all ranks, [G, K] each, the same on every rank.

    Attributes:
        lengths: number of tokens that count.
        ref_logps: reference log-probabilities summed over them, or None.
        old_logps: those of the rollout policy, or None.
        keys: equal where two candidates have the same tokens.
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

    def generator(self, seed: int, step: int) -> torch.Generator:
        """Return the source of chance for this rollout: alike on all ranks and in a run that is resumed."""
        return torch.Generator().manual_seed(hash((seed, step, int(self.keys.sum()))) % 2**63)


def gathered_groups(accelerator: Any, rows: Rows, old_logps: Tensor | None, generations: int) -> Groups:
    """Return the groups of all ranks' rows.

    Sums over tokens are taken before gathering, because ranks pad to different widths.

    Args:
        accelerator: that of the trainer.
        rows: this rank's rows of the rollout; groups are consecutive over the ranks in order.
        old_logps: [B, T] token log-probabilities of the rollout policy, or None.
        generations: K.

    Raises:
        ValueError: on every rank, if the candidates of a group do not share their prompt, or any has images.
    """
    mask = token_mask(rows)
    ref_logps = rows.get("ref_per_token_logps")
    local = torch.stack([mask.sum(-1).float(), summed(ref_logps, mask), summed(old_logps, mask)], -1)
    parts = [completion_keys(rows[f"{part}_ids"], rows[f"{part}_mask"].bool()) for part in ("prompt", "completion")]
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
