"""The types of columns that registered rewards and key functions read: in another a right answer would be wrong."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What a column holds: in words, and as a check of one value."""

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(holds, value))


def _is_pair(value: Any) -> bool:
    return _is_list(value, _is_whole) and len(value) == 2


KINDS = {
    "solution": Kind("texts", lambda value: isinstance(value, str) or _is_whole(value) or isinstance(value, float)),
    "numbers": Kind("lists of whole numbers", lambda value: _is_list(value, _is_whole)),
    "target": Kind("whole numbers", _is_whole),
    "whole_steps": Kind("truth values", lambda value: isinstance(value, bool)),
    "edges": Kind("lists of pairs of whole numbers", lambda value: _is_list(value, _is_pair)),
    "partial": Kind("texts", lambda value: isinstance(value, str)),
}


def expect_column(name: str, values: Iterable[Any], source: str) -> None:
    """Check that a column holds what the registered functions take it for; None is for others to judge.

    Raises:
        ValueError: naming the dataset, the column, its type and the first row that is of another one.
    """
    kind = KINDS.get(name)
    for row, value in enumerate(values if kind else ()):
        if kind and value is not None and not kind.holds(value):
            inside = f"; columns: {{{name}: {name}.{next(iter(value))}}} names a field" if _has_fields(value) else ""
            raise ValueError(
                f"Expected column {name!r} of {kind.words} in dataset {source!r}, got {type(value).__name__} "
                f"{str(value)[:60]!r} in row {row}{inside}."
            )


def _has_fields(value: Any) -> bool:
    return isinstance(value, dict) and len(value) > 0
