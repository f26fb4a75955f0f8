"""Tables and pictures of a study, from the JSON of its analysis alone."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.diversity.arms import ARMS, METHODS, RECIPE
from benchmarks.diversity.pictures import save_pictures
from benchmarks.diversity.run import WARM
from benchmarks.diversity.tables import number, p_value, points, quoted, table

Summary = Mapping[str, Any]


def name_of(arm: str) -> str:
    """Return how an arm is called in tables."""
    if arm == WARM:
        return "warm start"
    return f"{ARMS[arm].name} (`diverse()`)" if arm == RECIPE else ARMS[arm].name


def markdown(result: Summary) -> str:
    """Return all tables of a study."""
    level, common = result["levels"]["level"], result["levels"]["common"]
    parts = [
        f"{result['study']}: {result['hardware']}; {result['versions']}. Run by {_commands(result)}"
        f"{_commits(result)}.",
        "**At matched accuracy**, over the sampling temperature, means over seeds. "
        f"Common level: the highest mean@8 that every run of the core study's methods reaches, {common:.3f}."
        + _collapsed(result)
        + " Were answers even: coverage@8 if a problem's right answers were equally likely, its accuracy as it is.",
        _matched_table(result, level, common),
        "**Ceilings, and sampling temperature 1.** Samples − listed texts: how many points more of the samples are "
        "right on validation problems than the texts say that all figures are taken from, with a standard error of "
        "at most 1.1/√seeds; – where it was not logged.",
        _plain_table(result),
    ]
    if RECIPE in result.get("comparisons", {}):
        parts.append(
            f"**{name_of(RECIPE)} minus the others**, in points, paired by seed. Square brackets: 95 % over seeds "
            "(Student's t); round ones: 95 % bootstrap over problems and seeds; n: how many seeds of both arms reach "
            "the level, where not all do. p is Holm's, over the other methods, over the variants of MaxEnt, and over "
            "what was added after the others had been seen; ≥ −2 the test that pass@8 is not 2 points lower. Pairs "
            "of other arms are in the JSON."
        )
        parts.append(_difference_table(result["comparisons"][RECIPE], level))
    if result["tuning"]["grid"]:
        parts.append("**Learning rates** on seed(s) of their own: coverage@8 at the level (highest mean@8).")
        parts.append(_tuning_table(result["tuning"]))
    return "\n\n".join(parts) + "\n"


def _commands(result: Summary) -> str:
    commands = result["commands"]
    return commands if isinstance(commands, str) else quoted(commands)


def _commits(result: Summary) -> str:
    commits = result.get("commits", "not recorded")
    return "" if isinstance(commits, str) else f"; noted since {commits[0]}: commits {', '.join(commits)}"


def _collapsed(result: Summary) -> str:
    names = ", ".join(name_of(arm) for arm in result["collapsed"])
    return f" Left out of it, because a run ended below its warm start: {names}." if names else ""


def _matched_table(result: Summary, level: float, common: float) -> str:
    columns: dict[str, Callable[[Summary], str]] = {
        f"coverage@8 at {level:.2f}": lambda mean: number(mean["coverage@8 at level"]),
        f"pass@8 at {level:.2f}": lambda mean: number(mean["pass@8 at level"]),
        f"coverage@8 at {common:.3f}": lambda mean: number(mean["coverage@8 at common"]),
        f"pass@8 at {common:.3f}": lambda mean: number(mean["pass@8 at common"]),
        "were answers even": lambda mean: number(mean["even@8 at common"]),
        "area": lambda mean: number(mean["area coverage@8"]),
        "best checkpoint, validation": lambda mean: number(mean["coverage@8 at level, best checkpoint"]),
        "at T chosen on validation: T": lambda mean: number(mean["chosen T"], 2),
        "mean@8": lambda mean: number(mean["mean@8 at chosen T"]),
        "coverage@8": lambda mean: number(mean["coverage@8 at chosen T"]),
    }
    return _table(result, columns)


def _plain_table(result: Summary) -> str:
    names = {
        "best mean@8": "best mean@8",
        "greedy": "greedy pass@1",
        "mean@8": "mean@8",
        "pass@8": "pass@8",
        "distinct@8": "distinct@8",
        "coverage@8": "coverage@8",
        "distinct_per_solved": "distinct per solved",
        "entropy": "entropy",
        "control best mean@8": "control, best mean@8",
        "tokens": "tokens an answer",
        "sampled tokens": "sampled in training, thousands",
        "seconds per update": "s per update",
        "learning seconds per update": "of it not sampling",
        "samples minus listed": "samples − listed texts",
    }
    columns = {title: (lambda mean, name=name: _cell(name, mean.get(name))) for name, title in names.items()}
    guesser = [number(result["guesser"].get(name)) for name in names]
    return _table(result, columns) + f"\n| random guesser | – | – | {' | '.join(guesser)} |"


def _cell(name: str, value: float | None) -> str:
    if value is not None and name == "sampled tokens":
        return f"{value / 1000:.0f}"
    return points(value) if value is not None and name == "samples minus listed" else number(value)


def _table(result: Summary, columns: Mapping[str, Callable[[Summary], str]]) -> str:
    rows = []
    for arm, row in result["arms"].items():
        rate = f"{row['learning_rate']:g}" if row["learning_rate"] else "–"
        rows.append([name_of(arm), rate, str(len(row["seeds"])), *(cell(row["mean"]) for cell in columns.values())])
    return table(["method", "learning rate", "seeds", *columns], rows)


def _difference_table(found: Summary, level: float) -> str:
    head = [
        "against", f"coverage@8 at {level:.2f}", "p", "coverage@8 at common", "p", "area", f"pass@8 at {level:.2f}",
        "≥ −2: p", "pass@8 at common", "≥ −2: p", "best mean@8", "within ± 3: p",
    ]  # fmt: skip
    rows = []
    for arm, ceiling in found["best mean@8"].items():
        coverage, common = (found[f"coverage@8 at {at}"].get(arm) for at in ("level", "common"))
        passed, passed_common = (found[f"pass@8 at {at}"].get(arm) for at in ("level", "common"))
        area = found["area coverage@8"].get(arm)
        seeds = ceiling["seeds"]
        rows.append([
            name_of(arm), interval(coverage, seeds), _p(coverage, "holm"), interval(common, seeds),
            _p(common, "holm"), interval(area, seeds), interval(passed, seeds), _p(passed, "not below -2 points"),
            interval(passed_common, seeds), _p(passed_common, "not below -2 points"),
            interval(ceiling, seeds), _p(ceiling, "equivalent within 3 points"),
        ])  # fmt: skip
    return table(head, rows)


def _tuning_table(tuning: Summary) -> str:
    rates = list(next(iter(tuning["grid"].values())))
    rows = []
    for arm, scores in tuning["grid"].items():
        cells = []
        for rate in rates:
            score, best = scores[rate]["score"], scores[rate]["highest mean@8"]
            text = f"{number(score if score > 0 else None)} ({best:.3f})"
            cells.append(f"**{text}**" if float(rate) == tuning["chosen"][arm] else text)
        rows.append([name_of(arm), *cells])
    return table(["method", *rates], rows)


def interval(pair: Summary | None, seeds: int) -> str:
    """Return a difference with both intervals, and of how many seeds it is where some did not reach the level."""
    if pair is None:
        return "–"
    of = f" n={pair['seeds']}" if pair["seeds"] < seeds else ""
    seeds = f"[{points(pair['seed_low'])}, {points(pair['seed_high'])}]"
    return f"{points(pair['mean'])} {seeds} ({points(pair['both_low'])}, {points(pair['both_high'])}){of}"


def _p(pair: Summary | None, name: str) -> str:
    return p_value(None if pair is None else pair[name])


def _without_nan(value: Any) -> Any:
    """Return JSON values with None in place of NaN, which JSON has not.

    >>> _without_nan({"a": [float("nan"), 1.0]})
    {'a': [None, 1.0]}
    """
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def replace_section(text: str, section: str, content: str) -> str:
    """Return a page with what stands between the section's two marks replaced.

    >>> replace_section("<!-- begin a --> old <!-- end a -->", "a", "new").split()[3:5]
    ['-->', 'new']

    Raises:
        ValueError: if the page has no such marks.
    """
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    if begin not in text or end not in text:
        raise ValueError(f"Expected the marks {begin!r} and {end!r}, got a page without them.")
    return text[: text.index(begin) + len(begin)] + f"\n\n{content}\n" + text[text.index(end) :]


def write_report(result: Summary, folder: Path, page: Path | None = None) -> list[Path]:
    """Write `<study>.json`, `<study>.md` and the pictures; put the tables into a page that has a place for them."""
    named = {
        arm: {"name": name_of(arm), "variant": arm not in (*METHODS, RECIPE, WARM), **row}
        for arm, row in result["arms"].items()
    }
    result = _without_nan({**result, "arms": named})
    name = result["study"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    tables = markdown(result)
    (folder / f"{name}.md").write_text(tables)
    if page is not None:
        page.write_text(replace_section(page.read_text(), name, tables))
    return save_pictures(result, folder)
