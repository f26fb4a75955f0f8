"""The plain torch adapter: `MaxEntLoss` for any causal language model in a training loop of one's own.

    loss_fn = MaxEntLoss(MaxEntConfig(tau=0.2))
    for prompts in loader:
        ids, mask, rewards = sample(model, prompts, num_generations=8)      # 8 completions of each prompt, in order
        loss, statistics = loss_fn(model_logps(model, ids), rewards, mask, group_sizes=8)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

For micro-batches that split groups, and for several updates on one rollout, compute the constants of the
rollout once with `MaxEntLoss.rollout` and take the loss of any of its rows with `Rollout.loss`.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from maxent_grpo._checks import expect, expect_mask, expect_number, expect_shape, expect_tensor
from maxent_grpo._masked import upcast
from maxent_grpo.adapters._head import gathered_head
from maxent_grpo.config import MaxEntConfig
from maxent_grpo.groups import completion_keys, flatten_groups, pad_groups
from maxent_grpo.kernels import linear_token_logps, linear_weighted_nll, token_logps
from maxent_grpo.objective import MaxEntObjective, Statistics, Target

Rewards = Tensor | Sequence[float | None]


@dataclass(frozen=True)
class Rollout:
    """The constants of one rollout of N completions, a row each in the order given; everything detached.

    Attributes:
        coefficients: [N] what each completion's log-likelihood is weighted by.
        advantages: [N] rewards minus their group's mean (the surrogate's).
        mask: [N, T] bool, True where a completion token counts.
        old_logps: [N, T] token log-probabilities of the rollout policy, or None if updates are not clipped.
        target: the target of each group, [G, K].
        statistics: means over this rank's groups.
        num_groups: prompts of the whole optimiser step, over ranks.
        rank_scale: what the loss is multiplied by because gradients are averaged over ranks.
        objective: the composition that the loss is taken from.
    """

    coefficients: Tensor
    advantages: Tensor
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
            logps,
            self.coefficients[rows],
            self.mask[rows],
            old_logps=old,
            advantages=self.advantages[rows],
            num_groups=self.num_groups,
        )

    def token_weights(self) -> Tensor:
        """Return what each token's NLL is multiplied by in the loss, [N, T], while no update is clipped."""
        return self.rank_scale * self.objective.token_weights(
            self.coefficients, self.mask, num_groups=self.num_groups, advantages=self.advantages
        )


