"""The options: what of verl's is refused, what is set, and the method that a command line amounts to."""

import logging
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf, open_dict

from maxent_grpo._checks import expect
from maxent_grpo.adapters._settings import expect_group_size, read_settings
from maxent_grpo.config import MaxEntConfig
from maxent_grpo.objective import MaxEntObjective

logger = logging.getLogger(__name__)

ACTOR = "actor_rollout_ref.actor"
METHOD = "algorithm.maxent"
MODES = ("sync", "colocate_async", "separate_async")
AGGREGATIONS = {"sum": "seq-mean-token-sum", "mean": "seq-mean-token-mean", "max_length": "seq-mean-token-sum-norm"}
"""verl's name for each `nll_reduction`."""
UNBOUNDED = 1e9
"""A second clip that no ratio reaches: verl holds ratios under e^20, and eq. (7c) has none."""
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
        expect_group_size(method, config.actor_rollout_ref.rollout.n, config.actor_rollout_ref.rollout.n)
        expect(
            method.projection != "surrogate" or method.beta == 0,
            f"maxent_beta=0 with maxent_projection='surrogate' (its weights have no anchor; see {ACTOR}.use_kl_loss)",
            maxent_beta=method.beta,
        )
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
    bypasses = OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode")
    if config.data.train_batch_size <= actor.ppo_mini_batch_size and actor.ppo_epochs == 1 and not bypasses:
        values[f"{ACTOR}.policy_loss.loss_mode"] = "gpg"
    elif actor.policy_loss.loss_mode == "vanilla":
        values[f"{ACTOR}.clip_ratio_c"] = UNBOUNDED
    else:
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
