"""Rollouts as people have them in files: one group per line, or one completion per line with a column of groups."""

import gzip
import json
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maxent_grpo.groups import answer_keys, pad_groups

GROUPS = ("group", "uid", "prompt_id", "prompt", "input")
REWARDS = ("reward", "score")
TEXTS = ("text", "completion", "output", "response")
_LONGEST = 60
_TRL = frozenset({"step", "prompt", "completion", "advantage", "target_weight", "coefficient"})
"""Columns of TRL's table of completions, `log_completions`, in which a reward's column is named for its function."""


@dataclass(frozen=True)
class Columns:
    """The columns of a file with one completion per line; None takes the first of the usual names that is there."""

    group: str | None = None
    reward: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Rollouts:
    """Groups read from a file, padded: float64 [G, K] and bool [G, K]; None where the file has no such entries.

    `texts` are lists of G, one text per candidate.
    """

    rewards: Tensor
    present: Tensor
    scored: Tensor
    lengths: Tensor
    ref_logps: Tensor | None
    keys: Tensor | None
    texts: list[list[str]] | None


def read_rollouts(file: Path, columns: Columns | None = None) -> Rollouts:
    """Return the groups of a file, or of all files in a folder.

    Raises:
        ValueError: naming the line and the entry, on anything that is not a group, or entries of unequal lengths.
    """
    files = sorted(path for path in file.iterdir() if path.is_file()) if file.is_dir() else [file]
    groups = _list_groups(files, columns or Columns())
    if not groups:
        raise ValueError(f"Expected at least one group, got none in {file}.")
    for name in ("texts", "ref_logps", "lengths"):
        if len({name in group for group in groups}) > 1:
            raise ValueError(f"Expected {name!r} in every group of {file} or in none.")
    sizes = [len(group["rewards"]) for group in groups]

    def pad_entry(name: str) -> Tensor | None:
        if name not in groups[0]:
            return None
        return pad_groups(
            torch.tensor([value for group in groups for value in group[name]], dtype=torch.float64), sizes
        )[0]

    rewards, lengths = pad_entry("rewards"), pad_entry("lengths")
    assert rewards is not None
    present = pad_groups(torch.ones(sum(sizes)), sizes)[1]
    keys = texts = None
    if "texts" in groups[0]:
        texts = [group["texts"] for group in groups]
        keys = pad_groups(answer_keys([text for group in texts for text in group]), sizes)[0]
    return Rollouts(
        rewards=rewards,
        present=present,
        scored=present & ~rewards.isnan(),
        lengths=present.to(torch.float64) if lengths is None else lengths,
        ref_logps=pad_entry("ref_logps"),
        keys=keys,
        texts=texts,
    )


def _list_groups(files: Sequence[Path], columns: Columns) -> list[dict[str, list[Any]]]:
    """Return the groups of files with their entries checked, missing rewards as NaN."""
    groups: list[dict[str, list[Any]]] = []
    for file in files:
        collected: dict[str, dict[str, list[Any]]] = {}
        for where, row in _read_rows(file):
            if isinstance(row.get("rewards"), list) and row["rewards"]:
                groups.append(_check_group(row, where))
            else:
                _collect_completion(row, columns, where, collected)
        groups += [_check_group(group, f"{file}, group {name[:_LONGEST]}") for name, group in collected.items()]
    return groups


def _read_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each row stands, and the row. A line ends at a line feed alone: texts hold other separators."""
    if file.suffix.lower() == ".parquet":
        yield from ((f"{file}, row {number}", row) for number, row in enumerate(_read_parquet(file), 1))
        return
    opener = gzip.open if file.suffix.lower() == ".gz" else open
    number = 0
    try:
        with opener(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield f"{file}:{number}", _parse_row(text.rstrip("\r\n"), f"{file}:{number}")
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected UTF-8 at {file}:{number}, got {error}.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"Expected a whole gzip file, got {file} that ends after line {number}: {error}.") from error
    except OSError as error:
        raise ValueError(f"Expected a file of rollouts, got {file}: {error.strerror}.") from error


def _read_parquet(file: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid, parquet  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("A .parquet file needs pyarrow: pip install pyarrow") from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
    except ArrowInvalid as error:
        raise ValueError(f"Expected a parquet file, got {file}: {error}.") from error
    return rows


def _parse_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of 5000 digits and deep nesting are no JSONDecodeError
        raise ValueError(f"Expected a JSON object at {where}, got {line[:_LONGEST]!r} ({error}).") from error
    if not isinstance(row, dict):
        raise ValueError(f"Expected an object at {where}, got {line[:_LONGEST]!r}.")
    return row


def _collect_completion(row: dict[str, Any], columns: Columns, where: str, groups: dict[str, Any]) -> None:
    """Put one completion into its group; groups of another step are others."""
    reward = _choose_column(row, columns.reward, REWARDS)
    others = row.keys() - _TRL
    if reward is None and columns.reward is None and len(others) == 1 and {"step", "advantage"} <= row.keys():
        (reward,) = others
    group = _choose_column(row, columns.group, GROUPS)
    if reward is None or group is None:
        missing = "rewards" if reward is None else "group"
        raise ValueError(
            f"Expected an object with a non-empty list 'rewards', or a completion's reward and group (--reward, "
            f"--group) at {where}, got no {missing} among {', '.join(map(repr, row)) or 'nothing'}."
        )
    entries = groups.setdefault(json.dumps([row.get("step"), row[group]], default=str), {"rewards": []})
    entries["rewards"].append(row[reward])
    text = _choose_column(row, columns.text, TEXTS)
    if text is not None:
        written = row[text] if isinstance(row[text], str) else json.dumps(row[text], default=str)
        entries.setdefault("texts", []).append(written)


def _choose_column(row: dict[str, Any], column: str | None, usual: tuple[str, ...]) -> str | None:
    return next((name for name in ((column,) if column else usual) if name in row), None)


def _check_group(group: dict[str, Any], where: str) -> dict[str, list[Any]]:
    """Return one group, every entry checked, missing rewards as NaN."""
    size = len(group["rewards"])
    group["rewards"] = [math.nan if reward is None else reward for reward in group["rewards"]]
    for name in [name for name in _ENTRIES if name in group]:
        values = group[name]
        if not isinstance(values, list) or len(values) != size:
            raise ValueError(f"Expected {size} {name!r} at {where}, as many as rewards, got {_shorten(values)}.")
        for value in values:
            if (expected := _describe_expected(name, value)) is not None:
                raise ValueError(f"Expected {name!r} {expected} at {where}, got {_shorten(value)}.")
    return group


_ENTRIES: dict[str, tuple[type, ...]] = {
    "rewards": (int, float),
    "ref_logps": (int, float),
    "lengths": (int,),
    "texts": (str,),
}


def _describe_expected(name: str, value: object) -> str | None:
    """Return what one value of an entry should have been, None if it is all right."""
    kinds = _ENTRIES[name]
    if not isinstance(value, kinds):
        return f"of type {kinds[-1].__name__}"
    if not isinstance(value, (int, float)):
        return None
    if not -sys.float_info.max <= value <= sys.float_info.max:  # an integer can be too large for isfinite itself
        unscored = name == "rewards" and isinstance(value, float) and math.isnan(value)
        return None if unscored else "to be finite"
    return "to be at least 1" if name == "lengths" and value < 1 else None


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
