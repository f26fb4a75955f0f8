"""Which runs there are, in the order in which they are made, and which learning rate each method has."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.pretrained.arms import BASE
from benchmarks.pretrained.runs import TUNED_WITH, Line, Run, Sizes
from benchmarks.study.runs import belongs_to, read_lines

RESULTS = Path(__file__).parent / "results"
RATES = (1e-5, 3e-5)
"""The grid of learning rates, the same for every method."""
TUNED_ON, SEEDS = "name-one", (0, 1, 2)
"""Each method's rate is chosen on one task with one seed, and holds for both tasks."""


def list_runs(tasks: Sequence[str], arms: Sequence[str], sizes: Sizes) -> list[Run]:
    """Return the runs that are missing, as far as they are known: rates are chosen before the seeds run."""
    lines = {task: read_lines(RESULTS / f"{task}.jsonl") for task in {*tasks, TUNED_ON}}
    wanted = [Run(task, BASE, 0) for task in tasks]
    for arm in arms:
        tuned = [Run(TUNED_ON, arm, TUNED_WITH, rate) for rate in RATES]
        wanted += tuned
        if all(find_line(run, lines[run.task], sizes) for run in tuned):
            rate = choose_rate(arm, lines[TUNED_ON], sizes)
            wanted += [Run(task, arm, seed, rate) for task in tasks for seed in SEEDS]
    return [run for run in wanted if find_line(run, lines[run.task], sizes) is None]


def find_line(run: Run, lines: Sequence[Line], sizes: Sizes) -> Line | None:
    """Return the line of a run; None where it is not made yet, or was made with other settings."""
    described = run.describe(sizes)
    return next((line for line in lines if belongs_to(line, described)), None)


def choose_rate(arm: str, lines: Sequence[Line], sizes: Sizes) -> float:
    """Return the rate with the largest sum of mean@8 and coverage@8 on validation problems, at temperature 1.

    Coverage alone would choose the rate that trains least.
    """

    def read_sum(rate: float) -> float:
        line = find_line(Run(TUNED_ON, arm, TUNED_WITH, rate), lines, sizes)
        assert line is not None
        at = line["temperatures"].index(1.0)
        return float(line["validation"]["mean@8"][at] + line["validation"]["coverage@8"][at])

    return max(RATES, key=read_sum)
