"""The whole study: warm starts, learning rates on seeds of their own, then every arm with every seed."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.modebench.presets import PRESETS, Preset
from benchmarks.modebench.run import WARM, Run, work
from tiny.evaluation import value_at
from tiny.jobs import run_jobs
from tiny.storage import Log


def run_study(
    root: Path, preset_name: str, arms: Sequence[str], console: Console, *, workers: int | None = None
) -> None:
    """Do everything that is not done yet. Seeds are finished one after the other, all arms of one before the next."""
    preset = PRESETS[preset_name]
    tuning = [
        Run(root, preset_name, arm, seed, rate)
        for seed in preset.tuning_seeds
        for arm in arms
        for rate in preset.learning_rates
    ]
    _finish("warm starts", [run.warm for run in tuning], console, workers)
    _finish("learning rates", tuning, console, workers)
    rates = learning_rates(root, preset_name, arms)
    runs = [Run(root, preset_name, arm, seed, rates[arm]) for seed in preset.seeds for arm in arms]
    _finish("warm starts", [run.warm for run in runs], console, workers)
    _finish("seeds", runs, console, workers)


def _finish(title: str, runs: Sequence[Run], console: Console, workers: int | None) -> None:
    left = [run for run in dict.fromkeys(runs) if not run.done]
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

    The criterion is the study's own headline: coverage@8 at the preset's level of mean@8, by choice of the
    sampling temperature. Rates with which the level is out of reach come after those that reach it, by the
    highest mean@8.
    """
    table = tuning_table(root, preset_name, arms)
    chosen = {arm: max(scores, key=lambda rate: scores[rate]["score"]) for arm, scores in table.items()}
    (root / "learning_rates.json").write_text(json.dumps({"chosen": chosen, "grid": table}, indent=2) + "\n")
    return chosen


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
        coverages.append(value_at(preset.level, accuracy, coverage))
        ceilings.append(max(accuracy))
    ceiling = sum(ceilings) / len(ceilings)
    reached = [each for each in coverages if each is not None]
    complete = len(reached) == len(coverages)
    score = sum(reached) / len(reached) if complete else ceiling - 1.0
    return {"score": score, "highest mean@8": ceiling}


__all__ = ["WARM", "evaluations", "learning_rates", "run_study", "tuning_table"]
