"""What a run will do, said or refused before any model is loaded."""

import logging
import math
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import AutoConfig, AutoProcessor

from maxent_grpo._checks import expect
from maxent_grpo.adapters.trl.config import MaxEntGRPOConfig
from maxent_grpo.adapters.trl.fitting import (
    PROMPTS_READ,
    expect_fitting,
    expect_tokenizer,
    pick_text_config,
    read_prompts,
)
from maxent_grpo.config import MaxEntConfig
from maxent_grpo.objective import MaxEntObjective

logger = logging.getLogger(__name__)


def check_run(
    args: MaxEntGRPOConfig, model: Any, reward_funcs: Any, train_dataset: Any, options: dict[str, Any]
) -> Any:
    """Refuse what cannot work, say what will be done, and return the tokenizer, which TRL loads after the model.

    Args:
        args, model, reward_funcs, train_dataset: the trainer's.
        options: its other arguments by name.
    """
    model_config = _load_model_config(model, args) if isinstance(model, str) else model.config
    expect_fitting(
        args,
        model_config,
        reward_funcs=reward_funcs,
        train=train_dataset,
        evaluation=options.get("eval_dataset"),
        adapter=options.get("peft_config") is not None or hasattr(model, "get_base_model"),
    )
    processor = options.get("processing_class")
    if processor is None:
        processor = AutoProcessor.from_pretrained(
            model if isinstance(model, str) else model_config._name_or_path,
            revision=(args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None,
            truncation_side="left",
            padding_side="left",
            trust_remote_code=args.trust_remote_code,
        )
    expect_tokenizer(processor, pick_text_config(model_config))
    if args.process_index == 0:
        logger.warning(write_preflight(args, model_config, train_dataset, processor))
    return processor


def _load_model_config(path: str, args: MaxEntGRPOConfig) -> Any:
    """Return the configuration of a model that TRL is to load, from where it is to load it."""
    names = ("revision", "trust_remote_code", "subfolder", "token", "cache_dir", "local_files_only")
    options = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    return AutoConfig.from_pretrained(path, **{name: options[name] for name in names if name in options})


def write_preflight(
    args: MaxEntGRPOConfig, model_config: Any, dataset: Dataset | IterableDataset | None, tokenizer: Any | None
) -> str:
    """Return what the trainer is about to do, in a few lines.

    Args:
        args: the trainer's arguments.
        model_config: the model's configuration, or None if it is not known.
        dataset: prompts to train on.
        tokenizer: measures the first prompts if given.

    Raises:
        ValueError: if a prompt and its completion cannot fit the model's context.
    """
    config, text_config = args.maxent_config(), pick_text_config(model_config)
    lines = [
        _describe_batches(args),
        _describe_settings(config),
        _describe_target(config, args.num_generations),
        _describe_scale(config),
        _warn_about_equal_groups(config),
        _describe_bank(args, dataset),
        "prompts are streamed: a run that is resumed after its first epoch sees them in another order"
        if isinstance(dataset, IterableDataset)
        else None,
    ]
    if args.max_completion_length is not None:
        context = getattr(text_config, "max_position_embeddings", None)
        lines.append(
            _describe_tokens(context, args.max_completion_length, _measure_longest_prompt(dataset, tokenizer))
        )
        lines.append(_describe_logits(args, getattr(text_config, "vocab_size", None)))
    return "\n  ".join(line for line in lines if line is not None)


def _describe_batches(args: MaxEntGRPOConfig) -> str:
    """Return how many prompts make a rollout and an update."""
    candidates, size = args.num_generations, args.per_device_train_batch_size
    return (
        f"MaxEnt-GRPO: {args.generation_batch_size // candidates} prompts x {candidates} candidates per rollout "
        f"({args.steps_per_generation} micro-batches of {size} on {args.world_size} ranks), "
        f"{size * args.world_size * args.gradient_accumulation_steps / candidates:g} prompts per optimiser step, "
        f"updates {'clipped' if args.updates_off_policy else 'on-policy'}"
    )


def _describe_settings(config: MaxEntConfig) -> str:
    """Return the settings that differ from the method as published."""
    default = vars(MaxEntConfig())
    others = {name: value for name, value in vars(config).items() if value != default[name] and name != "max_length"}
    chosen = ", ".join(f"maxent_{name}={value}" for name, value in others.items())
    return f"settings: {chosen or 'those of the method as published'}"


def _warn_about_equal_groups(config: MaxEntConfig) -> str | None:
    """Return a warning if groups whose candidates are equally good would still move, and nothing holds them."""
    anchored = config.anchor == "old" and config.beta != 0
    if config.projection not in ("listwise", "regression") or config.skip != "none" or anchored:
        return None
    return (
        f"{config.projection} without an anchor at the rollout policy levels the candidates of groups whose rewards "
        "are all equal, which can diverge: set maxent_anchor='old' with init_kl_coeff > 0, or maxent_skip='equal'"
    )


def _describe_bank(args: MaxEntGRPOConfig, dataset: Dataset | IterableDataset | None) -> str | None:
    """Return what is rehearsed, and whether any prompt comes twice, without which a bank has nothing to remember."""
    if not args.rehearses:
        return None
    config = args.maxent_config()
    line = (
        f"bank: {config.bank_prompts} prompts per optimiser step, up to {config.bank_capacity} answers each, at "
        f"weight {config.bank_weight:g}"
    )
    rollouts = args.max_steps * args.gradient_accumulation_steps / args.micro_steps_per_rollout
    prompts = rollouts * args.generation_batch_size / args.num_generations
    once = isinstance(dataset, Dataset) and (
        prompts <= len(dataset) if args.max_steps > 0 else args.num_train_epochs <= 1
    )
    return f"{line}; no prompt comes twice, so the bank would be idle: train for several epochs" if once else line


def _describe_tokens(context: int | None, completion: int, prompt: int | None) -> str | None:
    """Return how the longest prompt and completion fit the model's context, once they do."""
    if context is None:
        return None
    expect(
        (prompt or 0) + completion <= context,
        f"a prompt ({prompt} tokens among the first {PROMPTS_READ}) and max_completion_length to fit the "
        f"model's context of {context} tokens",
        max_completion_length=completion,
    )
    measured = "(not measured)" if prompt is None else prompt
    return f"tokens: prompt {measured} + completion {completion} <= context {context}"


def _describe_logits(args: MaxEntGRPOConfig, vocabulary: int | None) -> str | None:
    """Return the memory that logits take, which the fused head never holds at once."""
    if vocabulary is None:
        return None
    memory = args.per_device_train_batch_size * args.max_completion_length * vocabulary * 4 / 2**30
    held = "would be" if args.maxent_fused_head else "are"
    advice = "the fused head holds a chunk" if args.maxent_fused_head else "maxent_fused_head=True holds a chunk"
    return f"logits of a micro-batch {held} {memory:.2f} GiB in float32; {advice}"


def _describe_target(config: MaxEntConfig, candidates: int) -> str:
    """Return τ, β and the effective sample size of the target at binary rewards."""
    if config.projection == "surrogate":
        return f"surrogate over candidates, temperature {config.surrogate_tau:g}"
    successes = sorted({1, candidates // 2})
    rewards = torch.zeros(len(successes), candidates)
    for row, count in enumerate(successes):
        rewards[row, :count] = 1.0
    counted = torch.ones_like(rewards, dtype=torch.bool)
    zeros = torch.zeros_like(rewards)
    different = torch.arange(candidates).expand(rewards.shape)
    target = MaxEntObjective(config).target(
        rewards, mask=counted, lengths=counted.long(), ref_logps=zeros, old_logps=zeros, keys=different
    )
    shares = ", ".join(
        f"{1 / float(weights.square().sum()):.1f} of {candidates} with {count} right (each right one gets "
        f"{float(weights[0]):.0%})"
        for count, weights in zip(successes, target.weights, strict=True)
    )
    tempering = config.tau + config.beta
    power = "argmax" if tempering == 0 else "uniform" if math.isinf(tempering) else f"q^{1 / tempering:.3g}"
    ess = "" if config.target_ess is None else f", tau per group for an ESS of {config.target_ess:g}"
    return f"target {power} (tau={config.tau:g}, beta={config.beta:g}{ess}); ESS at binary rewards: {shares}"


def _describe_scale(config: MaxEntConfig) -> str:
    """Return how large gradients are beside those of TRL's losses, which learning rates and clips were tuned for."""
    limit = config.max_length
    if config.nll_reduction == "mean":
        return "loss: a mean over each candidate's tokens, on the scale of TRL's loss_type='grpo'"
    if config.nll_reduction == "sum" and config.projection != "surrogate":
        return (
            f"loss: a sum over tokens. Gradients are max_completion_length={limit} times those of TRL's "
            "loss_type='dr_grpo'; maxent_nll_reduction='max_length' divides by it"
        )
    return (
        f"loss: divided by maxent_max_length={limit}, on the scale of TRL's loss_type='dr_grpo'. Gradients of its "
        f"default 'dapo' are {limit} / (mean completion length) times as large (completions/mean_length in the log)"
    )


def _measure_longest_prompt(dataset: Dataset | IterableDataset | None, tokenizer: Any | None) -> int | None:
    """Return the number of tokens of the longest of the first prompts; None where that cannot be told."""
    if tokenizer is None:
        return None
    lengths, words = [], getattr(tokenizer, "tokenizer", tokenizer)
    for prompt in read_prompts(dataset):
        if isinstance(prompt, str):
            lengths.append(len(words(text=prompt)["input_ids"]))
        elif getattr(words, "chat_template", None):
            chat = words.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
            lengths.append(len(chat["input_ids"]))
    return max(lengths, default=None)
