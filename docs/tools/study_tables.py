"""Sections on the diversity study for the README and the pages, from its committed JSON."""

import json
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.diversity.arms import RECIPE
from benchmarks.diversity.report import COUNTDOWN, GRAPH, choose_level, format_difference, format_differences
from benchmarks.diversity.study import RESULTS
from maxent_grpo.pipeline.markdown import format_table

Summary = dict[str, Any]
README_ROWS = (
    ("confirm", "dr_grpo"), ("confirm", "raft_cool"), ("confirm", "xdr_mild"),
    ("graph_confirm", "dr_grpo"), ("graph_confirm", "tpo"),
)  # fmt: skip
"""The most telling ones, where the recipe is not ahead among them."""
FIGURES = ("coverage@8", "pass@8", "best mean@8")


def load_study(name: str) -> Summary:
    """Return the results of a study of the package `benchmarks.diversity`."""
    summary: Summary = json.loads((RESULTS / f"{name}.json").read_text())
    return summary


def write_study_section() -> str:
    """Return the README's rows of the two confirming studies."""
    results = {name: load_study(name) for name in ("confirm", "graph_confirm")}
    tasks = {"confirm": ("Countdown", COUNTDOWN), "graph_confirm": ("graph coloring", GRAPH)}
    levels, rows = {}, []
    for name, arm in README_ROWS:
        result, (task, shown) = results[name], tasks[name]
        at = choose_level(result, shown)
        levels[task] = f"{result['levels'][at]:.3f} on {task}"
        rows.append([task, result["arms"][arm]["name"], *format_differences(result, RECIPE, arm, at)])
    head = ["task", "`MaxEntConfig.diverse()` minus", *FIGURES]
    seeds = len(results["confirm"]["preset"]["seeds"])
    return f"""
Differences in points, with 95 % intervals over {seeds} fresh seeds, at equal accuracy: each method at the sampling
temperature where *mean@8*, the chance that one sample is right, is {" and ".join(levels.values())}.
*coverage@8* is the share of a problem's right answers that 8 samples find, *pass@8* the chance that they hold one,
*best mean@8* the highest accuracy at any sampling temperature.
Models of 0.3 million parameters, no pretrained one yet. [All results](benchmarks/diversity/RESULTS.md), [the demo and
the recipes](docs/measured.md), [kernels against their peers](docs/kernels.md).

{format_table(head, rows, text_columns=(0, 1))}
"""


def write_choosing_section() -> str:
    """Return the table of tasks, what to take for each, and what that has more than Dr.GRPO."""
    keys = "`diverse()` with a key function"
    rows = [
        _write_choice("several right answers in short texts", "`diverse()`", "confirm", RECIPE),
        _write_choice("the same, and two updates per batch", "`diverse()`, two passes", "confirm", "two_passes"),
        _write_choice("the same, almost even already", "`diverse()`, RAFT or TPO", "graph_confirm", RECIPE),
        _write_choice("several right answers, no two texts alike", keys, "noted", "answer_keys"),
        _write_choice("the same, nobody can name an answer", "`diverse()` by texts", "noted", RECIPE),
        _write_choice("no change of method", "Dr.GRPO, sampled at .6", "confirm", "dr_grpo_cold"),
        _write_choice("one right answer, for pass@k", "`diverse()`", "single", RECIPE),
        _write_choice("several right answers, for pass@k alone", "xDr.GRPO, τ = .25", "confirm", "xdr_mild"),
        _write_choice("pass@1 alone", "RAFT", "confirm", "raft"),
    ]
    rates = load_study("confirm")["arms"]
    chosen = ", ".join(
        f"{rates[arm]['learning_rate']:g} for {rates[arm]['name']}"
        for arm in (RECIPE, "two_passes", "dr_grpo", "raft")
    )
    return f"""
Differences from Dr.GRPO in points, at equal accuracy (mean@8), with 95 % intervals over seeds, paired by seed.
*coverage@8* is the share of a problem's right answers that 8 samples find, *pass@8* the chance that they hold one,
*best mean@8* the highest accuracy at any sampling temperature. n: seeds that reach the level, where not all do.

{format_table(["your task", "take", *FIGURES, "study, mean@8"], rows, text_columns=(0, 1, 5))}

On the third row RAFT, TPO and xDr.GRPO do as well as `diverse()`. The study chose these learning rates on Countdown:
{chosen}. [What the study says](../benchmarks/diversity/RESULTS.md) has all methods, [the study](diversity.md) the
presets.
"""


