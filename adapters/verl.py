"""MaxEnt-GRPO in verl: another trainer mode, everything else as it was.

    python -m verl.trainer.main_ppo ... trainer.v1.trainer_mode=maxent_sync +algorithm.maxent.tau=0.2

verl imports this module in all of its processes by the entry point `verl.plugins`, which registers the trainers
`maxent_sync`, `maxent_colocate_async` and `maxent_separate_async` and the advantage estimator `maxent`. verl keeps
quiet about a plugin that fails, so before a job

    python -m maxent_grpo.adapters.verl --check ... (the same overrides)

says whether it is registered and what it makes of the overrides. Fields of `MaxEntConfig` and `preset` stand under
`algorithm.maxent`; `algorithm.maxent.key_func.path` and `.name` name a key function as verl names a reward function.

Coefficients are computed once per rollout, where the groups are whole, and travel as verl's advantages. verl's loss
`gpg` multiplies them with log-probabilities, and `vanilla` where a rollout feeds several updates, which it clips.
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from maxent_grpo._checks import expect
from maxent_grpo.adapters._groups import Answers, call_key_function
from maxent_grpo.adapters._require import require
from maxent_grpo.adapters._rollout import Rollout, pad_rollout
from maxent_grpo.adapters._settings import read_settings
from maxent_grpo.adapters._warnings import RolloutWarnings
from maxent_grpo.config import MaxEntConfig
from maxent_grpo.groups import flatten_groups, pad_groups
from maxent_grpo.objective import MaxEntObjective

logger = logging.getLogger(__name__)

try:
    require("verl", (0, 9), (0, 10), "verl")
    import transfer_queue as tq
    from hydra import compose, initialize_config_dir, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException
    from verl.trainer.ppo.core_algos import register_adv_est
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.trainer.ppo.v1 import register_trainer
    from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
    from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
    from verl.utils.config import validate_config
    from verl.utils.import_utils import load_extern_object
except ImportError as error:
    logger.error("maxent_grpo is not registered with verl: %s", error)  # verl itself would not say so
    raise

ACTOR = "actor_rollout_ref.actor"
METHOD = "algorithm.maxent"
MODES = ("sync", "colocate_async", "separate_async")
AGGREGATIONS = {"sum": "seq-mean-token-sum", "mean": "seq-mean-token-mean", "max_length": "seq-mean-token-sum-norm"}
"""verl's name for each `nll_reduction`."""
ACCEPTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "trainer.v1.trainer_mode": (tuple(f"maxent_{mode}" for mode in MODES), "only these compute the coefficients"),
    "trainer.use_v1": ((True,), "the legacy trainer hands no log-probabilities on"),
    "algorithm.adv_estimator": (("maxent", "grpo", "gae"), "its advantages would replace the coefficients"),
    "algorithm.use_kl_in_reward": ((False, None), f"targets are made of rewards; {ACTOR}.use_kl_loss stays"),
    "algorithm.use_pf_ppo": ((False, None), "it resamples the rows that the coefficients belong to"),
    "critic.enable": ((False, None), "nothing reads its values"),
    "distillation.enabled": ((False, None), "its loss leaves out the coefficients"),
    f"{ACTOR}.policy_loss.loss_mode": (("vanilla", "gpg"), "it is another loss than the weighted likelihood"),
}
"""Options that would change the method: the values that may stand there, and what is lost with another."""

_advantages: ContextVar[Tensor | None] = ContextVar("advantages", default=None)
"""What the trainer hands to the estimator, for which verl's own call has no room."""


# The settings: what a command line amounts to.


