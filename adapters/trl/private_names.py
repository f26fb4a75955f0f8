"""The names of TRL 1.16 that are used and that TRL promises to nobody: what to look at when its version moves."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PrivateName:
    """A name that may change with any release of TRL.

    Attributes:
        name: of a method or attribute of `GRPOTrainer`, of an entry of its rollout, or of a function.
        used_in: the modules of this package that name it.
        why: what it is used for.
        parameters: of a method or function, those that are used, in TRL's order; None for anything else.
    """

    name: str
    used_in: tuple[str, ...]
    why: str
    parameters: tuple[str, ...] | None = None


METHODS = (
    PrivateName(
        "_calculate_rewards",
        ("trainer",),
        "its result, gathered over the ranks, are the raw rewards that utilities are made of",
        ("inputs", "prompts", "completions", "completion_ids_list"),
    ),
    PrivateName(
        "_generate_and_score_completions",
        ("trainer",),
        "its result is the rollout: coefficients take the place of its advantages",
        ("inputs",),
    ),
    PrivateName(
        "_prepare_inputs",
        ("trainer",),
        "splits a rollout into micro-batches, over which the survivors of pruning are spread anew",
        ("generation_batch",),
    ),
    PrivateName("_compute_loss", ("trainer",), "the loss is another", ("model", "inputs")),
    PrivateName(
        "_get_per_token_logps_and_entropies",
        ("trainer",),
        "scores completions through TRL's fused LM head",
        (
            "model",
            "input_ids",
            "attention_mask",
            "logits_to_keep",
            "batch_size",
            "compute_entropy",
            "compute_aux_loss",
        ),
    ),
    PrivateName(
        "_get_train_sampler", ("trainer",), "a resumed run draws the epochs that it has behind it", ("dataset",)
    ),
)
"""Methods of `GRPOTrainer` that are called or overridden."""

FUNCTIONS = (
    PrivateName(
        "trl.models.utils.disable_gradient_checkpointing",
        ("trainer",),
        "scoring needs no checkpoints, as in TRL's own",
        ("model", "gradient_checkpointing_kwargs"),
    ),
    PrivateName(
        "trl.models.utils.remove_hooks",
        ("callbacks",),
        "makes ZeRO-3 forget what it noted of the passes that compare logits",
        ("model",),
    ),
    PrivateName("trl.models.utils.add_hooks", ("callbacks",), "undoes that for the passes to come", ("model",)),
)
"""Functions of modules that TRL does not document."""

ATTRIBUTES = (
    PrivateName("_buffered_inputs", ("trainer",), "the micro-batches of the rollout that is in use"),
    PrivateName("_step", ("trainer", "callbacks"), "counts micro-batches: which of a rollout is next"),
    PrivateName("model_wrapped", ("callbacks",), "DeepSpeed's engine, around the model"),
    PrivateName("_metrics", ("trainer",), "what the next log averages"),
    PrivateName("_logs", ("trainer",), "the columns of the table of completions"),
    PrivateName("_tokenizer", ("trainer",), "the padding token, also of a processor"),
    PrivateName("_tag_names", ("trainer",), "tags of the model card"),
    PrivateName("_name", ("trainer",), "the method's name in the model card"),
    PrivateName("_paper", ("trainer",), "the citation in the model card"),
    PrivateName(
        "beta",
        (),  # TRL copies it from the arguments, where another value stands at that moment
        "other than 0 it makes TRL load a reference (PEFT: copy the adapter), score with it, and allow "
        "sync_ref_model; its only other uses are in _compute_loss, which is ours",
    ),
    PrivateName("aux_loss_enabled", ("trainer",), "whether a router's auxiliary loss is added"),
    PrivateName("router_aux_loss_coef", ("trainer",), "its coefficient, the model's own by default"),
    PrivateName("entropy_coef", ("trainer",), "coefficient of the entropy bonus"),
    PrivateName("reward_weights", ("trainer",), "a tensor with one weight per reward function"),
    PrivateName("reward_func_names", ("trainer",), "names of the reward functions, for errors"),
    PrivateName("num_generations", ("trainer",), "K in training"),
    PrivateName("num_generations_eval", ("trainer",), "K in evaluation"),
    PrivateName("temperature", ("trainer",), "what the one-pass head divides logits by"),
)
"""Attributes of a `GRPOTrainer`, those without an underscore included that TRL's documentation does not name."""

ROLLOUT_ENTRIES = (
    PrivateName("prompt_ids", ("trainer", "groups", "rehearsal", "rows"), "[B, P] tokens, padded on the left"),
    PrivateName("prompt_mask", ("groups", "rehearsal", "rows"), "where they are no padding"),
    PrivateName("completion_ids", ("groups", "rehearsal", "rows"), "[B, T] tokens, padded on the right"),
    PrivateName("completion_mask", ("groups", "rehearsal", "rows"), "where they are no padding, and not truncated"),
    PrivateName("tool_mask", ("rehearsal", "rows"), "[B, T] 0 where a tool wrote the token; absent without tools"),
    PrivateName("advantages", ("trainer",), "taken out: coefficients stand in their place"),
    PrivateName(
        "old_per_token_logps", ("trainer",), "[B, T] of the rollout policy; absent where updates are on-policy"
    ),
    PrivateName("sampling_per_token_logps", ("trainer",), "taken out: the correction below is made of them"),
    PrivateName("importance_sampling_ratio", ("trainer",), "[B, 1] or [B, T], vLLM's correction of each token"),
    PrivateName("ref_per_token_logps", ("trainer", "groups", "terms"), "[B, T] of the reference; absent without one"),
    PrivateName("num_items_in_batch", ("terms",), "tokens of the rollout over all ranks"),
    PrivateName("pixel_values", ("groups",), "there where a rollout holds images, which are refused"),
)
"""Entries of the dict that `_generate_and_score_completions` returns."""
