"""The report on the house style counts what it says it counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from docs.tools import house_style

SOURCE = '''"""A module."""

import functools  # noqa: F401


def selected(a, b, c, d, e, f, g, h, *, i):  # nine
    """Say it.

    Twice.
    """
    # A reason.
    return a


class Rows:
    @property
    def kept(self):
        return 1

    def load_rows(self, a, b, c, d, e, f, g, h):
        def told():
            return 2

        return told
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with one module of each kind, and one file that git does not know."""
    folder = tmp_path / "package" / "part" / "deep"
    folder.mkdir(parents=True)
    (folder / "module.py").write_text(SOURCE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text("def test_rows_kept():\n    pass\n")
    for command in (("init", "-q"), ("add", ".")):
        subprocess.run(("git", *command), cwd=tmp_path, check=True)
    (tmp_path / "untracked.py").write_text("def told():\n    pass\n")
    return tmp_path


@pytest.fixture(autouse=True)
def _accept_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house_style, "ACCEPTED", {})


def test_folders_are_counted_two_levels_deep_and_orders_to_tools_are_no_comments(tree: Path) -> None:
    folder = house_style.review_tree(tree).folders
    assert {name: each.files for name, each in folder.items()} == {"package/part": 1, "tests": 1}
    lines = SOURCE.count("\n")
    assert (folder["package/part"].lines, folder["package/part"].comments) == (lines, 2)
    assert folder["package/part"].comments_per_100_lines == round(100 * 2 / lines, 1)


def test_functions_of_every_depth_are_reviewed_but_no_names_of_tests_and_properties(
    tree: Path,
) -> None:
    report = house_style.review_tree(tree)
    assert list(report.bad_names.values()) == ["selected", "told"]
    assert report.many_arguments == {"package/part/deep/module.py:6 selected": 9}


def test_a_docstring_does_not_lengthen_a_function(tree: Path) -> None:
    body = "    x = 1\n"
    source = f'def at_the_bound():\n    """Say it.\n\n    Twice.\n    """\n{body * 39}\n\ndef over():\n{body * 40}'
    (tree / "tests" / "test_it.py").write_text(source)
    assert list(house_style.review_tree(tree).long_functions.values()) == [41]


@pytest.mark.parametrize(("lines", "failures"), [(400, []), (401, ["tests/test_it.py: 401 lines"])])
def test_a_file_may_have_400_lines(tree: Path, lines: int, failures: list[str]) -> None:
    (tree / "tests" / "test_it.py").write_text("x = 1\n" * lines)
    report = house_style.review_tree(tree)
    assert report.long_files == {"tests/test_it.py": lines}
    assert report.find_failures() == failures


@pytest.mark.parametrize(("count", "passes"), [(20, True), (21, False)])
def test_twenty_bad_names_are_the_bar(tree: Path, count: int, passes: bool) -> None:
    (tree / "package" / "part" / "deep" / "module.py").write_text("def row_of():\n    pass\n" * count)
    assert (house_style.review_tree(tree).find_failures() == []) is passes


def test_an_accepted_name_is_not_counted_and_must_exist(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house_style, "ACCEPTED", {"told": "a reason", "gone": "a reason"})
    report = house_style.review_tree(tree)
    assert list(report.bad_names.values()) == ["selected"]
    assert report.find_failures() == ["accepted, but no function's name: gone"]


def test_the_command_fails_where_a_bar_is_missed_and_gives_every_figure_as_json(tree: Path) -> None:
    (tree / "tests" / "test_it.py").write_text("x = 1\n" * 401)
    command = [sys.executable, house_style.__file__, "--root", str(tree), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "tests/test_it.py: 401 lines" in done.stderr
    assert json.loads(done.stdout)["folders"]["tests"]["lines"] == 401
