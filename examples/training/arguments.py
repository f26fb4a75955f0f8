"""The arguments of `train.py`: a recipe, changed by flags, and refused with file, field and value named."""

import dataclasses
import difflib
import os
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import torch
import yaml
from trl import GRPOConfig, ModelConfig, ScriptArguments, TrlParser

from maxent_grpo.adapters.trl import MaxEntGRPOConfig
from rewards import Reward, reward_of

MAX_PROMPT_CHARS = 2048
SECRETS = ("hub_token", "push_to_hub_token", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
BATCH = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
)


@dataclass
class GRPOScriptArguments(ScriptArguments):
    """What is trained on what: the arguments that are neither the trainer's nor the model's."""

    task: str = field(
        default="maxent",
        metadata={"help": "Trainer: maxent for ours, grpo for TRL's.", "choices": ["maxent", "grpo"]},
    )
    reward_funcs: list[str] = field(
        default_factory=list, metadata={"help": "Names of `rewards.REWARDS`, or dotted paths to functions."}
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
        default=MAX_PROMPT_CHARS, metadata={"help": "Longer prompts are cut, with one warning that counts them."}
    )
    eval_limit: int = field(default=64, metadata={"help": "Prompts of a seeded sample to evaluate on; 0 for all."})
    preflight_only: bool = field(
        default=False, metadata={"help": "Say what the run would do and the memory it takes, then stop."}
    )
    gpus: int = field(default=8, metadata={"help": "GPUs that the memory estimate is for."})
    gpu_memory: float = field(default=80.0, metadata={"help": "Memory of each of them, in GiB."})


@dataclass(frozen=True)
class Run:
    """A recipe as it will be run.

    Attributes:
        recipe: the file it comes from, or None.
        dropped: fields of the recipe that `--task grpo` leaves out.
    """

    script: GRPOScriptArguments
    training: GRPOConfig
    model: ModelConfig
    rewards: tuple[Reward, ...]
    recipe: Path | None
    dropped: dict[str, Any]


def run_of(arguments: Sequence[str]) -> Run:
    """Return the run that a command line asks for: `--config recipe.yaml` and what overrides it.

    Raises:
        ValueError: naming the recipe or the command line, the field and its value, on anything that is wrong.
    """
    path, flags = _without_config(list(arguments))
    recipe = {} if path is None else read_recipe(path)
    for name, value in recipe.pop("env", {}).items():
        os.environ[name] = str(value)
    chosen = _flag(flags, "task") or recipe.get("task", "maxent")
    kind = GRPOConfig if chosen == "grpo" else MaxEntGRPOConfig
    dropped: dict[str, Any] = {}
    if kind is GRPOConfig:
        dropped = {name: recipe.pop(name) for name in sorted(_MAXENT_FIELDS & set(recipe))}
        flags, dropped_flags = _without_maxent_fields(flags)
        dropped |= dropped_flags
    parser = RecipeParser((GRPOScriptArguments, kind, ModelConfig), path)
    script, training, model = parser.parsed(recipe, flags)
    try:
        rewards = tuple(reward_of(name) for name in script.reward_funcs)
    except ValueError as error:
        raise ValueError(f"{parser.source('reward_funcs')}: reward_funcs: {error}") from error
    return Run(script, training, model, rewards, path, dropped)


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the fields of a recipe.

    Raises:
        ValueError: if the file is missing, is no YAML mapping, or holds a secret.
    """
    try:
        recipe = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: Expected a recipe, got {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: Expected YAML, got {' '.join(str(error).split())}.") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: Expected a mapping of fields to values, got {type(recipe).__name__}.")
    _expect_no_secret([*recipe, *(recipe.get("env") or {})], path)
    return recipe


class RecipeParser(TrlParser):
    """`TrlParser` whose complaints are one line that names the source, the field and the value."""

    def __init__(self, kinds: Sequence[Any], path: Path | None) -> None:
        super().__init__(kinds)
        self.path, self.kinds = path, kinds
        self.recipe: dict[str, Any] = {}
        self.flags: list[str] = []

    def parsed(self, recipe: dict[str, Any], flags: list[str]) -> tuple[Any, ...]:
        """Return the parsed dataclasses."""
        self.recipe, self.flags = recipe, flags
        _expect_no_secret([flag.removeprefix("--").split("=")[0] for flag in flags], None)
        self._expect_known(recipe)
        self.set_defaults_with_config(**recipe)
        values, unknown = self.parse_known_args(flags)
        if unknown:
            raise ValueError(f"command line: Expected fields of this script, got {' '.join(unknown)}.")
        values = vars(values)
        self._expect_whole_groups(values)
        if values["preflight_only"] and not torch.accelerator.is_available():
            flags = [*flags, "--use_cpu", "true"]  # else a recipe for GPUs is refused where there is none
        try:
            return tuple(self.parse_args_into_dataclasses(flags))
        except ValueError as error:
            raise ValueError(f"{self.path or 'command line'}: {error}") from error

    def source(self, name: str) -> str:
        """Return where a field's value comes from."""
        given = {flag[2:].split("=")[0].replace("-", "_") for flag in self.flags if flag.startswith("--")}
        return "command line" if self.path is None or name in given else str(self.path)

    def error(self, message: str) -> NoReturn:
        """Complain in one line: argparse would show hundreds of flags."""
        name = message.removeprefix("argument --").split("/")[0].split(":")[0]
        raise ValueError(f"{self.source(name)}: {message}")

    def _expect_known(self, recipe: dict[str, Any]) -> None:
        hints = {name: hint for kind in self.kinds for name, hint in get_type_hints(kind).items()}
        known = {each.name for kind in self.kinds for each in dataclasses.fields(kind) if each.init}
        choices = {action.dest: action.choices for action in self._actions if action.choices}
        for name, value in recipe.items():
            if name in choices and value is not None and value not in choices[name]:
                allowed = ", ".join(map(str, choices[name]))
                raise ValueError(f"{self.path}: Expected {name} of {allowed}, got {name}={value!r}.")
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise ValueError(f"{self.path}: Expected fields of this script, got {name}={value!r}{hint}.")
            if not _fits(value, hints[name]):
                raise ValueError(f"{self.path}: Expected {name} of type {_named(hints[name])}, got {name}={value!r}.")

    def _expect_whole_groups(self, values: dict[str, Any]) -> None:
        """Refuse rollouts that are no whole groups, before anything is loaded."""
        candidates, ranks = values["num_generations"], int(os.environ.get("WORLD_SIZE", "1"))
        size, accumulation, steps, rollout = (values[name] for name in BATCH)
        rollout = rollout or size * ranks * (steps or accumulation)
        for name, value in (("num_generations", candidates), *((name, values[name]) for name in BATCH[:2])):
            if value < 1:
                raise ValueError(f"{self.source(name)}: Expected {name} >= 1, got {name}={value}.")
        if candidates < 2:
            raise ValueError(f"{self.source('num_generations')}: Expected num_generations >= 2, got {candidates}.")
        if rollout % candidates:
            given = ", ".join(f"{name}={values[name]}" for name in BATCH if values[name] is not None)
            raise ValueError(
                f"{self.source('num_generations')}: Expected completions per rollout ({rollout} of {ranks} ranks) "
                f"divisible by num_generations={candidates}, got {given}."
            )
        asked = values["num_generations_eval"] or candidates
        evaluated = values["per_device_eval_batch_size"] * ranks
        if values["do_eval"] and evaluated % asked:
            raise ValueError(
                f"{self.source('per_device_eval_batch_size')}: Expected completions per evaluation batch "
                f"({evaluated} of {ranks} ranks) divisible by num_generations_eval={asked}, "
                f"got per_device_eval_batch_size={values['per_device_eval_batch_size']}."
            )
        weights, rewards = values["reward_weights"], values["reward_funcs"]
        if weights is not None and len(weights) != len(rewards):
            raise ValueError(
                f"{self.source('reward_weights')}: Expected a weight for each of reward_funcs={rewards}, "
                f"got reward_weights={weights}."
            )
        for name in ("reward_funcs", "model_name_or_path"):
            if not values[name]:
                raise ValueError(f"{self.source(name)}: Expected {name}, got none.")


