"""The picture of a comparison, from its logged rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # files only: no display is needed

import matplotlib.pyplot as plt

from maxent_grpo.pipeline.tiny.report import NAMES, collect_frontiers

COLORS = {"dr_grpo": "#4c72b0", "maxent": "#dd8452", "maxent_diverse": "#55a868", "warm_start": "#8c8c8c"}


def save_picture(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Save reward and coverage curves, the accuracy-coverage frontiers, and target weights of a few groups."""
    groups = collect_groups(rows)
    figure = plt.figure(figsize=(11, 14 if groups else 8), layout="constrained")
    upper, *lower = figure.subfigures(2 if groups else 1, 1, squeeze=False).flatten()
    panels = upper.subplots(2, 2)
    _plot_curves(panels[0, 0], rows, "reward", "reward in training (moving average)", smooth=15)
    _plot_curves(panels[0, 1], rows, "coverage@8", "coverage@8 on held-out problems, temperature 1")
    _plot_frontiers(panels[1, 0], rows)
    _plot_curves(panels[1, 1], rows, "maxent/ess", "effective sample size of the weights (moving average)", smooth=15)
    for part in lower:
        _plot_groups(part, groups)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def collect_groups(rows: Sequence[dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Return the logged groups of the first seed that has any, each as the rows of the methods."""
    logged = [row for row in rows if "group" in row]
    rows_by_group: dict[int, dict[str, dict[str, Any]]] = {}
    for row in logged:
        if row["seed"] == min(other["seed"] for other in logged):
            rows_by_group.setdefault(row["group"], {})[row["arm"]] = row
    return [rows_by_arm for _, rows_by_arm in sorted(rows_by_group.items())]


def _plot_curves(panel: Any, rows: Sequence[dict[str, Any]], metric: str, title: str, *, smooth: int = 1) -> None:
    updates = [row for row in rows if "step" in row and metric in row]
    seeds = sorted({row["seed"] for row in rows})
    for arm in dict.fromkeys(row["arm"] for row in rows if "step" in row):
        for seed in seeds:
            points = [(row["step"], row[metric]) for row in updates if (row["arm"], row["seed"]) == (arm, seed)]
            steps, values = zip(*points, strict=True) if points else ((), ())
            label = NAMES[arm] if seed == seeds[0] else None
            panel.plot(steps, _smooth(values, smooth), color=COLORS[arm], alpha=0.8, label=label)
    panel.set(title=title, xlabel="update", ylabel=metric)
    if panel.lines:
        panel.legend(fontsize=8)


def _smooth(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of each value and those before it, `width` of them where there are as many."""
    windows = [values[max(0, end - width) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]


def _plot_frontiers(panel: Any, rows: Sequence[dict[str, Any]]) -> None:
    for arm, frontier in collect_frontiers(rows).items():
        temperatures = sorted(frontier)
        accuracies, coverages = ([frontier[each][name] for each in temperatures] for name in ("mean@8", "coverage@8"))
        panel.plot(accuracies, coverages, "o-", color=COLORS[arm], label=NAMES[arm])
        for temperature, point in zip(temperatures, zip(accuracies, coverages, strict=True), strict=True):
            panel.annotate(f"{temperature:g}", point, fontsize=7, xytext=(3, 3), textcoords="offset points")
    panel.set(title="held-out, by sampling temperature", xlabel="mean@8 (accuracy)", ylabel="coverage@8")
    panel.legend(fontsize=8)


def _plot_groups(part: Any, groups: Sequence[dict[str, dict[str, Any]]]) -> None:
    """Show the weights and the coefficients of each group, the right answers first."""
    part.suptitle("held-out groups of the warm start as each method weighs them; bold: right answers")
    panels = part.subplots(2, len(groups), sharex="col", sharey="row", squeeze=False)
    for (above, below), rows_by_arm in zip(panels.T, groups, strict=True):
        any_row = next(iter(rows_by_arm.values()))
        rewards, texts = any_row["rewards"], any_row["texts"]
        order = [i for *_, i in sorted((-reward, texts[i], i) for i, reward in enumerate(rewards))]
        above.plot([any_row["q"][i] for i in order], "k_", label="q")
        for panel, column in ((above, "weights"), (below, "coefficients")):
            _plot_bars(panel, {arm: [row[column][i] for i in order] for arm, row in rows_by_arm.items()})
        below.set_xticks(range(len(order)), [texts[i] for i in order], rotation=90, fontsize=7)
        for label, i in zip(below.get_xticklabels(), order, strict=True):
            label.set_fontweight("bold" if rewards[i] > 0 else "normal")
        above.set(title=any_row["prompt"])
    panels[0, 0].set(ylabel="target weight π* (Dr.GRPO: equal)")
    panels[1, 0].set(ylabel="coefficient c of the log-likelihood")
    panels[0, 0].legend(fontsize=8)


def _plot_bars(panel: Any, heights: dict[str, list[float]]) -> None:
    """Draw the methods' bars side by side at each candidate."""
    width = 0.8 / len(heights)
    for which, (arm, values) in enumerate(heights.items()):
        offset = width * (which - (len(heights) - 1) / 2)
        positions = [candidate + offset for candidate in range(len(values))]
        panel.bar(positions, values, width=width, color=COLORS[arm], label=NAMES[arm])
    panel.axhline(0, color="black", linewidth=0.6)
