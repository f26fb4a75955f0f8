"""The report of a pretrained study, from what `examples/evaluate.py` wrote at each temperature.

An evaluation has means over prompts, each with its interval, and no value of a single prompt: comparisons are paired
by seed alone, and the intervals over prompts stay with the run that they are of.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.diversity.arms import ADDED, ARMS, METHODS, RECIPE
from benchmarks.diversity.machine import noted
from benchmarks.diversity.pretrained import TEMPERATURES, recorded
from benchmarks.diversity.report import name_of
from benchmarks.diversity.statistics import difference, holm_by_family, mean_of_all
from benchmarks.diversity.tables import number, p_value, points, quoted, table
from maxent_grpo.pipeline.tiny.evaluation import value_at

Row = dict[str, Any]
SHARED = ("subject", "prompts", "engine", "samples", "max_new_tokens", "seed")
"""The settings of an evaluation in which all must agree; only the temperature differs."""
MEASURES = ("coverage@8 at level", "pass@8 at level", "best mean@8")
UNTUNED = (
    "**Learning rates were not tuned for each method**: every run has its recipe file's, unless the command says "
    "otherwise. What looks like a difference between methods may be one between learning rates."
)


def pretrained_analysis(root: Path, model: str, level: float | None = None) -> dict[str, Any]:
    """Return everything that the report shows of a study's folder.

    Args:
        root: has `seed<S>/<arm>/evaluation-<T>/evaluation.json`.
        model: what was trained.
        level: the mean@8 to compare at; None: the highest that every run reaches.

    Raises:
        ValueError: if no run has been evaluated at every temperature, or they were evaluated differently.
    """
    settings, runs, unfinished = _read(root)
    made = recorded(root)
    if made.get("model", model) != model:
        raise ValueError(f"Expected runs of model={model!r} in {root}, got those of {made['model']!r}.")
    best = {(arm, seed): _best(run) for arm, by_seed in runs.items() for seed, run in by_seed.items()}
    lowest = min(best, key=lambda run: best[run])
    at = best[lowest] if level is None else level
    arms = {arm: _summary(by_seed, at) for arm, by_seed in runs.items()}
    return {
        "model": model,
        "made": made,
        "evaluation": settings,
        "level": at,
        "level is": "given" if level is not None else f"the ceiling of {_run_name(*lowest)}",
        "hotter only": [
            _run_name(arm, seed)
            for arm, by_seed in runs.items()
            for seed, run in by_seed.items()
            if run["frontier"][-1]["mean@8"] > at
        ],
        "unfinished": unfinished,
        "arms": arms,
        "comparisons": _comparisons(arms) if RECIPE in arms else {},
    }


def _run_name(arm: str, seed: int) -> str:
    return f"{arm} with seed {seed}"


def _read(root: Path) -> tuple[Row, dict[str, dict[int, Row]], list[str]]:
    """Return how all was evaluated, the finished runs by arm and seed, and the names of the others."""
    runs: dict[str, dict[int, Row]] = {}
    unfinished, read = [], {}
    for arm, seed, folder in _folders(root):
        files = [folder / f"evaluation-{temperature}" / "evaluation.json" for temperature in TEMPERATURES]
        if not all(file.is_file() for file in files):
            unfinished.append(_run_name(arm, seed))
            continue
        evaluations = {file: json.loads(file.read_text()) for file in files}
        read |= evaluations
        runs.setdefault(arm, {})[seed] = {
            "machines": noted(folder),
            "evaluated with": evaluations[files[0]]["versions"],
            "greedy": evaluations[files[0]]["results"][0].get("greedy_accuracy"),
            "frontier": [_row(file, evaluation) for file, evaluation in evaluations.items()],
        }
    if not runs:
        raise ValueError(f"Expected runs evaluated at all of {TEMPERATURES} in {root}/seed<S>/<arm>/, got none.")
    (first, settings), *others = ((file, {name: each[name] for name in SHARED}) for file, each in read.items())
    for file, other in others:
        if other != settings:
            raise ValueError(f"Expected evaluations as {first} has them, {settings}, got {other} in {file}.")
    return settings, runs, unfinished


def _folders(root: Path) -> list[tuple[str, int, Path]]:
    """Return the arms and seeds that there are, with their folders."""
    names = [path.name.removeprefix("seed") for path in root.glob("seed*")]
    seeds = sorted(int(name) for name in names if name.isdecimal())
    runs = [(arm, seed, root / f"seed{seed}" / arm) for arm in ARMS for seed in seeds]
    return [run for run in runs if run[-1].is_dir()]


def _row(file: Path, evaluation: Row) -> Row:
    """Return an evaluation's temperature, and its metrics at k = 8 with their intervals over prompts."""
    (result,) = evaluation["results"]
    if 8 not in result["k"]:
        raise ValueError(f"Expected >= 8 samples with a verdict in {file}, got k={result['k']}.")
    place = result["k"].index(8)
    row = {"temperature": evaluation["temperature"]}
    for name in ("mean", "coverage", "pass"):
        ends = {end: result[f"{name}@k"][end][place] for end in ("value", "low", "high")}
        row |= {f"{name}@8": ends["value"], f"{name}@8 over prompts": [ends["low"], ends["high"]]}
    return row


def _best(run: Row) -> float:
    return max(row["mean@8"] for row in run["frontier"])


