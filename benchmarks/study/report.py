"""Tables and pictures of the study, from the committed lines alone, for its page of results."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # files only: no display is needed

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.study.analysis import (
    MEASURES,
    Difference,
    Runs,
    average_measures,
    compare_arms,
    group_lines,
    rank_arms,
)
from benchmarks.study.arms import ARMS, WARM
from benchmarks.study.cost import NOT_YET, format_costs
from benchmarks.study.runs import Line
from benchmarks.study.stages import (
    RECIPE,
    STAGES,
    average_areas,
    choose_best,
    choose_rates,
    list_runs,
    read_stage,
)
from benchmarks.study.tasks import SIZES
from benchmarks.study.verdict import BASELINE, BEATEN, CANDIDATES, judge
from maxent_grpo.pipeline.frontiers import read_frontier
from maxent_grpo.pipeline.markdown import format_table, replace_section

PAGE = Path(__file__).parent / "RESULTS.md"
SHOWN = ("kappa_modes_cold", "kappa_twice", "ucpo", "remax", "dr_grpo")
"""The methods of a picture, beside the recipe."""
FRESH_STAGES = {"countdown_fresh": "Countdown", "graph_fresh": "graph coloring"}
"""Stages on fresh seeds, and how pages call their tasks."""
DRAWN = ("countdown", "graph")
"""Stages of which there is a picture."""
COLORS = ("#009e73", "#0072b2", "#d55e00", "#e69f00", "#cc79a7", "#56b4e9")
"""Okabe and Ito's, told apart by everyone."""


def write_report(page: Path = PAGE, *, recipe: str = RECIPE) -> None:
    """Put the tables of all stages into the marked sections of the page, and draw the frontiers beside it.

    Args:
        page: the page.
        recipe: the method that the others are compared with.
    """
    text = page.read_text()
    for name in STAGES:
        text = replace_section(text, name, f"\n{write_section(name, recipe)}\n")
    text = replace_section(text, "verdict", f"\n{format_verdicts()}\n")
    text = replace_section(text, "cost", f"\n{format_costs()}\n")
    for name in DRAWN:
        if lines := read_stage(name):
            save_picture(lines, recipe, page.parent / "results" / f"{name}.png")
    page.write_text(text)


def write_section(name: str, recipe: str = RECIPE) -> str:
    """Return the table of a stage, and how much of it there is."""
    stage, lines = STAGES[name], read_stage(name)
    if not lines:
        return NOT_YET
    missing = len(list_runs(name, Path())) - sum(line["arm"] in ARMS for line in lines)
    table = format_rates(name, lines) if stage.rates_of is None else format_stage(lines, recipe)
    return table + (f"\n\n{missing} runs of this stage are not made yet." if missing else "")


def format_rates(name: str, lines: Sequence[Line]) -> str:
    """Return the table of a stage that chooses rates: each method's area at each rate, and who goes on."""
    chosen, rates = choose_rates(name), sorted({line["rate"] for line in lines if line["arm"] in ARMS})
    areas = average_areas(lines, "validation")
    going = choose_best(name) if name == "countdown_rates" else tuple(chosen)
    rows = []
    for arm in sorted(chosen, key=lambda arm: -areas[arm, chosen[arm]]):
        cells = [format_number(areas.get((arm, rate), math.nan)) for rate in rates]
        rows.append([ARMS[arm].name, *cells, "yes" if arm in going else "no"])
    head = ["method", *(f"area at {rate:g}" for rate in rates), "goes on"]
    return format_table(head, rows)


