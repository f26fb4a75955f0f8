"""Which runs there are, in the order in which they are made, and which learning rate each method has."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.pretrained.arms import BASE, BY_TRL, SLOW
from benchmarks.pretrained.runs import TUNED_WITH, Line, Run
from benchmarks.pretrained.tasks import ON_CPU, QUESTIONS
from benchmarks.study.runs import belongs_to, read_lines

RESULTS = Path(__file__).parent / "results"
RATES = (1e-5, 3e-5)
"""The grid of learning rates, the same for every method."""
SEEDS = (0, 1, 2)
TUNED_ON, TUNED_AS = {"capitals": "name-one"}, {BY_TRL: "kappa", SLOW: "kappa"}
"""A rate is chosen with one seed: for the control on the task that it is the control of, for some methods as κ's."""
ONLY_ON = {BY_TRL: ("name-one",), SLOW: ON_CPU}
"""The tasks of methods that do not run on all of them."""


def list_runs(tasks: Sequence[str], arms: Sequence[str]) -> list[Run]:
    """Return the runs that are missing, up to the first method whose rates are not chosen: its seeds come next."""
    wanted = [Run(task, BASE, 0) for task in tasks]
    for arm in arms:
        chosen = True
        for task in tasks:
            if not is_asked(task, arm):
                continue
            tuned = list_tuning_runs(task, arm)
            wanted += tuned
            if all(map(find_line, tuned)):
                wanted += [Run(task, arm, seed, choose_rate(task, arm)) for seed in SEEDS]
            else:
                chosen = False
        if not chosen:
            break
    return [run for run in dict.fromkeys(wanted) if find_line(run) is None]


def is_asked(task: str, arm: str) -> bool:
    """Return whether a method runs on a task."""
    return task in ONLY_ON.get(arm, QUESTIONS)


def list_tuning_runs(task: str, arm: str) -> list[Run]:
    """Return the runs that a method's rate on a task is chosen by."""
    return [Run(TUNED_ON.get(task, task), TUNED_AS.get(arm, arm), TUNED_WITH, rate) for rate in RATES]


def find_line(run: Run) -> Line | None:
    """Return the line of a run; None where it is not made yet, or was made with other settings."""
    described = run.describe()
    lines = read_lines(RESULTS / f"{run.task}.jsonl")
    return next((line for line in lines if belongs_to(line, described)), None)


def choose_rate(task: str, arm: str) -> float:
    """Return the rate with the largest sum of mean@8 and coverage@8 on validation problems, at temperature 1.

    Coverage alone would choose the rate that trains least.
    """

    def read_sum(run: Run) -> float:
        line = find_line(run)
        assert line is not None
        at = line["temperatures"].index(1.0)
        return float(line["validation"]["mean@8"][at] + line["validation"]["coverage@8"][at])

    return max(list_tuning_runs(task, arm), key=read_sum).rate
