"""From finished runs to the numbers of the report: everything is computed from the kept probabilities of modes."""

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.diversity.arms import ARMS, METHODS, RECIPE, YARDSTICKS
from benchmarks.diversity.presets import PRESETS, Preset, load_problems
from benchmarks.diversity.run import SAMPLED, WARM, Run
from benchmarks.diversity.statistics import (
    adjust_p_values,
    average_complete,
    compute_p_not_below,
    draw_resamples,
    estimate_difference,
)
from benchmarks.diversity.study import read_rates, read_record, share_rates
from benchmarks.study.outcomes import KS, measure_problems
from maxent_grpo.pipeline.frontiers import read_frontiers
from maxent_grpo.pipeline.tasks.metrics import sample_metrics
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.storage import Log

COMPARED = (RECIPE, "two_passes", "answer_keys")
"""The arms that the others are compared to."""
Row = dict[str, Any]
RESAMPLES = 2000
PASS_MARGIN = 0.02
VALUES = ("coverage@8", "pass@8")
EVEN, BEST = "even@8", "best mean@8"


class Results:
    """The finished runs of a study, by arm and seed; arms without a finished seed are left out."""

    def __init__(self, root: Path, preset_name: str, rates: Mapping[str, float]) -> None:
        self.preset: Preset = PRESETS[preset_name]
        seeds = self.preset.seeds
        planned = {
            arm: {seed: Run(root, preset_name, arm, seed, rates[arm]) for seed in seeds}
            for arm in ARMS
            if arm in rates
        }
        planned[WARM] = {seed: Run(root, preset_name, WARM, seed) for seed in seeds}
        done = {arm: {seed: run for seed, run in by_seed.items() if run.done} for arm, by_seed in planned.items()}
        self.runs = {arm: by_seed for arm, by_seed in done.items() if by_seed}
        self.arms = [arm for arm in self.runs if arm != WARM]
        self.curves = {
            arm: {seed: _measure_curves(run) for seed, run in by_seed.items()} for arm, by_seed in self.runs.items()
        }
        self.problems = len(load_problems(self.preset).test)
        self._rng = np.random.default_rng(0)
        self._resamples = draw_resamples(self.problems, RESAMPLES, self._rng)
        self._read: dict[tuple[str, int, str, float | None], tuple[float, np.ndarray]] = {}

    @cached_property
    def collapsed(self) -> list[str]:
        """The arms of which a run ended below its warm start: they have no accuracy to match."""
        return [
            arm
            for arm in self.arms
            if any(self.read_best(arm, seed) < self.read_best(WARM, seed) for seed in self.runs[arm])
        ]

    @cached_property
    def levels(self) -> dict[str, float]:
        """The mean@8 that arms are compared at: the preset's, and the highest that all yardsticks' runs reach."""
        learned = [arm for arm in self.arms if arm not in self.collapsed] or self.arms
        yardsticks = [arm for arm in learned if arm in YARDSTICKS] or learned
        common = min(self.read_best(arm, seed) for arm in yardsticks for seed in self.runs[arm])
        return {"level": self.preset.level, "common": common}

    def read_best(self, arm: str, seed: int) -> float:
        """Return the highest mean@8 of a run over the temperatures."""
        return float(self.curves[arm][seed]["mean@8"].mean(1).max())

    def read_value(self, arm: str, seed: int, name: str, level: float | None) -> tuple[float, np.ndarray]:
        """Return a run's value at a level on all problems, NaN if out of reach, and on every resample of them.

        Without a level it is the highest mean@8 at any temperature.
        """
        key = (arm, seed, name, level)
        if key not in self._read:
            everyone = np.full((self.problems, 1), 1 / self.problems)
            observed = self._read_frontiers(arm, seed, name, level, everyone, nearest=False)
            resampled = self._read_frontiers(arm, seed, name, level, self._resamples, nearest=True)
            self._read[key] = float(observed[0]), resampled
        return self._read[key]

    def _read_frontiers(
        self, arm: str, seed: int, name: str, level: float | None, weights: np.ndarray, *, nearest: bool
    ) -> np.ndarray:
        curves = self.curves[arm][seed]
        accuracies = curves["mean@8"] @ weights
        if level is None:
            return accuracies.max(0)
        return read_frontiers(level, accuracies, curves[name] @ weights, nearest=nearest)

    def copy_rng(self) -> np.random.Generator:
        """Return a source of chance that draws the same seeds for every pair of arms."""
        return copy.deepcopy(self._rng)


def load_outcomes(run: Run) -> np.ndarray:
    """Return the probabilities of modes on the test problems, [T, P, modes]."""
    with np.load(run.outcomes_file) as file:
        return file["test"].astype(np.float64)


def _measure_curves(run: Run) -> dict[str, np.ndarray]:
    """Return the metrics at 8 samples on every problem at every temperature, the coldest first: name → [T, P]."""
    return {f"{name}@8": values for name, values in measure_problems(load_outcomes(run), 8).items()}


def analyze_study(root: Path, preset_name: str) -> dict[str, Any]:
    """Return everything that the report shows of a study's folder, with what its runs were made with."""
    record, tuning = read_record(root), read_rates(root)
    results = Results(root, preset_name, share_rates(tuning["chosen"]))
    tuning = {name: {arm: each[arm] for arm in ARMS if arm in each} for name, each in tuning.items()}
    return {
        "study": preset_name,
        **{name: record.get(name, "not recorded") for name in ("commits", "versions", "hardware")},
        "preset": asdict(results.preset),
        "parameters": count_parameters(results.preset),
        "tuning": tuning,
        "levels": results.levels,
        "collapsed": results.collapsed,
        "arms": {arm: summarize_arm(results, arm) for arm in results.runs},
        "guesser": measure_guesser(results.preset),
        "comparisons": {
            first: compare_arms(results, first, [arm for arm in results.arms if arm != first])
            for first in COMPARED
            if first in results.arms
        },
    }


