"""What runs in Ray's workers: trainers, whose rollouts have coefficients, and the actor, whose loss multiplies."""

from typing import Any

import torch
from openrlhf.trainer import ppo_trainer, ppo_trainer_async
from openrlhf.trainer.ppo_utils.kl_controller import FixedKLController
from openrlhf.trainer.ray import ppo_actor
from torch import Tensor, nn

from maxent_grpo.adapters.openrlhf.options import trim_rollout
from maxent_grpo.adapters.openrlhf.rollout import MaxEntExperienceMaker
from maxent_grpo.objective import MaxEntObjective


def _get_plain_class(actor_class: Any) -> Any:
    """Return the class that `ray.remote` made an actor of, which can be inherited from."""
    return actor_class.__ray_metadata__.modified_class


class _MaxEntTraining:
    """What both of OpenRLHF's trainers, which are Ray actors, do otherwise."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        trainer: Any = self
        if trainer.args.maxent.kl_coef == 0:
            trainer.kl_ctl = FixedKLController(0.0)
        trainer.experience_maker = MaxEntExperienceMaker(
            trainer.actor_model_group,
            trainer.critic_model_group,
            trainer.reward_model_group,
            trainer.reference_model_group,
            trainer.kl_ctl,
            trainer.strategy,
            trainer.tokenizer,
        )

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Return OpenRLHF's status of a step and the rollout's statistics; too small a rollout makes no step."""
        trainer: Any = super()
        maker: MaxEntExperienceMaker = self.experience_maker  # type: ignore[attr-defined]
        rollout_samples = trim_rollout(rollout_samples, maker.args)
        if not rollout_samples:
            return {}, global_step
        maker.global_step = global_step
        status, global_step = trainer.train_step(rollout_samples, global_step)
        return status | maker.statistics, global_step


class MaxEntTrainer(_MaxEntTraining, _get_plain_class(ppo_trainer.PPOTrainer)):  # type: ignore[misc]
    """`PPOTrainer` with coefficients in place of advantages."""


class MaxEntAsyncTrainer(_MaxEntTraining, _get_plain_class(ppo_trainer_async.TrainingActor)):  # type: ignore[misc]
    """The training side of `PPOTrainerAsync` with coefficients in place of advantages."""


class MaxEntPolicyLoss(nn.Module):
    """The weighted NLL, eq. (7), or where a rollout serves several updates the clipped one, eq. (7c).

    Args:
        stock: OpenRLHF's loss, which measures clipping and how far the engine's policy is off, and corrects for that.
        args: OpenRLHF's arguments.
    """

    def __init__(self, stock: nn.Module, args: Any) -> None:
        super().__init__()
        self.stock, self.args, self.objective = stock, args, MaxEntObjective(args.maxent.config)
        self.stock.clip_eps_low, self.stock.clip_eps_high = args.maxent.config.clip_low, args.maxent.config.clip_high

    def forward(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        action_mask: Tensor,
        rollout_log_probs: Tensor | None = None,
        dp_size: int = 1,
        **totals: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return this micro-batch's part of the loss, and OpenRLHF's own measures of it."""
        rows = {"action_mask": action_mask, "rollout_log_probs": rollout_log_probs}
        with torch.no_grad():
            _, *measures = self.stock(log_probs, old_log_probs, advantages, **rows, dp_size=dp_size, **totals)
        loss = self.objective.loss(
            log_probs,
            advantages[:, 0],
            action_mask.bool(),
            old_logps=old_log_probs if self.args.maxent.clipped else None,
            token_scale=self.measure_correction(old_log_probs, rows),
            num_groups=self.count_groups(dp_size),
        )
        return loss, *measures

    def count_groups(self, dp_size: int) -> float:
        """Return G over the number of parts whose gradients are averaged, a fraction maybe.

        DeepSpeed averages over the ranks, and over the micro-batches unless their size varies: then OpenRLHF lets it
        take each as a part of a step. OpenRLHF's own totals leave out candidates without a token, which count here.
        """
        train = self.args.train
        candidates = train.batch_size // dp_size if train.dynamic_batch_enable else train.micro_batch_size
        return float(candidates / self.args.rollout.n_samples_per_prompt)

    def measure_correction(self, old_log_probs: Tensor, rows: dict[str, Any]) -> Tensor | None:
        """Return what OpenRLHF multiplies each token by for the engine's other policy, or None if it does not.

        Its loss is −Σ correction·advantage at equal policies, so that the correction is minus its slope.
        """
        if self.stock.is_correction_level == "off":
            return None
        with torch.enable_grad():
            advantages = torch.ones_like(old_log_probs).requires_grad_()
            loss = self.stock(old_log_probs, old_log_probs, advantages, **rows, batch_num_tokens=1.0)[0]
            (slope,) = torch.autograd.grad(loss, advantages)
        return -slope


class MaxEntPolicyActor(_get_plain_class(ppo_actor.PolicyModelActor)):  # type: ignore[misc]
    """`PolicyModelActor` with another loss."""

    def init_model_from_pretrained(self, strategy: Any, *arguments: Any, **options: Any) -> None:
        """Let OpenRLHF build its trainer, then change the loss."""
        super().init_model_from_pretrained(strategy, *arguments, **options)
        self.trainer.actor_loss_fn = MaxEntPolicyLoss(self.trainer.actor_loss_fn, strategy.args)
