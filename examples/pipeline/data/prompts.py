"""The prompts of a run: its sources mixed, checked, formatted and cut."""

import logging
from collections.abc import Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from maxent_grpo import answer_keys
from maxent_grpo.adapters import KeyFunction
from maxent_grpo.pipeline.arguments import GRPOScriptArguments
from maxent_grpo.pipeline.data.chats import describe_bad_prompt, read_content, read_message
from maxent_grpo.pipeline.data.columns import expect_column
from maxent_grpo.pipeline.data.sources import Source, list_eval_sources, list_train_sources, load_source
from maxent_grpo.pipeline.rewards import Reward
from maxent_grpo.pipeline.run import Run

logger = logging.getLogger(__name__)
BATCH = 1000
"""Prompts that are encoded at once."""


def load_prompts(run: Run) -> tuple[Dataset, Dataset | None]:
    """Return the rows to train on and, if the run evaluates, those to evaluate on.

    Raises:
        ValueError: naming the recipe, the dataset and the column, where one is missing, empty or unreadable.
    """
    script, seed = run.script, run.training.seed
    try:
        train, evaluation = _load_parts(run)
    except ValueError as error:
        raise type(error)(f"{run.where}: {error}") from error
    if evaluation is not None and 0 < script.eval_limit < len(evaluation):
        evaluation = evaluation.shuffle(seed=seed).select(range(script.eval_limit))
    if run.training.process_index == 0:
        _warn_long_prompts([train] if evaluation is None else [train, evaluation], script.max_prompt_chars)
    return _format_rows(train, script), None if evaluation is None else _format_rows(evaluation, script)


def _load_parts(run: Run) -> tuple[Dataset, Dataset | None]:
    script, seed = run.script, run.training.seed
    sources = list_train_sources(script)
    if not run.training.do_eval:
        return _mix_sources(sources, script, run.functions, seed), None
    if script.eval_share:
        return _hold_out(_mix_sources(sources, script, run.functions, seed), script.eval_share, seed)
    eval_sources = list_eval_sources(script)  # it refuses what is trained on, before either is read
    train, evaluation = (_mix_sources(each, script, run.functions, seed) for each in (sources, eval_sources))
    return train, evaluation


def load_rows(script: GRPOScriptArguments, functions: Sequence[Reward | KeyFunction]) -> Dataset:
    """Return the rows of the sources to train on: a `prompt` in its format, and the columns that rewards read.

    Raises:
        ValueError: naming the dataset and the column, where one is missing, empty or unreadable.
    """
    mixed = _mix_sources(list_train_sources(script), script, functions, seed=0)
    _warn_long_prompts([mixed], script.max_prompt_chars)
    return _format_rows(mixed, script)


def _mix_sources(
    sources: Sequence[Source], script: GRPOScriptArguments, functions: Sequence[Reward | KeyFunction], seed: int
) -> Dataset:
    """Return the rows of all sources, checked, under the names that prompts and rewards need."""
    needed = {"prompt"}.union(*(function.columns or () for function in functions))
    typed = (needed - {"prompt"}) | ({"whole_steps"} if "target" in needed else set())
    parts = []
    for source in sources:
        rows = _rename_columns(source, load_source(source, script), needed)
        for name in sorted(typed & set(rows.column_names)):
            expect_column(name, rows[name], source.path)
        parts.append(_keep_whole_rows(source, rows, needed, script))
    shared = set.intersection(*(set(part.column_names) for part in parts))
    if all(function.columns is not None for function in functions):
        shared &= needed | {"whole_steps"}
    elif left_out := {name for part in parts for name in part.column_names} - shared:
        logger.warning("Columns that not all datasets have are left out: %s.", ", ".join(sorted(left_out)))
    parts = [part.select_columns([name for name in part.column_names if name in shared]) for part in parts]
    for source, part in zip(sources, parts, strict=True):
        for name in sorted(shared):
            if part.features[name] != parts[0].features[name]:
                raise ValueError(
                    f"Expected column {name!r} of one type in all datasets ({parts[0].features[name]} in "
                    f"{sources[0].path!r}), got {part.features[name]} in {source.path!r}."
                )
    return concatenate_datasets(_sample_by_weight(parts, sources, seed))


def _rename_columns(source: Source, rows: Dataset, needed: set[str]) -> Dataset:
    """Return the rows with the columns under the names that prompts and rewards need; a.b is field b of column a."""
    if any("." in own and own not in rows.column_names for own in source.columns.values()):
        rows = rows.flatten()
    for name, own in ({name: name for name in sorted(needed)} | source.columns).items():
        if own not in rows.column_names:
            columns = ", ".join(rows.column_names)
            raise ValueError(f"Expected column {own!r} (for {name}) in dataset {source.path!r}, got {columns}.")
    new_names = {own: name for name, own in source.columns.items() if own != name}
    # A column that has the name already would clash with the one that gets it.
    rows = rows.remove_columns([name for name in new_names.values() if name in rows.column_names])
    return rows.rename_columns(new_names)


