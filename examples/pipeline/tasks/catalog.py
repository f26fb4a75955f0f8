"""The tasks by name: the problems of each, how many of them are held out, and what a reward reads of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from maxent_grpo.pipeline.tasks import countdown, geography, graph_coloring
from maxent_grpo.pipeline.tasks.splits import Split, read_id, split

PREFIX = "task:"


@dataclass(frozen=True)
class KnownTask:
    """A task's problems and what its rewards need to know of one.

    Attributes:
        module: `tasks.countdown`, `tasks.graph_coloring` or `tasks.geography`.
        problems: makes all of its problems.
        held_out: how many of them are never trained on.
        columns: what the reward reads of a problem.
        entity: what a problem is about: those on one are all held out, or none of them.
    """

    module: Any
    problems: Callable[[], Sequence[Any]]
    held_out: int
    columns: Callable[[Any], dict[str, Any]]
    entity: Callable[[Any], str] = read_id


def _list_countdown_columns(problem: countdown.Problem) -> dict[str, Any]:
    return {"numbers": list(problem.numbers), "target": problem.target, "whole_steps": problem.whole_steps}


def _list_coloring_columns(problem: graph_coloring.Problem) -> dict[str, Any]:
    return {"edges": [list(edge) for edge in problem.edges], "partial": problem.partial}


def _list_geography_columns(problem: geography.Problem) -> dict[str, Any]:
    return {"answers": [{"name": mode, "spellings": list(spellings)} for mode, spellings in problem.answers]}


def _read_entity(problem: geography.Problem) -> str:
    return problem.entity


TASKS = {
    "countdown": KnownTask(countdown, countdown.problems, 87, _list_countdown_columns),
    "countdown-4": KnownTask(
        countdown, lambda: countdown.problems(countdown.MODEBENCH_4), 512, _list_countdown_columns
    ),
    "countdown-wide": KnownTask(countdown, lambda: countdown.problems(countdown.WIDE), 512, _list_countdown_columns),
    "graph-coloring": KnownTask(
        graph_coloring, lambda: graph_coloring.problems(5, sample=5000), 512, _list_coloring_columns
    ),
    "name-one": KnownTask(geography, geography.list_name_one, 96, _list_geography_columns, _read_entity),
    "capitals": KnownTask(geography, geography.list_capitals, 96, _list_geography_columns),
}


def find_task(name: str) -> KnownTask:
    """Return a task by its name, with or without `task:`.

    Raises:
        ValueError: if there is none.
    """
    short = name.removeprefix(PREFIX)
    if short not in TASKS:
        raise ValueError(f"Expected one of {', '.join(PREFIX + known for known in TASKS)}, got {name!r}.")
    return TASKS[short]


@cache
def list_problems(name: str) -> tuple[Any, ...]:
    """Return all problems of a task; to enumerate them takes seconds, once."""
    return tuple(find_task(name).problems())


@cache
def split_problems(name: str, held_out: int | None = None) -> Split[Any]:
    """Return a task's problems in hash order, those to train on and those that are held out.

    Args:
        name: of the task.
        held_out: how many problems are held out, if not the task's own number.
    """
    number = find_task(name).held_out if held_out is None else held_out
    return split(list_problems(name), held_out=number, seed=0, entity=find_task(name).entity)
