"""From finished runs to the numbers of the report: everything is computed from the kept probabilities of modes."""

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.diversity.arms import ADDED, ARMS, CORE, METHODS, RECIPE
from benchmarks.diversity.curves import Curves, areas, curves_of, resample_counts, values_at
from benchmarks.diversity.metrics import KS, per_problem
from benchmarks.diversity.presets import PRESETS, Preset, problems_of
from benchmarks.diversity.provenance import recorded
from benchmarks.diversity.run import SAMPLED, WARM, Run
from benchmarks.diversity.statistics import difference, equivalence, holm_by_family, mean_of_all, not_below
from benchmarks.diversity.study import read_rates, with_untuned
from maxent_grpo.pipeline.frontiers import read_frontier
from maxent_grpo.pipeline.tasks.metrics import sample_metrics
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.storage import Log

FIRST = (RECIPE, "half_0", "cool", "passes_2", "full_0_mild", "answer_keys")
"""The arms that the others are compared to: the recipe, and what it might have been."""
Row = dict[str, Any]
RESAMPLES = 2000
EQUIVALENCE_MARGIN = 0.03
PASS_MARGIN = 0.02
VALUES = ("coverage@8", "pass@8")
EVEN, BEST = "even@8", "best mean@8"


class Results:
    """The finished runs of a study, arms by seeds; arms without a finished seed are left out."""

    def __init__(self, root: Path, preset_name: str, rates: dict[str, float]) -> None:
        self.preset: Preset = PRESETS[preset_name]
        seeds = self.preset.seeds
        found = {
            arm: {seed: Run(root, preset_name, arm, seed, rate) for seed in seeds} for arm, rate in rates.items()
        }
        found[WARM] = {seed: Run(root, preset_name, WARM, seed) for seed in seeds}
        self.runs = {arm: {seed: run for seed, run in by_seed.items() if run.done} for arm, by_seed in found.items()}
        self.runs = {arm: self.runs[arm] for arm in (*ARMS, WARM) if self.runs.get(arm)}
        self.arms = [arm for arm in self.runs if arm != WARM]
        self.curves = {
            arm: {seed: curves_of(self.outcomes(run)) for seed, run in by_seed.items()}
            for arm, by_seed in self.runs.items()
        }
        self.problems = len(problems_of(self.preset).test)
        self._rng = np.random.default_rng(0)
        self._shares = resample_counts(self.problems, RESAMPLES, self._rng)
        self._values: dict[tuple[str, int, str, float | None], tuple[float, np.ndarray]] = {}

    @staticmethod
    def outcomes(run: Run) -> np.ndarray:
        """Return the probabilities of modes on the test problems, [T, P, modes]."""
        with np.load(run.outcomes_file) as file:
            return file["test"].astype(np.float64)

    def shared_seeds(self, *arms: str) -> list[int]:
        """Return the seeds that all of some arms have finished."""
        return sorted(set.intersection(*(set(self.runs[arm]) for arm in arms)))

    def best(self, arm: str, seed: int) -> float:
        """Return the highest mean@8 of a run over the temperatures."""
        return float(self.curves[arm][seed].accuracy.mean(1).max())

    def values(self, arm: str, seed: int, name: str, level: float | None) -> tuple[float, np.ndarray]:
        """Return a run's value on all problems, NaN if out of reach, and on resamples: at a level, or its area.

        `BEST` is its highest accuracy at any temperature.
        """
        key = (arm, seed, name, level)
        if key not in self._values:
            curves, everyone = self.curves[arm][seed], np.full((self.problems, 1), 1 / self.problems)
            whole = self._read_off(curves, name, level, everyone, nearest=False)
            self._values[key] = float(whole[0]), self._read_off(curves, name, level, self._shares, nearest=True)
        return self._values[key]

    def _read_off(
        self, curves: Curves, name: str, level: float | None, weights: np.ndarray, *, nearest: bool
    ) -> np.ndarray:
        accuracies = curves.accuracy @ weights
        if name == BEST:
            return accuracies.max(0)
        values = curves.values[name] @ weights
        if level is None:
            return areas(accuracies, values, low=self.floor, high=self.ceiling, nearest=nearest)
        return values_at(level, accuracies, values, nearest=nearest)

    def rng(self) -> np.random.Generator:
        """Return a source of chance that draws the same seeds for every pair of arms."""
        return copy.deepcopy(self._rng)

    @cached_property
    def learned(self) -> list[str]:
        """The arms none of whose runs ended below its warm start: the others have no accuracy to match."""
        return [
            arm for arm in self.arms if all(self.best(arm, seed) >= self.best(WARM, seed) for seed in self.runs[arm])
        ]

    @cached_property
    def yardsticks(self) -> list[str]:
        """The arms that set the levels of comparison: the core study's, so that a variant moves none."""
        learned = self.learned or self.arms
        return [arm for arm in learned if arm in CORE] or learned

    @cached_property
    def ceiling(self) -> float:
        """The highest mean@8 that every run of every yardstick reaches at some temperature."""
        return min(self.best(arm, seed) for arm in self.yardsticks for seed in self.runs[arm])

    @cached_property
    def floor(self) -> float:
        """The mean@8 of the run that is most accurate at its hottest, of the yardsticks."""
        arms = self.yardsticks
        return max(float(each.accuracy.mean(1)[-1]) for arm in arms for each in self.curves[arm].values())


