"""Sections on the study of all methods for the README and the pages, from its committed lines."""

from typing import Any

import numpy as np

from benchmarks.study.analysis import Runs, average_measures, compare_arms, group_lines
from benchmarks.study.arms import ARMS, WARM
from benchmarks.study.outcomes import KS
from benchmarks.study.report import FRESH_STAGES, format_difference, format_number
from benchmarks.study.stages import RECIPE, STAGES, choose_rates, read_stage
from benchmarks.study.tasks import SIZES
from maxent_grpo.pipeline.markdown import format_table

NOT_YET = "not measured yet"
RIVALS = ("dr_grpo", "ucpo", "remax")
SHOWN = ("coverage@8", "pass@8", "ceiling")
FIGURES = ("coverage@8", "pass@8", "best mean@8")


def load_runs(stage: str) -> Runs:
    """Return the test lines of a stage by method and seed."""
    return group_lines(read_stage(stage))


def find_level(stage: str) -> float:
    """Return the accuracy at which methods are compared in a stage."""
    return SIZES[STAGES[stage].task].level


def format_leads(stage: str, first: str, second: str) -> list[str]:
    """Return what one method has more than another, in points with intervals: coverage, pass@8, best mean@8."""
    runs = load_runs(stage)
    if not {first, second} <= runs.keys():
        return [NOT_YET] * len(SHOWN)
    seeds = len(runs[first])
    return [format_difference(compare_arms(runs, first, second, name), seeds) for name in SHOWN]


def write_study_section() -> str:
    """Return the README's rows: the recipe against the strongest and the best known rivals, on fresh seeds."""
    rows = [
        [task, ARMS[rival].name, *format_leads(stage, RECIPE, rival)]
        for stage, task in FRESH_STAGES.items()
        for rival in RIVALS
    ]
    levels = " and ".join(f"{find_level(stage):g} on {task}" for stage, task in FRESH_STAGES.items())
    seeds = len(STAGES["countdown_fresh"].seeds)
    head = ["task", "`MaxEntConfig.diverse()` minus", *FIGURES]
    return f"""
Differences in points, with 95 % intervals over {seeds} fresh seeds. Each method is read at the sampling temperature
where *mean@8*, the chance that one sample is right, is {levels} (n: seeds that reach it).
*coverage@8* is the share of a problem's right answers that 8 samples find, *pass@8* the chance that they hold one,
*best mean@8* the highest accuracy at any sampling temperature. Models of 0.3 million parameters.
[All results](benchmarks/study/RESULTS.md), [a pretrained model](benchmarks/pretrained/RESULTS.md), \
[the demo](docs/measured.md), [kernels and their peers](docs/kernels.md).

{format_table(head, rows, text_columns=(0, 1))}
"""


def write_choosing_section() -> str:
    """Return the table of tasks, what to take for each, and what that has more than Dr.GRPO."""
    joined = "`diverse()` with that key function, sampled at .6, two passes"
    choices = (
        ("2 to 8 right answers in short texts (Countdown)", "`diverse()`", "countdown_fresh", RECIPE),
        ("the same, and code names each right answer", joined, "countdown_fresh", "kappa_joined"),
        ("the same with 4 to 24 right answers (graph coloring)", "`diverse()` or UCPO", "graph_fresh", RECIPE),
        ("several right answers, no two texts alike", "`diverse()` with a key function", "noted", "answer_keys"),
        ("the same, nobody can name an answer", "MaxRL", "noted", "maxrl"),
        ("no change of method", "Dr.GRPO, sampled at .6", "countdown_fresh", "dr_grpo_cold"),
        ("one right answer, for pass@k", "MaxRL", "single", "maxrl"),
    )
    rows = [[task, choice, *_format_choice(stage, arm)] for task, choice, stage, arm in choices]
    rates = choose_rates("countdown_rates")
    named = (RECIPE, "kappa_joined", "dr_grpo", "dr_grpo_cold")
    chosen = "; ".join(f"{rates[arm]:g} for {ARMS[arm].name}" for arm in named)
    return f"""
Differences from Dr.GRPO in points, at equal accuracy (mean@8), with 95 % intervals over seeds, paired by seed.
*coverage@8* is the share of a problem's right answers that 8 samples find, *pass@8* the chance that they hold one,
*best mean@8* the highest accuracy at any sampling temperature. n: seeds that reach the level, where not all do.

{format_table(["your task", "take", *FIGURES, "stage, mean@8"], rows, text_columns=(0, 1, 5))}

`diverse()` is κ = 1. The study chose these learning rates on Countdown:
{chosen}. [What the study says](../benchmarks/study/RESULTS.md) has all methods.
"""


