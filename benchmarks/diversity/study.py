"""The whole study: warm starts, learning rates on a seed of their own, then every arm with every seed."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.diversity.arms import ARMS
from benchmarks.diversity.presets import PRESETS, Preset
from benchmarks.diversity.run import Run, work
from maxent_grpo.pipeline.frontiers import read_frontier
from maxent_grpo.pipeline.tiny.jobs import run_jobs
from maxent_grpo.pipeline.tiny.storage import Log

RATES, RECORD = "learning_rates.json", "study.json"
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
        rates = read_committed_rates(preset.rates_of, arms) | read_rates(root)["chosen"]
    elif len(preset.learning_rates) == 1:
        rates = dict.fromkeys(arms, preset.learning_rates[0])
    record_study(root, preset_name)
    if rates is None:
        rates = tune_rates(root, preset_name, arms, console, workers)
    else:
        _write_rates(root, rates, {})
    runs = [Run(root, preset_name, arm, seed, rates[arm]) for seed in preset.seeds for arm in arms]
    _finish_runs("warm starts", [run.warm for run in runs if not run.complete], console, workers)
    _finish_runs("seeds", runs, console, workers)


def _finish_runs(title: str, runs: Sequence[Run], console: Console, workers: int | None) -> None:
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


def read_rates(root: Path) -> dict[str, Any]:
    """Return the learning rate of each arm tuned so far, and what was measured of every rate."""
    file = root / RATES
    return json.loads(file.read_text()) if file.exists() else {"chosen": {}, "grid": {}}


def _write_rates(root: Path, chosen: Mapping[str, float], grid: Mapping[str, Any]) -> None:
    before = read_rates(root)
    merged = {"chosen": before["chosen"] | chosen, "grid": before["grid"] | grid}
    root.mkdir(parents=True, exist_ok=True)
    (root / RATES).write_text(json.dumps(merged, indent=1) + "\n")


def share_rates(tuned: Mapping[str, float]) -> dict[str, float]:
    """Return the tuned arms' rates with those of the arms that take over one of them."""
    shared = {name: tuned[arm.tuned_as] for name, arm in ARMS.items() if arm.tuned_as in tuned}
    return {**tuned, **shared}


def read_committed_rates(preset_name: str, arms: Sequence[str]) -> dict[str, float]:
    """Return the rates of arms in the committed results of a study that tuned them."""
    file = RESULTS / f"{preset_name}.json"
    rates = share_rates(json.loads(file.read_text())["tuning"]["chosen"])
    missing = [arm for arm in arms if arm not in rates]
    if missing:
        raise ValueError(f"Expected arms whose learning rate is in {file}, got arms={missing}.")
    return {arm: rates[arm] for arm in arms}


def tune_rates(
    root: Path, preset_name: str, arms: Sequence[str], console: Console, workers: int | None
) -> dict[str, float]:
    """Train all arms with all learning rates on the tuning seeds and return each arm's best rate."""
    preset = PRESETS[preset_name]
    tuned = list(dict.fromkeys(ARMS[arm].tuned_as or arm for arm in arms))
    runs = {
        arm: {
            rate: [Run(root, preset_name, arm, seed, rate) for seed in preset.tuning_seeds]
            for rate in preset.learning_rates
        }
        for arm in tuned
    }
    everything = [run for by_rate in runs.values() for seeds in by_rate.values() for run in seeds]
    _finish_runs("warm starts", [run.warm for run in everything if not run.complete], console, workers)
    _finish_runs("learning rates", everything, console, workers)
    grid = {
        arm: {rate: score_rate(seeds, preset) for rate, seeds in by_rate.items()} for arm, by_rate in runs.items()
    }
    chosen = {arm: max(scores, key=lambda rate: scores[rate]["score"]) for arm, scores in grid.items()}
    _write_rates(root, chosen, {arm: {f"{rate:g}": each for rate, each in row.items()} for arm, row in grid.items()})
    return share_rates(chosen)


def score_rate(runs: Sequence[Run], preset: Preset) -> dict[str, float]:
    """Return how good a learning rate is, by its runs with the tuning seeds on validation problems.

    The score is the study's own headline, coverage@8 at a mean@8 by choice of the sampling temperature, a margin
    above the preset's level: the best rate at the level itself would be one that just reaches it, and misses it with
    other seeds. Rates that do not come so far score below zero, by their highest mean@8.
    """
    coverages, ceilings = [], []
    for run in runs:
        rows = [row for row in Log(run.folder / "evaluations.jsonl").rows() if row["split"] == "validation"]
        accuracies = [row["mean@8"] for row in rows]
        coverages.append(
            read_frontier(preset.level + preset.tuning_margin, accuracies, [row["coverage@8"] for row in rows])
        )
        ceilings.append(max(accuracies))
    ceiling = sum(ceilings) / len(ceilings)
    missed = None in coverages
    return {"score": ceiling - 1.0 if missed else sum(coverages) / len(coverages), "highest mean@8": ceiling}


def record_study(root: Path, preset_name: str) -> None:
    """Note in a study's folder what its runs are made with: they may be reported elsewhere, or later.

    Raises:
        ValueError: if the runs there are of other sizes: they and the new ones could not be compared.
    """
    before = read_record(root)
    sizes = json.loads(json.dumps(asdict(PRESETS[preset_name])))
    del sizes["arms"]
    known = before.get("preset", {})
    changed = [name for name, value in sizes.items() if known.get(name, value) != value]
    if changed:
        old, new = ({name: each[name] for name in changed} for each in (known, sizes))
        raise ValueError(f"Expected runs of preset {preset_name!r} as it is now, {new}, in {root}, got {old}.")
    made = {
        "preset": sizes,
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy", "scipy")),
        "hardware": _name_hardware(),
        "commits": [*dict.fromkeys((*before.get("commits", []), *_find_commit()))],
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / RECORD).write_text(json.dumps(made, indent=1) + "\n")


def read_record(root: Path) -> dict[str, Any]:
    """Return what `record_study` noted; nothing where there is no note."""
    file = root / RECORD
    return json.loads(file.read_text()) if file.exists() else {}


def _name_hardware() -> str:
    gpus = [torch.cuda.get_device_name(0)] if torch.cuda.is_available() else []
    return ", ".join([*gpus, f"{os.cpu_count()} CPU cores, {platform.machine()}"])


def _find_commit() -> list[str]:
    """Return the commit of this code, or nothing where there is no repository."""
    if shutil.which("git") is None:
        return []
    command, here = ["git", "rev-parse", "--short=10", "HEAD"], Path(__file__).parent
    return subprocess.run(command, cwd=here, capture_output=True, text=True, check=False).stdout.split()
