"""Losses that are not settings of the library: GRPO's division by the deviation, and ideas that were tried."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maxent_grpo import MaxEntObjective, Target, duplicate_counts


class GrpoObjective(MaxEntObjective):
    """GRPO: coefficients z_i / K, z the z-scored rewards, and each completion's NLL a mean over its tokens.

    The surrogate knows centred advantages alone, so the division by the deviation is made here.
    """

    @torch.no_grad()
    def coefficients(
        self, target: Target, *, old_logps: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the z-scores over the number of candidates, [..., K]; 0 in a group of equal rewards."""
        counted = target.mask.sum(-1, keepdim=True).clamp(min=1)
        deviation = (target.advantages.square().sum(-1, keepdim=True) / counted).sqrt()
        return torch.where(deviation > 0, target.advantages / deviation, 0.0) / counted


class RareObjective(MaxEntObjective):
    """Coefficients times p̂^(−½), p̂ a group's mean reward: what is seldom solved weighs more than with a = 0."""

    def target(self, utilities: Tensor, **inputs: Any) -> Target:
        """Return the target with its groups' scales changed."""
        target = super().target(utilities, **inputs)
        return replace(target, scale=target.scale * utilities.mean(-1).clamp(min=1 / utilities.shape[-1]) ** -0.5)


class GradedObjective(MaxEntObjective):
    """κ of each group is its mean reward p̂: variety is asked for where it can be had."""

    def target(self, utilities: Tensor, *, keys: Tensor, **inputs: Any) -> Target:
        """Return the target of settings without κ, discounted by each group's own."""
        target = super().target(utilities, **inputs)
        copies = duplicate_counts(keys, mask=target.mask).clamp(min=1)
        weights = target.weights * copies ** -utilities.mean(-1, keepdim=True)
        weights = weights / weights.sum(-1, keepdim=True)
        return replace(target, weights=weights, log_weights=weights.log())
