"""The table and the pictures of a comparison, from its logged rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # files only: no display is needed

import matplotlib.pyplot as plt
from rich.table import Table

from maxent_grpo.pipeline.markdown import format_table
from maxent_grpo.pipeline.tiny.evaluation import Row, average_rows, interpolate_coverage

NAMES = {
    "warm_start": "warm start",
    "dr_grpo": "Dr.GRPO",
    "maxent": "MaxEnt, published",
    "maxent_diverse": "MaxEnt, diverse",
    "guesser": "random guesser",
}
COLORS = {"dr_grpo": "#4c72b0", "maxent": "#dd8452", "maxent_diverse": "#55a868", "warm_start": "#8c8c8c"}
COLUMNS = ("pass@1", "mean@8", "pass@8", "distinct@8", "coverage@8")
Frontier = dict[float, Row]


def collect_frontiers(rows: Sequence[dict[str, Any]]) -> dict[str, Frontier]:
    """Return each method's final metrics by sampling temperature, averaged over seeds."""
    found: dict[str, dict[float, list[Row]]] = {}
    for row in rows:
        if "temperature" in row:
            metrics = {
                name: value for name, value in row.items() if isinstance(value, float) and name != "temperature"
            }
            found.setdefault(row["arm"], {}).setdefault(row["temperature"], []).append(metrics)
    return {arm: {heat: average_rows(each) for heat, each in by_heat.items()} for arm, by_heat in found.items()}


def find_matched_level(trained: dict[str, Frontier]) -> float:
    """Return the highest mean@8 that every trained method reaches at some sampling temperature."""
    return min(max(row["mean@8"] for row in frontier.values()) for frontier in trained.values())


def match_coverage(rows: Sequence[dict[str, Any]]) -> tuple[float, dict[str, float | None]]:
    """Return the matched mean@8 and every trained method's coverage@8 there."""
    trained = {arm: frontier for arm, frontier in collect_frontiers(rows).items() if arm != "warm_start"}
    level = find_matched_level(trained)
    return level, {arm: interpolate_coverage(level, frontier) for arm, frontier in trained.items()}


def match_coverage_by_seed(rows: Sequence[dict[str, Any]]) -> dict[int, tuple[float, dict[str, float | None]]]:
    """Return `match_coverage` of each seed with which every method that there is was trained to the end."""
    final = [row for row in rows if "temperature" in row and row["arm"] != "warm_start"]
    arms, seeds = {row["arm"] for row in final}, sorted({row["seed"] for row in final})
    by_seed = {seed: [row for row in final if row["seed"] == seed] for seed in seeds}
    return {seed: match_coverage(each) for seed, each in by_seed.items() if {row["arm"] for row in each} == arms}


def write_table(rows: Sequence[dict[str, Any]], guesser: Row, folder: Path, *, notes: Sequence[str] = ()) -> Table:
    """Write results.json and results.md into the folder and return the table for the terminal.

    Metrics are at sampling temperature 1; the last column is at equal accuracy instead, over temperatures. The
    level is matched within each seed, and coverages are averaged afterwards. Notes stand below the table.
    """
    everyone, matched = collect_frontiers(rows), match_coverage_by_seed(rows)
    levels = [level for level, _ in matched.values()]
    level = f" at mean@8 = {sum(levels) / len(levels):.3f}" if levels else " at equal mean@8"
    headers = ["method", *COLUMNS, f"coverage@8{level}"]
    lines = []
    for arm, frontier in everyone.items():
        reached = [coverages[arm] for _, coverages in matched.values() if coverages.get(arm) is not None]
        at_level = f"{sum(reached) / len(reached):.3f}" if reached else "–"
        lines.append([NAMES[arm], *(f"{frontier[1.0][column]:.3f}" for column in COLUMNS), at_level])
    lines.append([NAMES["guesser"], *(f"{guesser[name]:.3f}" if name in guesser else "–" for name in COLUMNS), "–"])
    result = {
        "frontiers": everyone,
        "guesser": guesser,
        "matched": {seed: {"mean@8": level, "coverage@8": coverages} for seed, (level, coverages) in matched.items()},
    }
    (folder / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    below = "".join(f"\n{note}\n" for note in notes)
    (folder / "results.md").write_text(f"{format_table(headers, lines)}\n{below}")
    table = Table(*headers, caption="\n".join(notes), caption_justify="left")
    for line in lines:
        table.add_row(*line)
    return table


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
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for row in logged:
        if row["seed"] == min(each["seed"] for each in logged):
            found.setdefault(row["group"], {})[row["arm"]] = row
    return [by_arm for _, by_arm in sorted(found.items())]


def _plot_curves(panel: Any, rows: Sequence[dict[str, Any]], metric: str, title: str, *, smooth: int = 1) -> None:
    for arm in dict.fromkeys(row["arm"] for row in rows if "step" in row):
        for seed in sorted({row["seed"] for row in rows}):
            points = [
                (row["step"], row[metric])
                for row in rows
                if (row["arm"], row["seed"]) == (arm, seed) and metric in row and "step" in row
            ]
            steps, values = zip(*points, strict=True) if points else ((), ())
            averaged = [sum(values[max(0, i + 1 - smooth) : i + 1]) / min(smooth, i + 1) for i in range(len(values))]
            first = seed == min(row["seed"] for row in rows)
            panel.plot(steps, averaged, color=COLORS[arm], alpha=0.8, label=NAMES[arm] if first else None)
    panel.set(title=title, xlabel="update", ylabel=metric)
    if panel.lines:
        panel.legend(fontsize=8)


def _plot_frontiers(panel: Any, rows: Sequence[dict[str, Any]]) -> None:
    for arm, frontier in collect_frontiers(rows).items():
        points = [(row["mean@8"], row["coverage@8"], heat) for heat, row in sorted(frontier.items())]
        panel.plot(
            *zip(*[(mean, coverage) for mean, coverage, _ in points], strict=True),
            "o-",
            color=COLORS[arm],
            label=NAMES[arm],
        )
        for mean, coverage, heat in points:
            panel.annotate(f"{heat:g}", (mean, coverage), fontsize=7, xytext=(3, 3), textcoords="offset points")
    panel.set(title="held-out, by sampling temperature", xlabel="mean@8 (accuracy)", ylabel="coverage@8")
    panel.legend(fontsize=8)


def _plot_groups(part: Any, groups: Sequence[dict[str, dict[str, Any]]]) -> None:
    """Show the weights and the coefficients of each group, the right answers first."""
    part.suptitle("held-out groups of the warm start as each method weighs them; bold: right answers")
    panels = part.subplots(2, len(groups), sharex="col", sharey="row", squeeze=False)
    for (above, below), by_arm in zip(panels.T, groups, strict=True):
        any_row = next(iter(by_arm.values()))
        rewards, texts = any_row["rewards"], any_row["texts"]
        order = sorted(range(len(texts)), key=lambda i, rewards=rewards, texts=texts: (-rewards[i], texts[i]))
        above.plot([any_row["q"][i] for i in order], "k_", label="q")
        for panel, column in ((above, "weights"), (below, "coefficients")):
            _plot_bars(panel, {arm: [row[column][i] for i in order] for arm, row in by_arm.items()})
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
        positions = [at + width * (which - (len(heights) - 1) / 2) for at in range(len(values))]
        panel.bar(positions, values, width=width, color=COLORS[arm], label=NAMES[arm])
    panel.axhline(0, color="black", linewidth=0.6)