def format_stage(lines: Sequence[Line], recipe: str) -> str:
    """Return the table of a stage: every method's measures, and under each its lead over the recipe."""
    runs = group_lines(lines)
    seeds, level = max(map(len, runs.values())), SIZES[lines[0]["task"]].level
    rows = []
    for arm in rank_arms(runs):
        cells = [format_number(value) for value in average_measures(runs, arm).values()]
        if arm not in (recipe, WARM) and recipe in runs:
            pairs = [compare_arms(runs, arm, recipe, name) for name in MEASURES]
            cells = [f"{cell}<br>{format_difference(pair, seeds)}" for cell, pair in zip(cells, pairs, strict=True)]
        rows.append(["before training" if arm == WARM else ARMS[arm].name, *cells])
    head = ["method", "area", f"coverage@8 at mean@8 = {level:g}", "pass@8 there", "PCMD there", "best mean@8"]
    return f"Under each figure: its lead over {ARMS[recipe].name}, in points.\n\n" + format_table(head, rows)


def format_verdicts() -> str:
    """Return the table of candidates on fresh seeds, criterion by criterion."""
    rows = []
    for name, task in FRESH_STAGES.items():
        runs = group_lines(read_stage(name))
        for arm in CANDIDATES:
            if not {arm, *BEATEN, BASELINE} <= runs.keys():
                continue
            verdict, seeds = judge(runs, arm), len(runs[arm])
            leads = [*verdict.above, verdict.passed, verdict.ceiling]
            cells = [format_difference(lead, seeds).replace(" [", "<br>[") for lead in leads]
            rows.append([ARMS[arm].name, task, *cells, "yes" if verdict.holds else "no"])
    if not rows:
        return NOT_YET
    above = [f"coverage@8 above {ARMS[other].name}" for other in BEATEN]
    head = [
        "method",
        "task",
        *above,
        "pass@8 above the best other",
        f"best mean@8 above {ARMS[BASELINE].name}",
        "all criteria",
    ]
    return format_table(head, rows, text_columns=(0, 1, 7))


def format_number(value: float) -> str:
    """Return a share with three digits, a dash for none.

    >>> format_number(0.25), format_number(float("nan"))
    ('0.250', '–')
    """
    return "–" if math.isnan(value) else f"{value:.3f}"


def format_difference(pair: Difference | None, seeds: int) -> str:
    """Return a difference in points with its interval, and of how many seeds it is where some miss the level.

    >>> format_difference(Difference(0.05, 0.04, 0.06, 4), 5)
    '+5.0 [+4.0, +6.0] n=4'
    """
    if pair is None:
        return "–"
    mean, low, high = (f"{100 * value:+.1f}" for value in (pair.mean, pair.low, pair.high))
    return f"{mean} [{low}, {high}]" + (f" n={pair.seeds}" if pair.seeds < seeds else "")


def save_picture(lines: Sequence[Line], recipe: str, file: Path) -> None:
    """Save coverage and pass@8 against accuracy: means over seeds where all reach it, with bands of ± 1 s.e."""
    runs = group_lines(lines)
    sizes = SIZES[lines[0]["task"]]
    shown = [arm for arm in dict.fromkeys((recipe, *SHOWN)) if arm in runs]
    levels = np.linspace(sizes.levels[0], sizes.levels[1] + 0.05, 61)
    figure, panels = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for panel, measure in zip(panels, ("coverage@8", "pass@8"), strict=True):
        for arm, color in zip(shown, COLORS, strict=False):
            curves = _read_curves(runs, arm, measure, levels)
            mean, error = curves.mean(0), curves.std(0, ddof=1) / math.sqrt(len(curves))
            panel.plot(levels, mean, color=color, label=ARMS[arm].name, linewidth=2.5 if arm == recipe else 1.5)
            panel.fill_between(levels, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
        panel.axvline(sizes.level, color="#888888", linestyle=":", linewidth=1)
        panel.set_xlabel("mean@8: how often one sample is right")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("coverage@8: right answers found by 8 samples")
    panels[1].set_ylabel("pass@8: problems solved by 8 samples")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, dpi=80)
    plt.close(figure)


def _read_curves(runs: Runs, arm: str, measure: str, levels: np.ndarray) -> np.ndarray:
    """Return a measure at every level, [seeds, levels]; NaN where a run does not come so far."""
    tests = [line["test"] for line in runs[arm].values()]
    read = [[read_frontier(level, test["mean@8"], test[measure]) for level in levels] for test in tests]
    return np.array(read, dtype=float)