class MaxEntLoss(nn.Module):
    """MaxEnt-GRPO as a loss module.

    Under `torch.distributed` every rank passes its own whole groups: prompts are counted over the ranks, and
    the loss is multiplied by their number because DDP, ZeRO and FSDP average gradients.

    Args:
        config: the settings; by default the method as published.
        gradients_averaged: False where the ranks' gradients are summed instead.
        process_group: the ranks that hold different data; by default all.

    Raises:
        ValueError: if the config divides by `max_length` and has none.

    >>> loss_fn = MaxEntLoss(MaxEntConfig(tau=1.0, q_eps=0.0))
    >>> logps = torch.tensor([[-1.0], [-2.0]], requires_grad=True)
    >>> mask = torch.ones(2, 1, dtype=torch.bool)
    >>> loss, statistics = loss_fn(logps, [1.0, 0.0], mask, group_sizes=2)
    >>> loss
    tensor(1.2689, grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        config: MaxEntConfig | None = None,
        *,
        gradients_averaged: bool = True,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.objective = MaxEntObjective(config or MaxEntConfig())
        self.gradients_averaged = gradients_averaged
        self.process_group = process_group

    def forward(
        self,
        logps: Tensor,
        rewards: Rewards,
        mask: Tensor,
        *,
        group_sizes: int | Sequence[int] | Tensor,
        ref_logps: Tensor | None = None,
        old_logps: Tensor | None = None,
        ids: Tensor | None = None,
        keys: Tensor | None = None,
        num_groups: int | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Statistics]:
        """Return the loss of whole groups and the statistics of their targets and of the policy on them.

        Args:
            logps: [N, T] token log-probabilities of the policy in training, or its logits [N, T, V] at the
                positions that predict `ids`.
            rewards: [N] floats; None or NaN where a completion could not be scored, which leaves its group.
            mask: [N, T] bool, True where a completion token counts.
            group_sizes: K, or the size of each group; groups are consecutive rows.
            ref_logps: [N, T] token log-probabilities of the frozen reference; needed if β > 0.
            old_logps: [N, T] those of the rollout policy. Given, updates are clipped; without them the
                policy is taken to be the rollout policy.
            ids: [N, T] completion tokens; needed with logits, and with dedup > 0 unless there are keys.
            keys: [N] integers, equal where two completions are the same answer.
            num_groups: prompts of the whole optimiser step over ranks and micro-batches; by default those of
                this call, summed over ranks.
            generator: for pruning, seeded by (seed, step).
            temperature: logits are divided by it; log-probabilities are taken as they are.

        Raises:
            ValueError: naming the argument, on unequal shapes or an input that the config needs and lacks.
        """
        expect_tensor("logps", logps)
        if logps.ndim == 3:
            if ids is None:
                raise ValueError("Expected ids with logits [N, T, V], got ids=None.")
            logps = token_logps(logps, ids, mask=mask, temperature=temperature)
        _expect_rows(mask)
        expect_shape("logps", logps, mask.shape)
        rollout = self.rollout(
            rewards,
            mask,
            group_sizes=group_sizes,
            ref_logps=ref_logps,
            old_logps=old_logps,
            policy_logps=logps.detach(),
            ids=ids,
            keys=keys,
            num_groups=num_groups,
            generator=generator,
        )
        return rollout.loss(logps), rollout.statistics

    def from_hidden(
        self,
        hidden: Tensor,
        lm_head: nn.Module,
        ids: Tensor,
        rewards: Rewards,
        mask: Tensor,
        *,
        group_sizes: int | Sequence[int] | Tensor,
        temperature: float = 1.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        ref_logps: Tensor | None = None,
        old_logps: Tensor | None = None,
        policy_logps: Tensor | None = None,
        keys: Tensor | None = None,
        num_groups: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Statistics]:
        """Return loss and statistics of whole groups from hidden states: logits exist a chunk at a time.

        Loss and gradients come from one pass through the LM head, which leaves out candidates whose coefficient
        is 0. An update that is clipped needs the log-probabilities first and takes two.

        Args:
            hidden: [N, T, D] the body's last hidden states at the positions that predict `ids`.
            lm_head: the linear layer that makes logits of them; call this inside the forward of DDP, ZeRO or
                FSDP, whose hooks synchronise its gradient.
            ids: [N, T] completion tokens.
            rewards, mask, group_sizes, ref_logps, old_logps, keys, num_groups, generator: as `forward`.
            temperature, logit_scale, softcap: of the model's logits, as in `linear_token_logps`.
            policy_logps: [N, T] token log-probabilities of the rollout policy where nothing is to be clipped.
                The settings that need them are scored here if there are none; otherwise the statistics of the
                policy are left out without them.

        Raises:
            ValueError: as `forward`; for a head that is quantised or has an adapter that is not merged.
        """
        head: dict[str, Any] = {"temperature": temperature, "logit_scale": logit_scale, "softcap": softcap}
        with gathered_head(lm_head, hidden.dtype, until_backward=old_logps is not None) as (weight, bias):
            head["bias"] = bias
            if old_logps is not None:
                logps = linear_token_logps(hidden, weight, ids, mask=mask, **head)
            elif policy_logps is None and self.objective.config.needs_old_logps:
                policy_logps = linear_token_logps(hidden.detach(), weight.detach(), ids, mask=mask, **head).detach()
            rollout = self.rollout(
                rewards,
                mask,
                group_sizes=group_sizes,
                ref_logps=ref_logps,
                old_logps=old_logps,
                policy_logps=policy_logps,
                ids=ids,
                keys=keys,
                num_groups=num_groups,
                generator=generator,
            )
            if old_logps is not None:
                return rollout.loss(logps), rollout.statistics
            result = linear_weighted_nll(hidden, weight, ids, rollout.token_weights(), mask=mask, **head)
        return result.loss, rollout.statistics

    @torch.no_grad()
    def rollout(
        self,
        rewards: Rewards,
        mask: Tensor,
        *,
        group_sizes: int | Sequence[int] | Tensor,
        ref_logps: Tensor | None = None,
        old_logps: Tensor | None = None,
        policy_logps: Tensor | None = None,
        ids: Tensor | None = None,
        keys: Tensor | None = None,
        num_groups: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Rollout:
        """Return the constants of a rollout of whole groups; `forward` explains the arguments.

        Args:
            policy_logps: [N, T] token log-probabilities of the rollout policy where `old_logps` are not given
                because nothing is to be clipped.
        """
        _expect_rows(mask)
        utilities = _as_utilities(rewards, mask)
        self.objective.expect_utilities(utilities)
        sizes = _each_size(group_sizes, len(mask))
        per_group, present = pad_groups(torch.arange(len(mask), device=mask.device), sizes)

        def summed(name: str, logps: Tensor | None) -> Tensor | None:
            """Return token log-probabilities [N, T] summed over each completion, [G, K]."""
            if logps is None:
                return None
            expect_shape(name, logps, mask.shape)
            return upcast(logps).masked_fill(~mask, 0.0).sum(-1)[per_group]

        if keys is None and ids is not None:
            keys = completion_keys(ids, mask)
        if keys is not None:
            expect_shape("keys", keys, mask.shape[:1])
        rollout_sums = summed("old_logps", policy_logps if old_logps is None else old_logps)
        target = self.objective.target(
            utilities[per_group],
            mask=present & ~utilities.isnan()[per_group],
            lengths=mask.sum(-1)[per_group],
            ref_logps=summed("ref_logps", ref_logps),
            old_logps=rollout_sums,
            keys=None if keys is None else keys[per_group],
        )
        coefficients = self.objective.coefficients(target, old_logps=rollout_sums, generator=generator)
        policy_sums = rollout_sums if policy_logps is None else summed("policy_logps", policy_logps)
        ranks = dist.get_world_size(self.process_group) if dist.is_available() and dist.is_initialized() else 1
        groups = num_groups
        if groups is None:
            groups = _over_ranks(len(sizes), ranks, mask.device, self.process_group)
        return Rollout(
            coefficients=flatten_groups(coefficients, present),
            advantages=flatten_groups(target.advantages, present),
            mask=mask,
            old_logps=old_logps,
            target=target,
            statistics=self.objective.statistics(target, policy_logps=policy_sums),
            num_groups=groups,
            rank_scale=ranks if self.gradients_averaged else 1,
            objective=self.objective,
        )


def _expect_rows(mask: Tensor) -> None:
    expect_tensor("mask", mask)
    if mask.ndim != 2:
        raise ValueError(f"Expected mask of shape [N, T], got mask of shape {list(mask.shape)}.")
    expect_mask("mask", mask, mask.shape)


def _each_size(group_sizes: int | Sequence[int] | Tensor, rows: int) -> Sequence[int] | Tensor:
    """Return the size of each group of `rows` completions."""
    size: Any = group_sizes
    if isinstance(size, Tensor) and size.ndim == 0:
        size = size.item()
    if isinstance(size, (Tensor, Sequence)):
        return size
    whole: bool = isinstance(size, numbers.Integral)
    expect(whole and size >= 1 and rows % size == 0, f"group_sizes that divide the {rows} rows", group_sizes=size)
    return [int(size)] * (rows // size)


def _as_utilities(rewards: Rewards, mask: Tensor) -> Tensor:
    """Return rewards as a float tensor [N] on the mask's device, NaN where there is none."""
    if not isinstance(rewards, Tensor):
        rewards = torch.tensor(
            [math.nan if reward is None else expect_number("rewards", reward) for reward in rewards]
        )
    expect_shape("rewards", rewards, mask.shape[:1])
    dtype = rewards.dtype if rewards.is_floating_point() else torch.get_default_dtype()
    return rewards.detach().to(mask.device, dtype)


def _over_ranks(groups: int, ranks: int, device: torch.device, process_group: dist.ProcessGroup | None) -> int:
    """Return the number of groups of all ranks together."""
    if ranks == 1:
        return groups
    total = torch.tensor(groups, device=device)
    dist.all_reduce(total, group=process_group)
    return int(total)
