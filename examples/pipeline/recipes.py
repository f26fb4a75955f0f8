"""Recipes as files, and what the fields of one trainer's recipe are for the other trainer."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from trl import GRPOConfig

from maxent_grpo._secrets import expect_no_secret
from maxent_grpo.adapters.trl import MaxEntGRPOConfig
from maxent_grpo.adapters.trl.options import REFUSED

Flags = list[tuple[str, list[str]]]
MAXENT_FIELDS = {field.name for field in dataclasses.fields(MaxEntGRPOConfig)} - {
    field.name for field in dataclasses.fields(GRPOConfig)
}
TASKS = ("maxent", "grpo")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a field that is there twice, of which YAML would take the last, and fields whose names are no texts."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys are different texts."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag.endswith(":merge"):
                continue
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str) or name in seen:
                problem = f"the field {name!r} twice" if name in seen else f"a field named {name!r}, which is no text"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def find_recipe(path: Path, task: str | None) -> tuple[Path, str | None]:
    """Return the recipe to read for a task, and the task as far as command line and path say it.

    Recipes lie in `<model>/<task>/config_<name>.yaml`. A task that has no file there takes the other task's.

    Args:
        path: the recipe that was asked for.
        task: the task that was asked for, or None where the recipe is to say it.
    """
    if path.parent.name not in TASKS or (task is None and path.exists()):
        return path, task
    task = task or path.parent.name
    for folder in sorted(TASKS, key=lambda name: name != task):
        file = path.parent.with_name(folder) / path.name
        if file.exists():
            return file, task
    return path, task


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the fields of a recipe.

    Raises:
        ValueError: if the file is missing, is no YAML mapping, or holds a secret.
    """
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
        if _count_values(recipe, {}) > MOST_VALUES:
            raise RecursionError
        if isinstance(recipe, dict):
            expect_no_secret(recipe, path)
    except RecursionError:
        raise ValueError(
            f"{path}: Expected YAML, got values nested too deep, inside themselves, or repeated without end."
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: Expected a recipe, got {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # The error's own text quotes the file, in which there may be a secret.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise ValueError(f"{path}: Expected YAML, got {problem or type(error).__name__}{line}.") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: Expected a mapping of fields to values, got {type(recipe).__name__}.")
    if not isinstance(recipe.get("env") or {}, dict):
        raise ValueError(f"{path}: Expected env to map names to values, got env={recipe['env']!r}.")
    _expect_effective(recipe.get("env") or {}, path)
    return recipe


def _count_values(value: Any, counts: dict[int, int]) -> int:
    """Return how many values a recipe holds, each as often as aliases repeat it."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if id(value) not in counts:
        counts[id(value)] = 1 + sum(_count_values(each, counts) for each in inner)
    return counts[id(value)]


MOST_VALUES = 100_000
"""Of a recipe: aliases of aliases double in every line, and would be written out in a complaint."""


def _expect_effective(environment: dict[str, Any], path: Path) -> None:
    """Refuse variables that are read before any recipe: set here they would have no effect, and nobody would know."""
    late = [
        name for name, value in environment.items() if _READ_EARLY.match(name) and os.environ.get(name) != str(value)
    ]
    if late:
        raise ValueError(
            f"{path}: Expected env of variables that are read after start-up, got {late[0]}: set it before the "
            f"command, {late[0]}=… python examples/train.py."
        )


_READ_EARLY = re.compile(
    "(HF_|HUGGINGFACE_|TRANSFORMERS_|DATASETS_|TRL_|ACCELERATE_|TORCH_|TORCHINDUCTOR_|TRITON_|OMP_|KMP_|MKL_|OPENBLAS_"
    "|XDG_|PYTHON|LD_|WORLD_SIZE|RANK|LOCAL_RANK|MASTER_)"
)
"""What Python, torch and the Hub's libraries read when they are imported or the processes start."""


def parse_flags(arguments: Sequence[str]) -> Flags:
    """Return the flags of a command line, each with its values; what stands before them all has the name "".

    >>> parse_flags(["--lr-scheduler=linear", "--names", "a", "b"])
    [('lr_scheduler', ['linear']), ('names', ['a', 'b'])]
    """
    flags: Flags = []
    for text in arguments:
        if text.startswith("--"):
            name, equals, value = text.removeprefix("--").partition("=")
            flags.append((name.replace("-", "_"), [value] if equals else []))
        elif flags:
            flags[-1][1].append(text)
        else:
            flags.append(("", [text]))
    return flags


def join_flags(flags: Flags) -> list[str]:
    """Return the command line of some flags."""
    return [text for name, values in flags for text in ([f"--{name}"] if name else []) + values]


def convert_recipe(task: str, recipe: dict[str, Any], flags: Flags) -> tuple[dict[str, Any], Flags, tuple[str, ...]]:
    """Return a recipe and flags as a trainer takes them, and a line for each field that is left out.

    Fields that only our trainer has are left out for TRL's. Options of TRL that would change the method are left out
    of a recipe for ours, each with what is lost; as a flag such an option is meant, and our trainer refuses it.
    """
    if task == "maxent":
        lines = {
            name: f"{_show_field(name, value)} is left out: {REFUSED[name].lost}"
            for name, value in recipe.items()
            if name in REFUSED and value != REFUSED[name].value
        }
        return {name: value for name, value in recipe.items() if name not in lines}, flags, tuple(lines.values())
    of_ours = MAXENT_FIELDS | (set(REFUSED) if recipe.get("task", task) == "maxent" else set())
    left_out = [(name, value) for name, value in recipe.items() if name in of_ours]
    left_out += [(name, values) for name, values in flags if name in MAXENT_FIELDS]
    fields = {"loss_type": "grpo"} | {name: value for name, value in recipe.items() if name not in of_ours}
    kept = [(name, values) for name, values in flags if name not in MAXENT_FIELDS]
    return fields, kept, tuple(f"{_show_field(name, value)} is left out" for name, value in left_out)


def _show_field(name: str, value: Any) -> str:
    return f"{name}={' '.join(map(str, value)) if isinstance(value, list) else value}"
