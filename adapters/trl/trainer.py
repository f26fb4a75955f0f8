"""The trainer: TRL's rollout with a coefficient for each candidate, and the loss that multiplies by it."""

import logging
import math
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import has_length
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from maxent_grpo._checks import expect
from maxent_grpo.adapters._groups import Answers, Groups, KeyFunction, SkipWarning, weigh_rewards
from maxent_grpo.adapters.trl.config import MaxEntGRPOConfig
from maxent_grpo.adapters.trl.groups import ask_answers, gather_rows
from maxent_grpo.adapters.trl.head import add_weighted_head
from maxent_grpo.adapters.trl.preflight import expect_fitting, preflight_report
from maxent_grpo.adapters.trl.rows import (
    Rows,
    deal_over_micro_batches,
    deal_over_ranks,
    join_sequences,
    mask_tokens,
    select_rows,
    sum_tokens,
)
from maxent_grpo.loss import maxent_weighted_nll
from maxent_grpo.objective import MaxEntObjective, Target

logger = logging.getLogger(__name__)


class MaxEntGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` with the loss of MaxEnt-GRPO; `MaxEntGRPOConfig` says which options are honoured.

    Args:
        model, reward_funcs, train_dataset, kwargs: as `trl.GRPOTrainer`.
        args: a `MaxEntGRPOConfig`; by default the method as published.
        key_func: called as a reward function is, it returns for each completion the text of what it answers, by
            which `maxent_dedup` counts candidates of a group as the same; None where only equal tokens do. Without
            it equal tokens do throughout, which reasoning rarely repeats.

    Raises:
        ValueError: before any model is loaded, on arguments of another class, an option that is refused or does
            not go with the model, data or rewards, or prompts that cannot fit the model's context.
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
        key_func: KeyFunction | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = MaxEntGRPOConfig(f"{name.split('/')[-1]}-MaxEnt-GRPO")
        expect(isinstance(args, MaxEntGRPOConfig), "args to be a MaxEntGRPOConfig", args=type(args).__name__)
        expect(key_func is None or callable(key_func), "key_func to be a function or None", key_func=key_func)
        args.expect_supported()
        self.objective = MaxEntObjective(args.maxent_config())
        self._preflight(model, reward_funcs, args, train_dataset, kwargs)
        self._key_func, self._answers = key_func, None
        self._measured: list[tuple[Rows, Target]] = []
        self._skip_warning = SkipWarning()
        beta, args.beta = args.beta, args.beta_of_trl
        try:
            super().__init__(model, reward_funcs, args, train_dataset, **kwargs)
        finally:
            args.beta = beta
        whole_batch = args.kl_penalty != 0 or self.entropy_coef != 0 or self.aux_loss_enabled
        self._drops = not whole_batch
        self._fused = args.maxent_fused_head and self._can_fuse()
        if self._fused:
            base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
            add_weighted_head(base, temperature=self.temperature, float32=args.cast_lm_head_to_fp32)
        self.add_callback(_Resumable(self))

    def _preflight(
        self, model: Any, reward_funcs: Any, args: MaxEntGRPOConfig, train_dataset: Any, given: dict[str, Any]
    ) -> None:
        """Refuse what cannot work and tell what will be done; load the tokenizer, as TRL would after the model."""
        model_config = _config_of(model, args) if isinstance(model, str) else model.config
        adapter = given.get("peft_config") is not None or hasattr(model, "get_base_model")
        data = {"train": train_dataset, "evaluation": given.get("eval_dataset")}
        expect_fitting(args, model_config, reward_funcs=reward_funcs, **data, adapter=adapter)
        if given.get("processing_class") is None:
            given["processing_class"] = AutoProcessor.from_pretrained(
                model if isinstance(model, str) else model_config._name_or_path,
                revision=(args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None,
                truncation_side="left",
                padding_side="left",
                trust_remote_code=args.trust_remote_code,
            )
        report = preflight_report(args, model_config, train_dataset, given["processing_class"])
        if args.process_index == 0:
            logger.warning(report)

    def _can_fuse(self) -> bool:
        """Return whether the loss is linear in the token log-probabilities, or say why it is not."""
        reasons = {
            "updates are clipped": self.args.updates_off_policy,
            "entropy_coef > 0": self.entropy_coef != 0,
            "kl_penalty > 0": self.args.kl_penalty != 0,
            "the router has an auxiliary loss": self.aux_loss_enabled,
            "the adapter learns a prompt": _learns_prompt(self.model),
        }
        against = [reason for reason, holds in reasons.items() if holds]
        if against and self.args.process_index == 0:
            logger.warning("maxent_fused_head falls back to TRL's head: %s.", ", ".join(against))
        return not against

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """Return TRL's sampler, kept so that a resumed run can bring it to its epoch."""
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def skip_epochs(self, epochs: int) -> None:
        """Draw the order of prompts of epochs that a resumed run has behind it: TRL's sampler starts at the first."""
        for _ in range(epochs if hasattr(self, "_train_sampler") else 0):
            next(iter(self._train_sampler), None)

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
        train, args, old = self.model.training, self.args, rows.get("old_per_token_logps")
        every = args.maxent_measure_every
        measured = train and every > 0 and self.state.global_step % every == 0
        if old is None and (measured or self.objective.config.needs_old_logps):
            old = self._score(rows)
        groups = gather_rows(self.accelerator, rows, old, self._generations(), self._answers)
        weights = self.reward_weights.to(self._raw_rewards.device)
        utilities = weigh_rewards(self._raw_rewards, weights, self.reward_func_names).view(groups.lengths.shape)
        target = groups.build_target(self.objective, utilities)
        if train and args.process_index == 0:
            self._skip_warning.check_rollout(self.objective, target, utilities)
        generator = groups.seed_generator(args.seed, self.state.global_step)
        coefficients = self.objective.coefficients(target, old_logps=groups.old_logps, generator=generator)
        kept = coefficients.flatten() != 0
        if not (train and self._drops):
            kept = torch.ones_like(kept)
        self._log_target(target, coefficients, kept, groups)
        self._log_values({"maxent/frac_unscored": float(utilities.isnan().float().mean())})
        if measured:
            self._measured.append((dict(rows), target))
            self._log_measured("before", target, groups.old_logps)
        first = self.accelerator.process_index * len(rows["prompt_ids"])
        mine = slice(first, first + len(rows["prompt_ids"]))
        rows["maxent_coefficients"] = coefficients.flatten()[mine]
        rows.pop("advantages")
        if not args.updates_off_policy:
            rows.pop("old_per_token_logps", None)  # nothing to clip: the ratio is 1
        rows.pop("sampling_per_token_logps", None)
        return rows if kept.all() else deal_over_ranks(self.accelerator, rows, kept, self._tokenizer.pad_token_id)

    def _prepare_inputs(self, generation_batch: Any) -> Rows:
        """Return TRL's micro-batch, of a rollout whose dropped candidates are spread over its micro-batches."""
        before = self._buffered_inputs
        rows: Rows = super()._prepare_inputs(generation_batch)
        if self.model.training and self._drops and self._buffered_inputs and self._buffered_inputs is not before:
            kept = torch.cat([batch["maxent_coefficients"] for batch in self._buffered_inputs]) != 0
            if not kept.all():
                self._buffered_inputs = deal_over_micro_batches(self._buffered_inputs, kept)
            rows = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return rows

    def _compute_loss(self, model: Any, inputs: Rows) -> Tensor:
        """Return the loss of a micro-batch: eq. (7) is the sum over the micro-batches, the mean over the ranks.

        Ranks' gradients are averaged, so G is divided by their number: what is left are the prompts of this rank's
        micro-batches, a fraction maybe, known before the first backward.
        """
        accumulation = self.current_gradient_accumulation_steps if self.model.training else 1
        groups = len(inputs["prompt_ids"]) * accumulation / self._generations()
        rows = self._select_trained(inputs)
        mask, ratio = mask_tokens(rows), rows.get("importance_sampling_ratio")
        constants: dict[str, Any] = {
            "num_groups": groups,
            "token_scale": None if ratio is None else ratio.expand(mask.shape),
        }
        if self._fused:
            return self._fused_loss(model, rows, mask, constants)
        logps, entropies, aux_loss = self._get_per_token_logps_and_entropies(
            model, **join_sequences(rows), compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        old = rows.get("old_per_token_logps")
        loss = self.objective.loss(logps, rows["maxent_coefficients"], mask, old_logps=old, **constants)
        values = {"entropy": entropies} | self._compared(rows, logps, old)
        if self.args.kl_penalty != 0:
            loss = loss + self.args.kl_penalty * self._candidate_mean(values["kl"], mask, groups)
        if self.entropy_coef != 0:
            loss = loss - self.entropy_coef * self._candidate_mean(entropies, mask, groups)
            self._log_values({"entropy_coef": self.entropy_coef})
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss / accumulation
            self._log_values({"aux_loss": float(self.accelerator.reduce(aux_loss.detach(), reduction="mean"))})
        self._log_token_means(values, mask)
        return loss

    def _fused_loss(self, model: Any, rows: Rows, mask: Tensor, constants: dict[str, Any]) -> Tensor:
        """Return the loss through the one-pass LM head."""
        weights = self.objective.token_coefficients(rows["maxent_coefficients"], mask, **constants)
        sequences = join_sequences(rows)
        with self.accelerator.autocast():
            result = model(
                input_ids=sequences["input_ids"], attention_mask=sequences["attention_mask"], token_weights=weights
            )
        values = {"entropy": result.entropy} | self._compared(rows, result.log_probs, None)
        self._log_token_means(values, mask & (weights != 0))  # the head skips the others
        loss: Tensor = result.loss
        return loss

    def _select_trained(self, rows: Rows) -> Rows:
        """Return the rows with a coefficient: at least one, so that every rank runs the same collectives."""
        if not (self.model.training and self._drops):
            return rows
        kept = rows["maxent_coefficients"] != 0
        kept[0] |= ~kept.any()
        return select_rows(rows, kept)

    def _compared(self, rows: Rows, logps: Tensor, old: Tensor | None) -> dict[str, Tensor]:
        """Return what there is to compare the policy with at each token, [B, T]: TRL's KL and its clip ratios."""
        values: dict[str, Tensor] = {}
        if "ref_per_token_logps" in rows:
            gap = rows["ref_per_token_logps"] - logps
            values["kl"] = gap.exp() - gap - 1
            if self.args.use_bias_correction_kl:
                values["kl"] = values["kl"] * (logps - (logps.detach() if old is None else old)).exp()
        if old is not None:
            config, ratio = self.objective.config, (logps.detach() - old).exp()
            c = rows["maxent_coefficients"].unsqueeze(-1)
            low, high = (ratio < 1 - config.clip_low) & (c < 0), (ratio > 1 + config.clip_high) & (c > 0)
            clipped = {"low": low, "high": high, "region": low | high}
            values |= {f"clip_ratio/{side}_mean": where for side, where in clipped.items()}
        return values

    def _candidate_mean(self, values: Tensor, mask: Tensor, groups: float) -> Tensor:
        """Return this part of the mean of [B, T] over a candidate's tokens, candidates and groups."""
        share = torch.full_like(values[:, 0], 1 / self._generations())
        return -maxent_weighted_nll(values, share, mask, length_normalize=True, num_groups=groups)

    @torch.no_grad()
    def _log_token_means(self, values: dict[str, Tensor], mask: Tensor) -> None:
        """Log means of [B, T] over the tokens of all ranks, by one reduction of sums."""
        sums = torch.stack([mask.sum().float(), *((value.float() * mask).sum() for value in values.values())])
        count, *totals = self.accelerator.reduce(sums, reduction="sum").tolist()
        if count > 0:
            self._log_values({name: total / count for name, total in zip(values, totals, strict=True)})

    def _log_target(self, target: Target, coefficients: Tensor, kept: Tensor, groups: Groups) -> None:
        """Log the statistics of the gathered groups, the same on every rank, and the table's columns."""
        if target.mask.any():
            statistics = self.objective.statistics(target, policy_logps=groups.old_logps).as_dict()
            statistics["maxent/frac_distinct"] = groups.measure_distinct(target.mask)
            self._log_values({name: float(value) for name, value in statistics.items()})
        self._log_values({"maxent/frac_trained_on": float(kept.float().mean())})
        self._logs["extra"]["target_weight"].extend(target.weights.flatten().tolist())
        self._logs["extra"]["coefficient"].extend(coefficients.flatten().tolist())

    def _log_measured(self, when: str, target: Target, policy_logps: Tensor | None) -> None:
        """Log what an update is to lower, of a policy before or after it."""
        statistics = self.objective.statistics(target, policy_logps=policy_logps).as_dict()
        names = ("maxent/improvement_gap", "maxent/forward_kl")
        self._log_values({f"{name}_{when}": float(statistics[name]) for name in names if name in statistics})

    def _log_values(self, values: dict[str, float]) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in values.items():
            metrics[name].append(value)

    def _generations(self) -> int:
        return int(self.num_generations if self.model.training else self.num_generations_eval)

    @torch.no_grad()
    def _score(self, rows: Rows) -> Tensor:
        """Return the policy's token log-probabilities of these rows, [B, T], in batches of a micro-batch."""
        args = self.args
        size = args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size
        with disable_gradient_checkpointing(self.model, args.gradient_checkpointing_kwargs):
            logps: Tensor = self._get_per_token_logps_and_entropies(
                self.model, **join_sequences(rows), batch_size=size
            )[0]
        return logps

    def log_after_update(self) -> None:
        """Log the gap and the forward KL of the updated policy on the candidates that were measured before it."""
        for rows, target in self._measured:
            sums = self.accelerator.gather(sum_tokens(self._score(rows), mask_tokens(rows)))
            self._log_measured("after", target, sums.view_as(target.weights))
        self._measured.clear()

    def is_mid_rollout(self, step: int, dataloader: Any) -> bool:
        """Return whether this optimiser step leaves a rollout half used; an epoch ends with its last rollout."""
        accumulation, rollout = self.args.gradient_accumulation_steps, self.args.micro_steps_per_rollout
        if has_length(dataloader):
            step %= max(math.ceil(len(dataloader) / accumulation), 1)
        return bool(step * accumulation % rollout)


def _config_of(path: str, args: MaxEntGRPOConfig) -> Any:
    """Return the configuration of a model that TRL is to load, from where it is to load it."""
    names = ("revision", "trust_remote_code", "subfolder", "token", "cache_dir", "local_files_only")
    given = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    return AutoConfig.from_pretrained(path, **{name: given[name] for name in names if name in given})


def _learns_prompt(model: Any) -> bool:
    """Return whether the model is an adapter of PEFT that puts virtual tokens before the embedded ones."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


class _Resumable(TrainerCallback):  # type: ignore[misc]
    """Lets a resumed run go on as if it had not stopped, and measures what an update did.

    A checkpoint waits until no rollout is half used, because the rest of a rollout is not in it.
    """

    def __init__(self, trainer: MaxEntGRPOTrainer) -> None:
        self.trainer = trainer
        self.due = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loader = kwargs.get("train_dataloader")
        expect(
            not self.trainer.is_mid_rollout(state.global_step, loader),
            f"a checkpoint between rollouts, of {self.trainer.args.micro_steps_per_rollout} micro-batches each (the "
            "rest of a rollout is not in it)",
            global_step=state.global_step,
        )
        if self.trainer.is_mid_rollout(state.max_steps, loader) and state.is_world_process_zero:
            logger.warning(
                "Training will end in mid-rollout, at step %d: its end cannot be resumed.", state.max_steps
            )
        self.trainer.skip_epochs(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        self.trainer.log_after_update()
        between_rollouts = self.trainer._step % self.trainer.args.micro_steps_per_rollout == 0
        self.due |= control.should_save
        control.should_save = self.due and between_rollouts
        self.due &= not between_rollouts
        return control

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.due:
            logger.warning(
                "The checkpoint of step %d is not saved: training ended in mid-rollout, and could not be resumed "
                "exactly. The model is there for save_model().",
                state.global_step,
            )
