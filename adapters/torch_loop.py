"""The plain torch adapter: `MaxEntLoss` for any causal language model in a training loop of one's own.

    loss_fn = MaxEntLoss(MaxEntConfig(tau=0.2))
    for prompts in loader:
        ids, mask, rewards = sample(model, prompts, num_generations=8)      # 8 completions per prompt, in order
        loss, statistics = loss_fn(model_logps(model, ids), Rollout(rewards, mask, group_sizes=8))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

For micro-batches that split groups, and for several updates on one rollout, compute the constants of the rollout
once with `MaxEntLoss.prepare` and take the loss of any of its rows with `RolloutConstants.loss`.
"""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from maxent_grpo._checks import expect, expect_mask, expect_shape, expect_tensor
from maxent_grpo._masked import upcast
from maxent_grpo._statistics import Statistics
from maxent_grpo.adapters._groups import Groups, SkipWarning, build_keys, expect_texts, read_rewards, weigh_rewards
from maxent_grpo.adapters._head import gather_head
from maxent_grpo.config import MaxEntConfig
from maxent_grpo.groups import flatten_groups, pad_groups
from maxent_grpo.kernels import linear_token_logps, linear_weighted_nll, token_logps
from maxent_grpo.objective import MaxEntObjective, Target


@dataclass(frozen=True)
class Rollout:
    """N sampled completions with their rewards; the completions of a group are consecutive rows.

    Attributes:
        rewards: [N] numbers or truth values; None or NaN where there is no verdict: it leaves its group.
        mask: [N, T] bool, True where a completion token counts.
        group_sizes: K, or the size of each group.
        ids: [N, T] completion tokens; needed with logits or hidden states, and with dedup > 0 unless there are keys.
        keys: [N] integers or texts, equal where two completions are the same answer; without any, and where a text is
            None, completions of equal tokens are.
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
    ref_logps: Tensor | None = None
    old_logps: Tensor | None = None
    num_groups: int | None = None
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class RolloutConstants:
    """What the loss of a rollout's N completions multiplies by, a row each in their order; everything detached.

    Attributes:
        coefficients: [N] what each completion's log-likelihood is weighted by.
        mask: [N, T] bool, True where a completion token counts.
        old_logps: [N, T] token log-probabilities of the rollout policy, or None if updates are not clipped.
        target: the target of each group, [G, K].
        statistics: means over this rank's groups.
        num_groups: prompts of the whole optimiser step, over ranks.
        rank_scale: what the loss is multiplied by because gradients are averaged over ranks.
        objective: the composition that the loss is taken from.
    """

    coefficients: Tensor
    mask: Tensor
    old_logps: Tensor | None
    target: Target
    statistics: Statistics
    num_groups: int
    rank_scale: int
    objective: MaxEntObjective

    def loss(self, logps: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return the loss of some rows; over a partition of the rows, the losses add up to the whole.

        Args:
            logps: [n, T] token log-probabilities of the policy in training, for these rows.
            rows: which rows of the rollout these are; all of them by default.

        Raises:
            ValueError: on logps of another shape than the rows' mask.
        """
        old = None if self.old_logps is None else self.old_logps[rows]
        return self.rank_scale * self.objective.loss(
            logps, self.coefficients[rows], self.mask[rows], old_logps=old, num_groups=self.num_groups
        )

    def token_coefficients(self) -> Tensor:
        """Return what each token's NLL is multiplied by in the loss, [N, T], while no update is clipped."""
        return self.rank_scale * self.objective.token_coefficients(
            self.coefficients, self.mask, num_groups=self.num_groups
        )


