"""What happens before and between updates: a check of logits, checkpoints that wait, measurements of an update."""

import logging
import math
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import has_length
from trl.models.utils import add_hooks, remove_hooks

from maxent_grpo._checks import expect
from maxent_grpo.adapters.trl.rows import Rows, mask_tokens, sum_tokens
from maxent_grpo.objective import Target

if TYPE_CHECKING:
    from maxent_grpo.adapters.trl.trainer import MaxEntGRPOTrainer

logger = logging.getLogger(__name__)


class LogitCheck(TrainerCallback):  # type: ignore[misc]
    """Compares scores with the model's own logits where ZeRO-3 holds it in parts: only its engine makes it whole."""

    def __init__(self, trainer: "MaxEntGRPOTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse a model that does more to its logits than is known."""
        self.trainer.expect_own_logits()
        # These passes call the head otherwise than training does: what DeepSpeed has noted of them is no guide to it.
        remove_hooks(self.trainer.model_wrapped)
        add_hooks(self.trainer.model_wrapped)


class ExactResume(TrainerCallback):  # type: ignore[misc]
    """Lets a resumed run go on as if it had not stopped.

    A checkpoint waits until no rollout is half used, because the rest of a rollout is not in it.
    """

    def __init__(self, trainer: "MaxEntGRPOTrainer") -> None:
        self.trainer = trainer
        self.is_due = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse a checkpoint in mid-rollout, and bring the order of prompts to where the checkpoint left it."""
        loader = kwargs.get("train_dataloader")
        expect(
            not self.is_mid_rollout(state.global_step, loader),
            f"a checkpoint between rollouts, of {self.trainer.args.micro_steps_per_rollout} micro-batches each (the "
            "rest of a rollout is not in it)",
            global_step=state.global_step,
        )
        if self.is_mid_rollout(state.max_steps, loader) and state.is_world_process_zero:
            logger.warning(
                "Training will end in mid-rollout, at step %d: its end cannot be resumed.", state.max_steps
            )
        self.trainer.skip_epochs(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Put a checkpoint off until the rollout is used up."""
        between_rollouts = self.trainer._step % self.trainer.args.micro_steps_per_rollout == 0
        self.is_due |= control.should_save
        control.should_save = self.is_due and between_rollouts
        self.is_due &= not between_rollouts
        return control

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say that a checkpoint was put off and never came, and that a bank had nothing to remember."""
        rehearsal = self.trainer._rehearsal
        if rehearsal is not None and not rehearsal.bank.is_revisited and state.is_world_process_zero:
            logger.warning(
                "The bank was idle: no prompt came twice, so of none did it know more than its own group. Train for "
                "several epochs, or leave out maxent_bank_weight."
            )
        if self.is_due:
            logger.warning(
                "The checkpoint of step %d is not saved: training ended in mid-rollout, and could not be resumed "
                "exactly. The model is there for save_model().",
                state.global_step,
            )

    def is_mid_rollout(self, step: int, dataloader: Any) -> bool:
        """Return whether this optimiser step leaves a rollout half used; an epoch ends with its last rollout."""
        args = self.trainer.args
        if has_length(dataloader):
            step %= max(math.ceil(len(dataloader) / args.gradient_accumulation_steps), 1)
        return bool(step * args.gradient_accumulation_steps % args.micro_steps_per_rollout)


class UpdateMeter(TrainerCallback):  # type: ignore[misc]
    """Measures what an update is to lower, before and after it on the same candidates."""

    def __init__(self, trainer: "MaxEntGRPOTrainer") -> None:
        self.trainer = trainer
        self.rollouts: list[tuple[Rows, Target]] = []

    def is_due(self) -> bool:
        """Return whether the coming update is one to measure."""
        every, step = self.trainer.args.maxent_measure_every, self.trainer.state.global_step
        return bool(self.trainer.model.training and every > 0 and step % every == 0)

    def measure_before(self, rows: Rows, target: Target, policy_logps: Tensor | None) -> None:
        """Log the policy's gap and forward KL, [G, K] log-probabilities given, and keep the rows for afterwards."""
        self.rollouts.append((dict(rows), target))
        self._log("before", target, policy_logps)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the gap and the forward KL of the updated policy on the candidates that were measured before it."""
        for rows, target in self.rollouts:
            sums = self.trainer.accelerator.gather(sum_tokens(self.trainer.score_rows(rows), mask_tokens(rows)))
            self._log("after", target, sums.view_as(target.weights))
        self.rollouts.clear()

    def _log(self, when: str, target: Target, policy_logps: Tensor | None) -> None:
        statistics = self.trainer.objective.statistics(target, policy_logps=policy_logps).as_dict()
        names = ("maxent/improvement_gap", "maxent/forward_kl")
        self.trainer.log_values({f"{name}_{when}": float(statistics[name]) for name in names if name in statistics})
