"""The table of a comparison, from its logged rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
COLUMNS = ("greedy", "mean@8", "pass@8", "distinct@8", "coverage@8")
Frontier = dict[float, Row]


def collect_frontiers(rows: Sequence[dict[str, Any]]) -> dict[str, Frontier]:
    """Return each method's final metrics by sampling temperature, averaged over seeds."""
    metrics_by_arm: dict[str, dict[float, list[Row]]] = {}
    for row in rows:
        if "temperature" in row:
            metrics = {
                name: value for name, value in row.items() if isinstance(value, float) and name != "temperature"
            }
            metrics_by_arm.setdefault(row["arm"], {}).setdefault(row["temperature"], []).append(metrics)
    return {
        arm: {temperature: average_rows(metrics) for temperature, metrics in by_temperature.items()}
        for arm, by_temperature in metrics_by_arm.items()
    }


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
    return {
        seed: match_coverage(seed_rows)
        for seed, seed_rows in by_seed.items()
        if {row["arm"] for row in seed_rows} == arms
    }


def write_table(rows: Sequence[dict[str, Any]], guesser: Row, folder: Path, *, notes: Sequence[str] = ()) -> Table:
    """Write results.json and results.md into the folder and return the table for the terminal.

    Metrics are at sampling temperature 1; the last column is at equal accuracy instead, over temperatures. The
    level is matched within each seed, and coverages are averaged afterwards. Notes stand below the table.
    """
    all_frontiers, matched = collect_frontiers(rows), match_coverage_by_seed(rows)
    levels = [level for level, _ in matched.values()]
    level = f" at mean@8 = {sum(levels) / len(levels):.3f}" if levels else " at equal mean@8"
    headers = ["method", *COLUMNS, f"coverage@8{level}"]
    cells = []
    for arm, frontier in all_frontiers.items():
        coverages = [value for _, coverage in matched.values() if (value := coverage.get(arm)) is not None]
        at_level = f"{sum(coverages) / len(coverages):.3f}" if coverages else "–"
        cells.append([NAMES[arm], *(f"{frontier[1.0][column]:.3f}" for column in COLUMNS), at_level])
    cells.append([NAMES["guesser"], *(f"{guesser[name]:.3f}" if name in guesser else "–" for name in COLUMNS), "–"])
    results = {
        "frontiers": all_frontiers,
        "guesser": guesser,
        "matched": {seed: {"mean@8": level, "coverage@8": coverage} for seed, (level, coverage) in matched.items()},
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    below = "".join(f"\n{note}\n" for note in notes)
    (folder / "results.md").write_text(f"{format_table(headers, cells)}\n{below}")
    table = Table(*headers, caption="\n".join(notes), caption_justify="left")
    for row_cells in cells:
        table.add_row(*row_cells)
    return table
