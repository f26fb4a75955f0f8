"""Tables and pictures from the JSON of an analysis alone: an appendix for each study, and one page for all."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # files only: no display is needed

import matplotlib.pyplot as plt

from benchmarks.diversity.arms import ARMS, RECIPE
from benchmarks.diversity.run import WARM
from maxent_grpo.pipeline.markdown import format_table, replace_section

Summary = Mapping[str, Any]
COUNTDOWN = (
    "grpo", "dr_grpo", "dr_grpo_cold", "entropy_high", "raft_cool", "maxrl", "tpo", "xdr_mild", RECIPE, "two_passes",
)  # fmt: skip
GRAPH = (
    "grpo", "dr_grpo", "entropy_low", "raft", "raft_kappa_1", "maxrl", "tpo", "xdr_mild", RECIPE, "two_passes",
)  # fmt: skip
OTHERS = {
    "one right answer per problem": ("single", RECIPE),
    "a weaker warm start": ("hard", RECIPE),
    "a note behind each answer, κ by texts": ("noted", RECIPE),
    "a note behind each answer, κ by answers": ("noted", "answer_keys"),
    "a smaller model": ("small", RECIPE),
    "a smaller model, two passes": ("small", "two_passes"),
    "a larger model": ("large", RECIPE),
    "a larger model, two passes": ("large", "two_passes"),
    "graph coloring, twice the updates": ("graph_long", RECIPE),
}
"""The studies beside the two tasks, by what they change: their presets, and the arm that is compared to Dr.GRPO."""
COLORS = {
    WARM: "#000000",
    "dr_grpo": "#0072b2",
    "dr_grpo_cold": "#56b4e9",
    "raft": "#e69f00",
    "tpo": "#cc79a7",
    "xdr_mild": "#d55e00",
    RECIPE: "#009e73",
    "two_passes": "#7fceb9",
    "answer_keys": "#7fceb9",
}
"""The methods that pictures tell apart; the others are grey."""


def write_report(result: Summary, folder: Path) -> None:
    """Write `<study>.json`, `<study>.md` and `<study>.png`."""
    result = drop_nan(result)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{result['study']}.json"
    file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    file.with_suffix(".md").write_text(format_appendix(result))
    save_picture(result, file.with_suffix(".png"))


def drop_nan(value: Any) -> Any:
    """Return JSON values with None in place of NaN, which JSON has not.

    >>> drop_nan({"a": [float("nan"), 1.0]})
    {'a': [None, 1.0]}
    """
    if isinstance(value, Mapping):
        return {key: drop_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [drop_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def format_appendix(result: Summary) -> str:
    """Return all tables of a study."""
    level, common = result["levels"]["level"], result["levels"]["common"]
    collapsed = ", ".join(ARMS[arm].name for arm in result["collapsed"])
    left_out = f" Left out of it, because a run ended below its warm start: {collapsed}." if collapsed else ""
    parts = [
        f"# The study `{result['study']}`",
        f"{result['parameters']:,} parameters; {result['hardware']}; {result['versions']}; commits "
        f"{', '.join(result['commits'])}. All terms are defined in [docs/diversity.md](../../../docs/diversity.md).",
        f"![Accuracy against coverage, and pass@k]({result['study']}.png)",
        f"**Methods**, means over seeds. {level:.2f} is the level fixed in advance, {common:.3f} the common level."
        f"{left_out} Even: coverage@8 at the common level if a problem's right answers were equally likely. The "
        "columns after the best mean@8 are at sampling temperature 1. Unlisted: how many points more of the samples "
        "are right on validation problems than the listed texts say, with a standard error of at most 1.1/√seeds; – "
        "where it was not logged.",
        _format_arms(result, level, common),
        "**Differences** are in points, paired by seed. Square brackets: 95 % over seeds (Student's t); round ones: "
        "95 % bootstrap over problems and seeds; n: how many seeds of both arms reach the level, where not all do. "
        "p: of the t test, adjusted by Holm over the other methods. ≥ −2: p-value of the one-sided test that pass@8 "
        "is not 2 points lower.",
    ]
    for first, compared in result["comparisons"].items():
        if compared["best mean@8"]:  # one seed alone is no comparison
            parts.append(f"{result['arms'][first]['name']} minus the others:")
            parts.append(_format_comparison(result, compared, level, common))
    if result["tuning"]["grid"]:
        margin = level + result["preset"]["tuning_margin"]
        parts.append(f"**Learning rates** on a seed of their own: coverage@8 at {margin:.2f} (best mean@8).")
        parts.append(_format_tuning(result["tuning"]))
    return "\n\n".join(parts) + "\n"


def _format_arms(result: Summary, level: float, common: float) -> str:
    at_levels = {
        f"{name} at {at:.{digits}f}": f"{name} at {label}"
        for label, at, digits in (("level", level, 2), ("common", common, 3))
        for name in ("coverage@8", "pass@8")
    }
    titles = at_levels | {
        "even": "even@8 at common", "best mean@8": "best mean@8", "greedy pass@1": "greedy", "mean@8": "mean@8",
        "pass@8": "pass@8", "coverage@8": "coverage@8", "entropy": "entropy", "tokens": "tokens",
        "s per update": "seconds per update", "unlisted": "samples minus listed",
    }  # fmt: skip
    rows = []
    for row in result["arms"].values():
        rate = f"{row['learning_rate']:g}" if row["learning_rate"] else "–"
        cells = [format_number(row["mean"][name]) for name in titles.values()]
        unlisted = row["mean"]["samples minus listed"]
        cells[-1] = "–" if unlisted is None else f"{100 * unlisted:+.1f}"
        rows.append([row["name"], rate, str(len(row["seeds"])), *cells])
    guesser = [format_number(result["guesser"].get(name)) for name in titles.values()]
    return format_table(["method", "rate", "seeds", *titles], [*rows, ["random guesser", "–", "–", *guesser]])


def _format_comparison(result: Summary, compared: Summary, level: float, common: float) -> str:
    adjusted = any("holm" in pair for pair in compared["best mean@8"].values())
    columns = [
        (f"{name} at {at:.{digits}f}", f"{name} at {label}", p)
        for name, p in (
            ("coverage@8", ("p", "holm") if adjusted else None),
            ("pass@8", ("≥ −2", "not below -2 points")),
        )
        for label, at, digits in (("level", level, 2), ("common", common, 3))
    ]
    columns.append(("best mean@8", "best mean@8", None))
    head = [title for name, _, p in columns for title in ((name, p[0]) if p else (name,))]
    rows = []
    for arm, best in compared["best mean@8"].items():
        cells = []
        for _, key, p in columns:
            pair = compared[key].get(arm)
            cells.append(format_difference(pair, best["seeds"], with_problems=True))
            if p:
                cells.append(format_p((pair or {}).get(p[1])))
        rows.append([result["arms"][arm]["name"], *cells])
    return format_table(["against", *head], rows)


def _format_tuning(tuning: Summary) -> str:
    rates = list(next(iter(tuning["grid"].values())))
    rows = []
    for arm, scores in tuning["grid"].items():
        cells = []
        for rate in rates:
            score, best = scores[rate]["score"], scores[rate]["highest mean@8"]
            text = f"{format_number(score if score > 0 else None)} ({best:.3f})"
            cells.append(f"**{text}**" if float(rate) == tuning["chosen"][arm] else text)
        rows.append([ARMS[arm].name, *cells])
    return format_table(["method", *rates], rows)


def format_number(value: float | None) -> str:
    """Return a number, or a dash for none."""
    return "–" if value is None else f"{value:.3f}"


def format_p(value: float | None) -> str:
    """Return a p-value, or a dash for none."""
    return "–" if value is None else f"{value:.4f}" if value >= 0.0001 else "<.0001"


def format_difference(pair: Summary | None, seeds: int, *, with_problems: bool = False) -> str:
    """Return a difference in points with its interval, and of how many seeds it is where some miss the level."""
    if pair is None:
        return "–"
    mean, low, high, both_low, both_high = (
        f"{100 * pair[name]:+.1f}" for name in ("mean", "seed_low", "seed_high", "both_low", "both_high")
    )
    problems = f" ({both_low}, {both_high})" if with_problems else ""
    return f"{mean} [{low}, {high}]{problems}" + (f" n={pair['seeds']}" if pair["seeds"] < seeds else "")


def write_page(page: Path, folder: Path) -> None:
    """Put the tables of all studies in a folder into the marked sections of the page of results."""
    studies = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    tables = {
        "countdown": format_task(studies["confirm"], studies["cpu"], COUNTDOWN),
        "graph": format_task(studies["graph_confirm"], studies["graph"], GRAPH),
        "others": format_others(studies),
    }
    text = page.read_text()
    for name, table in tables.items():
        text = replace_section(text, name, f"\n{table}\n")
    page.write_text(text)


def choose_level(result: Summary, arms: Sequence[str]) -> str:
    """Return "level", the one fixed in advance, or "common" where more runs of these arms reach that one."""
    runs = [row for arm in arms for row in result["arms"][arm]["per_seed"]]
    return max(("level", "common"), key=lambda at: sum(row[f"pass@8 at {at}"] is not None for row in runs))


def format_differences(result: Summary, arm: str, other: str, at: str) -> list[str]:
    """Return what an arm has more than another at a level: coverage@8, pass@8, best mean@8."""
    compared, seeds = result["comparisons"][arm], len(result["arms"][arm]["seeds"])
    names = (f"coverage@8 at {at}", f"pass@8 at {at}", "best mean@8")
    return [format_difference(compared[name].get(other), seeds) for name in names]


def format_task(fresh: Summary, first: Summary, arms: Sequence[str]) -> str:
    """Return the table of a task: a row for each arm on fresh seeds, its last column from the first study."""
    at, first_at = choose_level(fresh, arms), choose_level(first, arms)
    head = [
        "method", f"coverage@8 at mean@8 = {fresh['levels'][at]:.3f}", "pass@8 there", "best mean@8",
        "`diverse()` minus it: coverage@8", "pass@8", "best mean@8",
        f"first seeds: coverage@8 at {first['levels'][first_at]:.3f}",
    ]  # fmt: skip
    rows = []
    for arm in arms:
        row = fresh["arms"][arm]
        values = [row["mean"][name] for name in (f"coverage@8 at {at}", f"pass@8 at {at}", "best mean@8")]
        differences = ["–"] * 4
        if arm != RECIPE:
            differences = format_differences(fresh, RECIPE, arm, at)
            differences.append(format_differences(first, RECIPE, arm, first_at)[0])
        rows.append([row["name"], *map(format_number, values), *differences])
    return format_table(head, rows)


def format_others(studies: Mapping[str, Summary]) -> str:
    """Return the table of the other studies: what each changes, and what an arm has more than Dr.GRPO there."""
    rows = []
    for change, (name, arm) in OTHERS.items():
        result = studies[name]
        at = choose_level(result, (arm, "dr_grpo"))
        level, seeds = f"{result['levels'][at]:.3f}", str(len(result["arms"][arm]["seeds"]))
        rows.append([change, f"`{name}`", seeds, level, *format_differences(result, arm, "dr_grpo", at)])
    head = ["what is different", "preset", "seeds", "mean@8", "coverage@8", "pass@8", "best mean@8"]
    return format_table(head, rows, text_columns=(0, 1))


def save_picture(result: Summary, file: Path) -> None:
    """Save the frontiers over the sampling temperature, and pass@k at temperature 1; means over seeds."""
    figure, (frontier, passing) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    unnamed = "other methods, in the table"
    for arm, row in sorted(result["arms"].items(), key=lambda item: item[0] in COLORS):
        style = {"color": "#cccccc", "linewidth": 1, "label": unnamed}
        if arm in COLORS:
            label = row["name"].replace("`", "")
            style = {"color": COLORS[arm], "linewidth": 3 if arm == RECIPE else 1.6, "label": label}
        unnamed = "_nolegend_" if arm not in COLORS else unnamed  # one entry for all of them
        accuracies, coverages = ([point[name] for point in row["frontier"]] for name in ("mean@8", "coverage@8"))
        frontier.plot(accuracies, coverages, "o-", markersize=3, **style)
        passing.plot([*map(int, row["pass@k"])], [*row["pass@k"].values()], "o-", markersize=3, **style)
    frontier.axvline(result["levels"]["level"], color="#888888", linestyle=":")
    frontier.set(
        title="sampled hot (left end of a line) to cold (right end); dotted: the level of comparison",
        xlabel="mean@8, the chance that one sample is right",
        ylabel="coverage@8, the share of right answers that 8 samples find",
    )
    ticks = [int(k) for k in next(iter(result["arms"].values()))["pass@k"]]
    passing.set_xscale("log", base=2)
    passing.set_xticks(ticks, [str(k) for k in ticks])
    passing.set(title="sampled at temperature 1", xlabel="k, samples per problem", ylabel="pass@k")
    for panel in (frontier, passing):
        panel.spines[["top", "right"]].set_visible(False)
    frontier.title.set_fontsize(10)
    passing.title.set_fontsize(10)
    passing.legend(fontsize=9, loc="lower right")
    figure.savefig(file, dpi=80)
    plt.close(figure)