def _keep_whole_rows(source: Source, rows: Dataset, needed: set[str], script: GRPOScriptArguments) -> Dataset:
    """Return the rows that hold all that rewards need; refuse prompts that are none."""
    chat = script.prompt_format == "chat"
    for place, prompt in enumerate(rows["prompt"]):
        if problem := describe_bad_prompt(prompt, chat=chat):
            raise ValueError(
                f"Expected prompts of text{', or chats whose messages have role and content' * chat}, in "
                f"dataset {source.path!r}, got {str(prompt)[:80]!r} in row {place} ({problem}; "
                f"prompt_format={script.prompt_format})."
            )
    columns = {name: rows[name] for name in needed - {"prompt"}}
    complete = [row for row in range(len(rows)) if not any(_is_missing(values[row]) for values in columns.values())]
    if len(complete) == len(rows):
        return rows
    names = ", ".join(sorted(columns))
    if not complete:
        raise ValueError(f"Expected {names} in dataset {source.path!r}, got none in all {len(rows)} rows.")
    left_out = len(rows) - len(complete)
    logger.warning(
        "%d of %d rows of dataset %r are left out: they have no %s.", left_out, len(rows), source.path, names
    )
    return rows.select(complete)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _sample_by_weight(parts: Sequence[Dataset], sources: Sequence[Source], seed: int) -> list[Dataset]:
    """Return a seeded sample of each part, in shares of the weights, as many rows as no part has to repeat."""
    weights = [source.weight for source in sources if source.weight is not None]
    if not weights:
        return list(parts)
    rows = min(len(part) / weight for part, weight in zip(parts, weights, strict=True))
    return [
        part.shuffle(seed=seed).select(range(max(1, round(rows * weight))))
        for part, weight in zip(parts, weights, strict=True)
    ]


def _hold_out(rows: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Return the rows without and with a share of the prompts: a prompt that occurs twice is on one side only."""
    keys = answer_keys([f"{seed} {prompt}" for prompt in rows["prompt"]]).tolist()
    is_held_out = [key < share * 2**64 - 2**63 for key in keys]  # keys are uniform over the signed 64-bit integers
    if all(is_held_out) or not any(is_held_out):
        raise ValueError(
            f"Expected eval_share to part {len(rows)} rows, got {sum(is_held_out)} of them with {share}."
        )
    train, evaluation = ([row for row, held in enumerate(is_held_out) if held == side] for side in (False, True))
    return rows.select(train), rows.select(evaluation)


def _warn_long_prompts(parts: Sequence[Dataset], limit: int) -> None:
    lengths = [len(_read_question(prompt)) for part in parts for prompt in part["prompt"]]
    if too_long := sum(length > limit for length in lengths):
        logger.warning(
            "%d of %d prompts are longer than max_prompt_chars=%d and were cut.", too_long, len(lengths), limit
        )


def _read_question(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else read_content(prompt[-1].get("content"))


def _format_rows(rows: Dataset, script: GRPOScriptArguments) -> Dataset:
    chat = script.prompt_format == "chat"
    settings = {"limit": script.max_prompt_chars, "chat": chat, "system": script.system_prompt}
    return rows.map(_format_row, fn_kwargs=settings, remove_columns=["prompt"], load_from_cache_file=False)


def _format_row(row: dict[str, Any], limit: int, chat: bool, system: str | None) -> dict[str, Any]:
    """Return the prompt as the trainer takes it: a text, or a chat that ends with the user's message."""
    prompt = row["prompt"]
    if not chat:
        return {"prompt": prompt[:limit]}
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = [read_message(message) for message in messages]
    messages[-1]["content"] = messages[-1]["content"][:limit]
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return {"prompt": messages}


def expect_tokens(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Expect at least one token of every text; a chat's template always has some.

    Raises:
        ValueError: with the first prompt of which the tokenizer knows nothing.
    """
    for start in range(0, len(rows), BATCH):
        prompts = [prompt for prompt in rows[start : start + BATCH]["prompt"] if isinstance(prompt, str)]
        if not prompts:
            return
        for prompt, ids in zip(prompts, tokenizer(prompts)["input_ids"], strict=True):
            if not ids:
                raise ValueError(
                    f"Expected prompts of which the model's tokenizer knows a token, got prompt={prompt!r}."
                )
