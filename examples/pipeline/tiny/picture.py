"""The picture of a comparison, from its logged rows."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # files only: no display is needed

import matplotlib.pyplot as plt

from maxent_grpo.pipeline.tiny.report import NAMES, collect_frontiers

COLORS = {"dr_grpo": "#0072b2", "maxent": "#e69f00", "maxent_diverse": "#009e73", "warm_start": "#888888"}
"""Okabe and Ito's, told apart by everyone."""
CURVES = (
    ("reward", "share of samples that are right, in training", 15),
    ("coverage@8", "share of right answers found by 8 samples (coverage@8)", 1),
    ("maxent/ess", "candidates that the weights count (effective sample size)", 15),
)
"""Metrics over updates: name, axis, over how many updates each point is averaged."""


def save_picture(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Save curves over updates, the accuracy-coverage frontiers, and target weights of a few groups.

    Nothing is drawn of what was not logged.
    """
    curves = [curve for curve in CURVES if any("step" in row and curve[0] in row for row in rows)]
    frontiers, groups = collect_frontiers(rows), collect_groups(rows)
    panels_above = len(curves) + bool(frontiers)
    heights = [4 * math.ceil(panels_above / 2)] * bool(panels_above) + [6] * bool(groups)
    if not heights:
        return
    figure = plt.figure(figsize=(11, sum(heights)), layout="constrained")
    parts = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).flatten())
    if panels_above:
        _plot_training(parts.pop(0), rows, curves, frontiers)
    if groups:
        _plot_groups(parts.pop(0), groups)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def collect_groups(rows: Sequence[dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Return the logged groups of the first seed that has any, each as the rows of the methods."""
    logged = [row for row in rows if "group" in row]
    rows_by_group: dict[int, dict[str, dict[str, Any]]] = {}
    for row in logged:
        if row["seed"] == min(other["seed"] for other in logged):
            rows_by_group.setdefault(row["group"], {})[row["arm"]] = row
    return [rows_by_arm for _, rows_by_arm in sorted(rows_by_group.items())]


def _plot_training(
    part: Any, rows: Sequence[dict[str, Any]], curves: Sequence[tuple[str, str, int]], frontiers: dict[str, Any]
) -> None:
    """Draw a panel for each curve, and one for the frontiers."""
    count = len(curves) + bool(frontiers)
    panels = part.subplots(math.ceil(count / 2), min(count, 2), squeeze=False).flatten()
    for panel, (metric, label, width) in zip(panels, curves, strict=False):
        _plot_curves(panel, rows, metric, width)
        panel.set(title=label, xlabel="update")
        if metric == "maxent/ess":
            panel.set(yticks=[1, 2, 4, 8], ylim=(0.5, 8.5))
    if frontiers:
        _plot_frontiers(panels[len(curves)], frontiers)
    for panel in panels[count:]:
        panel.set_axis_off()
    for panel in panels[:count]:
        panel.spines[["top", "right"]].set_visible(False)
    seeds = len({row["seed"] for row in rows})
    lines = (
        f"lines: means over {seeds} seeds; bands: from the lowest seed to the highest" if seeds > 1 else "one seed"
    )
    smoothing = f"; training curves are averaged over {CURVES[0][2]} updates" if curves else ""
    part.suptitle(lines + smoothing)
    panels[0].legend(fontsize=9)


def _plot_curves(panel: Any, rows: Sequence[dict[str, Any]], metric: str, width: int) -> None:
    """Draw each method's mean over seeds, and a band from the lowest to the highest of them."""
    for arm in dict.fromkeys(row["arm"] for row in rows if "step" in row):
        by_seed: dict[int, dict[int, float]] = {}
        for row in rows:
            if row["arm"] == arm and "step" in row and metric in row:
                by_seed.setdefault(row["seed"], {})[row["step"]] = row[metric]
        if not by_seed:
            continue
        steps = sorted(set.intersection(*(set(values) for values in by_seed.values())))
        curves = [_smooth([values[step] for step in steps], width) for values in by_seed.values()]
        means = [sum(column) / len(column) for column in zip(*curves, strict=True)]
        panel.plot(steps, means, color=COLORS[arm], label=NAMES[arm])
        lowest, highest = ([choose(column) for column in zip(*curves, strict=True)] for choose in (min, max))
        panel.fill_between(steps, lowest, highest, color=COLORS[arm], alpha=0.2, linewidth=0)


def _smooth(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of each value and those before it, `width` of them where there are as many."""
    windows = [values[max(0, end - width) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]


def _plot_frontiers(panel: Any, frontiers: dict[str, Any]) -> None:
    """Draw what each method's accuracy and coverage are at every sampling temperature."""
    temperatures = sorted({temperature for frontier in frontiers.values() for temperature in frontier})
    for arm, frontier in frontiers.items():
        points = [frontier[temperature] for temperature in sorted(frontier)]
        accuracies, coverages = ([point[name] for point in points] for name in ("mean@8", "coverage@8"))
        panel.plot(accuracies, coverages, "o-", markersize=4, color=COLORS[arm], label=NAMES[arm])
    spread = f"sampled at {temperatures[-1]:g} (left end of a line) to {temperatures[0]:g} (right end)"
    panel.set(title="accuracy against coverage, held-out problems", xlabel=f"mean@8, {spread}", ylabel="coverage@8")
    panel.legend(fontsize=9)


def _plot_groups(part: Any, groups: Sequence[dict[str, dict[str, Any]]]) -> None:
    """Show the weights and the coefficients of each group, the right answers first."""
    part.suptitle("held-out groups of the warm start as each method weighs them; bold: right answers")
    panels = part.subplots(2, len(groups), sharex="col", sharey="row", squeeze=False)
    for (above, below), rows_by_arm in zip(panels.T, groups, strict=True):
        any_row = next(iter(rows_by_arm.values()))
        rewards, texts = any_row["rewards"], any_row["texts"]
        order = [i for *_, i in sorted((-reward, texts[i], i) for i, reward in enumerate(rewards))]
        above.plot([any_row["q"][i] for i in order], "k_", label="q, from the rewards alone")
        for panel, column in ((above, "weights"), (below, "coefficients")):
            _plot_bars(panel, {arm: [row[column][i] for i in order] for arm, row in rows_by_arm.items()})
        below.set_xticks(range(len(order)), [texts[i] for i in order], rotation=90, fontsize=7)
        for label, i in zip(below.get_xticklabels(), order, strict=True):
            label.set_fontweight("bold" if rewards[i] > 0 else "normal")
        above.set(title=any_row["prompt"])
    panels[0, 0].set(ylabel="weight in the target\n(Dr.GRPO: equal)")
    panels[1, 0].set(ylabel="push on the candidate\n(coefficient of its log-likelihood)")
    panels[0, 0].legend(fontsize=8)


def _plot_bars(panel: Any, heights: dict[str, list[float]]) -> None:
    """Draw the methods' bars side by side at each candidate."""
    width = 0.8 / len(heights)
    for which, (arm, values) in enumerate(heights.items()):
        offset = width * (which - (len(heights) - 1) / 2)
        positions = [candidate + offset for candidate in range(len(values))]
        panel.bar(positions, values, width=width, color=COLORS[arm], label=NAMES[arm])
    panel.axhline(0, color="black", linewidth=0.6)
