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


USUAL = ("ground_truth", "answer", "solution", "target", "value", "text")
"""Fields that hold a solution, as people name them."""


def expect_column(name: str, values: Iterable[Any], source: str) -> None:
    """Check that a column holds what the registered functions take it for; None is for others to judge.

    Raises:
        ValueError: naming the dataset, the column, its type and the first row that is of another one.
    """
    kind = KINDS.get(name)
    for row, value in enumerate(values if kind else ()):
        if kind and value is not None and not kind.holds(value):
            field = _find_field(value, kind)
            raise ValueError(
                f"Expected column {name!r} of {kind.words} in dataset {source!r}, got {type(value).__name__} "
                f"{str(value)[:60]!r} in row {row}"
                + (f"; columns: {{{name}: {name}.{field}}} names one of its fields." if field else ".")
            )


def _find_field(value: Any, kind: Kind) -> str | None:
    """Return the field that is likely meant of a value that has several."""
    fields = [field for field, entry in value.items() if kind.holds(entry)] if isinstance(value, dict) else []
    return next((field for field in USUAL if field in fields), next(iter(fields), None))