_PLAIN: dict[Any, Any] = {
    int: int,
    float: (int, float),
    bool: bool,
    str: str,
    list: list,
    dict: dict,
    type(None): type(None),
}
_MAXENT_FIELDS = {each.name for each in dataclasses.fields(MaxEntGRPOConfig)} - {
    each.name for each in dataclasses.fields(GRPOConfig)
}


def _without_config(flags: list[str]) -> tuple[Path | None, list[str]]:
    for place, flag in enumerate(flags):
        if flag == "--config":
            if place + 1 == len(flags):
                raise ValueError("command line: Expected a file after --config, got none.")
            return Path(flags[place + 1]), flags[:place] + flags[place + 2 :]
        if flag.startswith("--config="):
            return Path(flag.removeprefix("--config=")), flags[:place] + flags[place + 1 :]
    return None, flags


def _flag(flags: list[str], name: str) -> str | None:
    """Return the last value that a flag is given."""
    found = None
    for place, flag in enumerate(flags):
        if flag == f"--{name}" and place + 1 < len(flags):
            found = flags[place + 1]
        elif flag.startswith(f"--{name}="):
            found = flag.split("=", 1)[1]
    return found


def _without_maxent_fields(flags: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the flags that are not the method's own, and those that are with their values."""
    kept: list[str] = []
    dropped: dict[str, str] = {}
    name = ""
    for flag in flags:
        if flag.startswith("--"):
            name, _, value = flag.removeprefix("--").partition("=")
            name = name.replace("-", "_")
        else:
            value = flag
        if name in _MAXENT_FIELDS:
            dropped[name] = value
        else:
            kept.append(flag)
    return kept, dropped


def _expect_no_secret(names: Sequence[str], path: Path | None) -> None:
    for name in names:
        if name.replace("-", "_") in SECRETS:
            raise ValueError(
                f"{path or 'command line'}: Expected the Hub login in the environment's HF_TOKEN or stored by "
                f"`hf auth login`, got {name} (its value is not repeated here)."
            )


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value of a YAML file is of a field's type, or a text that argparse will make one of."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts if isinstance(value, str) <= (part is not type(None)))
    plain = origin or hint
    if plain not in _PLAIN:
        return True
    if isinstance(value, str):
        return plain not in (list, dict, type(None))
    return isinstance(value, _PLAIN[plain]) and (plain is bool or not isinstance(value, bool))


def _named(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
