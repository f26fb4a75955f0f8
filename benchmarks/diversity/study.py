"""The whole study: warm starts, learning rates on seeds of their own, then every arm with every seed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.diversity.arms import ARMS
from benchmarks.diversity.presets import PRESETS, Preset
from benchmarks.diversity.provenance import record
from benchmarks.diversity.run import Run, work
from maxent_grpo.pipeline.frontiers import read_frontier
from maxent_grpo.pipeline.tiny.jobs import run_jobs
from maxent_grpo.pipeline.tiny.storage import Log

RATES = "learning_rates.json"
RESULTS = Path(__file__).parent / "results"


def run_study(
    root: Path, preset_name: str, arms: Sequence[str], console: Console, *, workers: int | None = None
) -> None:
    """Do everything that is not done yet. Seeds are finished one after the other, all arms of one before the next.

    Raises:
        ValueError: if the folder has runs of other sizes, or an arm has no learning rate where rates are taken over.
    """
    preset, rates = PRESETS[preset_name], None
    if preset.rates_of is not None:  # what the folder has already stays, whatever the other study tunes later
        rates = committed_rates(preset.rates_of, arms) | read_rates(root)["chosen"]
    elif len(preset.learning_rates) == 1:
        rates = dict.fromkeys(arms, preset.learning_rates[0])
    record(root, preset_name, arms)
    if rates is None:
        rates = _tune(root, preset_name, arms, console, workers)
    else:
        _write_rates(root, rates, {})
    runs = [Run(root, preset_name, arm, seed, rates[arm]) for seed in preset.seeds for arm in arms]
    _finish("warm starts", [run.warm for run in runs if not run.complete], console, workers)
    _finish("seeds", runs, console, workers)


def committed_rates(preset_name: str, arms: Sequence[str]) -> dict[str, float]:
    """Return the rates of arms in the committed results of a study that tuned them."""
    file = RESULTS / f"{preset_name}.json"
    known = with_untuned(json.loads(file.read_text())["tuning"]["chosen"])
    missing = [arm for arm in arms if arm not in known]
    if missing:
        raise ValueError(f"Expected arms whose learning rate is in {file}, got arms={missing}.")
    return {arm: known[arm] for arm in arms}


def _tune(
    root: Path, preset_name: str, arms: Sequence[str], console: Console, workers: int | None
) -> dict[str, float]:
    """Train all arms with all learning rates on the tuning seeds and return each arm's best rate."""
    preset = PRESETS[preset_name]
    tuned = list(dict.fromkeys(ARMS[arm].tuned_as or arm for arm in arms if ARMS[arm].learning_rate is None))
    tuning = [
        Run(root, preset_name, arm, seed, rate)
        for seed in preset.tuning_seeds
        for arm in tuned
        for rate in preset.learning_rates
    ]
    _finish("warm starts", [run.warm for run in tuning if not run.complete], console, workers)
    _finish("learning rates", tuning, console, workers)
    return with_untuned(learning_rates(root, preset_name, tuned))


def _finish(title: str, runs: Sequence[Run], console: Console, workers: int | None) -> None:
    left = [run for run in dict.fromkeys(runs) if not run.complete]
    if not left:
        return
    bar = (TextColumn("{task.description:<15}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*bar, TextColumn("[dim]{task.fields[news]}"), console=console) as progress:
        task = progress.add_task(title, total=len(left), news="")

        def show(entry: tuple[str, int, str]) -> None:
            name, step, news = entry
            progress.update(task, news=f"{name}: {step}, {news}")
            if news in ("done", "stopped"):
                progress.advance(task)
                console.log(f"{name}: {news}")

        run_jobs(work, left, on_news=show, workers=workers)


def evaluations(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return all logged evaluations of some runs."""
    return [row for run in runs for row in Log(run.folder / "evaluations.jsonl").rows()]


def learning_rates(root: Path, preset_name: str, arms: Sequence[str]) -> dict[str, float]:
    """Return each arm's learning rate, the best of the grid on the tuning seeds' validation problems.

    The criterion is the study's own headline, coverage@8 at a mean@8 by choice of the sampling temperature, a
    margin above the preset's level: the best rate at the level itself would be one that just reaches it, and
    misses it with other seeds. Rates with which the accuracy is out of reach come after those that reach it, by
    the highest mean@8.
    """
    table = tuning_table(root, preset_name, arms)
    chosen = {arm: max(scores, key=lambda rate: scores[rate]["score"]) for arm, scores in table.items()}
    keyed = {arm: {f"{rate:g}": each for rate, each in row.items()} for arm, row in table.items()}
    _write_rates(root, chosen, keyed)
    return chosen


def with_untuned(chosen: Mapping[str, float]) -> dict[str, float]:
    """Return the tuned arms' rates with those of the arms that take over one of them, or have one of their own."""
    shared = {name: chosen[arm.tuned_as] for name, arm in ARMS.items() if arm.tuned_as in chosen}
    given = {name: arm.learning_rate for name, arm in ARMS.items() if arm.learning_rate is not None}
    return {**chosen, **shared, **given}


def read_rates(root: Path) -> dict[str, Any]:
    """Return what `learning_rates` wrote: the chosen rate of each arm tuned so far, and the grids."""
    file = root / RATES
    return json.loads(file.read_text()) if file.exists() else {"chosen": {}, "grid": {}}


def _write_rates(root: Path, chosen: Mapping[str, float], grid: Mapping[str, Any]) -> None:
    known = read_rates(root)
    merged = {"chosen": known["chosen"] | chosen, "grid": known["grid"] | grid}
    root.mkdir(parents=True, exist_ok=True)
    (root / RATES).write_text(json.dumps(merged, indent=1) + "\n")


def tuning_table(root: Path, preset_name: str, arms: Sequence[str]) -> dict[str, dict[float, dict[str, float]]]:
    """Return what was measured of every arm and learning rate on the tuning seeds."""
    preset = PRESETS[preset_name]
    return {
        arm: {
            rate: _score([Run(root, preset_name, arm, seed, rate) for seed in preset.tuning_seeds], preset)
            for rate in preset.learning_rates
        }
        for arm in arms
    }


def _score(runs: Sequence[Run], preset: Preset) -> dict[str, float]:
    coverages, ceilings = [], []
    for run in runs:
        rows = [row for row in evaluations([run]) if row["split"] == "validation" and row["step"] == preset.updates]
        accuracy, coverage = [row["mean@8"] for row in rows], [row["coverage@8"] for row in rows]
        coverages.append(read_frontier(preset.level + preset.tuning_margin, accuracy, coverage))
        ceilings.append(max(accuracy))
    ceiling = sum(ceilings) / len(ceilings)
    reached = [each for each in coverages if each is not None]
    complete = len(reached) == len(coverages)
    score = sum(reached) / len(reached) if complete else ceiling - 1.0
    return {"score": score, "highest mean@8": ceiling}
