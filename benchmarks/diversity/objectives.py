"""Losses that are not settings of the library: GRPO's division by the deviation, and ideas that were tried."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maxent_grpo import MaxEntObjective, Target, duplicate_counts, standardize_utilities


class GrpoObjective(MaxEntObjective):
    """GRPO: coefficients z_i / K, z the z-scored rewards, and each completion's NLL a mean over its tokens.

    The surrogate with z-scored utilities divides each NLL by a constant, so this mean is made here.
    """

    @torch.no_grad()
    def coefficients(
        self, target: Target, *, old_logps: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the z-scores over the number of candidates, [..., K]; 0 in a group of equal rewards."""
        counted = target.mask.sum(-1, keepdim=True).clamp(min=1)
        return standardize_utilities(target.utilities, mask=target.mask) / counted


class RareObjective(MaxEntObjective):
    """Coefficients times p̂^(−½), p̂ a group's mean reward: what is seldom solved weighs more than with a = 0."""

    def target(self, utilities: Tensor, **inputs: Any) -> Target:
        """Return the target with its groups' scales changed."""
        target = super().target(utilities, **inputs)
        least = 1 / target.mask.sum(-1).clamp(min=1)  # a group without success has no p̂ to divide by, and is skipped
        return replace(target, scale=target.scale * _mean_reward(target, utilities).clamp(min=least) ** -0.5)


class GradedObjective(MaxEntObjective):
    """κ of each group is its mean reward p̂: variety is asked for where it can be had."""

    def target(self, utilities: Tensor, *, keys: Tensor, **inputs: Any) -> Target:
        """Return the target of settings without κ, discounted by each group's own."""
        target = super().target(utilities, **inputs)
        copies = duplicate_counts(keys, mask=target.mask).clamp(min=1)
        log_discount = _mean_reward(target, utilities).unsqueeze(-1) * copies.log()
        weights = target.weights * (-log_discount).exp()
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        heat = (target.tau + self.config.beta).unsqueeze(-1)
        return replace(target, weights=weights, log_weights=weights.log(), log_q=target.log_q - heat * log_discount)


def _mean_reward(target: Target, utilities: Tensor) -> Tensor:
    """Return p̂ of each group, [...], over the candidates that count."""
    return utilities.masked_fill(~target.mask, 0.0).sum(-1) / target.mask.sum(-1).clamp(min=1)
