"""The trainers: verl's own, with a coefficient per candidate in place of its advantages."""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import transfer_queue as tq
from omegaconf import OmegaConf
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est
from verl.trainer.ppo.v1 import register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.import_utils import load_extern_object

from maxent_grpo._checks import expect
from maxent_grpo.adapters._groups import Answers, call_key_function
from maxent_grpo.adapters._rollout import pad_rollout
from maxent_grpo.adapters._settings import expect_group_size
from maxent_grpo.adapters._warnings import RolloutWarnings
from maxent_grpo.adapters.verl.options import METHOD, MODES, prepare_config
from maxent_grpo.adapters.verl.sessions import Sessions, build_rollout, sort_sessions
from maxent_grpo.groups import flatten_groups
from maxent_grpo.objective import MaxEntObjective

logger = logging.getLogger(__name__)

_advantages: ContextVar[Tensor | None] = ContextVar("advantages", default=None)
"""What the trainer hands to the estimator, for which verl's own call has no room."""


class MaxEntTrainer:
    """What the three trainers add to verl's: coefficients in place of advantages, and their statistics."""

    config: Any
    tokenizer: Any
    global_steps: int

    def __init__(self, config: Any) -> None:
        self.objective = MaxEntObjective(prepare_config(config))
        key_func = OmegaConf.select(config, f"{METHOD}.key_func")
        self._key_func: Any = key_func and load_extern_object(key_func.path, key_func.name)
        self._warnings = RolloutWarnings(f"{METHOD}.")
        self._statistics: list[dict[str, float]] = []
        super().__init__(config)  # type: ignore[call-arg]

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, Any]) -> Any:
        """Log means over the rollouts of a step: verl takes the maximum of whatever has "max" in its name."""
        self._statistics.clear()
        batch = super().step(metrics, timing_raw)  # type: ignore[misc]
        for name in {name for rollout in self._statistics for name in rollout}:
            values = [rollout[name] for rollout in self._statistics if name in rollout]
            metrics[name] = sum(values) / len(values)
        return batch

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Let verl's own method store coefficients: whatever else it does to a batch, it still does."""
        names = ["response_mask", "responses", "rm_scores", "old_log_probs", "ref_log_prob"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        sessions = sort_sessions(batch.keys, batch.tags)
        answers = None if self._key_func is None else self._ask_answers(batch, data, sessions)
        advantages = self.weigh_rows(data.to_padded_tensor(), sessions, answers)
        metrics.update(self._statistics[-1])
        handed_over = _advantages.set(advantages)
        try:
            return super()._compute_advantage(batch, metrics=metrics)  # type: ignore[misc]
        finally:
            _advantages.reset(handed_over)

    def weigh_rows(self, data: Mapping[str, Any], sessions: Sessions, answers: Answers | None) -> Tensor:
        """Return what verl's loss is to multiply log-probabilities by, [R, T], and keep the statistics for the log.

        verl divides by the rows of an update, and the method by its prompts: coefficients take their ratio.

        Args:
            data: padded tensors [R, T] of a batch, padding rows included.
            sessions: its candidates.
            answers: what the key function says of each, or None.

        Raises:
            ValueError: on rewards or log-probabilities that the method cannot take.
        """
        objective, mask = self.objective, data["response_mask"]
        expect(
            objective.config.nll_reduction != "mean" or max(sessions.sizes) == 1,
            f"one output per session with {METHOD}.nll_reduction=mean (verl divides by the length of an output)",
            outputs=max(sessions.sizes),
        )
        expect_group_size(objective.config, min(sessions.group_sizes), max(sessions.group_sizes))
        # Whole groups, and their target: the only place where candidates meet.
        whole = pad_rollout(build_rollout(data, sessions, answers), sessions.join_outputs(data["old_log_probs"]))
        groups, utilities = whole.groups, whole.utilities
        target = groups.build_target(objective, utilities)
        self._warnings.check_rollout(objective, target, utilities)
        generator = groups.seed_generator(self.config.actor_rollout_ref.actor.data_loader_seed, self.global_steps)
        coefficients = objective.coefficients(target, old_logps=groups.old_logps, generator=generator)
        # The log.
        statistics = objective.statistics(target, policy_logps=groups.old_logps).as_dict()
        statistics["maxent/frac_unscored"] = utilities[whole.present].isnan().float().mean()
        if target.mask.any():
            statistics["maxent/frac_distinct"] = groups.measure_distinct(target.mask)
        self._statistics.append({name: float(value) for name, value in statistics.items()})
        # A constant per row, which travels with it from here on.
        rows_per_prompt = len(mask) / len(sessions.group_sizes)
        by_row = sessions.spread(flatten_groups(coefficients, whole.present), len(mask)) * rows_per_prompt
        advantages: Tensor = by_row.unsqueeze(-1) * mask
        return advantages

    def _ask_answers(self, batch: Any, data: Any, sessions: Sessions) -> Answers:
        """Return what the key function says of the sessions' last outputs."""
        names = ["data_source", "reward_model", "extra_info"]
        columns = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        listed = {name: list(columns[name]) for name in names if name in columns}
        read = {name: [values[row] for row in sessions.final] for name, values in listed.items()}
        responses = data["responses"].unbind()
        texts = [self.tokenizer.decode(responses[row], skip_special_tokens=True) for row in sessions.final]
        infos, models = read.pop("extra_info", [{}]), read.pop("reward_model", [])
        read |= {name: [info.get(name) for info in infos] for name in infos[0]}
        read |= {"completions": texts, "ground_truth": [model.get("ground_truth") for model in models]}
        return call_key_function(self._key_func, read, len(texts))


class MaxEntSync(MaxEntTrainer, PPOTrainerSync):  # type: ignore[misc]
    """`trainer.v1.trainer_mode=maxent_sync`."""


class MaxEntColocateAsync(MaxEntTrainer, PPOTrainerColocateAsync):  # type: ignore[misc]
    """`trainer.v1.trainer_mode=maxent_colocate_async`."""


class MaxEntSeparateAsync(MaxEntTrainer, PPOTrainerSeparateAsync):  # type: ignore[misc]
    """`trainer.v1.trainer_mode=maxent_separate_async`."""


TRAINERS = dict(zip(MODES, (MaxEntSync, MaxEntColocateAsync, MaxEntSeparateAsync), strict=True))


def take_coefficients(response_mask: Tensor, config: Any = None, **_: Any) -> tuple[Tensor, Tensor]:
    """Return the coefficients of the trainer as advantages and returns: the estimator `maxent`."""
    advantages = _advantages.get()
    if advantages is None or advantages.shape != response_mask.shape:
        raise ValueError(
            "Expected trainer.v1.trainer_mode to be one of "
            f"{[f'maxent_{mode}' for mode in MODES]} with algorithm.adv_estimator=maxent, got another trainer."
        )
    return advantages, advantages


def register() -> None:
    """Register estimator and trainers with verl, and say so."""
    register_adv_est("maxent")(take_coefficients)
    for mode, trainer in TRAINERS.items():
        register_trainer(f"maxent_{mode}")(trainer)
    logger.warning("maxent_grpo is registered with verl: trainer.v1.trainer_mode=maxent_{%s}", ",".join(MODES))
