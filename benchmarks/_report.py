"""The table, the goals and the bar chart of a benchmark's JSON."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from maxent_grpo.pipeline.markdown import format_table

ONE_PASS, IN_PLACE = "maxent_grpo one pass", "maxent_grpo one pass in place"
TRL, TRL_LOGITS = "TRL ChunkedLogProbFunction", "TRL selective_log_softmax"
Figure = Callable[[dict[str, Any]], tuple[float, str]]
"""A case's figure and a note; a KeyError says that a peer it needs is absent."""


class Rule(NamedTuple):
    """What a figure of a case must reach; `only_at` bounds it to cases of these (rows, vocabulary)."""

    text: str
    relation: str
    bound: float
    figure: Figure
    only_at: tuple[int, int] | None = None


class Goal(NamedTuple):
    """One line of the goals: no figure where its case was not run or its peer is absent."""

    text: str
    figure: float | None = None
    note: str = ""
    met: bool | None = None

    @property
    def measured(self) -> str:
        return "–" if self.figure is None else f"{self.figure:.2f}" + (f" ({self.note})" if self.note else "")

    @property
    def verdict(self) -> str:
        return {True: "met", False: "missed", None: "not measured"}[self.met]


def _compare_speed(peer: str, ours: str | None = None) -> Figure:
    """Return the figure of a peer's time over ours, paired by round; ours is the case's first step unless named."""

    def figure(case: dict[str, Any]) -> tuple[float, str]:
        timing = case["timings"][peer]
        return timing["ratio"] if ours is None else timing["ratio_to"][ours], ""

    return figure


def compare_with_fastest(case: dict[str, Any]) -> tuple[float, str]:
    """Return the time of the fastest peer over ours; a name that ends in brackets does less (see `_runners`)."""
    peers = {
        name: timing["ratio"]
        for name, timing in case["timings"].items()
        if not name.startswith("maxent_grpo") and not name.endswith(")")
    }
    best = min(peers, key=peers.__getitem__, default=TRL)
    return peers[best], best


def _compare_with_floor(case: dict[str, Any]) -> tuple[float, str]:
    """Return the three matmuls' time under load over ours, alone under load as they were."""
    return case["floor_ms"] / case["timings"][ONE_PASS]["alone"]["median_ms"][0], ""


def _read_milliseconds(case: dict[str, Any]) -> tuple[float, str]:
    return case["timings"]["maxent_grpo"]["median_ms"], ""


def _compare_with_logits(case: dict[str, Any]) -> tuple[float, str]:
    """Return the peak memory of the step in place, in units of the logits."""
    return case["timings"][IN_PLACE]["peak_mib"] / _compute_mib(case, case["shape"][0], case["shape"][2]), ""


def _compare_memory(ours: str, gradient: Callable[[dict[str, Any]], float]) -> Figure:
    """Return the figure of eager's peak memory over ours, the gradient that both return not counted."""

    def figure(case: dict[str, Any]) -> tuple[float, str]:
        eager, own = (case["timings"][name]["peak_mib"] - gradient(case) for name in ("eager", ours))
        # A step that takes nothing beside its gradient meets every bound.
        return eager / own if own > 0 else math.inf, ""

    return figure


def _compute_mib(case: dict[str, Any], *sides: int) -> float:
    return math.prod(sides) * (4 if case["dtype"] == "float32" else 2) / 2**20