def count_parameters(preset: Preset) -> int:
    """Return the number of parameters of a preset's model."""
    tokenizer = preset.family.build_tokenizer()
    return int(build_model(tokenizer, hidden_size=preset.hidden_size, layers=preset.layers).num_parameters())


def measure_guesser(preset: Preset, *, samples: int = 64) -> dict[str, float]:
    """Return the metrics of uniform draws from the well-formed answers."""
    rng, module = random.Random(0), preset.family.module
    test = load_problems(preset).test
    verdicts = [
        [module.verify(problem, module.random_answer(problem, rng)) for _ in range(samples)] for problem in test
    ]
    return sample_metrics(verdicts, [len(problem.modes) for problem in test], k=8).averages()


def summarize_arm(results: Results, arm: str) -> dict[str, Any]:
    """Return an arm's table row: values at matched accuracy, at temperature 1, and over temperatures and k."""
    rows = [_summarize_run(results, run) for run in results.runs[arm].values()]
    at_1 = results.preset.temperatures.index(1.0)
    outcomes = [load_outcomes(run)[at_1] for run in results.runs[arm].values()]
    return {
        "name": "warm start" if arm == WARM else ARMS[arm].name,
        "learning_rate": next(iter(results.runs[arm].values())).learning_rate,
        "seeds": sorted(results.runs[arm]),
        "per_seed": rows,
        "mean": {name: average_complete([row[name] for row in rows]) for name in rows[0]},
        "frontier": _average_frontiers(results, arm),
        "pass@k": {str(k): float(np.mean([measure_problems(each, k)["pass"] for each in outcomes])) for k in KS},
    }


def _summarize_run(results: Results, run: Run) -> Row:
    row: Row = {BEST: results.read_best(run.arm, run.seed)}
    for name in (*VALUES, EVEN):
        for label, level in results.levels.items():
            value, _ = results.read_value(run.arm, run.seed, name, level)
            row[f"{name} at {label}"] = None if np.isnan(value) else value
    evaluations = Log(run.folder / "evaluations.jsonl").rows()
    at_1 = {each["split"]: each for each in evaluations if each["temperature"] == 1.0}
    row |= {name: at_1["test"][name] for name in ("greedy", "entropy", "tokens", "mean@8", *VALUES)}
    # Samples may be right with a spelling that is not listed. Runs from before this was logged have no figure.
    validation = at_1["validation"]
    row["samples minus listed"] = validation[SAMPLED] - validation["mean@8"] if SAMPLED in validation else None
    seconds = [each["seconds"] for each in Log(run.folder / "metrics.jsonl").rows()]
    return row | {"seconds per update": float(np.median(seconds)) if seconds else None}


def _average_frontiers(results: Results, arm: str) -> list[dict[str, float]]:
    """Return mean@8, coverage@8 and pass@8 at every temperature, averaged over seeds."""
    by_seed = results.curves[arm].values()
    averages = {
        name: np.mean([curves[name].mean(1) for curves in by_seed], axis=0).tolist() for name in ("mean@8", *VALUES)
    }
    return [
        {"temperature": temperature, **{name: column[place] for name, column in averages.items()}}
        for place, temperature in enumerate(results.preset.temperatures)
    ]


def compare_arms(results: Results, first: str, others: Sequence[str]) -> dict[str, dict[str, Row]]:
    """Return paired differences of one arm to others: coverage and pass at each level, and the highest mean@8."""
    compared = {
        f"{name} at {label}": _compare_pairs(results, first, others, name, level)
        for name in VALUES
        for label, level in results.levels.items()
    }
    return compared | {BEST: _compare_pairs(results, first, others, BEST, None)}


def _compare_pairs(
    results: Results, first: str, others: Sequence[str], name: str, level: float | None
) -> dict[str, Row]:
    """Return the differences by arm; those that fewer than two seeds of both arms have are left out.

    p-values are adjusted in a confirming study alone, over the methods that the recipe is compared with there: what
    is compared in other studies was chosen after a look at them.
    """
    pairs = {arm: _compare_pair(results, first, arm, name, level) for arm in others}
    known = {arm: pair for arm, pair in pairs.items() if pair is not None}
    if not results.preset.fresh or first != RECIPE:
        return known
    adjusted = adjust_p_values({arm: pair and pair["p"] for arm, pair in pairs.items() if arm in METHODS})
    return {arm: {**pair, "holm": adjusted[arm]} if arm in adjusted else pair for arm, pair in known.items()}


def _compare_pair(results: Results, first: str, second: str, name: str, level: float | None) -> Row | None:
    observed, resampled = [], []
    for seed in sorted(results.runs[first].keys() & results.runs[second].keys()):
        (one, one_resampled), (other, other_resampled) = (
            results.read_value(arm, seed, name, level) for arm in (first, second)
        )
        if not np.isnan(one - other):
            observed.append(one - other)
            resampled.append(one_resampled - other_resampled)
    if len(observed) < 2:
        return None
    pair = estimate_difference(np.array(observed), np.array(resampled), results.copy_rng())
    if name != "pass@8":
        return asdict(pair)
    return asdict(pair) | {"not below -2 points": compute_p_not_below(observed, margin=PASS_MARGIN)}
