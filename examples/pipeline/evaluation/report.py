"""The report of an evaluation: JSON, a table, and a picture of the curves."""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # files only: no display is needed

import matplotlib.pyplot as plt
from rich.table import Table

from maxent_grpo.pipeline.evaluation.curves import Curve
from maxent_grpo.pipeline.markdown import format_table

_NUMBERS = re.compile(r"\[[^\[\]{}\"]*\]")  # a list of them, which JSON would write one per line
SHOWN = (1, 2, 4, 8, 16, 32, 64)
COLORS = ("#888888", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9")
"""Okabe and Ito's, told apart by everyone."""


def curve_as_dict(curve: Curve, metrics: Sequence[str]) -> dict[str, Any]:
    """Return a curve as JSON holds it: lists over k of the values and of both ends of their intervals."""
    points = {
        f"{name}@k": {end: [getattr(point, end) for point in curve.points[name]] for end in ("value", "low", "high")}
        for name in metrics
    }
    modes = {"distinct_per_solved": curve.distinct_per_solved} if "distinct" in metrics else {}
    return {"k": curve.ks, **points, **modes, "prompts": curve.prompts}


def list_table_rows(results: Sequence[tuple[str, Curve]], metrics: Sequence[str]) -> list[list[str]]:
    """Return the header and a row for each model and shown k, intervals in brackets."""
    rows = [["model", "k", *(f"{name}@k" for name in metrics)]]
    for model, curve in results:
        for place, k in enumerate(curve.ks):
            if k in SHOWN or place == len(curve.ks) - 1:
                points = [curve.points[name][place] for name in metrics]
                rows.append([model, str(k), *(f"{p.value:.3f} [{p.low:.3f}, {p.high:.3f}]" for p in points)])
    return rows


def build_table(rows: Sequence[Sequence[str]]) -> Table:
    """Return the table for a terminal."""
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    return table


def save_report(
    folder: Path,
    settings: dict[str, Any],
    results: Sequence[tuple[str, Curve, dict[str, Any]]],
    metrics: Sequence[str],
) -> list[list[str]]:
    """Write evaluation.json, evaluation.md and evaluation.png; return the rows of the table.

    Args:
        folder: where they go.
        settings: how the evaluation was made.
        results: the name, curve and other figures of each model.
        metrics: of `curves.METRICS`, those that say something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    models = [{"model": name, **others, **curve_as_dict(curve, metrics)} for name, curve, others in results]
    text = json.dumps({**settings, "results": models}, indent=2)
    (folder / "evaluation.json").write_text(_NUMBERS.sub(lambda match: " ".join(match[0].split()), text) + "\n")
    curves = [(name, curve) for name, curve, _ in results]
    rows = list_table_rows(curves, metrics)
    (folder / "evaluation.md").write_text(format_table(rows[0], rows[1:]) + "\n")
    save_picture(curves, folder / "evaluation.png", title=str(settings.get("subject", "")), metrics=metrics)
    return rows


def save_picture(curves: Sequence[tuple[str, Curve]], file: Path, *, title: str, metrics: Sequence[str]) -> None:
    """Save pass@k, and the variety of right answers where it is known, with their intervals as bands."""
    axes = {"pass": "chance that one of k samples is right"}
    if "coverage" in metrics:
        axes["coverage"] = "share of the right answers among k samples"
    elif "distinct" in metrics:
        axes["distinct"] = "different right answers among k samples"
    figure, panels = plt.subplots(1, len(axes), figsize=(5 * len(axes), 4.3), layout="constrained", squeeze=False)
    for panel, (name, label) in zip(panels[0], axes.items(), strict=True):
        for (model, curve), color in zip(curves, itertools.cycle(COLORS)):
            points = curve.points[name]
            panel.plot(curve.ks, [point.value for point in points], color=color, label=model)
            low, high = [point.low for point in points], [point.high for point in points]
            panel.fill_between(curve.ks, low, high, color=color, alpha=0.2, linewidth=0)
        ticks = [k for k in SHOWN if k <= curves[0][1].ks[-1]]
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [str(k) for k in ticks])
        panel.set(title=f"{name}@k", xlabel="k, samples per prompt", ylabel=label)
        panel.set_ylim(0, None if name == "distinct" else 1)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(fontsize=8, loc="lower right")
    figure.suptitle(f"{title}: bands are 95 % intervals over prompts")
    figure.savefig(file, dpi=110)
    plt.close(figure)