class MaxEntLoss(nn.Module):
    """MaxEnt-GRPO as a loss module.

    Under `torch.distributed` every rank passes its own whole groups: prompts are counted over the ranks, and
    the loss is multiplied by their number because DDP, ZeRO and FSDP average gradients.

    Args:
        method: the settings, or an objective made of them; by default the method as published.
        gradients_averaged: False where the ranks' gradients are summed instead.
        process_group: the ranks that hold different data; by default all.

    Raises:
        ValueError: if the config divides by `max_length` and has none.

    >>> loss_fn = MaxEntLoss(MaxEntConfig(tau=1.0, q_eps=0.0))
    >>> logps = torch.tensor([[-1.0], [-2.0]], requires_grad=True)
    >>> mask = torch.ones(2, 1, dtype=torch.bool)
    >>> loss, statistics = loss_fn(logps, Rollout([1.0, 0.0], mask, group_sizes=2))
    >>> loss
    tensor(1.2689, grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        method: MaxEntConfig | MaxEntObjective | None = None,
        *,
        gradients_averaged: bool = True,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.objective = method if isinstance(method, MaxEntObjective) else MaxEntObjective(method or MaxEntConfig())
        self.gradients_averaged = gradients_averaged
        self.process_group = process_group
        self._skip_warning = SkipWarning(prefix="")

    def forward(self, logps: Tensor, rollout: Rollout, *, temperature: float = 1.0) -> tuple[Tensor, Statistics]:
        """Return the loss of whole groups and the statistics of their targets and of the policy on them.

        Args:
            logps: [N, T] token log-probabilities of the policy in training, or its logits [N, T, V] at the
                positions that predict `rollout.ids`.
            rollout: the completions and their rewards.
            temperature: logits are divided by it; log-probabilities are taken as they are.

        Raises:
            ValueError: naming the argument, on unequal shapes or an input that the config needs and lacks.
        """
        expect_tensor("logps", logps)
        if logps.ndim == 3:
            ids = _expect_ids(rollout, "logits [N, T, V]")
            logps = token_logps(logps, ids, mask=rollout.mask, temperature=temperature)
        _expect_rows(rollout.mask)
        expect_shape("logps", logps, rollout.mask.shape)
        constants = self.prepare(rollout, policy_logps=logps.detach())
        return constants.loss(logps), constants.statistics

    def from_hidden(
        self,
        hidden: Tensor,
        lm_head: nn.Module,
        rollout: Rollout,
        *,
        policy_logps: Tensor | None = None,
        temperature: float = 1.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
    ) -> tuple[Tensor, Statistics]:
        """Return loss and statistics of whole groups from hidden states: logits exist a chunk at a time.

        Loss and gradients come from one pass through the LM head, which leaves out candidates whose coefficient
        is 0. An update that is clipped needs the log-probabilities first and takes two.

        Args:
            hidden: [N, T, D] the body's last hidden states at the positions that predict `rollout.ids`.
            lm_head: the linear layer that makes logits of them; call this inside the forward of DDP, ZeRO or
                FSDP, whose hooks synchronise its gradient.
            rollout: the completions and their rewards.
            policy_logps: [N, T] token log-probabilities of the rollout policy where nothing is to be clipped.
                The settings that need them are scored here if there are none; otherwise the statistics of the
                policy are left out without them.
            temperature, logit_scale, softcap: of the model's logits, as in `linear_token_logps`.

        Raises:
            ValueError: as `forward`; for a head that is quantised or has an adapter that is not merged.
        """
        ids, mask, clipped = _expect_ids(rollout, "hidden states"), rollout.mask, rollout.old_logps is not None
        head: dict[str, Any] = {"temperature": temperature, "logit_scale": logit_scale, "softcap": softcap}
        with gather_head(lm_head, hidden.dtype, until_backward=clipped) as (weight, bias):
            head |= {"bias": bias, "mask": mask}
            if clipped:
                logps = linear_token_logps(hidden, weight, ids, **head)
                constants = self.prepare(rollout, policy_logps=policy_logps)
                return constants.loss(logps), constants.statistics
            if policy_logps is None and self.objective.config.needs_old_logps:
                policy_logps = linear_token_logps(hidden.detach(), weight.detach(), ids, **head).detach()
            constants = self.prepare(rollout, policy_logps=policy_logps)
            result = linear_weighted_nll(hidden, weight, ids, constants.token_coefficients(), **head)
        return result.loss, constants.statistics

    @torch.no_grad()
    def prepare(self, rollout: Rollout, *, policy_logps: Tensor | None = None) -> RolloutConstants:
        """Return the constants of a rollout of whole groups.

        Args:
            rollout: the completions and their rewards.
            policy_logps: [N, T] token log-probabilities of the policy in training; without `rollout.old_logps` they
                stand in for the rollout policy's, which some settings need.

        Raises:
            ValueError: as `forward`.
        """
        mask = rollout.mask
        _expect_rows(mask)
        rewards = read_rewards(rollout.rewards, mask.device)
        expect_shape("rewards", rewards, mask.shape[:1])
        utilities = weigh_rewards(rewards.unsqueeze(-1), rewards.new_ones(1), ["rewards"])
        sizes = _list_sizes(rollout.group_sizes, len(mask))
        rows, present = pad_groups(torch.arange(len(mask), device=mask.device), sizes)
        padded = utilities[rows].masked_fill(~present, math.nan)
        policy_sums = _sum_tokens("policy_logps", policy_logps, mask, rows)
        old_sums = _sum_tokens("old_logps", rollout.old_logps, mask, rows)
        groups = Groups(
            lengths=mask.sum(-1)[rows],
            ref_logps=_sum_tokens("ref_logps", rollout.ref_logps, mask, rows),
            old_logps=policy_sums if old_sums is None else old_sums,
            keys=_pad_keys(rollout, rows),
        )
        target = groups.build_target(self.objective, padded)
        self._skip_warning.check_rollout(self.objective, target, padded)
        coefficients = self.objective.coefficients(target, old_logps=groups.old_logps, generator=rollout.generator)
        statistics = self.objective.statistics(
            target, policy_logps=groups.old_logps if policy_sums is None else policy_sums
        )
        ranks = dist.get_world_size(self.process_group) if dist.is_available() and dist.is_initialized() else 1
        num_groups = rollout.num_groups
        if num_groups is None:
            num_groups = _sum_over_ranks(len(sizes), ranks, mask.device, self.process_group)
        return RolloutConstants(
            coefficients=flatten_groups(coefficients, present),
            mask=mask,
            old_logps=rollout.old_logps,
            target=target,
            statistics=dataclasses.replace(statistics, frac_unscored=utilities.isnan().to(utilities.dtype).mean()),
            num_groups=num_groups,
            rank_scale=ranks if self.gradients_averaged else 1,
            objective=self.objective,
        )


def _expect_ids(rollout: Rollout, source: str) -> Tensor:
    """Return the tokens of a rollout whose log-probabilities are to be looked up."""
    if rollout.ids is None:
        raise ValueError(f"Expected ids with {source}, got ids=None.")
    return rollout.ids


def _expect_rows(mask: Tensor) -> None:
    expect_tensor("mask", mask)
    if mask.ndim != 2:
        raise ValueError(f"Expected mask of shape [N, T], got mask of shape {list(mask.shape)}.")
    expect_mask("mask", mask, mask.shape)


def _list_sizes(group_sizes: int | Sequence[int] | Tensor, rows: int) -> Sequence[int] | Tensor:
    """Return the size of each group of `rows` completions."""
    size: Any = group_sizes
    if isinstance(size, Tensor) and size.ndim == 0:
        size = size.item()
    if isinstance(size, (Tensor, Sequence)):
        return size
    whole: bool = isinstance(size, numbers.Integral)
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
        expect_texts("keys", keys or ())
        keys = build_keys(keys, rollout.ids, rollout.mask)
    if keys is None:
        return None
    expect_shape("keys", keys, rollout.mask.shape[:1])
    return keys[rows]


def _sum_over_ranks(groups: int, ranks: int, device: torch.device, process_group: dist.ProcessGroup | None) -> int:
    """Return the number of groups of all ranks together."""
    if ranks == 1:
        return groups
    total = torch.tensor(groups, device=device)
    dist.all_reduce(total, group=process_group)
    return int(total)
