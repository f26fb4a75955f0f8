"""Goals, table and chart of the kernels' benchmark, from its JSON alone."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _measure, _report

ROOT = Path(__file__).parents[2]
COMMITTED = sorted(
    path for path in (ROOT / "benchmarks/results").glob("kernels-*.json") if "cases" in json.loads(path.read_text())
)
N, D, V = 8192, 1536, 151936
MIB = N * V * 2 / 2**20  # one [N, V] in bfloat16
ONE_PASS, IN_PLACE, TRL = _report.ONE_PASS, _report.IN_PLACE, _report.TRL


def timing(ms: float, ratio: float = 1.0, mib: float = 10.0, **ratio_to: float) -> dict[str, Any]:
    alone = {"median_ms": [ms], "rounds": 9, "clock_mhz": 1500.0, "power_w": 690.0}
    found = {
        "median_ms": ms,
        "low_ms": ms,
        "high_ms": ms,
        "ratio": ratio,
        "peak_mib": mib,
        "rounds": 20.0,
        "alone": alone,
    }
    return found | ({"ratio_to": ratio_to} if ratio_to else {})


def case(name: str, timings: dict[str, Any], floor: float = 0.0, dtype: str = "bfloat16") -> dict[str, Any]:
    return {
        "case": name,
        "model": "m",
        "note": "",
        "shape": [N, D, V],
        "dtype": dtype,
        "floor_ms": floor,
        "timings": timings,
        "absent": {"Liger": "RuntimeError: no driver"},
    }


def result(*cases: dict[str, Any], preset: str = "h200", planned: list[str] | None = None) -> dict[str, Any]:
    names = [found["case"] for found in cases] if planned is None else planned
    return {
        "preset": preset,
        "hardware": "a GPU",
        "versions": {"torch": "2"},
        "threads": 1,
        "time": "now",
        "load_average": [0.0],
        "load_average_after": [0.0],
        "floors": {"m": {"median_ms": [6.0, 6.3, 6.3], "rounds": 9, "clock_mhz": 1480.0, "power_w": 699.0}},
        "planned": [{"case": name, "model": "m", "shape": [N, D, V]} for name in names],
        "cases": list(cases),
    }


def fast() -> list[dict[str, Any]]:
    """Cases that reach every goal of an H200 exactly where a bound is inclusive."""
    return [
        case("LM head, train", {ONE_PASS: timing(20), TRL: timing(28, 1.4), "torch.compile": timing(20, 1.0)}, 18.6),
        case("LM head, train, 75 % zero rows", {ONE_PASS: timing(5), TRL: timing(26, 5.2)}),
        case("LM head, score", {"maxent_grpo": timing(5), TRL: timing(4.9, 0.98)}),
        case(
            "logits, train",
            {
                ONE_PASS: timing(1.4),
                IN_PLACE: timing(1.0, 0.7, 0.0, **{IN_PLACE: 1.0}),
                "TRL selective_log_softmax": timing(1.28, 1.0, MIB, **{IN_PLACE: 1.28}),
            },
        ),
        case("logits, score", {"maxent_grpo": timing(0.66)}),
    ]


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {goal.text: goal.verdict for goal in _report.list_goals(found)}


def test_a_gpu_run_at_the_bounds_meets_every_goal() -> None:
    assert set(verdicts(result(*fast())).values()) == {"met"}
    assert len(_report.list_goals(result(*fast()))) == 3 + 1 + 1 + 2 + 1


@pytest.mark.parametrize(
    ("at", "name", "changed", "goal"),
    [
        (0, TRL, timing(27, 1.39), "speed over TRL ≥ 1.4"),
        (0, "torch.compile", timing(19, 0.99), "speed over the best peer that weights rows ≥ 1"),
        (0, ONE_PASS, timing(20.1), "share of the floor under load ≥ 0.93"),
        (1, TRL, timing(25, 5.19), "speed over TRL ≥ 5.2"),
        (2, TRL, timing(4.8, 0.97), "speed over TRL ≥ 0.98"),
        (3, "TRL selective_log_softmax", timing(1, 9.0, **{IN_PLACE: 1.27}), "in place, speed over TRL ≥ 1.28"),
        (3, IN_PLACE, timing(1, 0.7, MIB), "in place, peak memory in units of [N, V] < 1"),
        (4, "maxent_grpo", timing(0.67), "milliseconds at 8192 × 151936 ≤ 0.66"),
    ],
)
def test_a_gpu_run_just_outside_one_bound_misses_that_goal_alone(
    at: int, name: str, changed: dict[str, Any], goal: str
) -> None:
    cases = fast()
    cases[at]["timings"][name] = changed
    missed = [text for text, verdict in verdicts(result(*cases)).items() if verdict != "met"]
    assert missed == [f"{cases[at]['case']} (m): {goal}"]


def test_a_case_that_was_not_reached_is_not_measured() -> None:
    cases = fast()
    found = verdicts(result(cases[0], planned=[case["case"] for case in cases]))
    assert list(found.values()) == ["met"] * 3 + ["not measured"] * 5


def test_a_goal_whose_peer_is_absent_is_not_measured() -> None:
    cases = fast()
    for found in cases:
        found["timings"] = {name: timing for name, timing in found["timings"].items() if "TRL" not in name}
    found = verdicts(result(*cases))
    assert [text for text, verdict in found.items() if verdict == "not measured"] == [
        text for text in found if "over TRL" in text
    ]
    del cases[0]["timings"]["torch.compile"]
    assert verdicts(result(cases[0]))["LM head, train (m): speed over the best peer that weights rows ≥ 1"] == (
        "not measured"
    )
    assert "| – | not measured |" in _report.format_report(result(*cases))


def test_a_peer_in_brackets_does_less_and_is_not_the_best() -> None:
    (head, *_) = fast()
    head["timings"]["Liger (uniform)"] = timing(1, 0.1)
    head["timings"]["maxent_grpo two passes"] = timing(1, 0.1)
    (goal,) = [goal for goal in _report.list_goals(result(head)) if "best peer" in goal.text]
    assert (goal.figure, goal.measured, goal.met) == (1.0, "1.00 (torch.compile)", True)


def test_the_bound_in_milliseconds_is_for_its_own_shape() -> None:
    found = result(case("logits, score", {"maxent_grpo": timing(9)}))
    found["planned"][0]["shape"] = [N, D, 128256]
    assert _report.list_goals(found) == []


def test_a_step_that_takes_nothing_beside_its_gradient_meets_every_memory_goal() -> None:
    gradient = D * V * 4 / 2**20
    head = case(
        "LM head, train",
        {ONE_PASS: timing(1, mib=gradient), "eager": timing(1, mib=gradient + 8), TRL: timing(2, 2.0)},
        dtype="float32",
    )
    score = case("sequences, score", {"maxent_grpo sequence_logps": timing(1, mib=0), "eager": timing(1, mib=0)})
    spared = [goal for goal in _report.list_goals(result(head, score, preset="cpu-goals")) if "memory" in goal.text]
    assert [(goal.figure, goal.verdict) for goal in spared] == [(math.inf, "met")] * 2


def test_a_cpu_run_with_a_quarter_of_eagers_memory_meets_the_goal_and_with_more_misses_it() -> None:
    gradient = D * V * 4 / 2**20
    for ours, verdict in ((25.0, "met"), (25.1, "missed")):
        head = case(
            "LM head, train",
            {ONE_PASS: timing(1, mib=gradient + ours), "eager": timing(1, mib=gradient + 100)},
            dtype="float32",
        )
        goals = _report.list_goals(result(head, preset="cpu-goals"))
        assert [goal.verdict for goal in goals] == ["not measured", "met", verdict]


def test_the_table_shows_times_alone_with_clock_and_power_and_errors_where_there_are_any() -> None:
    cases = fast()[:2]
    cases[0]["timings"][TRL]["error"] = {"hidden": 0.00213, "weight": 0.00321}
    for timings in (case["timings"] for case in cases):
        del timings[ONE_PASS]["alone"]
    text = _report.format_report(result(*cases, preset="tiny"))
    assert "logits + dH + dW of m 6 + 6.3 + 6.3 ms at 1480 MHz and 699 W" in text
    assert "| TRL ChunkedLogProbFunction | 28 | 1.40 | 28 | 1500 | 690 | 10 | 0.66 | 0.0021 | 0.0032 |" in text
    assert f"| {ONE_PASS} | 20 | 1.00 |  |  |  | 10 | 0.93 |  |  |" in text
    assert f"| {TRL} | 26 | 5.20 | 26 | 1500 | 690 | 10 |\n" in text  # no errors in this case, nor a column of them


def test_a_preset_without_goals_has_none() -> None:
    assert _report.list_goals(result(*fast(), preset="tiny")) == []
    assert "## Goals" not in _report.format_report(result(*fast(), preset="tiny"))


def test_the_brief_report_names_every_case_and_ends_with_the_goals() -> None:
    found = result(*fast())
    lines = _report.format_brief(found).splitlines()
    assert len(lines) == 1 + len(found["cases"]) + len(_report.list_goals(found))
    assert lines[1] == (
        "m: LM head, train, ms: floor 18.6, maxent_grpo one pass 20 (1.00×), TRL ChunkedLogProbFunction 28 (1.40×), "
        "torch.compile 20 (1.00×); absent: Liger"
    )
    assert lines[-1] == "met: logits, score (m): milliseconds at 8192 × 151936 ≤ 0.66: 0.66"


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_table_and_chart_can_be_made_from_the_committed_results(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    copy = Path(shutil.copy(path, tmp_path))
    text = _report.write_report(copy)
    assert text == copy.with_suffix(".md").read_text()
    assert copy.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(path.read_text())
    for case in found["cases"]:
        assert all(f"| {name} |" in text for name in (*case["timings"], *case["absent"]))
    assert text.count("| missed |") == sum(goal.verdict == "missed" for goal in _report.list_goals(found))


def test_ratios_are_paired_by_round_to_the_first_step_and_to_each_base() -> None:
    times = {"first": {0: 1.0, 1: 2.0, 2: 4.0}, "other": {0: 3.0, 2: 4.0}}
    assert _measure._compare_rounds(times["other"], times["first"]) == (3.0 + 1.0) / 2
    timings = _measure.time_in_turns({"a": lambda: None, "b": lambda: None}, 4, "cpu", often=["a"], bases=["b"])
    written = _measure.format_timings(timings)
    assert (written["a"]["rounds"], written["b"]["rounds"]) == (4, 1)
    assert written["a"]["ratio"] == written["b"]["ratio_to"]["b"] == 1
    assert "ratio_to" not in _measure.format_timings(_measure.time_in_turns({"a": lambda: None}, 1, "cpu"))["a"]


def test_the_interval_of_a_median_holds_95_percent_by_the_binomial() -> None:
    for n in range(6, 120):
        low, high = _measure.median_interval(range(n))
        assert low + high == n - 1
        for wider, inside in ((0, True), (1, False)):
            outside = 2 * sum(math.comb(n, i) for i in range(low + wider + 1)) / 2**n
            assert (outside <= 0.05) == inside
    assert _measure.median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
