"""A run: what a command line asks for, read, converted for its trainer, parsed and checked."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl import GRPOConfig, ModelConfig

from maxent_grpo._secrets import expect_no_secret_flags
from maxent_grpo.adapters import KeyFunction
from maxent_grpo.pipeline.arguments import GRPOScriptArguments
from maxent_grpo.pipeline.key_functions import find_key_function
from maxent_grpo.pipeline.parser import RecipeParser
from maxent_grpo.pipeline.recipes import TASKS, Flags, convert_recipe, find_recipe, parse_flags, read_recipe
from maxent_grpo.pipeline.rewards import Reward, find_reward


@dataclass(frozen=True)
class Run:
    """A recipe as it will be run.

    Attributes:
        key_function: what says which completions are the same answer, or None.
        recipe: the file it comes from, or None.
        changed: a line for each field that is left out because this trainer does not have or honor it.
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
    # The recipe depends on the task where either has a file of its own, and the task on the recipe that is read.
    path, flags = _take_config(flags)
    if path is None and not flags:
        raise ValueError("command line: Expected --config RECIPE.yaml (--help lists the rest), got nothing.")
    task = next((values[0] for name, values in reversed(flags) if name == "task" and values), None)
    recipe: dict[str, Any] = {}
    if path is not None:
        path, task = find_recipe(path, task)
        recipe = read_recipe(path)
    os.environ.update({name: str(value) for name, value in (recipe.pop("env", None) or {}).items()})
    task = task or recipe.get("task") or "maxent"
    changed: tuple[str, ...] = ()
    if task in TASKS:
        recipe, flags, changed = convert_recipe(task, recipe, flags)
        recipe["task"] = task
        if isinstance(recipe.get("output_dir"), str):
            recipe["output_dir"] = recipe["output_dir"].replace("{task}", task)
    parser = RecipeParser(task, path, flags)
    script, training, model = parser.parse_recipe(recipe)
    rewards, key_function = _find_functions(script, parser)
    return Run(script, training, model, rewards, key_function, path, changed, parser.missing)


def _take_config(flags: Flags) -> tuple[Path | None, Flags]:
    """Return the recipe that `--config` names, if any, and the other flags."""
    configs = [values for name, values in flags if name == "config"]
    if configs and len(configs[-1]) != 1:
        raise ValueError(f"command line: Expected one file after --config, got {len(configs[-1])}.")
    return Path(configs[-1][0]) if configs else None, [flag for flag in flags if flag[0] != "config"]


def _find_functions(
    script: GRPOScriptArguments, parser: RecipeParser
) -> tuple[tuple[Reward, ...], KeyFunction | None]:
    name = "reward_funcs"
    try:
        rewards = tuple(find_reward(path) for path in script.reward_funcs)
        name = "key_func"
        return rewards, None if script.key_func is None else find_key_function(script.key_func)
    except ValueError as error:
        raise ValueError(f"{parser.name_source(name)}: {name}: {error}") from error
