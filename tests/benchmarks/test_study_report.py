"""The study's numbers and tables, from lines that are written here."""

import doctest
import math
from pathlib import Path
from types import ModuleType

import matplotlib.image
import pytest

from benchmarks.study import analysis, noted, report, stages
from benchmarks.study.__main__ import main
from benchmarks.study.analysis import average_measures, compare_arms, estimate_difference, group_lines, rank_arms
from benchmarks.study.arms import ARMS
from benchmarks.study.report import format_rates, format_stage, save_picture
from benchmarks.study.runs import Run
from benchmarks.study.stages import (
    BEST,
    FINAL,
    FINALISTS,
    LATER,
    LIKE,
    RECIPE,
    RIVALS,
    STAGES,
    choose_best,
    choose_rates,
    choose_winner,
    list_rates,
    measure_area,
    read_stage,
)
from benchmarks.study.tasks import SIZES
from benchmarks.study.verdict import judge

PAIRED_STAGES = ("countdown", "graph")


def write_line(arm: str, seed: int, shift: float, *, rate: float = 1e-4) -> dict:
    """Return a line whose coverage is `shift` above half of its accuracy, at accuracies from .3 to .7."""
    accuracies = [0.7, 0.6, 0.5, 0.4, 0.3]
    test = {
        "mean@8": accuracies,
        "coverage@8": [0.5 * (1 - accuracy) + shift for accuracy in accuracies],
        "pass@8": [accuracy + 0.2 for accuracy in accuracies],
        "PCMD@8": [0.5] * 5,
    }
    place = {"task": "countdown", "arm": arm, "seed": seed, "rate": rate}
    return place | {"test": test, "validation": test}


def test_measures_are_read_at_the_level_and_the_area_is_a_mean_over_levels() -> None:
    line = write_line("kappa", 0, 0.1)
    runs = group_lines([line])
    measures = average_measures(runs, "kappa")
    assert measures["coverage@8"] == pytest.approx(0.5 * 0.4 + 0.1)
    assert measures["pass@8"] == pytest.approx(0.8)
    assert measures["ceiling"] == 0.7
    first, last = SIZES["countdown"].levels
    assert measures["area"] == pytest.approx(0.5 * (1 - (first + last) / 2) + 0.1)


def test_a_level_that_is_not_reached_counts_nothing() -> None:
    line = write_line("kappa", 0, 0.1)
    line["test"] = {name: values[2:] for name, values in line["test"].items()}  # no accuracy above .5
    whole = measure_area(write_line("kappa", 0, 0.1)["test"], SIZES["countdown"])
    assert 0 < measure_area(line["test"], SIZES["countdown"]) < whole / 2
    assert math.isnan(average_measures(group_lines([line]), "kappa")["coverage@8"])


def test_methods_are_paired_by_seed_from_one_start() -> None:
    lines = [write_line("kappa", seed, 0.1) for seed in range(3)]
    lines += [write_line("dr_grpo", seed, 0.1 - gap) for seed, gap in enumerate((0.04, 0.05, 0.06))]
    runs = group_lines(lines)
    difference = compare_arms(runs, "kappa", "dr_grpo", "coverage@8")
    assert difference is not None
    assert difference.mean == pytest.approx(0.05)
    assert difference.seeds == 3
    assert difference.high - difference.low == pytest.approx(2 * 4.302653 * 0.01 / math.sqrt(3), rel=1e-5)
    assert rank_arms(runs) == ["kappa", "dr_grpo"]
    with pytest.raises(ValueError, match="one run of kappa with seed 0"):
        group_lines([*lines, write_line("kappa", 0, 0.0, rate=5e-5)])
    assert estimate_difference([0.1]) is None


def test_tables_and_a_picture_come_from_lines(tmp_path: Path) -> None:
    lines = [
        write_line(arm, seed, shift + 0.01 * seed)
        for arm, shift in (("kappa", 0.05), ("dr_grpo", 0.0))
        for seed in (0, 1)
    ]
    table = format_stage(lines, "kappa")
    assert [row.split(" | ")[0].strip("| ") for row in table.splitlines()[4:]] == ["κ = 1", "Dr.GRPO"]
    assert [cell.split("<br>")[1] for cell in table.splitlines()[-1].strip("| ").split(" | ")[1:]] == [
        *["-5.0 [-5.0, -5.0]"] * 2, *["+0.0 [+0.0, +0.0]"] * 3,
    ]  # fmt: skip
    save_picture(lines, "kappa", tmp_path / "frontier.png")
    assert matplotlib.image.imread(tmp_path / "frontier.png").std() > 0


def test_the_best_and_the_rivals_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = [arm for arm in ARMS if arm not in RIVALS and arm not in LIKE]
    lines = [write_line(arm, 100, -0.001 * place) for place, arm in enumerate([*arms, *RIVALS])]
    for place, line in enumerate(lines):  # who goes on is not chosen by the problems that they are then tested on
        line["test"] = line["test"] | {"coverage@8": [0.01 * place] * 5}
    monkeypatch.setattr(stages, "read_stage", lambda name: lines)
    monkeypatch.setattr(report, "choose_best", choose_best)
    going = choose_best("countdown_rates")
    assert set(going) == {*arms[:BEST], *RIVALS}
    assert choose_rates("countdown_rates") == dict.fromkeys([*arms, *RIVALS], 1e-4)
    assert format_rates("countdown_rates", lines).count("| no |") == len(lines) - len(going)