def read_method(config: Any) -> MaxEntConfig:
    """Return the settings of the method, on the scale of GRPO's loss; complaints call them as the user does."""
    recipe = OmegaConf.to_container(OmegaConf.select(config, METHOD, default=OmegaConf.create()), resolve=True)
    known = {"preset", "key_func", *(field.name for field in fields(MaxEntConfig))}
    for name in recipe:
        expect(name in known, f"{METHOD}.{name} to be one of {sorted(known)}", option=f"{METHOD}.{name}")
    actor = config.actor_rollout_ref.actor
    clips = [actor.clip_ratio if clip is None else clip for clip in (actor.clip_ratio_low, actor.clip_ratio_high)]
    try:
        method = read_settings(
            {f"maxent_{name}": value for name, value in recipe.items() if name != "key_func"},
            max_length=config.data.max_response_length,
            clip_low=clips[0],
            clip_high=clips[1],
        )
        MaxEntObjective(method)
    except ValueError as error:
        raise ValueError(str(error).replace("maxent_", f"{METHOD}.")) from None
    for clip, name in zip(clips, ("low", "high"), strict=True):
        value, option = getattr(method, f"clip_{name}"), f"{METHOD}.clip_{name}"
        expect(value == clip, f"{option} to be {ACTOR}.clip_ratio_{name}={clip}", **{option: value})
    return method


def expect_supported(config: Any) -> None:
    """Refuse, by name, the options that would change the method or stop the run after its first rollout."""
    for name, (values, lost) in ACCEPTED.items():
        value = OmegaConf.select(config, name)
        expect(value in values, f"{name} to be one of {list(values)} ({lost})", **{name: value})
    rollout = config.actor_rollout_ref.rollout
    expect(rollout.n > 1, "actor_rollout_ref.rollout.n > 1, for there to be groups", **{"rollout.n": rollout.n})
    expect(
        rollout.calculate_log_probs or not OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode"),
        "actor_rollout_ref.rollout.calculate_log_probs=True with algorithm.rollout_correction.bypass_mode",
        calculate_log_probs=rollout.calculate_log_probs,
    )


def prepare_config(config: Any) -> MaxEntConfig:
    """Return the method, after setting what it needs of verl; every change is logged with the value it replaces."""
    expect_supported(config)
    method, mode = read_method(config), config.trainer.v1.trainer_mode.removeprefix("maxent_")
    actor, divided = config.actor_rollout_ref.actor, method.projection == "surrogate"
    reduction = "max_length" if divided else method.nll_reduction
    values = {
        "trainer.v1.trainer_mode": mode,  # by which verl picks its replay buffer
        "algorithm.adv_estimator": "maxent",
        "critic.enable": False,
        f"{ACTOR}.loss_agg_mode": AGGREGATIONS[reduction],
    }
    if reduction == "max_length":
        values[f"{ACTOR}.loss_scale_factor"] = method.max_length
    if config.data.train_batch_size <= actor.ppo_mini_batch_size and actor.ppo_epochs == 1:
        values[f"{ACTOR}.policy_loss.loss_mode"] = "gpg"
    elif actor.policy_loss.loss_mode == "gpg":
        logger.warning("%s.policy_loss.loss_mode=gpg does not clip the later updates of a rollout.", ACTOR)
    if method.needs_reference and not actor.use_kl_loss:  # verl has a reference where the loss has a KL term
        values |= {f"{ACTOR}.use_kl_loss": True, f"{ACTOR}.kl_loss_coef": 0.0}
    with open_dict(config):
        for name, value in values.items():
            if (before := OmegaConf.select(config, name)) != value:
                logger.warning("%s=%s in place of %s.", name, value, before)
                OmegaConf.update(config, name, value)
    logger.warning("maxent_grpo trains with %s", method)
    return method


# The rollout: sessions, groups, one coefficient per session.


@dataclass(frozen=True)
class Sessions:
    """The candidates of a batch of R rows: a session is one, and each of its outputs a row.

    Attributes:
        rows: R' rows of the batch, without padding, those of a session together, and those of a prompt.
        sizes: number of rows of each of the N sessions.
        group_sizes: number of sessions of each of the G prompts.
        final: row of each session's last output.
    """

    rows: list[int]
    sizes: list[int]
    group_sizes: list[int]
    final: list[int]

    def join_outputs(self, values: Tensor) -> Tensor:
        """Return values [R, T] of tokens as [N, W·T], the outputs of a session one after the other."""
        return pad_groups(values[self.rows], self.sizes)[0].flatten(1)

    def spread(self, values: Tensor, batch_size: int) -> Tensor:
        """Return values [N] of sessions as [R], 0 in padding rows."""
        sizes = torch.tensor(self.sizes)
        return values.new_zeros(batch_size).index_put((torch.tensor(self.rows),), values.repeat_interleave(sizes))


