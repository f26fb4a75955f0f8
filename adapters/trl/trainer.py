"""The trainer: TRL's rollout with a coefficient for each candidate, and the loss that multiplies by it."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from maxent_grpo._checks import expect
from maxent_grpo.adapters._groups import Answers, Groups, KeyFunction
from maxent_grpo.adapters._rewards import hold_to_contract, weigh_rewards
from maxent_grpo.adapters._warnings import BonusWarning, RolloutWarnings
from maxent_grpo.adapters.trl.callbacks import ExactResume, LogitCheck, UpdateMeter
from maxent_grpo.adapters.trl.config import MaxEntGRPOConfig
from maxent_grpo.adapters.trl.groups import ask_answers, gather_rows
from maxent_grpo.adapters.trl.head import add_weighted_head, expect_own_logits
from maxent_grpo.adapters.trl.preflight import check_run
from maxent_grpo.adapters.trl.rehearsal import BankRehearsal, join_rehearsal, stack_rows, weigh_rehearsal
from maxent_grpo.adapters.trl.rows import (
    Rows,
    deal_over_micro_batches,
    deal_over_ranks,
    join_sequences,
    mask_tokens,
    select_rows,
)
from maxent_grpo.adapters.trl.terms import average_over_tokens, count_tokens, find_clipped, measure_kl
from maxent_grpo.bank import Rehearsal
from maxent_grpo.objective import MaxEntObjective, Target

logger = logging.getLogger(__name__)


class MaxEntGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` with the loss of MaxEnt-GRPO; `MaxEntGRPOConfig` says which options are honoured.

    Args:
        model, reward_funcs, train_dataset, kwargs: as `trl.GRPOTrainer`. A reward function that returns None or NaN
            for a candidate takes it out of its group, unless the function's weight is 0.
        args: a `MaxEntGRPOConfig`; by default the method as published.
        key_func: called as a reward function is, it returns for each completion the text of what it answers, by
            which `maxent_dedup` counts candidates of a group as the same; None where only equal tokens do. Without
            it equal tokens do throughout, which reasoning rarely repeats.

    Raises:
        ValueError: before any model is loaded, on arguments of another class, an option that is refused or does
            not go with the model, data or rewards, or prompts that cannot fit the model's context; during training,
            on rewards or reference scores that are infinite.
    """

    _tag_names = ["trl", "grpo", "maxent-grpo"]  # noqa: RUF012  (as TRL declares it)
    _name = "MaxEnt-GRPO"
    _paper = {  # noqa: RUF012
        "title": "MaxEnt-GRPO: Maximum-Entropy Group-Relative Policy Optimization",
        "citation": "@misc{daliberti2025maxentgrpo,\n"
        "    title  = {{MaxEnt-GRPO: Maximum-Entropy Group-Relative Policy Optimization}},\n"
        "    author = {Liv d'Aliberti},\n    year   = 2025,\n}",
    }

    args: MaxEntGRPOConfig
    objective: MaxEntObjective
    _answers: Answers | None
    _buffered_inputs: list[Rows] | None

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: MaxEntGRPOConfig | None = None,
        train_dataset: Any = None,
        *,
        key_func: KeyFunction | Callable[..., Answers] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = MaxEntGRPOConfig(f"{name.split('/')[-1]}-MaxEnt-GRPO")
        expect(isinstance(args, MaxEntGRPOConfig), "args to be a MaxEntGRPOConfig", args=type(args).__name__)
        expect(key_func is None or callable(key_func), "key_func to be a function or None", key_func=key_func)
        args.expect_supported()
        self.objective = MaxEntObjective(args.maxent_config())
        kwargs["processing_class"] = check_run(args, model, reward_funcs, train_dataset, kwargs)
        self._key_func, self._answers = key_func, None
        self._warnings = RolloutWarnings()
        listed = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        functions = None if reward_funcs is None else [hold_to_contract(function) for function in listed]
        # TRL loads a reference, and scores with it, where its beta is not 0. The target may need one while the loss
        # has no KL term: then only TRL's own copy, self.beta, says so, and args.beta stays the term's coefficient.
        beta, args.beta = args.beta, args.reference_beta
        try:
            super().__init__(model, functions, args, train_dataset, **kwargs)
        finally:
            args.beta = beta
        self._bonus_warning = BonusWarning(self.reward_weights, self.reward_func_names, self.objective.config)
        needs_all = args.beta != 0 or self.entropy_coef != 0 or self.aux_loss_enabled
        self._drops = not needs_all
        self._fused = args.maxent_fused_head and self._can_fuse()
        if is_deepspeed_zero3_enabled():
            self.add_callback(LogitCheck(self))
        else:
            self.expect_own_logits()
        if self._fused:
            base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
            add_weighted_head(base, temperature=self.temperature, float32=args.cast_lm_head_to_fp32)
        self._rehearsal = BankRehearsal(args, self._tokenizer.pad_token_id) if args.rehearses else None
        self._meter = UpdateMeter(self)
        self.add_callback(self._meter)
        self.add_callback(ExactResume(self))

    def _can_fuse(self) -> bool:
        """Return whether the loss is linear in the token log-probabilities, or say why it is not."""
        prompt_learning = getattr(getattr(self.model, "active_peft_config", None), "is_prompt_learning", False)
        obstacles = {
            "updates are clipped": self.args.updates_off_policy,
            "entropy_coef > 0": self.entropy_coef != 0,
            "beta is not 0": self.args.beta != 0,
            "the router has an auxiliary loss": self.aux_loss_enabled,
            "the adapter learns a prompt": prompt_learning,  # virtual tokens come before the embedded ones
        }
        present = [obstacle for obstacle, holds in obstacles.items() if holds]
        if present and self.args.process_index == 0:
            logger.warning("maxent_fused_head falls back to TRL's head: %s.", ", ".join(present))
        return not present

    # The rollout: raw rewards and answers, whole groups, one coefficient per candidate.

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """Keep the raw rewards, [N, F] over all ranks, before TRL makes advantages of them; ask for the answers."""
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._raw_rewards = rewards
        if self._key_func is not None:
            texts = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids_list}
            self._answers = ask_answers(self._key_func, inputs, **texts)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Rows:
        """Return TRL's rollout with a coefficient for each candidate in place of its advantage."""
        rows: Rows = super()._generate_and_score_completions(inputs)
        # Scores of the rollout policy, where TRL did not need any.
        is_measured, old = self._meter.is_due(), rows.get("old_per_token_logps")
        if old is None and (is_measured or self.objective.config.needs_old_logps):
            old = self.score_rows(rows)
        # Whole groups of all ranks, and their target: the only place where candidates meet.
        groups = gather_rows(self.accelerator, rows, old, self._count_generations(), self._answers)
        weights = self.reward_weights.to(self._raw_rewards.device)
        utilities = weigh_rewards(self._raw_rewards, weights, self.reward_func_names).view(groups.lengths.shape)
        target = groups.build_target(self.objective, utilities)
        # One constant per candidate, which travels with its row from here on.
        generator = groups.seed_generator(self.args.seed, self.state.global_step)
        coefficients = self.objective.coefficients(target, old_logps=groups.old_logps, generator=generator)
        kept = coefficients.flatten() != 0
        if not (self.model.training and self._drops):
            kept = torch.ones_like(kept)
        self._log_rollout(groups, utilities, target, coefficients, kept)
        if self._rehearsal is not None and self.model.training:
            self._rehearsal.admit_rollout(rows, groups, target)
            self.log_values({"maxent/banked": float(len(self._rehearsal.bank))})
        if is_measured:
            self._meter.measure_before(rows, target, groups.old_logps)
        # This rank's part, in place of TRL's advantages and of what the loss does not read.
        first = self.accelerator.process_index * len(rows["prompt_ids"])
        rows["maxent_coefficients"] = coefficients.flatten()[first : first + len(rows["prompt_ids"])]
        rows.pop("advantages")
        rows.pop("sampling_per_token_logps", None)
        if not self.args.updates_off_policy:
            rows.pop("old_per_token_logps", None)  # nothing to clip: the ratio is 1
        return rows if kept.all() else deal_over_ranks(self.accelerator, rows, kept, self._tokenizer.pad_token_id)

    def _prepare_inputs(self, generation_batch: Any) -> Rows:
        """Return TRL's micro-batch, of a rollout whose dropped candidates are spread over its micro-batches."""
        before = self._buffered_inputs
        rows: Rows = super()._prepare_inputs(generation_batch)
        batches = self._buffered_inputs
        if not self.model.training or not batches or batches is before:
            return rows
        if self._drops:
            kept = torch.cat([batch["maxent_coefficients"] for batch in batches]) != 0
            batches = batches if kept.all() else deal_over_micro_batches(batches, kept)
        if self._rehearsal is not None:
            self._rehearsal.attach(batches, self.args.gradient_accumulation_steps)
        self._buffered_inputs = batches
        trained: Rows = batches[self._step % self.args.steps_per_generation]
        return trained

    def expect_own_logits(self) -> None:
        """Refuse a model that is trained on other probabilities than it samples from."""
        with self.accelerator.autocast():  # in the precision of training, as TRL scores rows
            expect_own_logits(self.model, self._score_row, self.temperature)

    def _score_row(self, ids: Tensor) -> Tensor:
        """Return the log-probabilities of one row's tokens after the first, as rows are scored in training."""
        logps: Tensor = self._get_per_token_logps_and_entropies(
            self.model, ids, torch.ones_like(ids), ids.size(1) - 1, batch_size=1
        )[0]
        return logps

    @torch.no_grad()
    def score_rows(self, rows: Rows) -> Tensor:
        """Return the policy's token log-probabilities of these rows, [B, T], in batches of a micro-batch."""
        args = self.args
        size = args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size
        with disable_gradient_checkpointing(self.model, args.gradient_checkpointing_kwargs):
            logps: Tensor = self._get_per_token_logps_and_entropies(
                self.model, **join_sequences(rows), batch_size=size
            )[0]
        return logps

    # The loss: coefficients are constants, so it only multiplies.

    def _compute_loss(self, model: Any, inputs: Rows) -> Tensor:
        """Return the loss of a micro-batch: eq. (7) is the sum over the micro-batches, the mean over the ranks.

        Ranks' gradients are averaged, so G is divided by their number: what is left are the prompts of this rank's
        micro-batches, a fraction maybe, known before the first backward.
        """
        accumulation = self.current_gradient_accumulation_steps if self.model.training else 1
        rows = self._pick_training_rows(inputs)
        mask, ratio = mask_tokens(rows), rows.get("importance_sampling_ratio")
        constants: dict[str, Any] = {
            "num_groups": len(inputs["prompt_ids"]) * accumulation / self._count_generations(),
            "token_scale": None if ratio is None else ratio.expand(mask.shape),
        }
        if self._fused:
            return self._compute_fused_loss(model, rows, mask, constants)
        rehearsal: Rehearsal | None = rows.get("maxent_rehearsal")
        scored, entropies, aux_loss = self._get_per_token_logps_and_entropies(
            model, **self._join(rows, rehearsal), compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        logps, entropies = (values[: len(mask), : mask.size(1)] for values in (scored, entropies))
        old = rows.get("old_per_token_logps")
        loss = self.objective.loss(logps, rows["maxent_coefficients"], mask, old_logps=old, **constants)
        if rehearsal is not None:
            # Banked rows are of no group: no clip, no correction of the sampler, no other term sees them.
            shown, groups = rehearsal.completion_mask, constants["num_groups"]
            c = weigh_rehearsal(self.objective, rehearsal, self._count_generations(), groups)
            loss = loss + self.objective.loss(scored[len(mask) :, : shown.size(1)], c, shown, num_groups=groups)
        values = {"entropy": entropies} | self._compare_policies(rows, logps, old)
        if self.args.beta != 0:
            loss = loss + self.args.beta * self._average_kl(values["kl"], mask, constants["num_groups"])
        if self.entropy_coef != 0:
            loss = loss - self.entropy_coef * self._average_entropy(rows, entropies, mask, accumulation)
            self.log_values({"entropy_coef": self.entropy_coef})
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss / accumulation
            self.log_values({"aux_loss": float(self.accelerator.reduce(aux_loss.detach(), reduction="mean"))})
        self.log_values(average_over_tokens(values, mask, self.accelerator))
        return loss

    def _compute_fused_loss(self, model: Any, rows: Rows, mask: Tensor, constants: dict[str, Any]) -> Tensor:
        """Return the loss through the one-pass LM head."""
        weights = self.objective.token_coefficients(rows["maxent_coefficients"], mask, **constants)
        read = mask & (weights != 0)  # the head skips the others
        rehearsal: Rehearsal | None = rows.get("maxent_rehearsal")
        if rehearsal is not None:
            shown, groups = rehearsal.completion_mask, constants["num_groups"]
            c = weigh_rehearsal(self.objective, rehearsal, self._count_generations(), groups)
            banked = self.objective.token_coefficients(c, shown, num_groups=groups)
            weights = stack_rows(weights, banked.to(weights.dtype))
        sequences = self._join(rows, rehearsal)
        with self.accelerator.autocast():
            result = model(
                input_ids=sequences["input_ids"],
                attention_mask=sequences["attention_mask"],
                token_weights=weights,
                weighted_tokens=int((weights != 0).sum()),  # waits now, before there is a forward to wait for
            )
        logps, entropies = (value[: len(mask), : mask.size(1)] for value in (result.log_probs, result.entropy))
        values = {"entropy": entropies} | self._compare_policies(rows, logps, None)
        self.log_values(average_over_tokens(values, read, self.accelerator))
        loss: Tensor = result.loss
        return loss

    def _join(self, rows: Rows, rehearsal: Rehearsal | None) -> dict[str, Any]:
        """Return the arguments with which TRL scores rows, and what is rehearsed behind them."""
        return (
            join_sequences(rows)
            if rehearsal is None
            else join_rehearsal(rows, rehearsal, self._tokenizer.pad_token_id)
        )

    def _pick_training_rows(self, rows: Rows) -> Rows:
        """Return the rows with a coefficient: at least one, so that every rank runs the same collectives."""
        if not (self.model.training and self._drops):
            return rows
        kept = rows["maxent_coefficients"] != 0
        kept[0] |= ~kept.any()
        return select_rows(rows, kept)

    def _compare_policies(self, rows: Rows, logps: Tensor, old: Tensor | None) -> dict[str, Tensor]:
        """Return what there is to compare the policy with at each token, [B, T]: TRL's KL and its clip ratios."""
        values: dict[str, Tensor] = {}
        if "ref_per_token_logps" in rows:
            values["kl"] = measure_kl(rows, logps, old, corrected=self.args.use_bias_correction_kl)
        if old is not None:
            values |= find_clipped(rows, logps, old, self.objective.config)
        return values

    def _average_kl(self, kl: Tensor, mask: Tensor, num_groups: float) -> Tensor:
        """Return this part of the KL of [B, T] tokens, divided per candidate as NLLs are: mean over candidates."""
        shares = torch.full_like(kl[:, 0], -1 / self._count_generations())  # the loss takes Σ −c·value
        return self.objective.loss(kl, shares, mask, num_groups=num_groups)

    def _average_entropy(self, rows: Rows, entropies: Tensor, mask: Tensor, accumulation: int) -> Tensor:
        """Return this part of the mean entropy over the tokens of an optimiser step."""
        share = accumulation / self.args.steps_per_generation if self.model.training else 1.0
        return (entropies * mask).sum() / count_tokens(rows, self.accelerator.num_processes, share)

    # The log.

    def _log_rollout(
        self, groups: Groups, utilities: Tensor, target: Target, coefficients: Tensor, kept: Tensor
    ) -> None:
        """Log the statistics of the gathered groups, the same on every rank, and the table's columns."""
        if target.mask.any():
            statistics = self.objective.statistics(target, policy_logps=groups.old_logps).as_dict()
            statistics["maxent/frac_distinct"] = groups.measure_distinct(target.mask)
            self.log_values({name: float(value) for name, value in statistics.items()})
        if self.model.training and self.args.process_index == 0:
            self._warnings.check_rollout(self.objective, target, utilities)
            self._bonus_warning.check_rollout(self._raw_rewards, utilities.flatten())
        self.log_values({
            "maxent/frac_unscored": float(utilities.isnan().float().mean()),
            "maxent/frac_trained_on": float(kept.float().mean()),
        })  # fmt: skip
        self._logs["extra"]["target_weight"].extend(target.weights.flatten().tolist())
        self._logs["extra"]["coefficient"].extend(coefficients.flatten().tolist())

    def log_values(self, values: dict[str, float]) -> None:
        """Add to what the next log averages."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in values.items():
            metrics[name].append(value)

    def _count_generations(self) -> int:
        return int(self.num_generations if self.model.training else self.num_generations_eval)

    # The bank and the order of prompts, for runs that are resumed.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and with a checkpoint's the bank: before the state, whose file says that it is whole."""
        super().save_model(output_dir, _internal_call)
        if self._rehearsal is not None and _internal_call and self.args.should_save:
            self._rehearsal.save(output_dir or self.args.output_dir)

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> Any:
        """Train as TRL does, with the bank of the checkpoint where there is one to resume from."""
        if self._rehearsal is not None and resume_from_checkpoint:
            newest = resume_from_checkpoint is True
            self._rehearsal.load(str(get_last_checkpoint(self.args.output_dir) if newest else resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *arguments, **options)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """Return TRL's sampler, kept so that a resumed run can bring it to its epoch."""
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def skip_epochs(self, epochs: int) -> None:
        """Draw the order of prompts of epochs that a resumed run has behind it: TRL's sampler starts at the first."""
        for _ in range(epochs if hasattr(self, "_train_sampler") else 0):
            next(iter(self._train_sampler), None)