def test_who_goes_on_is_what_the_committed_rates_say() -> None:
    stages.expect_whole("countdown_rates")
    assert choose_best("countdown_rates") == FINALISTS


def test_who_meets_fresh_seeds_is_what_both_tasks_say() -> None:
    for name in PAIRED_STAGES:
        stages.expect_whole(name)
    scores = stages.score_methods(PAIRED_STAGES)
    strongest = max((arm for arm in RIVALS if arm not in (RECIPE, "ips", "remax")), key=scores.__getitem__)
    assert {choose_winner(PAIRED_STAGES), strongest, RECIPE, "dr_grpo", "ips", "remax", *LATER} <= {*FINAL}


def test_the_winner_has_the_largest_areas_over_both_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    shifts = {
        "countdown": {"kappa": 0.0, "raft": 0.02, "tpo": 0.01, "kappa_modes": 0.2, "kappa_twice": 0.2},
        "graph": {"kappa": 0.0, "raft": -0.05, "tpo": 0.01, "kappa_modes": 0.2, "kappa_twice": 0.2},
    }
    lines = {name: [write_line(arm, 0, shift) for arm, shift in arms.items()] for name, arms in shifts.items()}
    monkeypatch.setattr(stages, "read_stage", lines.__getitem__)
    assert choose_winner(("countdown", "graph")) == "tpo"
    assert stages.score_methods(("countdown", "graph"))["kappa"] == 2


def test_committed_lines_are_runs_of_their_stages_at_the_rates_that_the_rule_says() -> None:
    for name, stage in STAGES.items():
        lines = [line for line in read_stage(name) if line["arm"] in ARMS]
        made = [(line["arm"], line["seed"], line["rate"]) for line in lines]
        assert len(made) == len(set(made))
        rates = {arm: list_rates(name, arm) for arm in stage.arms}
        if lines and stage.rates_of is not None:
            chosen = choose_rates(stage.rates_of)
            rates = {arm: [chosen[LIKE.get(arm, arm)]] for arm in stage.arms}
        assert set(made) <= {(arm, seed, rate) for arm in stage.arms for seed in stage.seeds for rate in rates[arm]}


@pytest.mark.parametrize(
    ("arm", "measure", "by", "holds"),
    [
        ("kappa_twice", "coverage@8", 0.0, True),
        ("kappa", "coverage@8", 0.06, False),  # not ahead of the recipe any more
        ("ips", "coverage@8", 0.06, False),
        ("xdr", "pass@8", 0.005, True),
        ("xdr", "pass@8", 0.02, False),  # more than a point below the best
        ("dr_grpo", "mean@8", 0.02, False),  # so is its ceiling
    ],
)
def test_a_candidate_is_judged_by_every_criterion(arm: str, measure: str, by: float, holds: bool) -> None:
    shifts = {"kappa_twice": 0.05, "kappa": 0.0, "remax": 0.0, "ips": 0.0, "dr_grpo": -0.1, "xdr": 0.0}
    lines = [write_line(each, seed, shift + 0.001 * seed) for each, shift in shifts.items() for seed in range(3)]
    for line in lines:
        if line["arm"] == arm:
            line["test"] = line["test"] | {measure: [value + by for value in line["test"][measure]]}
    assert judge(group_lines(lines), "kappa_twice").holds == holds


def test_a_criterion_that_nothing_speaks_of_is_not_met() -> None:
    lines = [write_line(arm, 0, 0.1) for arm in ("kappa_twice", "kappa", "remax", "ips", "dr_grpo")]
    assert not judge(group_lines(lines), "kappa_twice").holds


def test_make_nightly_has_every_stage() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    listed = next(line for line in makefile.splitlines() if line.startswith("STAGES := "))
    assert listed.split()[2:] == list(STAGES)


@pytest.mark.parametrize(("stage", "ahead"), [("countdown", []), ("graph", ["tpo", "ucpo"])])
def test_who_covers_more_than_the_recipe_for_the_same_effort_is_what_the_page_says(
    stage: str, ahead: list[str]
) -> None:
    """`maxent-preview` and pages advise κ = 1. Modes, colder samples and a second pass are named beside it."""
    runs = group_lines(read_stage(stage))
    alike = [arm for arm in runs if arm in ARMS and ARMS[arm].passes == 1 and ARMS[arm].keys != "mode"]
    assert len(alike) > 10
    leads = {arm: compare_arms(runs, arm, RECIPE, "coverage@8") for arm in alike if arm != RECIPE}
    assert [arm for arm, lead in leads.items() if lead is None or lead.low > 0] == ahead


def test_committed_lines_are_those_of_the_settings_as_they_are_now() -> None:
    for name in STAGES:
        for line in read_stage(name):
            run = Run(Path(), line["task"], line["arm"], line["seed"], line["rate"], line["fresh"])
            assert line["settings"] == run.hash_settings(), (name, line["arm"])


@pytest.mark.parametrize("module", [analysis, report, noted], ids=lambda module: module.__name__)
def test_examples(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0


def test_a_report_on_rates_that_are_not_all_there_says_what_to_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = stages.read_stage
    monkeypatch.setattr(stages, "read_stage", lambda name: whole(name)[: -1 if name == "graph_rates" else None])
    assert main(["report"]) == 2
    assert "Expected all runs of the stage graph_rates, got 1 missing: run it first." in capsys.readouterr().out
