"""How the demo's results are read, compared and shown."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from maxent_grpo.pipeline.tiny.evaluation import interpolate_coverage
from maxent_grpo.pipeline.tiny.picture import collect_groups, save_picture
from maxent_grpo.pipeline.tiny.report import find_matched_level, match_coverage, write_table


def row(mean: float, coverage: float) -> dict[str, float]:
    return {"greedy": 0.5, "mean@8": mean, "pass@8": 0.5, "distinct@8": 1.0, "coverage@8": coverage}


def final_rows(arm: str, seed: int, frontier: dict[float, dict[str, float]]) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "seed": seed, "temperature": temperature, **metrics} for temperature, metrics in frontier.items()
    ]


TRAINED = {"maxent": {0.6: row(0.7, 0.2), 1.0: row(0.5, 0.3)}, "dr_grpo": {0.6: row(0.6, 0.4), 1.0: row(0.4, 0.5)}}


def test_coverage_at_a_level_is_read_between_neighbouring_temperatures() -> None:
    frontier = {0.6: row(0.6, 0.2), 1.0: row(0.4, 0.4)}
    assert interpolate_coverage(0.5, frontier) == pytest.approx(0.3)
    assert interpolate_coverage(0.6, frontier) == pytest.approx(0.2)
    assert interpolate_coverage(0.61, frontier) is None  # reached at no temperature
    assert interpolate_coverage(0.3, frontier) == pytest.approx(0.4)  # no hotter one was tried: taken at the hottest


def test_methods_are_compared_at_the_highest_accuracy_that_all_of_them_reach() -> None:
    assert find_matched_level(TRAINED) == 0.6
    rows = [row for arm, frontier in TRAINED.items() for row in final_rows(arm, 0, frontier)]
    level, coverage = match_coverage([*rows, *final_rows("warm_start", 0, {1.0: row(0.1, 0.9)})])
    assert level == 0.6
    assert coverage == {"maxent": pytest.approx(0.25), "dr_grpo": pytest.approx(0.4)}


def test_a_table_of_unfinished_runs_compares_only_seeds_with_all_methods(tmp_path: Path) -> None:
    rows = [row for arm, frontier in TRAINED.items() for row in final_rows(arm, 0, frontier)]
    rows += final_rows("dr_grpo", 1, {0.6: row(0.9, 0.9), 1.0: row(0.8, 0.9)})  # would raise level and coverage
    write_table(rows, row(0.1, 0.1), tmp_path, notes=["One is missing."])
    table = (tmp_path / "results.md").read_text()
    assert "| coverage@8 at mean@8 = 0.600 |" in table
    assert "| MaxEnt, published | 0.500 | 0.500 | 0.500 | 1.000 | 0.300 | 0.250 |" in table
    assert table.splitlines()[3].endswith("| 0.400 |")
    assert table.endswith("|\n\nOne is missing.\n")


def test_a_warm_start_alone_makes_a_table_and_a_picture(tmp_path: Path) -> None:
    rows = final_rows("warm_start", 0, {0.6: row(0.6, 0.2), 1.0: row(0.4, 0.4)})
    write_table(rows, row(0.1, 0.1), tmp_path)
    save_picture(rows, tmp_path / "curves.png")
    assert "| warm start | 0.500 | 0.400 | 0.500 | 1.000 | 0.400 | – |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_what_was_not_logged_has_no_panel(tmp_path: Path) -> None:
    final = final_rows("maxent", 0, TRAINED["maxent"])
    updates = [{"arm": "maxent", "seed": seed, "step": step, "reward": 0.5} for seed in (0, 1) for step in (1, 2)]
    measured = [row | {"coverage@8": 0.2, "maxent/ess": 2.0} for row in updates]
    for name, rows in {"none": [], "two": [*final, *updates], "four": [*final, *measured]}.items():
        save_picture(rows, tmp_path / f"{name}.png")
    assert not (tmp_path / "none.png").exists()
    two, four = (image.imread(tmp_path / f"{name}.png").shape for name in ("two", "four"))
    assert four[0] == 2 * two[0]


def test_the_picture_shows_the_logged_groups_of_the_first_seed(tmp_path: Path) -> None:
    group = {"prompt": "1+1=", "texts": ["3", "2"], "rewards": [0, 1], "q": [0.3, 0.7], "weights": [0.1, 0.9]}
    logged = [
        {"arm": arm, "seed": seed, "group": number, **group, "coefficients": [-0.4, 0.4]}
        for seed in (1, 0)
        for arm in TRAINED
        for number in (4, 2)
    ]
    assert collect_groups(logged) == [
        {row["arm"]: row for row in logged if (row["seed"], row["group"]) == (0, number)} for number in (2, 4)
    ]
    final = final_rows("maxent", 0, TRAINED["maxent"])
    save_picture(final, tmp_path / "without.png")
    save_picture([*final, *logged], tmp_path / "with.png")
    without, with_groups = (image.imread(tmp_path / name).shape for name in ("without.png", "with.png"))
    assert with_groups[0] > 1.5 * without[0]
