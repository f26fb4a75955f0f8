"""The arguments of `train.py`: a recipe, changed by flags, and refused with file, field and value named."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from trl import GRPOConfig, ModelConfig, ScriptArguments, TrlParser

from maxent_grpo.adapters.trl import MaxEntGRPOConfig
from maxent_grpo.pipeline.checks import expect_arguments, find_missing_packages
from maxent_grpo.pipeline.key_functions import KeyFunction, find_key_function
from maxent_grpo.pipeline.recipes import TASKS, convert_recipe, find_recipe, join_flags, parse_flags, read_recipe
from maxent_grpo.pipeline.rewards import Reward, find_reward
from maxent_grpo.pipeline.schema import expect_fields
from maxent_grpo.pipeline.secrets import expect_no_secret_flags

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
class GRPOScriptArguments(ScriptArguments):
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


@dataclass(frozen=True)
class Run:
    """A recipe as it will be run.

    Attributes:
        key_function: what says which completions are the same answer, or None.
        recipe: the file it comes from, or None.
        changed: a line for each field that is left out because this trainer does not have or honour it.
        missing: packages that are not installed here, each with the field that asks for it; empty but in a preflight.
    """

    script: GRPOScriptArguments
    training: GRPOConfig
    model: ModelConfig
    rewards: tuple[Reward, ...]
    key_function: KeyFunction | None
    recipe: Path | None
    changed: tuple[str, ...]
    missing: dict[str, str]

    @property
    def functions(self) -> tuple[Reward | KeyFunction, ...]:
        """All functions that read columns of the data."""
        return self.rewards if self.key_function is None else (*self.rewards, self.key_function)

    @property
    def where(self) -> str:
        """What a complaint begins with."""
        return str(self.recipe or "command line")


def parse_run(arguments: Sequence[str]) -> Run:
    """Return the run that a command line asks for: `--config recipe.yaml` and what overrides it.

    Raises:
        ValueError: naming the recipe or the command line, the field and its value, on anything that is wrong.
    """
    flags = parse_flags(arguments)
    expect_no_secret_flags(flags)
    path = _find_config(flags)
    flags = [flag for flag in flags if flag[0] != "config"]
    task = next((values[0] for name, values in reversed(flags) if name == "task" and values), None)
    if path is not None:
        path, task = find_recipe(path, task)
    recipe = {} if path is None else read_recipe(path)
    for name, value in (recipe.pop("env", None) or {}).items():
        os.environ[name] = str(value)
    task = task or recipe.get("task") or "maxent"
    changed: tuple[str, ...] = ()
    if task in TASKS:
        recipe, flags, changed = convert_recipe(task, recipe, flags)
        recipe["task"] = task
        if isinstance(recipe.get("output_dir"), str):
            recipe["output_dir"] = recipe["output_dir"].replace("{task}", task)
    parser = RecipeParser(GRPOConfig if task == "grpo" else MaxEntGRPOConfig, path)
    script, training, model = parser.parse_recipe(recipe, join_flags(flags))
    try:
        field_name = "reward_funcs"
        rewards = tuple(find_reward(name) for name in script.reward_funcs)
        field_name = "key_func"
        key_function = None if script.key_func is None else find_key_function(script.key_func)
    except ValueError as error:
        raise ValueError(f"{parser.source(field_name)}: {field_name}: {error}") from error
    return Run(script, training, model, rewards, key_function, path, changed, parser.missing)


def _find_config(flags: Sequence[tuple[str, list[str]]]) -> Path | None:
    given = [values for name, values in flags if name == "config"]
    if not given:
        return None
    if len(given[-1]) != 1:
        raise ValueError(f"command line: Expected one file after --config, got {len(given[-1])}.")
    return Path(given[-1][0])


class RecipeParser(TrlParser):
    """`TrlParser` whose complaints are one line that names the source, the field and the value.

    Args:
        kind: the class of the trainer's arguments.
        path: the recipe, or None.
    """

    def __init__(self, kind: Any, path: Path | None) -> None:
        super().__init__((GRPOScriptArguments, kind, ModelConfig), allow_abbrev=False)
        self.path = path
        self.flags: list[str] = []
        self.missing: dict[str, str] = {}

    def parse_recipe(self, recipe: dict[str, Any], flags: list[str]) -> tuple[Any, ...]:
        """Return the parsed dataclasses."""
        self.flags = flags
        self._expect_known(recipe)
        self.set_defaults_with_config(**recipe)
        known, unknown = self.parse_known_args(flags)
        if unknown:
            # Names alone: a value may be a secret under a misspelt name.
            names = [text.split("=")[0] for text in unknown if text.startswith("--")] or unknown
            raise ValueError(f"command line: Expected fields of this script, got {' '.join(names)}.")
        values = vars(known)
        preflight = values["preflight_only"]
        ranks = values["gpus"] if preflight else int(os.environ.get("WORLD_SIZE", "1"))
        expect_arguments(values, ranks, self.source)
        self.missing = find_missing_packages(values)
        if self.missing and not preflight:
            package, name = next(iter(self.missing.items()))
            raise ValueError(f"{self.source(name.split('=')[0])}: Expected {package} to be installed, got {name}.")
        if preflight:
            script, kind, model = self.dataclass_types
            self.dataclass_types = [script, _assume_ranks(kind, ranks), model]
            if not torch.accelerator.is_available():
                flags = [*flags, "--use_cpu", "true"]  # else a recipe for GPUs is refused where there is none
        try:
            return tuple(self.parse_args_into_dataclasses(flags, look_for_args_file=False))
        except ValueError as error:
            raise ValueError(f"{self.path or 'command line'}: {error}") from error

    def source(self, name: str) -> str:
        """Return where a field's value comes from."""
        given = {name for name, _ in parse_flags(self.flags)}
        return "command line" if self.path is None or name in given else str(self.path)

    def error(self, message: str) -> NoReturn:
        """Complain in one line: argparse would show hundreds of flags."""
        name = message.removeprefix("argument --").split("/")[0].split(":")[0]
        raise ValueError(f"{self.source(name)}: {message}")

    def _expect_known(self, recipe: dict[str, Any]) -> None:
        choices = {action.dest: action.choices for action in self._actions if action.choices}
        for name, value in recipe.items():
            if name in choices and value is not None and value not in choices[name]:
                allowed = ", ".join(map(str, choices[name]))
                raise ValueError(f"{self.path}: Expected {name} of {allowed}, got {name}={value!r}.")
        expect_fields(recipe, self.dataclass_types, f"{self.path}: ", "this script", texts=True)


def _assume_ranks(kind: type[GRPOConfig], ranks: int) -> type[GRPOConfig]:
    """Return a class of arguments as each of so many processes would see it."""
    return type(kind.__name__, (kind,), {"world_size": property(lambda self: ranks)})
