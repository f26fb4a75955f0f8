"""The names of OpenRLHF 0.11 that are used and promised to nobody: what to look at when its version moves."""

_TRAINER = "openrlhf.trainer.ppo_trainer"
_MAKER = "openrlhf.trainer.ppo_utils.experience_maker.RemoteExperienceMaker"
_ACTOR = "openrlhf.trainer.ray.ppo_actor"

REBOUND = {
    "openrlhf.utils.config.hierarchize": "gets the parsed command line before Ray starts",
    f"{_TRAINER}.PPOTrainer": "imported by `train_ppo_ray.train`",
    "openrlhf.trainer.ppo_trainer_async.TrainingActor": "looked up by PPOTrainerAsync, which Ray sends by value",
    f"{_ACTOR}.PolicyModelActor": "imported by `train_ppo_ray`",
}
"""Names in modules that the driver binds anew."""

METHODS: dict[str, tuple[tuple[str, ...], str]] = {
    f"{_MAKER}.make_experience_batch": (("rollout_samples",), "before it, rewards that failed become NaN"),
    f"{_MAKER}.compute_advantages_and_returns": (("experiences",), "after it, coefficients replace advantages"),
    f"{_TRAINER}.BasePPOTrainer.train_step": (("rollout_samples", "global_step"), "its status is what is logged"),
    "openrlhf.models.PolicyLoss.forward": (
        (
            "log_probs",
            "old_log_probs",
            "advantages",
            "action_mask",
            "rollout_log_probs",
            "dp_size",
            "batch_num_tokens",
        ),
        "its measures stay, and its slope is the engine's correction",
    ),
}
"""Methods that are overridden or called, with their first parameters in order, and why."""

EXPERIENCE_FIELDS = {
    "sequences": "[B, T] tokens of prompt and completion, padded on the right",
    "attention_mask": "[B, T] where they are no padding",
    "action_mask": "[B, T-1] where the next token is the policy's",
    "action_log_probs": "[B, T-1] of the policy before the first update",
    "base_action_log_probs": "[B, T-1] of the reference; None without a KL term",
    "advantages": "[B, T-1] coefficients stand in their place",
    "rewards": "[B] after length penalties; None where they failed",
    "scores": "[B] what dynamic filtering reads",
    "index": "place of each row in the rollout",
    "prompts": "texts by which groups are told apart",
    "labels": "what reward and key functions are given",
    "info": "what is averaged into the log",
}
"""Fields of `openrlhf.trainer.ppo_utils.experience.Experience`."""

ATTRIBUTES = {
    _MAKER: ("args", "tokenizer"),
    f"{_TRAINER}.BasePPOTrainer": (
        *("actor_model_group", "critic_model_group", "reward_model_group", "reference_model_group"),
        *("experience_maker", "kl_ctl", "strategy", "tokenizer"),
    ),
    f"{_ACTOR}.ActorPPOTrainer": ("actor_loss_fn",),
    "openrlhf.models.PolicyLoss": ("clip_eps_low", "clip_eps_high", "is_correction_level"),
}
"""Attributes that a class's own `__init__` sets."""