def analysis(root: Path, preset_name: str) -> dict[str, Any]:
    """Return everything that the report shows of a study's folder, with what its runs were made with."""
    made = recorded(root)
    tuning = read_rates(root)
    results = Results(root, preset_name, with_untuned(tuning["chosen"]))
    compared = {
        first: comparisons(results, first, [arm for arm in results.arms if arm != first])
        for first in FIRST
        if first in results.arms
    }
    return {
        "study": preset_name,
        **{name: made.get(name, "not recorded") for name in ("commands", "commits", "versions", "hardware")},
        "preset": asdict(results.preset),
        "parameters": parameters(results.preset),
        "tuning": tuning,
        **summary(results),
        "comparisons": compared,
    }


def parameters(preset: Preset) -> int:
    """Return the number of parameters of a preset's model."""
    model = build_model(preset.family.tokenizer(), hidden_size=preset.hidden_size, layers=preset.layers)
    return int(model.num_parameters())


def summary(results: Results) -> dict[str, Any]:
    """Return every arm's table row: ceilings, values at matched accuracy, pass@k, entropy, tokens, seconds."""
    levels = {"level": results.preset.level, "common": results.ceiling}
    low, high = results.floor, results.ceiling
    return {
        "levels": levels,
        "range": [low, high],
        "collapsed": [arm for arm in results.arms if arm not in results.learned],
        "arms": {arm: _arm_summary(results, arm, levels, low, high) for arm in results.runs},
        "guesser": guesser(results.preset),
    }


def _arm_summary(results: Results, arm: str, levels: dict[str, float], low: float, high: float) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for seed, run in results.runs[arm].items():
        curves = results.curves[arm][seed]
        evaluations = Log(run.folder / "evaluations.jsonl").rows()
        accuracy = curves.accuracy.mean(1)
        row: dict[str, Any] = {BEST: float(accuracy.max())}
        for name in VALUES:
            values = curves.values[name].mean(1)
            row |= _at_levels(name, curves, levels)
            row[f"area {name}"] = float(areas(accuracy[:, None], values[:, None], low=low, high=high)[0])
        row |= _at_levels(EVEN, curves, levels)
        row |= {"samples minus listed": _unlisted(evaluations)}
        row |= _final(evaluations) | _training(Log(run.folder / "metrics.jsonl").rows())
        row |= _at_validated_temperature(evaluations, results.preset)
        row["coverage@8 at level, best checkpoint"] = _best_checkpoint(evaluations, results.preset)
        rows.append(row)
    return {
        "learning_rate": next(iter(results.runs[arm].values())).learning_rate,
        "seeds": sorted(results.runs[arm]),
        "per_seed": rows,
        "mean": {name: mean_of_all([row[name] for row in rows]) for name in rows[0]},
        "frontier": _frontier(results, arm),
        "pass@k": _pass_curve(results, arm),
    }


def _at_levels(name: str, curves: Curves, levels: Mapping[str, float]) -> dict[str, float | None]:
    """Return a value where the accuracy is that of each level."""
    accuracy, values = (each.mean(1).tolist() for each in (curves.accuracy, curves.values[name]))
    return {f"{name} at {label}": read_frontier(level, accuracy, values) for label, level in levels.items()}


def _unlisted(evaluations: Sequence[Row]) -> float | None:
    """Return how many more of a run's samples are right than its listed texts say, at temperature 1 on validation.

    Samples have spellings that are not listed. With n samples a run's figure has a standard error of at most
    1/(2√n), 1.1 points of 2,048. None for older runs, which did not log it.
    """
    step = _of(evaluations, "test")[0]["step"]
    row = next(row for row in _of(evaluations, "validation") if (row["step"], row["temperature"]) == (step, 1.0))
    return row[SAMPLED] - row["mean@8"] if SAMPLED in row else None


def _final(evaluations: Sequence[Row]) -> dict[str, float]:
    """Return the test metrics of the trained model that are not about matched accuracy, at temperature 1."""
    last = _of(evaluations, "test")
    at_1 = next(row for row in last if row["temperature"] == 1.0)
    names = ("greedy", "entropy", "tokens", "mean@8", "pass@8", "distinct@8", "coverage@8", "distinct_per_solved")
    control = max(row["mean@8"] for row in _of(evaluations, "control"))
    return {name: at_1[name] for name in names} | {"control best mean@8": control}


def _training(updates: Sequence[Row]) -> dict[str, float | None]:
    """Return what the updates took; nothing for the warm start."""
    if not updates:
        return {}
    learning = [row["learning_seconds"] for row in updates if "learning_seconds" in row]  # older runs did not log it
    return {
        "seconds per update": float(np.median([row["seconds"] for row in updates])),
        "learning seconds per update": float(np.median(learning)) if learning else None,
        "sampled tokens": sum(row["tokens"] for row in updates),
    }