_SEQUENCES = "maxent_grpo sequence_logps"
_MEMORY = "eager's peak memory over ours, the gradient not counted"
_SEQUENCE_RULES = {
    "sequences, score": [
        Rule("speed over eager", "≥", 1.0, _compare_speed("eager")),
        Rule(_MEMORY, "≥", 8.0, _compare_memory(_SEQUENCES, lambda case: 0.0)),
    ],
    "sequences, train": [
        Rule("speed over eager", "≥", 1.0, _compare_speed("eager")),
        Rule(_MEMORY, "≥", 8.0, _compare_memory(_SEQUENCES, lambda case: _compute_mib(case, *case["shape"]))),
    ],
}
RULES: dict[str, dict[str, list[Rule]]] = {
    "cpu-goals": {
        "LM head, train": [
            Rule("speed over TRL", "≥", 2.0, _compare_speed(TRL)),
            Rule("speed over eager", "≥", 1.0, _compare_speed("eager")),
            Rule(
                "eager's peak memory over ours, dW not counted",
                "≥",
                4.0,
                _compare_memory(ONE_PASS, lambda case: _compute_mib(case, *case["shape"][1:])),
            ),
        ],
        "LM head, train, 75 % zero rows": [Rule("speed over TRL", "≥", 6.0, _compare_speed(TRL))],
        **_SEQUENCE_RULES,
    },
    "h200": {
        "LM head, train": [
            Rule("speed over TRL", "≥", 1.4, _compare_speed(TRL)),
            Rule("speed over the best peer that weights rows", "≥", 1.0, compare_with_fastest),
            Rule("share of the floor under load", "≥", 0.93, _compare_with_floor),
        ],
        "LM head, train, 75 % zero rows": [Rule("speed over TRL", "≥", 5.2, _compare_speed(TRL))],
        "LM head, score": [Rule("speed over TRL", "≥", 0.98, _compare_speed(TRL))],
        "logits, train": [
            Rule("in place, speed over TRL", "≥", 1.28, _compare_speed(TRL_LOGITS, IN_PLACE)),
            Rule("in place, peak memory in units of [N, V]", "<", 1.0, _compare_with_logits),
        ],
        "logits, score": [Rule("milliseconds at 8192 × 151936", "≤", 0.66, _read_milliseconds, (8192, 151936))],
        **_SEQUENCE_RULES,
    },
}


def list_goals(result: dict[str, Any]) -> list[Goal]:
    """List every goal of the preset for every case that was planned, from the JSON alone."""
    measured = {(case["case"], case["model"]): case for case in result["cases"]}
    rules = RULES.get(result["preset"], {})
    return [
        _judge_goal(rule, f"{plan['case']} ({plan['model']})", measured.get((plan["case"], plan["model"])))
        for plan in result.get("planned", result["cases"])
        for rule in rules.get(plan["case"], [])
        if rule.only_at in (None, (plan["shape"][0], plan["shape"][-1]))
    ]


def _judge_goal(rule: Rule, where: str, case: dict[str, Any] | None) -> Goal:
    text = f"{where}: {rule.text} {rule.relation} {rule.bound:g}"
    if case is None:
        return Goal(text)
    try:
        figure, note = rule.figure(case)
    except KeyError:
        return Goal(text)
    met = {"≥": figure >= rule.bound, "≤": figure <= rule.bound, "<": figure < rule.bound}[rule.relation]
    return Goal(text, figure, note, met)


def write_report(path: Path) -> str:
    """Write `<name>.md` and `<name>.png` beside the JSON; return the Markdown."""
    result = json.loads(path.read_text())
    text = format_report(result)
    path.with_suffix(".md").write_text(text)
    try:
        draw_chart(result, path.with_suffix(".png"))
    except ImportError:
        text += "\nNo chart: matplotlib is not installed (pip install matplotlib).\n"
    return text


def _describe_sensors(load: dict[str, Any]) -> str:
    """Say the clock and power of a load, where they were read."""
    return f" at {load['clock_mhz']:.0f} MHz and {load['power_w']:.0f} W" if "clock_mhz" in load else ""


def _read_alone(name: str) -> Callable[[dict[str, Any], dict[str, Any]], str]:
    def form(case: dict[str, Any], timing: dict[str, Any]) -> str:
        value = timing.get("alone", {}).get(name)
        if value is None:
            return ""
        return f"{value[0]:.4g}" if isinstance(value, list) else f"{value:.0f}"

    return form


def _read_error(leaf: str) -> Callable[[dict[str, Any], dict[str, Any]], str]:
    return lambda case, timing: f"{timing['error'][leaf]:.2g}" if "error" in timing else ""


def _read_share(case: dict[str, Any], timing: dict[str, Any]) -> str:
    """Return the floor over the time alone, or over the interleaved one where none was taken alone."""
    alone = timing.get("alone", {}).get("median_ms", [timing["median_ms"]])[0]
    return f"{case['floor_ms'] / alone:.2f}" if case["floor_ms"] else ""


COLUMNS: dict[str, Callable[[dict[str, Any], dict[str, Any]], str]] = {
    "ms": lambda case, timing: f"{timing['median_ms']:.4g}",
    "×": lambda case, timing: f"{timing['ratio']:.2f}",
    "alone, ms": _read_alone("median_ms"),
    "MHz": _read_alone("clock_mhz"),
    "W": _read_alone("power_w"),
    "MiB": lambda case, timing: f"{timing['peak_mib']:.0f}",
    "of the floor": _read_share,
    "error of dH": _read_error("hidden"),
    "of dW": _read_error("weight"),
}
"""The table's columns: those without a figure in a case are left out."""


