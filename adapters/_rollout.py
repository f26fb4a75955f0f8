"""What was sampled, as a training loop of one's own has it, and the padded groups that targets are made of."""

import math
import numbers
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from maxent_grpo._checks import expect, expect_mask, expect_shape, expect_tensor
from maxent_grpo._masked import upcast
from maxent_grpo.adapters._groups import Groups, build_keys, expect_texts
from maxent_grpo.adapters._rewards import read_rewards, weigh_rewards
from maxent_grpo.groups import pad_groups


@dataclass(frozen=True)
class Rollout:
    """N sampled completions with their rewards; the completions of a group are consecutive rows.

    Attributes:
        rewards: [N] numbers or truth values; None or NaN where there is no verdict: it leaves its group.
        mask: [N, T] bool, True where a completion token counts.
        group_sizes: K, or the size of each group.
        ids: [N, T] completion tokens; needed with logits or hidden states, and with dedup > 0 unless there are keys.
        keys: [N] tensor of integers or list of texts, equal where two completions are the same answer. Without any,
            and where a text is None, completions of equal tokens are.
        right: [N] bool, the verifier's verdict alone; by default the rewards above `min_utility`.
        counts: [N] >= 1, in place of counting equal keys: Σ_j S_ij over the group for a similarity with S_ii = 1.
        ref_logps: [N, T] token log-probabilities of the frozen reference; needed if β > 0.
        old_logps: [N, T] those of the rollout policy. Given, updates are clipped; without them the policy in
            training is taken to be the rollout policy.
        num_groups: prompts of the whole optimiser step over ranks and micro-batches; by default those of this
            rollout, summed over ranks.
        generator: for pruning, seeded by (seed, step).
    """

    rewards: Tensor | Sequence[float | None]
    mask: Tensor
    _: KW_ONLY
    group_sizes: int | Sequence[int] | Tensor
    ids: Tensor | None = None
    keys: Tensor | Sequence[str | None] | None = None
    right: Tensor | None = None
    counts: Tensor | None = None
    ref_logps: Tensor | None = None
    old_logps: Tensor | None = None
    num_groups: int | None = None
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class PaddedRollout:
    """A rollout's candidates as groups of one width, [G, K].

    Attributes:
        groups: what is known of the candidates but for their rewards; where updates are not clipped, the policy in
            training stands in for the rollout policy.
        utilities: NaN where a candidate has none, and where there is no candidate.
        present: bool, True where there is a candidate.
        policy_logps: log-probabilities of the policy in training summed over tokens, or None.
    """

    groups: Groups
    utilities: Tensor
    present: Tensor
    policy_logps: Tensor | None


def pad_rollout(rollout: Rollout, policy_logps: Tensor | None) -> PaddedRollout:
    """Return the groups of a rollout.

    Args:
        rollout: N completions.
        policy_logps: [N, T] token log-probabilities of the policy in training, or None.

    Raises:
        ValueError: naming the argument, on unequal shapes or rewards that are no numbers.
    """
    mask = rollout.mask
    expect_rows(mask)
    rewards = read_rewards(rollout.rewards, mask.device)
    expect_shape("rewards", rewards, mask.shape[:1])
    utilities = weigh_rewards(rewards.unsqueeze(-1), rewards.new_ones(1), ["rewards"])
    sizes = _list_sizes(rollout.group_sizes, len(mask))
    rows, present = pad_groups(torch.arange(len(mask), device=mask.device), sizes)
    policy_sums = _sum_tokens("policy_logps", policy_logps, mask, rows)
    old_sums = _sum_tokens("old_logps", rollout.old_logps, mask, rows)
    groups = Groups(
        lengths=mask.sum(-1)[rows],
        ref_logps=_sum_tokens("ref_logps", rollout.ref_logps, mask, rows),
        old_logps=policy_sums if old_sums is None else old_sums,
        keys=_pad_keys(rollout, rows),
        right=_pad_column("right", rollout.right, mask, rows),
        counts=_pad_column("counts", rollout.counts, mask, rows),
    )
    return PaddedRollout(groups, utilities[rows].masked_fill(~present, math.nan), present, policy_sums)


def expect_ids(rollout: Rollout, source: str) -> Tensor:
    """Return the tokens of a rollout whose log-probabilities are to be looked up."""
    if rollout.ids is None:
        raise ValueError(f"Expected ids with {source}, got ids=None.")
    return rollout.ids


def expect_rows(mask: Tensor) -> None:
    expect_tensor("mask", mask)
    if mask.ndim != 2:
        raise ValueError(f"Expected mask of shape [N, T], got mask of shape {list(mask.shape)}.")
    expect_mask("mask", mask, mask.shape)


def _list_sizes(group_sizes: int | Sequence[int] | Tensor, rows: int) -> Sequence[int] | Tensor:
    """Return the size of each group of `rows` completions."""
    size: Any = torch.as_tensor(group_sizes) if hasattr(group_sizes, "__array__") else group_sizes
    if isinstance(size, Tensor) and size.ndim == 0:
        size = size.item()
    if isinstance(size, (Tensor, Sequence)):
        return size
    whole: bool = isinstance(size, numbers.Integral) and not isinstance(size, bool)
    expect(whole and size >= 1 and rows % size == 0, f"group_sizes that divide the {rows} rows", group_sizes=size)
    return [int(size)] * (rows // size)


def _sum_tokens(name: str, logps: Tensor | None, mask: Tensor, rows: Tensor) -> Tensor | None:
    """Return token log-probabilities [N, T] summed over each completion, [G, K]."""
    if logps is None:
        return None
    expect_shape(name, logps, mask.shape)
    return upcast(logps).masked_fill(~mask, 0.0).sum(-1)[rows]


def _pad_keys(rollout: Rollout, rows: Tensor) -> Tensor | None:
    """Return the key of each candidate, [G, K], or None if nothing says which answers are the same."""
    keys = rollout.keys
    if not isinstance(keys, Tensor):
        keys = None if keys is None else list(keys)
        expect_texts("keys", keys or ())
        keys = build_keys(keys, rollout.ids, rollout.mask)
    return _pad_column("keys", keys, rollout.mask, rows)


def _pad_column(name: str, values: Tensor | None, mask: Tensor, rows: Tensor) -> Tensor | None:
    """Return what is known of each candidate [N] as groups, [G, K]."""
    if values is None:
        return None
    expect_shape(name, values, mask.shape[:1])
    return values[rows]
