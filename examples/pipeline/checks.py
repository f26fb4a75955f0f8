"""Checks of a run's arguments before anything is loaded: ranges, combinations, whole groups, packages."""

import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BATCH = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
)
LEAST = {
    "num_generations": 2,
    "num_generations_eval": 1,
    **dict.fromkeys(BATCH, 1),
    "per_device_eval_batch_size": 1,
    "max_completion_length": 1,
    "max_prompt_chars": 1,
    "eval_limit": 0,
    "eval_share": 0,
    "gpus": 1,
    "vllm_max_model_length": 1,
    "seed": 0,
}
FINITE = (
    "learning_rate",
    "weight_decay",
    "temperature",
    "warmup_steps",
    "beta",
    "epsilon",
    "epsilon_high",
    "adam_epsilon",
    "max_grad_norm",
    "num_train_epochs",
)
"""What is at least 0 and finite."""
Values = dict[str, Any]
Complaints = Iterator[tuple[str, str]]


def expect_arguments(values: Values, ranks: int, source: Callable[[str], str]) -> None:
    """Refuse arguments with which a run would fail once its model is loaded.

    Args:
        values: all arguments by name.
        ranks: number of processes that train.
        source: from the name of an argument to where its value is from.

    Raises:
        ValueError: naming the source, the field and its value.
    """
    for check in (_check_ranges, _check_combinations, _check_rollouts, _check_evaluations):
        for name, complaint in check(values, ranks):
            raise ValueError(f"{source(name)}: {complaint}")


def find_missing_packages(values: Values) -> dict[str, str]:
    """Return the packages that a run needs and that are not installed, each with the field that asks for it."""
    needs = {
        "vllm": "use_vllm=True" if values["use_vllm"] else "",
        "math_verify": "reward_funcs" if "math_verify" in values["reward_funcs"] else "",
        "peft": "use_peft=True" if values["use_peft"] else "",
        "bitsandbytes": next((f"{name}=True" for name in ("load_in_4bit", "load_in_8bit") if values[name]), "")
        or (f"optim={values['optim']}" if _needs_bitsandbytes(str(values["optim"]).lower()) else ""),
        "flash_attn": f"attn_implementation={values['attn_implementation']}"
        if values["attn_implementation"] == "flash_attention_2"
        else "",
    }
    return {package: field for package, field in needs.items() if field and find_spec(package) is None}


def _needs_bitsandbytes(optimizer: str) -> bool:
    return "torch" not in optimizer and any(part in optimizer for part in ("8bit", "bnb", "paged"))


def _check_ranges(values: Values, ranks: int) -> Complaints:
    for name in ("reward_funcs", "model_name_or_path"):
        if not values[name]:
            yield name, f"Expected {name}, got none."
    for name, least in LEAST.items():
        value = values[name]
        if value is not None and not value >= least:
            yield name, f"Expected {name} >= {least}, got {name}={value}."
    if not values["eval_share"] < 1:
        yield "eval_share", f"Expected eval_share < 1, got eval_share={values['eval_share']}."
    for name in FINITE:
        value = values.get(name)
        if isinstance(value, int | float) and not (value >= 0 and math.isfinite(value)):
            yield name, f"Expected {name} >= 0 and finite, got {name}={value}."
    if values.get("top_p") is not None and not 0 < values["top_p"] <= 1:
        yield "top_p", f"Expected top_p > 0 and <= 1, got top_p={values['top_p']}."
    if values["max_steps"] == 0:
        yield "max_steps", "Expected max_steps >= 1, or -1 to train for num_train_epochs, got max_steps=0."
    if not (values["gpu_memory"] > 0 and math.isfinite(values["gpu_memory"])):
        yield "gpu_memory", f"Expected gpu_memory > 0, got gpu_memory={values['gpu_memory']}."


def _check_combinations(values: Values, ranks: int) -> Complaints:
    weights, rewards = values["reward_weights"], values["reward_funcs"]
    if weights is not None and len(weights) != len(rewards):
        yield (
            "reward_weights",
            f"Expected a weight for each of reward_funcs={rewards}, got reward_weights={weights}.",
        )
    if repeated := sorted({name for name in rewards if rewards.count(name) > 1}):
        yield (
            "reward_funcs",
            f"Expected each of reward_funcs once, got reward_funcs={rewards} with {repeated} twice.",
        )
    if values["datasets"] and values["dataset_name"]:
        yield (
            "dataset_name",
            f"Expected dataset_name or datasets, got both: dataset_name={values['dataset_name']!r}.",
        )
    if values["dataset_streaming"]:
        yield "dataset_streaming", "Expected datasets that are read whole, got dataset_streaming=True."
    if values["eval_share"] and values["eval_datasets"]:
        yield "eval_share", f"Expected eval_datasets or eval_share, got both: eval_share={values['eval_share']}."
    if values["system_prompt"] and values["prompt_format"] == "text":
        yield (
            "system_prompt",
            f"Expected prompt_format=chat with a system_prompt, got prompt_format='text', "
            f"system_prompt={values['system_prompt'][:40]!r}.",
        )
    template = values["chat_template"]
    if template is not None and "{" not in template and not Path(template).is_file():
        yield "chat_template", f"Expected a Jinja template or a file with one, got chat_template={template!r}."


def _check_rollouts(values: Values, ranks: int) -> Complaints:
    candidates = values["num_generations"]
    size, accumulation, steps, rollout = (values[name] for name in BATCH)
    rollout = rollout or size * ranks * (steps or accumulation)
    if rollout % candidates == 0:
        return
    sizes = ", ".join(f"{name}={values[name]}" for name in BATCH if values[name] is not None)
    yield (
        "num_generations",
        f"Expected completions per rollout ({rollout} of {ranks} ranks) divisible by "
        f"num_generations={candidates}, got {sizes}.",
    )


def _check_evaluations(values: Values, ranks: int) -> Complaints:
    candidates = values["num_generations_eval"] or values["num_generations"]
    completions = values["per_device_eval_batch_size"] * ranks
    if not values["do_eval"] or completions % candidates == 0:
        return
    yield (
        "per_device_eval_batch_size",
        f"Expected completions per evaluation batch ({completions} of {ranks} ranks) divisible by "
        f"num_generations_eval={candidates}, got per_device_eval_batch_size={values['per_device_eval_batch_size']}.",
    )
