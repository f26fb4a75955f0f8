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
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from maxent_grpo._checks import expect, expect_shape, expect_tensor
from maxent_grpo._statistics import Statistics
from maxent_grpo.adapters._bank import admit_finds
from maxent_grpo.adapters._head import gather_head
from maxent_grpo.adapters._rollout import Rollout, expect_ids, expect_rows, pad_rollout
from maxent_grpo.adapters._warnings import RolloutWarnings
from maxent_grpo.bank import ExemplarBank, Find, Rehearsal
from maxent_grpo.config import MaxEntConfig
from maxent_grpo.groups import completion_keys, flatten_groups
from maxent_grpo.kernels import linear_token_logps, linear_weighted_nll, token_logps
from maxent_grpo.objective import MaxEntObjective, Target

__all__ = ["MaxEntLoss", "Rollout", "RolloutConstants"]


@dataclass(frozen=True)
class RolloutConstants:
    """What the loss of a rollout's N completions multiplies by, a row each in their order; everything detached.

    Attributes:
        coefficients: [N] what each completion's log-likelihood is weighted by.
        mask: [N, T] bool, True where a completion token counts.
        old_logps: [N, T] token log-probabilities of the rollout policy, or None if updates are not clipped.
        target: the target of each group, [G, K].
        statistics: means over this rank's groups.
        right: [N] bool, the candidates that count and are right.
        keys: [N] of the kind of answer, or None if nothing says which are the same.
        num_groups: prompts of the whole optimiser step, over ranks.
        rank_scale: what the loss is multiplied by because gradients are averaged over ranks.
        objective: the composition that the loss is taken from.
    """

    coefficients: Tensor
    mask: Tensor
    old_logps: Tensor | None
    target: Target
    statistics: Statistics
    right: Tensor
    keys: Tensor | None
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
        expect_shape("logps", logps, self.mask[rows].shape)
        old = None if self.old_logps is None else self.old_logps[rows]
        return self.rank_scale * self.objective.loss(
            logps, self.coefficients[rows], self.mask[rows], old_logps=old, num_groups=self.num_groups
        )

    def rehearsal_loss(self, logps: Tensor, rehearsal: Rehearsal) -> Tensor:
        """Return what the rehearsal of banked answers adds to the loss of an optimiser step, eq. (9); never clipped.

        Args:
            logps: [n, T] token log-probabilities of the policy in training, for the completions of the rehearsal.
            rehearsal: of `MaxEntLoss.rehearse`: this rank's part.
        """
        mask, size = rehearsal.completion_mask, self.target.mask.shape[-1]
        c = self.objective.rehearsal_coefficients(
            rehearsal.shares, mask.sum(-1), group_size=size, num_groups=self.num_groups
        )
        return self.rank_scale * self.objective.loss(logps, c, mask, num_groups=self.num_groups)

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
        method = MaxEntConfig() if method is None else method
        expect(
            isinstance(method, (MaxEntConfig, MaxEntObjective)),
            "a MaxEntConfig or a MaxEntObjective",
            method=type(method).__name__,
        )
        self.objective = method if isinstance(method, MaxEntObjective) else MaxEntObjective(method)
        self.gradients_averaged = gradients_averaged
        self.process_group = process_group
        self._warnings = RolloutWarnings(prefix="")

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
            ids = expect_ids(rollout, "logits [N, T, V]")
            logps = token_logps(logps, ids, mask=rollout.mask, temperature=temperature)
        expect_rows(rollout.mask)
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
        ids, mask, clipped = expect_ids(rollout, "hidden states"), rollout.mask, rollout.old_logps is not None
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
        # Whole groups first: the target is a distribution over all candidates of a prompt.
        config = self.objective.config
        says = any(each is not None for each in (rollout.ids, rollout.keys, rollout.counts))
        expect(
            says or not config.needs_keys,
            f"ids or keys with dedup={config.dedup!r}, to tell which completions are the same answer",
            ids=None,
            keys=None,
        )
        whole = pad_rollout(rollout, policy_logps)
        smallest = int(whole.present.sum(-1).min()) if len(whole.present) else None
        expect(
            config.pass_k is None or smallest is None or config.pass_k < smallest,
            f"pass_k < {smallest}, the size of the smallest group",
            pass_k=config.pass_k,
        )
        old_logps = whole.groups.old_logps
        target = whole.groups.build_target(self.objective, whole.utilities)
        self._warnings.check_rollout(self.objective, target, whole.utilities)
        coefficients = self.objective.coefficients(target, old_logps=old_logps, generator=rollout.generator)
        statistics = self.objective.statistics(
            target, policy_logps=old_logps if whole.policy_logps is None else whole.policy_logps
        )
        unscored = whole.utilities[whole.present].isnan()
        # Prompts are counted over all ranks, so that the losses of any split add up to that of the whole.
        ranks = dist.get_world_size(self.process_group) if dist.is_available() and dist.is_initialized() else 1
        num_groups = rollout.num_groups
        if num_groups is None:
            num_groups = _sum_over_ranks(len(whole.present), ranks, rollout.mask.device, self.process_group)
        return RolloutConstants(
            coefficients=flatten_groups(coefficients, whole.present),
            mask=rollout.mask,
            old_logps=rollout.old_logps,
            target=target,
            statistics=dataclasses.replace(statistics, frac_unscored=unscored.to(whole.utilities.dtype).mean()),
            right=flatten_groups(target.right, whole.present),
            keys=None if whole.groups.keys is None else flatten_groups(whole.groups.keys, whole.present),
            num_groups=num_groups,
            rank_scale=ranks if self.gradients_averaged else 1,
            objective=self.objective,
        )

    def rehearse(
        self, bank: ExemplarBank, constants: RolloutConstants, ids: Tensor, prompts: list[list[int]]
    ) -> Rehearsal | None:
        """Bank a rollout's right answers and return this rank's part of the rehearsal, None while there is none.

        Once per rollout, on every rank: banks learn of the finds of all ranks in their order, and stay the same. All
        parts have as many rows; those that only fill up have no share.

        Args:
            bank: of `config.bank_capacity`; save its `state_dict` with each checkpoint.
            constants: of the rollout.
            ids: [N, T] its completions.
            prompts: tokens of the N prompts, one per completion.

        Raises:
            ValueError: on ids of another shape than the rollout's mask, or another number of prompts.
        """
        mask = constants.mask
        expect_shape("ids", ids, mask.shape)
        expect(len(prompts) == len(mask), f"prompts of {len(mask)} completions", prompts=len(prompts))
        keys = completion_keys(ids, mask) if constants.keys is None else constants.keys
        admit_finds(bank, prompts, ids, mask, keys, constants.right, self._gather_finds)
        self._warnings.check_bank(is_revisited=bank.is_revisited)
        rehearsal = bank.draw(self.objective.config.bank_prompts)
        if rehearsal is None:
            return None
        ranks = dist.is_available() and dist.is_initialized()
        group = self.process_group
        part = rehearsal.deal(dist.get_rank(group), dist.get_world_size(group)) if ranks else rehearsal
        return part.to(mask.device)

    def _gather_finds(self, finds: list[Find]) -> list[Find]:
        """Return the finds of all ranks, in their order."""
        if not (dist.is_available() and dist.is_initialized()):
            return finds
        parts: list[Any] = [None] * dist.get_world_size(self.process_group)
        dist.all_gather_object(parts, finds, group=self.process_group)
        return [find for part in parts for find in part]


def _sum_over_ranks(groups: int, ranks: int, device: torch.device, process_group: dist.ProcessGroup | None) -> int:
    """Return the number of groups of all ranks together."""
    if ranks == 1:
        return groups
    total = torch.tensor(groups, device=device)
    dist.all_reduce(total, group=process_group)
    return int(total)