def _write_choice(task: str, choice: str, study: str, arm: str) -> list[str]:
    """Return a row: what an arm of a study has more than Dr.GRPO."""
    result = load_study(study)
    at = choose_level(result, (arm, "dr_grpo"))
    seeds = len(result["arms"][arm]["per_seed"])
    names = (f"coverage@8 at {at}", f"pass@8 at {at}", "best mean@8")
    differences = [format_difference(pair_seeds(result, arm, "dr_grpo", name), seeds) for name in names]
    cells = [difference.replace(" [", "<br>[") for difference in differences]
    return [task, choice, *cells, f"`{study}`, {result['levels'][at]:.3f}"]


def pair_seeds(result: Summary, first: str, second: str, name: str) -> Summary:
    """Return the mean difference of two arms paired by seed, and Student's interval, as the study's JSON has them."""
    rows = zip(result["arms"][first]["per_seed"], result["arms"][second]["per_seed"], strict=True)
    pairs = [(one[name], other[name]) for one, other in rows]
    differences = np.array([one - other for one, other in pairs if one is not None and other is not None])
    mean, error = differences.mean(), stats.sem(differences)
    low, high = stats.t.interval(0.95, len(differences) - 1, mean, error)
    # The bootstrap's ends are not printed where this is used.
    return {
        "mean": mean,
        "seed_low": low,
        "seed_high": high,
        "both_low": low,
        "both_high": high,
        "seeds": len(differences),
    }


def write_keys_section() -> str:
    """Return what keys are worth where texts never repeat."""
    noted = load_study("noted")
    rows = [_write_choice(noted["arms"][arm]["name"], "", "noted", arm) for arm in (RECIPE, "answer_keys")]
    cells = [[row[0], *row[2:]] for row in rows]
    return f"""
In the preset `noted` of the [study](diversity.md), two random numbers stand behind each answer, so that hardly two
texts are equal. Differences from Dr.GRPO in points, at equal accuracy:

{format_table(["method", *FIGURES, "study, mean@8"], cells)}
"""


def write_temperature_section() -> str:
    """Return what sampling colder in training is worth, and what is left to win."""
    result = load_study("confirm")
    names = ("coverage@8 at level", "pass@8 at level", "best mean@8")
    arms = ("dr_grpo", "dr_grpo_cool", "dr_grpo_cold", "entropy_high", RECIPE)
    rows = [
        [result["arms"][arm]["name"], *(f"{result['arms'][arm]['mean'][name]:.3f}" for name in names)] for arm in arms
    ]
    head = ["method", f"coverage@8 at mean@8 = {result['levels']['level']:.3f}", "pass@8 there", "best mean@8"]
    return f"""
Countdown, fresh seeds, means:

{format_table(head, rows)}

Most of the gap in coverage is closed, not all of it. On graph coloring a colder temperature does not help Dr.GRPO.
"""


def write_positives_section(demo: Summary) -> str:
    """Return what methods do to pass@k up to 64, of the evaluation of the demo and of the study.

    Args:
        demo: the results of `evaluate.py` on the demo's models.
    """
    shown, result = (1, 8, 64), load_study("confirm")
    study = [
        [result["arms"][arm]["name"], *(f"{result['arms'][arm]['pass@k'][str(k)]:.3f}" for k in shown)]
        for arm in ("warm_start", "dr_grpo", "raft", RECIPE)
    ]
    places = [demo["results"][0]["k"].index(k) for k in shown]
    single = [
        [each["model"].rsplit("/", 1)[-1], *(f"{each['pass@k']['value'][place]:.3f}" for place in places)]
        for each in demo["results"]
    ]
    head = [f"pass@{k}" for k in shown]
    return f"""
RAFT trains on successes alone, `diverse()` pushes failures down as well. On Countdown, means over five seeds, at a
sampling temperature of 1:

{format_table(["method", *head], study)}

At k = 8 both keep more than Dr.GRPO. **At k = 64 every method has lost to the model it started from**, the warm
start: training moves probability to what was sampled. `diverse()` loses less than Dr.GRPO. The demo's models, one
seed, say the same:

{format_table(["model", *head], single)}
"""
