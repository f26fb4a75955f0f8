"""The prompts of a run: from the Hub, local files or a task; mixed, checked, formatted and cut."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, load_dataset, load_from_disk

from rewards import Reward
from training.arguments import GRPOScriptArguments, Run
from training.task_datasets import PREFIX, task_dataset

logger = logging.getLogger(__name__)

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class Source:
    """One dataset of a mixture.

    Attributes:
        path: a dataset of the Hub, a .jsonl, .json, .parquet or .csv file, a folder of `save_to_disk`, or
            `task:NAME`.
        name: its configuration.
        split: its split.
        data_files: files of it, as in `datasets.load_dataset`.
        weight: share of the mixture; unset in all sources, they are joined whole.
        columns: from the names that are needed (`prompt`, `solution`, …) to its own.
    """

    path: str
    name: str | None = None
    split: str = "train"
    data_files: Any = None
    weight: float | None = None
    columns: dict[str, str] = field(default_factory=dict)


def prompts_of(run: Run) -> tuple[Dataset, Dataset | None]:
    """Return the rows to train on and, if the run evaluates, those to evaluate on.

    Raises:
        ValueError: naming the recipe, the dataset and the column, where one is missing, empty or unreadable.
    """
    script, where = run.script, run.recipe or "command line"
    try:
        train = rows_of(script, run.rewards)
        if not run.training.do_eval:
            return train, None
        evaluated = _rows(_eval_sources(script), script, run.rewards)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if 0 < script.eval_limit < len(evaluated):
        evaluated = evaluated.shuffle(seed=run.training.seed).select(range(script.eval_limit))
    return train, evaluated


def rows_of(script: GRPOScriptArguments, rewards: Sequence[Reward]) -> Dataset:
    """Return the rows to train on: a `prompt` in its format, and the columns that rewards read.

    Raises:
        ValueError: naming the dataset and the column, where one is missing, empty or unreadable.
    """
    return _rows(_train_sources(script), script, rewards)


def _train_sources(script: GRPOScriptArguments) -> list[Source]:
    if script.datasets:
        return [_source(entry, "datasets") for entry in script.datasets]
    return [_named_source(script, script.dataset_train_split)]


def _eval_sources(script: GRPOScriptArguments) -> list[Source]:
    if script.eval_datasets:
        return [_source(entry, "eval_datasets") for entry in script.eval_datasets]
    return [_named_source(script, script.dataset_test_split)]


def _named_source(script: GRPOScriptArguments, split: str) -> Source:
    if not script.dataset_name:
        raise ValueError("Expected dataset_name or datasets, got neither.")
    columns = {"prompt": script.prompt_column}
    if script.solution_column:
        columns["solution"] = script.solution_column
    return Source(script.dataset_name, name=script.dataset_config, split=split, columns=columns)


def _source(entry: Any, name: str) -> Source:
    known = [each.name for each in fields(Source)]
    if not isinstance(entry, dict) or "path" not in entry or set(entry) - set(known):
        raise ValueError(f"Expected entries of {name} with path and any of {', '.join(known[1:])}, got {entry!r}.")
    return Source(**entry)


def _rows(sources: Sequence[Source], script: GRPOScriptArguments, rewards: Sequence[Reward]) -> Dataset:
    """Return the prompts of all sources in one format."""
    needed = {"prompt"}.union(*(reward.columns or () for reward in rewards))
    parts = [_with_columns(source, _loaded(source, script), needed) for source in sources]
    shared = set.intersection(*(set(part.column_names) for part in parts))
    if all(reward.columns is not None for reward in rewards):
        shared &= needed | {"whole_steps"}
    parts = [part.select_columns([name for name in part.column_names if name in shared]) for part in parts]
    mixed = concatenate_datasets(_weighted(parts, sources))
    too_long = sum(len(_asked(prompt)) > script.max_prompt_chars for prompt in mixed["prompt"])
    if too_long:
        logger.warning(
            "%d of %d prompts are longer than max_prompt_chars=%d and were cut.",
            *(too_long, len(mixed), script.max_prompt_chars),
        )
    settings = {
        "limit": script.max_prompt_chars,
        "chat": script.prompt_format == "chat",
        "system": script.system_prompt,
    }
    return mixed.map(_formatted, fn_kwargs=settings, remove_columns=["prompt"], load_from_cache_file=False)


def _loaded(source: Source, script: GRPOScriptArguments) -> Dataset:
    path = Path(source.path)
    try:
        if source.path.startswith(PREFIX):
            return task_dataset(source.path, source.split, boxed=script.prompt_format == "chat")
        if path.is_dir() and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            saved = load_from_disk(source.path)
            return saved if isinstance(saved, Dataset) else saved[source.split]
        if path.suffix in BUILDERS:
            if not path.exists():
                raise ValueError("no such file")
            if path.stat().st_size == 0:
                raise IndexError("no data")
            return load_dataset(BUILDERS[path.suffix], data_files=str(path), split="train")
        return load_dataset(source.path, source.name, data_files=source.data_files, split=source.split)
    except Exception as error:  # whatever the Hub client, the readers of formats or a missing split may raise
        if isinstance(error, IndexError) or "no data" in str(error):  # so `datasets` says that there are no rows
            raise ValueError(f"Expected prompts in dataset {source.path!r}, got 0 rows.") from error
        wanted = f"dataset {source.path!r}, split {source.split!r}"
        raise ValueError(f"Expected a {wanted}, got {type(error).__name__}: {_first_line(error)}") from error


def _with_columns(source: Source, rows: Dataset, needed: set[str]) -> Dataset:
    """Return the rows with the columns under the names that prompts and rewards need."""
    for name, own in ({name: name for name in sorted(needed)} | source.columns).items():
        if own not in rows.column_names:
            found = ", ".join(rows.column_names)
            raise ValueError(f"Expected column {own!r} (for {name}) in dataset {source.path!r}, got {found}.")
    taken = {own: name for name, own in source.columns.items() if own != name}
    rows = rows.remove_columns([name for name in taken.values() if name in rows.column_names])
    return rows.rename_columns(taken)


def _weighted(parts: Sequence[Dataset], sources: Sequence[Source]) -> list[Dataset]:
    """Return a seeded sample of each part, in shares of the weights, as many rows as no part has to repeat."""
    weights = [source.weight for source in sources if source.weight is not None]
    if not weights:
        return list(parts)
    if len(weights) != len(parts) or min(weights) <= 0:
        raise ValueError(
            f"Expected weight > 0 in all sources or in none, got {[source.weight for source in sources]}."
        )
    rows = min(len(part) / weight for part, weight in zip(parts, weights, strict=True))
    return [
        part.shuffle(seed=0).select(range(max(1, round(rows * weight))))
        for part, weight in zip(parts, weights, strict=True)
    ]


def _asked(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _formatted(row: dict[str, Any], limit: int, chat: bool, system: str | None) -> dict[str, Any]:
    """Return the prompt as the trainer takes it: a text, or a chat that ends with the user's message."""
    prompt = row["prompt"]
    if not chat:
        if not isinstance(prompt, str):
            raise ValueError(f"Expected prompts of text with prompt_format=text, got {type(prompt).__name__}.")
        return {"prompt": prompt[:limit]}
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = [{"role": each["role"], "content": each["content"]} for each in messages]
    messages[-1]["content"] = messages[-1]["content"][:limit]
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return {"prompt": messages}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]
