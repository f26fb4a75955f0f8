"""What `train.py` is told about a run besides the trainer's and the model's own arguments."""

import os
from dataclasses import dataclass, field
from typing import Any

from trl import ScriptArguments

from maxent_grpo.pipeline.recipes import TASKS

MAX_PROMPT_CHARS = 2048


def read_max_prompt_chars() -> int:
    """Return how long a prompt may be where neither flag nor recipe says so: MAX_PROMPT_CHARS of the environment.

    Raises:
        ValueError: naming the variable, if it holds anything but a whole number from 1.
    """
    text = os.environ.get("MAX_PROMPT_CHARS", str(MAX_PROMPT_CHARS))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"Expected MAX_PROMPT_CHARS >= 1 in the environment, got MAX_PROMPT_CHARS={text!r}.")
    return int(text)


@dataclass
class GRPOScriptArguments(ScriptArguments):  # type: ignore[misc]
    """What is trained on what: the arguments that are neither the trainer's nor the model's."""

    task: str = field(
        default="maxent",
        metadata={"help": "Trainer: maxent for ours, grpo for TRL's.", "choices": [*TASKS]},
    )
    reward_funcs: list[str] = field(
        default_factory=list, metadata={"help": "Names of `rewards.REWARDS`, or dotted paths to functions."}
    )
    key_func: str | None = field(
        default=None,
        metadata={
            "help": "What maxent_dedup counts as the same answer: a name of `key_functions.KEY_FUNCTIONS`, or a "
            "dotted path to a function; by default equal tokens, which reasoning rarely repeats."
        },
    )
    datasets: list[dict[str, Any]] = field(
        default_factory=list,
        metadata={"help": "Instead of dataset_name: sources with path, name, split, data_files, weight, columns."},
    )
    eval_datasets: list[dict[str, Any]] = field(
        default_factory=list, metadata={"help": "Sources to evaluate on; by default dataset_test_split."}
    )
    trainer_mixin: str | None = field(
        default=None,
        metadata={"help": "Dotted path to a class that comes before the trainer's own, to change how it works."},
    )
    prompt_column: str = field(default="prompt", metadata={"help": "Column of dataset_name that holds prompts."})
    solution_column: str | None = field(
        default=None, metadata={"help": "Column of dataset_name that rewards see as `solution`."}
    )
    prompt_format: str = field(
        default="chat",
        metadata={"help": "chat: a message of the user; text: the bare prompt.", "choices": ["chat", "text"]},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message before every prompt."})
    chat_template: str | None = field(
        default=None, metadata={"help": "Jinja template, or a file with one, instead of the tokenizer's own."}
    )
    max_prompt_chars: int = field(
        default_factory=read_max_prompt_chars,
        metadata={
            "help": "Longer prompts are cut, with one warning that counts them. Unset: MAX_PROMPT_CHARS of the "
            f"environment, or {MAX_PROMPT_CHARS}."
        },
    )
    eval_share: float = field(
        default=0.0,
        metadata={
            "help": "Share of the prompts to train on that is held out, to evaluate on instead of eval_datasets."
        },
    )
    eval_limit: int = field(default=64, metadata={"help": "Prompts of a seeded sample to evaluate on; 0 for all."})
    preflight_only: bool = field(
        default=False, metadata={"help": "Say what the run would do and the memory it takes, then stop."}
    )
    gpus: int = field(default=8, metadata={"help": "GPUs that --preflight_only is for."})
    gpu_memory: float = field(default=80.0, metadata={"help": "Memory of each of them, in GiB."})
