"""The pictures of a study: accuracy against coverage, pass@k, and the dose-response in τ and κ."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # files only: no display is needed

import matplotlib.pyplot as plt

from benchmarks.diversity.arms import ARMS, CORE, METHODS, PLANNED, RECIPE
from benchmarks.diversity.run import WARM

Summary = Mapping[str, Any]


def save_pictures(result: Summary, folder: Path) -> list[Path]:
    """Save the picture of frontiers and pass@k, and that of the doses if such arms were run; return the files."""
    files = [folder / f"{result['study']}.png"]
    _frontiers(result, files[0])
    doses = _doses(result)
    if doses:
        files.append(folder / f"{result['study']}-doses.png")
        _dose_response(doses, files[1])
    return files


def _frontiers(result: Summary, file: Path) -> None:
    figure, (frontier, passing) = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    drawn = {
        arm: row
        for arm, row in result["arms"].items()
        if (arm in PLANNED and arm in {*CORE, *METHODS}) or arm == WARM
    }
    for index, (arm, row) in enumerate(drawn.items()):
        style = {
            "color": "black" if arm == WARM else plt.get_cmap("tab20")(index % 20),
            "linewidth": 2.5 if arm == RECIPE else 1.2,
            "label": "warm start" if arm == WARM else ARMS[arm].name,
        }
        points = row["frontier"]
        frontier.plot(
            [point["mean@8"] for point in points], [point["coverage@8"] for point in points], "o-", ms=3, **style
        )
        counts = sorted(map(int, row["pass@k"]))
        passing.plot(counts, [row["pass@k"][str(k)] for k in counts], "o-", ms=3, **style)
    frontier.axvline(result["levels"]["level"], color="grey", linestyle=":")
    frontier.set(xlabel="mean@8 (accuracy), hot to cold", ylabel="coverage@8", title="over the sampling temperature")
    passing.set(xlabel="k", ylabel="pass@k", title="sampling temperature 1", xscale="log")
    frontier.legend(fontsize=7)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _doses(result: Summary) -> dict[str, list[tuple[float, Summary]]]:
    """Return for κ and for τ the arms that differ from the recipe in it alone, by dose."""
    recipe = ARMS[RECIPE]
    found = {}
    for name in ("dedup", "tau"):
        others = {"tau": recipe.config.tau, "dedup": recipe.config.dedup}
        same = [
            (getattr(ARMS[arm].config, name), row["mean"])
            for arm, row in result["arms"].items()
            if arm != WARM and _differs_in(arm, name, others)
        ]
        if len(same) > 1:
            found[name] = sorted(same, key=lambda pair: pair[0])
    return found


def _differs_in(arm: str, name: str, recipe: Mapping[str, float]) -> bool:
    """Return whether an arm is the recipe but for a setting, or the recipe itself."""
    config = replace(ARMS[arm].config, **{name: recipe[name]})
    return ARMS[RECIPE] == replace(ARMS[arm], config=config, name=ARMS[RECIPE].name, tuned_as=ARMS[RECIPE].tuned_as)


def _dose_response(doses: Mapping[str, list[tuple[float, Summary]]], file: Path) -> None:
    figure, panels = plt.subplots(1, len(doses), figsize=(6 * len(doses), 4.5), layout="constrained", squeeze=False)
    symbols = {"dedup": "κ", "tau": "τ"}
    for panel, (name, points) in zip(panels[0], doses.items(), strict=True):
        positions = range(len(points))
        for metric in ("coverage@8 at level", "pass@8 at level", "best mean@8"):
            panel.plot(positions, [mean[metric] for _, mean in points], "o-", label=metric)
        panel.set_xticks(positions, [f"{dose:g}" for dose, _ in points])
        panel.set(xlabel=symbols[name], title=f"dose-response in {symbols[name]}")
        panel.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)