def _format_choice(stage: str, arm: str) -> list[str]:
    """Return what a method has more than Dr.GRPO, and where that was measured."""
    leads = [lead.replace(" [", "<br>[") for lead in format_leads(stage, arm, "dr_grpo")]
    return [*leads, f"`{stage}`, {find_level(stage):g}"]


def write_keys_section() -> str:
    """Return what keys are worth where texts never repeat."""
    rows = [
        [ARMS[arm].name, *format_leads("noted", arm, "dr_grpo")]
        for arm in (RECIPE, "soft_quarter", "maxrl", "answer_keys")
    ]
    return f"""
In the stage `noted` of the [study](../benchmarks/study/RESULTS.md), two random numbers stand behind each answer, so
that hardly two texts are equal. κ = 1 is `diverse()`; soft κ and MaxRL need no keys. Differences from Dr.GRPO in
points, at a mean@8 of {find_level("noted"):g}:

{format_table(["method", *FIGURES], rows)}
"""


def write_temperature_section() -> str:
    """Return what sampling colder in training is worth, and what is left to win."""
    stage = "countdown_fresh"
    runs, level = load_runs(stage), find_level(stage)
    head = ["method", f"coverage@8 at mean@8 = {level:g}", "pass@8 there", "best mean@8"]
    rows = []
    for arm in ("dr_grpo", "dr_grpo_cold", RECIPE, "kappa_cold"):
        measured = average_measures(runs, arm) if arm in runs else None
        cells = [NOT_YET if measured is None else format_number(measured[name]) for name in SHOWN]
        rows.append([ARMS[arm].name, *cells])
    return f"""
Countdown, fresh seeds, means; κ = 1 is `diverse()`:

{format_table(head, rows)}
"""


def write_positives_section(demo: dict[str, Any]) -> str:
    """Return what methods do to pass@k up to 64, of the evaluation of the demo and of the study.

    Args:
        demo: the results of `evaluate.py` on the demo's models.
    """
    shown, stage = (1, 8, 64), "countdown_rates"
    lines, rates = read_stage(stage), choose_rates(stage) | {WARM: 0.0}
    study = []
    for arm in (WARM, "dr_grpo", "raft", RECIPE):
        curves = [line["pass@k"] for line in lines if (line["arm"], line["rate"]) == (arm, rates[arm])]
        values = [np.mean([curve[KS.index(k)] for curve in curves]) for k in shown]
        study.append(["before training" if arm == WARM else ARMS[arm].name, *(f"{value:.3f}" for value in values)])
    places = [demo["results"][0]["k"].index(k) for k in shown]
    single = [
        [each["model"].rsplit("/", 1)[-1], *(f"{each['pass@k']['value'][place]:.3f}" for place in places)]
        for each in demo["results"]
    ]
    head = [f"pass@{k}" for k in shown]
    return f"""
RAFT trains on successes alone, `diverse()`, which is κ = 1, pushes failures down as well. On Countdown, means over
the study's two tuning seeds, each method at its best rate, at a sampling temperature of 1:

{format_table(["method", *head], study)}

At k = 8 RAFT and κ = 1 keep more than Dr.GRPO. **At k = 64 every method has lost to the model before training**, and
κ = 1 as much as RAFT: training moves probability to what was sampled. The demo's models, one seed:

{format_table(["model", *head], single)}
"""
