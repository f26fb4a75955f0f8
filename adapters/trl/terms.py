"""What stands beside the weighted NLL in TRL's loss and log: KL to the reference, clip ratios, entropy."""

from typing import Any

import torch
from torch import Tensor

from maxent_grpo.adapters.trl.rows import Rows
from maxent_grpo.config import MaxEntConfig


def measure_kl(rows: Rows, logps: Tensor, old_logps: Tensor | None, *, corrected: bool) -> Tensor:
    """Return TRL's estimate of KL(π‖reference) at each token, exp(d) − d − 1 with d = log reference − log π.

    Args:
        rows: with the reference's log-probabilities.
        logps: [B, T] of the policy.
        old_logps: [B, T] of the rollout policy, or None where that is the policy itself.
        corrected: multiply by π/π_old, whose gradient makes that of the estimate unbiased (use_bias_correction_kl).

    Returns:
        [B, T], differentiable in `logps`.
    """
    difference: Tensor = rows["ref_per_token_logps"] - logps
    kl = difference.exp() - difference - 1
    if not corrected:
        return kl
    return kl * (logps - (logps.detach() if old_logps is None else old_logps)).exp()


def find_clipped(rows: Rows, logps: Tensor, old_logps: Tensor, config: MaxEntConfig) -> dict[str, Tensor]:
    """Return which tokens are out of bounds in the direction of their gain, [B, T] bool by TRL's metric."""
    ratio = (logps.detach() - old_logps).exp()
    c = rows["maxent_coefficients"].unsqueeze(-1)
    low, high = (ratio < 1 - config.clip_low) & (c < 0), (ratio > 1 + config.clip_high) & (c > 0)
    clipped = {"low": low, "high": high, "region": low | high}
    return {f"clip_ratio/{side}_mean": tokens for side, tokens in clipped.items()}


def count_tokens(rows: Rows, ranks: int, rollout_share: float) -> Tensor:
    """Return this rank's part of the tokens of an optimiser step, known before the first backward.

    TRL takes its entropy bonus as the mean over each micro-batch's tokens, so that the bonus depends on how a rollout
    is split. Here it is the mean over all tokens of the rollout, which every micro-batch and every rank divides by.

    Args:
        rows: of a micro-batch; they carry the number of tokens of the rollout over all ranks.
        ranks: number of ranks, over which gradients are averaged.
        rollout_share: number of rollouts per optimiser step; below 1 where a rollout serves several steps.
    """
    tokens: Tensor = rows["num_items_in_batch"].clamp(min=1)
    return tokens / ranks * rollout_share


@torch.no_grad()
def average_over_tokens(values: dict[str, Tensor], mask: Tensor, accelerator: Any) -> dict[str, float]:
    """Return the means of [B, T] over the tokens of all ranks, by one reduction of sums; none without a token."""
    sums = torch.stack([mask.sum().float(), *((value.float() * mask).sum() for value in values.values())])
    count, *totals = accelerator.reduce(sums, reduction="sum").tolist()
    return {name: total / count for name, total in zip(values, totals, strict=True)} if count > 0 else {}