def format_report(result: dict[str, Any]) -> str:
    """Return Markdown: one table per case, then the goals."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    floors = [
        f"{head} {' + '.join(f'{each:.4g}' for each in load['median_ms'])} ms{_describe_sensors(load)}"
        for head, load in result.get("floors", {}).items()
    ]
    lines = [
        f"# Kernels on {result['hardware']}",
        "",
        f"{result['time']}, {result['threads']} threads, load average {result['load_average'][0]:.1f} before and "
        f"{result['load_average_after'][0]:.1f} after; {versions}. Medians of interleaved rounds; × is the median of "
        "the paired ratios to the first row, memory is the peak of what the step allocates, its gradients included. "
        "Alone: the step back to back, with clock and power. Errors: of gradients, in the Frobenius norm, against "
        "those of the same numbers in the next wider format. A peer whose name ends in brackets does less than the "
        "case asks, and no goal counts it.",
        "",
        f"The floor of a step through the head are its matmuls alone, under load: logits + dH + dW of "
        f"{'; '.join(floors) or 'no head'}.",
    ]
    for case in result["cases"]:
        rows = [
            [name, *(form(case, timing) for form in COLUMNS.values())] for name, timing in case["timings"].items()
        ]
        used = [place for place in range(len(COLUMNS)) if any(row[place + 1] for row in rows)]
        rows = [[row[0], *(row[place + 1] for place in used)] for row in rows]
        rows += [[name, f"absent: {reason}", *[""] * (len(used) - 1)] for name, reason in case["absent"].items()]
        titles = ["", *(list(COLUMNS)[place] for place in used)]
        lines += ["", f"## {_format_title(case)}", "", format_table(titles, rows)]
    if result["preset"] in RULES:
        rows = [[goal.text, goal.measured, goal.verdict] for goal in list_goals(result)]
        lines += ["", "## Goals", "", format_table(["goal", "measured", ""], rows, text_columns=(0, 2))]
    return "\n".join(lines) + "\n"


def format_brief(result: dict[str, Any]) -> str:
    """Return one line of medians per case, then the goals: what fits on a screen."""
    lines = [result["hardware"]]
    for case in result["cases"]:
        peers = [
            f"{name} {timing['median_ms']:.4g} ({timing['ratio']:.2f}×)" for name, timing in case["timings"].items()
        ]
        absent = f"; absent: {', '.join(case['absent'])}" if case["absent"] else ""
        floor = f"floor {case['floor_ms']:.4g}, " if case["floor_ms"] else ""
        lines.append(f"{case['model']}: {case['case']}, ms: {floor}{', '.join(peers)}{absent}")
    return "\n".join([*lines, *(f"{goal.verdict}: {goal.text}: {goal.measured}" for goal in list_goals(result))])


def _format_title(case: dict[str, Any]) -> str:
    shape = " × ".join(map(str, case["shape"]))
    note = f", {case['note']}" if case.get("note") else ""
    return f"{case['case']}: {case['model']}, {shape}, {case['dtype']}{note}"


def draw_chart(result: dict, path: Path) -> None:
    """Draw the medians as bars, one panel per case, ours dark."""
    import matplotlib  # noqa: PLC0415 - the table does without

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    cases = [case for case in result["cases"] if len(case["timings"]) > 1]
    figure, axes = pyplot.subplots(-(-len(cases) // 2), 2, figsize=(13, 1.9 * len(cases)), squeeze=False)
    for axis in axes.flat[len(cases) :]:
        axis.axis("off")
    for axis, case in zip(axes.flat, cases, strict=False):
        names = list(case["timings"])[::-1]
        medians = [case["timings"][name]["median_ms"] for name in names]
        dark = [name.startswith("maxent_grpo") or name.endswith("MiB") for name in names]
        axis.barh(names, medians, color=["#28527a" if ours else "#b8c4d0" for ours in dark])
        if case["floor_ms"]:
            axis.axvline(case["floor_ms"], color="#c0392b", linewidth=1, label="floor")
            axis.legend(loc="lower right", frameon=False, fontsize=8)
        axis.bar_label(axis.containers[0], fmt="%.4g", padding=3, fontsize=8)
        axis.margins(x=0.15)
        axis.set_title(f"{case['case']}\n{case['model']}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_xlabel("ms", fontsize=8)
    figure.suptitle(f"{result['hardware']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