def _at_validated_temperature(evaluations: Sequence[Row], preset: Preset) -> dict[str, float | None]:
    """Return the test metrics at the temperature whose validation mean@8 is nearest to the level, if any."""
    final = _of(evaluations, "test")
    validation = [row for row in _of(evaluations, "validation") if row["step"] == final[0]["step"]]
    if max(row["mean@8"] for row in validation) < preset.level:
        return {"chosen T": None, **{f"{name} at chosen T": None for name in ("mean@8", *VALUES)}}
    heat = min(validation, key=lambda row: abs(row["mean@8"] - preset.level))["temperature"]
    chosen = next(row for row in final if row["temperature"] == heat)
    return {"chosen T": heat, **{f"{name} at chosen T": chosen[name] for name in ("mean@8", *VALUES)}}


def _best_checkpoint(evaluations: Sequence[Row], preset: Preset) -> float | None:
    """Return the highest coverage@8 at the level over all checkpoints of the run, on validation problems."""
    rows, found = _of(evaluations, "validation"), []
    for step in {row["step"] for row in rows}:
        here = [row for row in rows if row["step"] == step]
        found.append(
            read_frontier(preset.level, [row["mean@8"] for row in here], [row["coverage@8"] for row in here])
        )
    return max((each for each in found if each is not None), default=None)


def _of(evaluations: Sequence[Row], split: str) -> list[Row]:
    return [row for row in evaluations if row["split"] == split]


def _frontier(results: Results, arm: str) -> list[dict[str, float]]:
    """Return mean@8, coverage@8 and pass@8 at every temperature, averaged over seeds."""
    everyone = list(results.curves[arm].values())
    return [
        {
            "temperature": temperature,
            "mean@8": float(np.mean([curves.accuracy[heat] for curves in everyone])),
            **{name: float(np.mean([curves.values[name][heat] for curves in everyone])) for name in VALUES},
        }
        for heat, temperature in enumerate(results.preset.temperatures)
    ]


def _pass_curve(results: Results, arm: str) -> dict[str, float]:
    """Return pass@k at temperature 1, averaged over problems and seeds."""
    heat = results.preset.temperatures.index(1.0)
    outcomes = [results.outcomes(run)[heat] for run in results.runs[arm].values()]
    return {str(k): float(np.mean([per_problem(each, k)["pass"].mean() for each in outcomes])) for k in KS}


def comparisons(results: Results, first: str, others: Sequence[str]) -> dict[str, Any]:
    """Return paired differences of one arm to others at matched accuracy.

    Holm's adjustment is over the other methods, over the variants of the recipe, and over what was added later.
    """
    levels = {"level": results.preset.level, "common": results.ceiling}
    found: dict[str, Any] = {}
    for label, level in levels.items():
        for name in VALUES:
            pairs = {arm: _paired(results, first, arm, name, level) for arm in others}
            found[f"{name} at {label}"] = _adjusted(pairs)
    found["area coverage@8"] = _adjusted({arm: _paired(results, first, arm, "coverage@8", None) for arm in others})
    found["best mean@8"] = _adjusted({arm: _paired(results, first, arm, BEST, None) for arm in others})
    return found


def _adjusted(pairs: Mapping[str, dict[str, float] | None]) -> dict[str, dict[str, float]]:
    """Return the pairs that there are with their p-value adjusted within methods, later arms, and variants."""
    known = {arm: pair for arm, pair in pairs.items() if pair is not None}
    p_values = {arm: None if pair is None else pair["p"] for arm, pair in pairs.items()}
    adjusted = holm_by_family(p_values, (METHODS, ADDED))
    return {arm: {**pair, "holm": adjusted[arm]} for arm, pair in known.items()}


def _paired(results: Results, first: str, second: str, name: str, level: float | None) -> dict[str, float] | None:
    """Return the difference at a level (None: of the areas), or None where fewer than two seeds reach it twice."""
    observed, resampled = [], []
    for seed in results.shared_seeds(first, second):
        (one, one_resampled), (other, other_resampled) = (
            results.values(arm, seed, name, level) for arm in (first, second)
        )
        if not np.isnan(one - other):
            observed.append(one - other)
            resampled.append(one_resampled - other_resampled)
    if len(observed) < 2:
        return None
    pair = difference(np.array(observed), np.array(resampled), results.rng()).as_dict()
    return pair | {
        "not below -2 points": not_below(observed, margin=PASS_MARGIN),
        "equivalent within 3 points": equivalence(observed, margin=EQUIVALENCE_MARGIN),
    }


def guesser(preset: Preset, *, samples: int = 64) -> dict[str, float]:
    """Return the metrics of uniform draws from the well-formed answers."""
    rng, module = random.Random(0), preset.family.module
    test = problems_of(preset).test
    verdicts = [
        [module.verify(problem, module.random_answer(problem, rng)) for _ in range(samples)] for problem in test
    ]
    return sample_metrics(verdicts, [len(problem.modes) for problem in test], k=8).averages()
