"""The comparison of graders counts what it says it counts."""

import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("graders", Path(__file__).parents[2] / "benchmarks" / "graders.py")
assert SPEC is not None
assert SPEC.loader is not None
graders = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(graders)

ROWS = [
    {"category": "sets", "equal": True},
    {"category": "sets", "equal": False},
    {"category": "units", "equal": True},
]


def test_verdicts_are_counted_per_class_and_in_all() -> None:
    counts = graders.count_verdicts(ROWS, [True, True, False])
    assert counts["sets"] == {"right": 1, "false positives": 1, "false negatives": 0}
    assert counts["units"] == {"right": 0, "false positives": 0, "false negatives": 1}
    assert counts["all"] == {"right": 1, "false positives": 1, "false negatives": 1}


def test_the_table_has_a_row_per_class_and_a_column_per_grader() -> None:
    counts = graders.count_verdicts(ROWS, [True, True, False])
    lines = graders.write_table({"ours": counts, "other": counts}).splitlines()
    assert lines[0] == "| class | ours | other |"
    assert lines[-1] == "| all | 1 / 1 / 1 | 1 / 1 / 1 |"


def test_pairs_on_where_an_answer_stands_are_left_out() -> None:
    rows = graders.load_rows()
    assert len(rows) > 1_000
    assert all(row["answer"] and row["category"] != "formats" for row in rows)
