"""What a run will do, told or refused before any model is loaded."""

import math
from typing import Any

import torch
from datasets import Dataset, IterableDataset

from maxent_grpo._checks import expect
from maxent_grpo.adapters._trl_config import MaxEntGRPOConfig
from maxent_grpo.config import MaxEntConfig
from maxent_grpo.objective import MaxEntObjective

_PROMPTS_READ = 64


def preflight_report(
    args: MaxEntGRPOConfig, model_config: Any, dataset: Dataset | IterableDataset | None, tokenizer: Any | None
) -> str:
    """Return what the trainer is about to do, in a few lines.

    Args:
        args: the trainer's arguments.
        model_config: the model's configuration, or None if it is not known.
        dataset: prompts to train on.
        tokenizer: measures the first prompts if given.

    Raises:
        ValueError: if a prompt and its completion cannot fit the model's context, or prompts hold images.
    """
    _expect_text(dataset)
    config = args.maxent_config()
    candidates, rows, size = args.num_generations, args.generation_batch_size, args.per_device_train_batch_size
    lines = [
        f"MaxEnt-GRPO: {rows // candidates} prompts x {candidates} candidates per rollout "
        f"({args.steps_per_generation} micro-batches of {size} on {args.world_size} ranks), "
        f"{size * args.world_size * args.gradient_accumulation_steps / candidates:g} prompts per optimiser step, "
        f"updates {'clipped' if args.updates_off_policy else 'on-policy'}",
        _target_line(config, candidates),
    ]
    if config.projection == "listwise" and config.skip == "none" and (config.anchor != "old" or config.beta == 0):
        lines.append(
            "listwise without an anchor at the rollout policy levels the candidates of groups whose rewards are all "
            "equal, which can diverge: set maxent_anchor='old' with init_kl_coeff > 0, or maxent_skip='equal'"
        )
    text_config = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    context = getattr(text_config, "max_position_embeddings", None)
    longest = _longest_prompt(dataset, tokenizer)
    if context is not None and args.max_completion_length is not None:
        expect(
            longest + args.max_completion_length <= context,
            f"a prompt ({longest} tokens among the first {_PROMPTS_READ}) and max_completion_length to fit the "
            f"model's context of {context} tokens",
            max_completion_length=args.max_completion_length,
        )
        lines.append(f"tokens: prompt {longest} + completion {args.max_completion_length} <= context {context}")
    vocabulary = getattr(text_config, "vocab_size", None)
    if vocabulary is not None and args.max_completion_length is not None:
        memory = size * args.max_completion_length * vocabulary * 4 / 2**30
        lines.append(f"logits of a micro-batch would be {memory:.2f} GiB in float32; the fused head never holds them")
    return "\n  ".join(lines)


def _target_line(config: MaxEntConfig, candidates: int) -> str:
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
        f"{1 / float(weights.square().sum()):.1f} of {candidates} with {count} right (the first right one gets "
        f"{float(weights[0]):.0%})"
        for count, weights in zip(successes, target.weights, strict=True)
    )
    heat = config.tau + config.beta
    power = "argmax" if heat == 0 else "uniform" if math.isinf(heat) else f"q^{1 / heat:.3g}"
    ess = "" if config.target_ess is None else f", tau per group for an ESS of {config.target_ess:g}"
    return f"target {power} (tau={config.tau:g}, beta={config.beta:g}{ess}); ESS at binary rewards: {shares}"


def _expect_text(dataset: Dataset | IterableDataset | None) -> None:
    columns = set(getattr(dataset, "column_names", None) or ())
    expect(not columns & {"image", "images"}, "a dataset of text (images are not supported)", columns=sorted(columns))


def _longest_prompt(dataset: Dataset | IterableDataset | None, tokenizer: Any | None) -> int:
    """Return the number of tokens of the longest of the first prompts; 0 where that cannot be told."""
    if tokenizer is None or not isinstance(dataset, Dataset) or "prompt" not in (dataset.column_names or ()):
        return 0
    lengths = [0]
    for prompt in dataset[:_PROMPTS_READ]["prompt"]:
        if isinstance(prompt, str):
            ids = tokenizer(text=prompt)["input_ids"]
        elif getattr(tokenizer, "chat_template", None):
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        else:
            ids = []
        lengths.append(len(ids))
    return max(lengths)