def _summary(by_seed: Mapping[int, Row], level: float) -> Row:
    """Return an arm's runs with what is compared of them, and the means over seeds."""
    found = {}
    for seed, run in by_seed.items():
        accuracies = [row["mean@8"] for row in run["frontier"]]
        at_level = {
            f"{name} at level": value_at(level, accuracies, [row[name] for row in run["frontier"]])
            for name in ("coverage@8", "pass@8")
        }
        found[str(seed)] = {**at_level, "best mean@8": _best(run), **run}
    everyone = list(found.values())
    return {
        "mean": {name: mean_of_all([run[name] for run in everyone]) for name in (*MEASURES, "greedy")},
        "frontier": [
            {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if "over prompts" not in name}
            for rows in zip(*(run["frontier"] for run in everyone), strict=True)
        ],
        "seeds": found,
    }


def _comparisons(arms: Mapping[str, Row]) -> dict[str, dict[str, Row]]:
    """Return the recipe minus every other arm; p is Holm's, over the methods and over the variants of the recipe."""
    found = {}
    for measure in MEASURES:
        pairs = {arm: _pair(arms[RECIPE], arms[arm], measure) for arm in arms if arm != RECIPE}
        adjusted = holm_by_family({arm: pair["p"] for arm, pair in pairs.items()}, (METHODS, ADDED))
        found[measure] = {
            arm: {**pair, "holm": None if pair["p"] is None else adjusted[arm]} for arm, pair in pairs.items()
        }
    return found


def _pair(first: Row, second: Row, measure: str) -> Row:
    """Return the difference over the seeds in which both have a value, with Student's interval from two seeds on."""
    shared = first["seeds"].keys() & second["seeds"].keys()
    values = [(first["seeds"][seed][measure], second["seeds"][seed][measure]) for seed in sorted(shared)]
    gaps = np.array([one - other for one, other in values if one is not None and other is not None])
    names = ("mean", "seeds", "seed_low", "seed_high", "p")
    if len(gaps) < 2:
        return {**dict.fromkeys(names), "mean": float(gaps[0]) if len(gaps) else None, "seeds": len(gaps)}
    pair = difference(gaps, gaps[:, None], np.random.default_rng(0)).as_dict()  # of it, what needs no problems
    return {name: pair[name] for name in names}


def pretrained_markdown(result: Mapping[str, Any]) -> str:
    """Return all tables of a pretrained study."""
    level, arms = f"{result['level']:.3f}", result["arms"]
    titles = [f"coverage@8 at {level}", f"pass@8 at {level}", "best mean@8"]
    parts = [
        _provenance(result),
        UNTUNED,
        f"**At matched accuracy**, a mean@8 of {level} ({result['level is']}) by choice of the sampling temperature; "
        f"means over seeds.{_said(result)}",
        table(
            ["method", "seeds", *titles, "greedy pass@1"],
            [
                [
                    name_of(arm),
                    str(len(row["seeds"])),
                    *(number(row["mean"][name]) for name in (*MEASURES, "greedy")),
                ]
                for arm, row in arms.items()
            ],
        ),
        "**Frontiers**: mean@8 / coverage@8 / pass@8 at each sampling temperature, means over seeds.",
        table(
            ["method", *(f"T = {temperature}" for temperature in TEMPERATURES)],
            [[name_of(arm), *map(_point, row["frontier"])] for arm, row in arms.items()],
        ),
    ]
    if found := result["comparisons"]:
        parts.append(
            f"**{name_of(RECIPE)} minus the others**, in points, paired by seed. Square brackets: 95 % over seeds "
            "(Student's t), from two seeds on; n: how many seeds of both have a value. p is Holm's, over the other "
            "methods and over the variants of MaxEnt."
        )
        others = [arm for arm in arms if arm != RECIPE]
        rows = [[name_of(arm), *(text for each in MEASURES for text in _cells(found[each][arm]))] for arm in others]
        parts.append(table(["against", *(text for title in titles for text in (title, "p"))], rows))
    return "\n\n".join(parts) + "\n"


def _provenance(result: Mapping[str, Any]) -> str:
    machines = {
        f"{each['hardware']}; {each['versions']}": None
        for row in result["arms"].values()
        for run in row["seeds"].values()
        for each in run["machines"]
    }
    commands, how = result["made"].get("commands", []), result["evaluation"]
    return (
        f"{result['model']}: {', and '.join(machines) or 'hardware not recorded'}. "
        f"Run by {quoted(commands) or 'a command that was not recorded'}. "
        f"Evaluated on {how['prompts']} problems of {how['subject']}, {how['samples']} answers each of at most "
        f"{how['max_new_tokens']} tokens, by {how['engine']}."
    )


def _said(result: Mapping[str, Any]) -> str:
    """Return what to know of the runs in the tables, and of those that are not."""
    said = {
        "More accurate even at their hottest, and counted with their values there": result["hotter only"],
        "Not yet evaluated at every temperature, and left out": result["unfinished"],
    }
    return "".join(f" {what}: {', '.join(names)}." for what, names in said.items() if names)


def _point(row: Row) -> str:
    return " / ".join(number(row[name]) for name in ("mean@8", "coverage@8", "pass@8"))


def _cells(pair: Row) -> tuple[str, str]:
    """Return a difference with its interval, and its p-value."""
    if pair["mean"] is None:
        return "–", "–"
    if pair["p"] is None:
        return f"{points(pair['mean'])} n={pair['seeds']}", "–"
    mean, low, high = (points(pair[name]) for name in ("mean", "seed_low", "seed_high"))
    return f"{mean} [{low}, {high}] n={pair['seeds']}", p_value(pair["holm"])


def write_pretrained_report(result: Mapping[str, Any], folder: Path) -> Path:
    """Write `<model>.json` and `<model>.md`, by the last part of the model's name; return the latter."""
    name = Path(result["model"]).name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    tables = folder / f"{name}.md"
    tables.write_text(pretrained_markdown(result))
    return tables
