"""The tasks of `tasks/` as datasets that need no network: `task:NAME` where a recipe names a dataset."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from datasets import Dataset

from maxent_grpo.pipeline.tasks import countdown, graph_coloring
from maxent_grpo.pipeline.tasks.splits import Split, split

PREFIX = "task:"


@dataclass(frozen=True)
class TaskDataset:
    """A task's problems and what its rewards need to know of one.

    Attributes:
        module: `tasks.countdown` or `tasks.graph_coloring`.
        problems: makes all of its problems.
        held_out: how many of them are never trained on.
        columns: what the reward reads of a problem.
    """

    module: Any
    problems: Callable[[], Sequence[Any]]
    held_out: int
    columns: Callable[[Any], dict[str, Any]]


def _countdown_columns(problem: countdown.Problem) -> dict[str, Any]:
    return {"numbers": list(problem.numbers), "target": problem.target, "whole_steps": problem.whole_steps}


def _coloring_columns(problem: graph_coloring.Problem) -> dict[str, Any]:
    return {"edges": [list(edge) for edge in problem.edges], "partial": problem.partial}


TASKS = {
    "countdown": TaskDataset(countdown, countdown.problems, 87, _countdown_columns),
    "countdown-4": TaskDataset(countdown, lambda: countdown.problems(countdown.MODEBENCH_4), 512, _countdown_columns),
    "countdown-wide": TaskDataset(countdown, lambda: countdown.problems(countdown.WIDE), 512, _countdown_columns),
    "graph-coloring": TaskDataset(
        graph_coloring, lambda: graph_coloring.problems(5, sample=5000), 512, _coloring_columns
    ),
}


def find_task(name: str) -> TaskDataset:
    """Return a task by its name, with or without `task:`.

    Raises:
        ValueError: if there is none.
    """
    short = name.removeprefix(PREFIX)
    if short not in TASKS:
        raise ValueError(f"Expected one of {', '.join(PREFIX + each for each in TASKS)}, got {name!r}.")
    return TASKS[short]


@cache
def split_problems(name: str, held_out: int | None = None) -> Split[Any]:
    """Return a task's problems in hash order; the demo holds out the same ones.

    Args:
        name: of the task.
        held_out: how many problems are held out, if not the task's own number.
    """
    task = find_task(name)
    return split(task.problems(), held_out=task.held_out if held_out is None else held_out, seed=0)


def build_task_dataset(name: str, part: str, *, boxed: bool) -> Dataset:
    r"""Return a task's problems as rows: the prompt and what its reward reads.

    Args:
        name: of the task.
        part: "train", or "test" for the problems that are held out.
        boxed: ask in plain language for an answer in \boxed{...}, instead of by the compact prompt.

    Raises:
        ValueError: if there is no such task or part.
    """
    task = find_task(name)
    if part not in ("train", "test"):
        raise ValueError(f"Expected the split train or test of {name}, got {part!r}.")
    sides = split_problems(name)
    problems = sides.train if part == "train" else sides.held_out
    return Dataset.from_list([{"prompt": task.module.prompt(p, boxed=boxed), **task.columns(p)} for p in problems])
