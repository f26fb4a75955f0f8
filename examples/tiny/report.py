"""The table and the pictures of a comparison, from its logged rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # files only: no display is needed

import matplotlib.pyplot as plt
import torch
from rich.table import Table

from maxent_grpo import MaxEntConfig, MaxEntObjective
from tiny.evaluation import Row, average_rows, coverage_at

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


def frontiers(rows: Sequence[dict[str, Any]]) -> dict[str, Frontier]:
    """Return each method's final metrics by sampling temperature, averaged over seeds."""
    found: dict[str, dict[float, list[Row]]] = {}
    for row in rows:
        if "temperature" in row:
            metrics = {
                name: value for name, value in row.items() if isinstance(value, float) and name != "temperature"
            }
            found.setdefault(row["arm"], {}).setdefault(row["temperature"], []).append(metrics)
    return {arm: {heat: average_rows(each) for heat, each in by_heat.items()} for arm, by_heat in found.items()}


def matched_level(trained: dict[str, Frontier]) -> float:
    """Return the highest mean@8 that every trained method reaches at some sampling temperature."""
    return min(max(row["mean@8"] for row in frontier.values()) for frontier in trained.values())


def matched_coverage(rows: Sequence[dict[str, Any]]) -> tuple[float, dict[str, float | None]]:
    """Return the matched mean@8 and every trained method's coverage@8 there."""
    trained = {arm: frontier for arm, frontier in frontiers(rows).items() if arm != "warm_start"}
    level = matched_level(trained)
    return level, {arm: coverage_at(level, frontier) for arm, frontier in trained.items()}


def write_table(rows: Sequence[dict[str, Any]], guesser: Row, folder: Path) -> Table:
    """Write results.json and results.md into the folder and return the table for the terminal.

    Metrics are at sampling temperature 1; the last column is at equal accuracy instead, over temperatures. The
    level is matched within each seed, and coverages are averaged afterwards.
    """
    by_seed = {seed: [row for row in rows if row["seed"] == seed] for seed in sorted({row["seed"] for row in rows})}
    matched = {seed: matched_coverage(each) for seed, each in by_seed.items()}
    level = sum(level for level, _ in matched.values()) / len(matched)
    headers = ["method", *COLUMNS, f"coverage@8 at mean@8 = {level:.3f}"]
    lines = []
    everyone = frontiers(rows)
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
    markdown = [headers, ["---", *["---:"] * (len(headers) - 1)], *lines]
    (folder / "results.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in markdown))
    table = Table(*headers)
    for line in lines:
        table.add_row(*line)
    return table


def save_picture(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Save reward and coverage curves, the accuracy-coverage frontiers, and target weights of a few groups."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    _curves(panels[0, 0], rows, "reward", "reward in training (moving average)", smooth=15)
    _curves(panels[0, 1], rows, "coverage@8", "coverage@8 on held-out problems, temperature 1")
    _frontier_panel(panels[1, 0], rows)
    _target_panel(panels[1, 1])
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _curves(panel: Any, rows: Sequence[dict[str, Any]], metric: str, title: str, *, smooth: int = 1) -> None:
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
    panel.legend(fontsize=8)


def _frontier_panel(panel: Any, rows: Sequence[dict[str, Any]]) -> None:
    for arm, frontier in frontiers(rows).items():
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


def _target_panel(panel: Any) -> None:
    """Show what the two MaxEnt settings make of one group: eight candidates, three right, two of those alike."""
    utilities, keys = (
        torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]),
        torch.tensor([[0, 0, 1, 2, 3, 4, 5, 5]]),
    )
    everyone = torch.ones_like(utilities, dtype=torch.bool)
    for offset, (arm, config) in enumerate(
        {"maxent": MaxEntConfig(), "maxent_diverse": MaxEntConfig.diverse(max_length=1)}.items()
    ):
        objective = MaxEntObjective(config)
        target = objective.target(utilities, mask=everyone, lengths=everyone.long(), keys=keys)
        coefficients = objective.coefficients(target)[0].tolist()
        panel.bar(
            [i + 0.4 * offset - 0.2 for i in range(8)], coefficients, width=0.4, color=COLORS[arm], label=NAMES[arm]
        )
    panel.axhline(0, color="black", linewidth=0.6)
    panel.set_xticks(range(8), ["right\nA", "right\nA", "right\nB", *["wrong"] * 5], fontsize=8)
    panel.set(title="coefficients of one group of 8", ylabel="c")
    panel.legend(fontsize=8)
