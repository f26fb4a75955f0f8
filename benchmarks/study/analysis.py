"""From the lines of a stage to its numbers: each run at equal accuracy, and methods paired by seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import stats

from benchmarks.study.runs import Line
from benchmarks.study.stages import measure_area
from benchmarks.study.tasks import SIZES
from maxent_grpo.pipeline.frontiers import read_frontier

AT_LEVEL = ("coverage@8", "pass@8", "PCMD@8")
"""Measures that are read where mean@8 is the task's level."""
MEASURES = ("area", *AT_LEVEL, "ceiling")
Runs = Mapping[str, Mapping[int, Line]]


@dataclass(frozen=True)
class Difference:
    """A paired difference: first method minus second, averaged over the seeds of both.

    Attributes:
        mean: the difference.
        low, high: 95 % interval of Student's t over the seeds' differences.
        seeds: how many seeds it is over.
    """

    mean: float
    low: float
    high: float
    seeds: int


def group_lines(lines: Sequence[Line]) -> Runs:
    """Return the test lines by method and seed.

    Raises:
        ValueError: if a method has two runs with a seed.
    """
    runs: dict[str, dict[int, Line]] = {}
    for line in lines:
        arm, seed = line["arm"], line["seed"]
        if seed in runs.setdefault(arm, {}):
            raise ValueError(f"Expected one run of {arm} with seed {seed}, got two.")
        runs[arm][seed] = line
    return runs


def read_measure(line: Line, name: str) -> float:
    """Return a measure of a run on its test problems; NaN where the level is reached at no temperature."""
    sizes, test = SIZES[line["task"]], line["test"]
    return measure_area(test, sizes) if name == "area" else read_at_level(test, sizes.level, name)


def read_at_level(test: Line, level: float, name: str) -> float:
    """Return a measure where mean@8 is the level, NaN where it is at no temperature; the ceiling has no level."""
    if name == "ceiling":
        return float(max(test["mean@8"]))
    value = read_frontier(level, test["mean@8"], test[name])
    return float("nan") if value is None else value


def average_measures(runs: Runs, arm: str) -> dict[str, float]:
    """Return a method's measures averaged over its seeds; NaN as soon as one seed has none."""
    return {name: float(np.mean([read_measure(line, name) for line in runs[arm].values()])) for name in MEASURES}


def compare_arms(runs: Runs, first: str, second: str, name: str) -> Difference | None:
    """Return the paired difference of a measure, or None with fewer than two seeds that have it."""
    return pair_seeds(runs[first], runs[second], partial(read_measure, name=name))


def pair_seeds(
    first: Mapping[int, Line], second: Mapping[int, Line], read: Callable[[Line], float]
) -> Difference | None:
    """Return the difference of what is read of two methods' lines, paired by seed, where both have it."""
    pairs = [read(first[seed]) - read(second[seed]) for seed in sorted(first.keys() & second.keys())]
    return estimate_difference([pair for pair in pairs if not np.isnan(pair)])


def estimate_difference(pairs: Sequence[float]) -> Difference | None:
    """Return the mean of differences with Student's 95 % interval, or None of fewer than two.

    >>> difference = estimate_difference([0.01, 0.03])
    >>> round(difference.mean, 2), round(difference.high - difference.mean, 3)  # t(1) = 12.7, error .01
    (0.02, 0.127)
    """
    if len(pairs) < 2:
        return None
    mean = float(np.mean(pairs))
    reach = float(stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(pairs))
    return Difference(mean, mean - reach, mean + reach, len(pairs))


def rank_arms(runs: Runs) -> list[str]:
    """Return the methods of a stage, the largest area first."""
    areas = {arm: average_measures(runs, arm)["area"] for arm in runs}
    return sorted(areas, key=lambda arm: -areas[arm])
