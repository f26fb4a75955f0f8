"""Where prompts come from: the Hub, local files, folders of `save_to_disk`, and tasks; checked, then read."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk

from maxent_grpo.pipeline.arguments import GRPOScriptArguments
from maxent_grpo.pipeline.data.tasks import build_task_dataset
from maxent_grpo.pipeline.schema import expect_fields
from maxent_grpo.pipeline.tasks.catalog import PREFIX

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


class UnreachableError(ValueError):
    """The Hub does not answer, so that nothing is known of a dataset."""


@dataclass(frozen=True)
class Source:
    """One dataset of a mixture.

    Attributes:
        path: a dataset of the Hub, a .jsonl, .json, .parquet or .csv file, a folder of `save_to_disk`, or
            `task:NAME`.
        name: its configuration.
        split: its split; a single file and a folder of one `Dataset` have but "train".
        data_files: files of it, as in `datasets.load_dataset`.
        weight: share of the mixture; where no source has one, all are joined whole.
        columns: from the names that are needed (`prompt`, `solution`, …) to its own.
    """

    path: str
    name: str | None = None
    split: str = "train"
    data_files: Any = None
    weight: float | None = None
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[str, str]:
        """What two sources of the same rows have in common."""
        path = Path(self.path)
        place = str(path.resolve()) if path.exists() else self.path
        return place, str([self.name, self.split, self.data_files])


def find_builder(path: str) -> str | None:
    """Return the format of a file by its name, compressed or not, in capitals or not; None of other names.

    >>> find_builder("a/rows.JSONL"), find_builder("rows.v2.csv.gz"), find_builder("org/name")
    ('json', 'csv', None)
    """
    name = Path(path.lower())
    suffix = name.with_suffix("").suffix if name.suffix in COMPRESSED else name.suffix
    return BUILDERS.get(suffix)


def has_one_split(path: str) -> bool:
    """Return whether a path is a single file, or a folder of a `Dataset` without splits."""
    return find_builder(path) is not None or (Path(path) / "state.json").exists()


def list_train_sources(script: GRPOScriptArguments) -> list[Source]:
    """Return what is trained on.

    Raises:
        ValueError: naming the field, on sources that cannot be.
    """
    if script.datasets:
        return _read_sources(script.datasets, "datasets")
    if not script.dataset_name:
        raise ValueError("Expected dataset_name or datasets, got neither.")
    return [_make_source(script, "dataset_train_split")]


def list_eval_sources(script: GRPOScriptArguments) -> list[Source]:
    """Return what is evaluated on, where no share of the prompts to train on is held out for that.

    Raises:
        ValueError: naming the field, if there are none or they are trained on.
    """
    field = "eval_datasets"
    if script.eval_datasets:
        sources = _read_sources(script.eval_datasets, field)
    elif script.datasets:
        raise ValueError("Expected eval_datasets or eval_share with datasets and do_eval=True, got neither.")
    else:
        field = "dataset_test_split"
        sources = [_make_source(script, field)]
    trained_rows = {source.rows for source in list_train_sources(script)}
    for source in sources:
        if source.rows in trained_rows:
            raise ValueError(
                f"Expected {field} to name rows that are not trained on, or eval_share > 0, got dataset "
                f"{source.path!r}, split {source.split!r} in both."
            )
    return sources


def _make_source(script: GRPOScriptArguments, field: str) -> Source:
    columns = {"prompt": script.prompt_column}
    if script.solution_column:
        columns["solution"] = script.solution_column
    split = getattr(script, field)
    return _expect_source(Source(script.dataset_name, script.dataset_config, split, columns=columns), field)


def _read_sources(entries: Sequence[dict[str, Any]], name: str) -> list[Source]:
    sources = []
    for place, entry in enumerate(entries):
        if "path" not in entry:
            raise ValueError(f"Expected path in {name}[{place}], got {', '.join(map(str, entry)) or 'nothing'}.")
        expect_fields(entry, [Source], f"{name}[{place}]: ", "a dataset")
        sources.append(_expect_source(Source(**entry), f"{name}[{place}].split"))
    weights = [source.weight for source in sources]
    if any(weight is not None for weight in weights) and not all(_is_share(weight) for weight in weights):
        raise ValueError(f"{name}: Expected weight > 0 in all sources or in none, got {weights}.")
    return sources


def _is_share(weight: float | None) -> bool:
    return weight is not None and weight > 0 and math.isfinite(weight)


def _expect_source(source: Source, field: str) -> Source:
    path = Path(source.path)
    is_local = path.is_absolute() or source.path.startswith(".") or ("://" not in source.path and len(path.parts) > 2)
    if (is_local or find_builder(source.path)) and not path.exists():
        raise ValueError(f"Expected a dataset, got {source.path!r}: no such file or folder.")
    if path.is_file() and not find_builder(source.path):
        raise ValueError(f"Expected a dataset in a file of {', '.join(BUILDERS)}, got {source.path!r}.")
    if has_one_split(source.path) and source.split != "train":
        raise ValueError(
            f"Expected {field}='train' of {source.path!r}, which has no other rows (eval_datasets or eval_share say "
            f"what else to evaluate on), got {field}={source.split!r}."
        )
    columns = list(source.columns.values())
    if len(set(columns)) < len(columns):
        raise ValueError(f"Expected a column each in dataset {source.path!r}, got columns={source.columns}.")
    return source


def load_source(source: Source, script: GRPOScriptArguments) -> Dataset:
    """Return the rows of a source as they are.

    Raises:
        UnreachableError: if it is on the Hub, and the Hub does not answer.
        ValueError: naming the dataset, if it is missing, empty or unreadable.
    """
    nothing = f"Expected prompts in dataset {source.path!r}, got 0 rows."
    try:
        rows = _read_rows(source, script)
    except Exception as error:  # whatever the Hub client, the readers of formats or a missing split may raise
        if isinstance(error, IndexError) or "no data" in str(error):  # so `datasets` says that there are no rows
            raise ValueError(nothing) from error
        cause = error.__cause__ or error  # `datasets` says only that it failed
        kind = UnreachableError if isinstance(error, ConnectionError | TimeoutError) else ValueError
        name = f"dataset {source.path!r}, split {source.split!r}"
        raise kind(f"Expected a {name}, got {type(cause).__name__}: {_read_first_line(cause)}") from error
    if not len(rows):
        raise ValueError(nothing)
    return rows


def _read_rows(source: Source, script: GRPOScriptArguments) -> Dataset:
    path, settings = Path(source.path), asdict(source)
    if source.path.startswith(PREFIX):
        return build_task_dataset(source.path, source.split, boxed=script.prompt_format == "chat")
    if path.is_dir() and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        saved = load_from_disk(source.path)
        return saved if isinstance(saved, Dataset) else saved[source.split]
    if builder := find_builder(source.path):
        if path.stat().st_size == 0:
            return Dataset.from_dict({})
        _expect_utf8(path)
        return load_dataset(builder, data_files=str(path), split="train")
    return load_dataset(source.path, **{name: settings[name] for name in ("name", "data_files", "split")})


def _expect_utf8(path: Path) -> None:
    """Refuse text that is not UTF-8 by its row: the readers of `datasets` fail while they describe it."""
    if path.suffix.lower() not in (".jsonl", ".json", ".csv"):
        return
    with path.open("rb") as file:
        for row, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                problem = f"byte {error.start + 1} is 0x{line[error.start]:02x}"
                raise ValueError(f"no UTF-8 in line {row}, {problem}") from None


def _read_first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]