def sort_sessions(keys: Sequence[str], tags: Sequence[Mapping[str, Any]]) -> Sessions:
    """Return the sessions of a batch in verl's names of rows, `prompt_session_output`; their order is free."""
    prompts: dict[str, dict[str, dict[int, int]]] = {}
    for row, (key, tag) in enumerate(zip(keys, tags, strict=True)):
        parts = key.rsplit("_", 2)
        expect(len(parts) == 3 and parts[2].isdigit(), "keys named prompt_session_output", key=key)
        if not tag.get("is_padding", False):
            prompts.setdefault(parts[0], {}).setdefault(parts[1], {})[int(parts[2])] = row
    sessions = [sorted(session.items()) for prompt in prompts.values() for session in prompt.values()]
    return Sessions(
        rows=[row for session in sessions for _, row in session],
        sizes=[len(session) for session in sessions],
        group_sizes=[len(prompt) for prompt in prompts.values()],
        final=[session[-1][1] for session in sessions],
    )


def build_rollout(data: Mapping[str, Any], sessions: Sessions, answers: Answers | None) -> Rollout:
    """Return the candidates in the terms of every adapter; their score is that of the session's last output."""
    reference = data.get("ref_log_prob", None)
    return Rollout(
        data["rm_scores"].sum(-1)[sessions.final],
        sessions.join_outputs(data["response_mask"]).bool(),
        group_sizes=sessions.group_sizes,
        ids=sessions.join_outputs(data["responses"]),
        keys=answers,
        ref_logps=None if reference is None else sessions.join_outputs(reference),
    )


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
        read = {name: [list(columns[name])[row] for row in sessions.final] for name in names if name in columns}
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


# The check of a command line.


def load_config(overrides: Sequence[str], directory: str | None, name: str) -> Any:
    """Return what `verl.trainer.main_ppo` would make of its command line."""
    if directory is None:
        source = initialize_config_module("verl.trainer.config", version_base=None)
    else:
        source = initialize_config_dir(os.path.abspath(directory), version_base=None)
    with source:
        return compose(name, list(overrides))


def expect_discoverable() -> None:
    """Check that processes of verl will find this module, without which they do not know the trainer."""
    names = [entry.name for entry in entry_points(group="verl.plugins") if entry.value == "maxent_grpo.adapters.verl"]
    expect(names == ["maxent"], "maxent_grpo to be installed with its entry point", **{"verl.plugins": names})
    allowed = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip()
    listed = [name.strip() for name in allowed.lower().split(",")]
    expect("auto" in listed or "maxent" in listed, "auto or maxent", VERL_USE_EXTERNAL_PLUGINS=allowed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a command line of `verl.trainer.main_ppo`; what is wrong goes to the log, and 1 is returned."""
    parser = argparse.ArgumentParser("python -m maxent_grpo.adapters.verl", description=main.__doc__)
    parser.add_argument("--check", nargs="*", required=True, metavar="OVERRIDE", help="as verl.trainer.main_ppo's")
    parser.add_argument("--config-path", help="as verl.trainer.main_ppo's")
    parser.add_argument("--config-name", default="ppo_trainer", help="as verl.trainer.main_ppo's")
    options = parser.parse_args(arguments)
    try:
        expect_discoverable()
        config = load_config(options.check, options.config_path, options.config_name)
        prepare_config(config)
        if (key_func := OmegaConf.select(config, f"{METHOD}.key_func")) is not None:
            load_extern_object(key_func.path, key_func.name)
        validate_config(config, need_reference_policy(config), need_critic(config))
    except (ValueError, AssertionError, HydraException, OmegaConfBaseException, ImportError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    # verl has imported this file by its own name, under which alone it may register.
    sys.exit(import_module("maxent_grpo.adapters.verl").main())
register()
