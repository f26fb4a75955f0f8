"""The study's report: from the kept probabilities of modes to tables, JSON, a picture and a page."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.diversity import __main__ as cli
from benchmarks.diversity.analysis import Results, analyze_study, compare_arms
from benchmarks.diversity.arms import RECIPE
from benchmarks.diversity.presets import PRESETS, Preset, load_problems
from benchmarks.diversity.report import COUNTDOWN, GRAPH, choose_level, format_appendix, format_task, write_page
from benchmarks.diversity.run import SAMPLED, WARM, Run
from benchmarks.diversity.study import RESULTS, record_study
from benchmarks.study.outcomes import average_metrics
from maxent_grpo.pipeline.tiny.storage import Log

SEEDS = (0, 1, 2)
SMALL = Preset(
    ("dr_grpo", RECIPE), family_name="graph", validation=8, test=16, seeds=SEEDS, level=0.5, temperatures=(0.5, 1.0)
)
RATES = {"dr_grpo": 1e-4, RECIPE: 1e-4}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Finished runs whose accuracy is .7 cold and .4 hot; the recipe spreads over twice as many modes."""
    monkeypatch.setitem(PRESETS, "test", SMALL)
    grid = {arm: {"0.0001": {"score": 0.3, "highest mean@8": 0.7}} for arm in RATES}
    (tmp_path / "learning_rates.json").write_text(json.dumps({"chosen": RATES, "grid": grid}))
    for seed in SEEDS:
        for arm, spread in ((WARM, 4), ("dr_grpo", 1), (RECIPE, 2)):
            write_run(Run(tmp_path, "test", arm, seed, RATES.get(arm, 0.0)), spread, 0.01 * seed)
    return tmp_path


def write_run(run: Run, spread: int, noise: float) -> None:
    outcomes = np.zeros((2, 16, 4))
    for which, right in enumerate((0.7 + noise, 0.4 + noise)):
        outcomes[which, :, :spread] = right / spread
    run.folder.mkdir(parents=True)
    np.savez(run.outcomes_file, test=outcomes.astype(np.float16))
    for split in ("validation", "test"):
        for temperature, each in zip(SMALL.temperatures, outcomes, strict=True):
            row = {"split": split, "temperature": temperature, "greedy": 0.7, "entropy": 1.0, "tokens": 3.0}
            row |= average_metrics(each)
            Log(run.folder / "evaluations.jsonl").append(row | {SAMPLED: row["mean@8"] + 0.01 * run.seed})
    if run.arm != WARM:
        Log(run.folder / "metrics.jsonl").append({"step": 1, "seconds": 0.2})


def test_spreading_over_more_modes_shows_at_matched_accuracy(study: Path):
    results = Results(study, "test", RATES)
    assert len(load_problems(SMALL).test) == 16
    compared = compare_arms(results, RECIPE, ["dr_grpo"])
    pair = compared["coverage@8 at level"]["dr_grpo"]
    assert pair["seeds"] == len(SEEDS)
    assert 0 < pair["seed_low"] <= pair["mean"] <= pair["seed_high"]
    assert compared["pass@8 at level"]["dr_grpo"]["not below -2 points"] < 0.01
    best = compared["best mean@8"]["dr_grpo"]
    assert best["mean"] == pytest.approx(0.0, abs=1e-3)
    assert best["both_low"] <= best["mean"] <= best["both_high"]


def test_evenness_and_the_check_by_samples_are_in_the_tables(study: Path):
    result = analyze_study(study, "test")
    mean = result["arms"]["dr_grpo"]["mean"]
    assert mean["even@8 at common"] > mean["coverage@8 at common"]
    assert mean["samples minus listed"] == pytest.approx(0.01 * np.mean(SEEDS))
    row = next(line for line in format_appendix(result).splitlines() if line.startswith("| Dr.GRPO"))
    assert row.endswith(f"| +{np.mean(SEEDS):.1f} |")


def test_an_arm_that_ends_below_its_warm_start_sets_no_level(study: Path):
    before = Results(study, "test", RATES).levels["common"]
    write_run(Run(study, "test", "grpo", 0, 1e-4), 1, -0.1)
    results = Results(study, "test", RATES | {"grpo": 1e-4})
    assert results.collapsed == ["grpo"]
    assert results.levels["common"] == before == pytest.approx(0.7, abs=1e-3)


def test_the_command_writes_json_tables_and_a_picture(study: Path, tmp_path: Path):
    folder = tmp_path / "out"
    options = ["--report-only", "--runs", str(study), "--results", str(folder), "--preset", "test"]
    assert cli.main(options) == 0
    result = json.loads((folder / "test.json").read_text())
    assert set(result["arms"]) == {WARM, "dr_grpo", RECIPE}
    dr_grpo, recipe = (result["arms"][arm]["mean"]["coverage@8 at level"] for arm in ("dr_grpo", RECIPE))
    assert recipe > 1.5 * dr_grpo
    assert (folder / "test.png").stat().st_size > 1000
    assert format_appendix(result) == (folder / "test.md").read_text()


def test_without_runs_the_report_is_that_of_the_committed_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "single.json").write_bytes((RESULTS / "single.json").read_bytes())
    options = ["--report-only", "--runs", str(tmp_path / "none"), "--results", str(tmp_path), "--preset"]
    assert cli.main([*options, "single"]) == 0
    for name in ("single.json", "single.md"):
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text()
    assert cli.main([*options, "small"]) == 2
    assert "got neither" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("options", [["--workers", "0"], ["--minutes", "-1"], ["--arms", "nobody"]])
def test_options_that_cannot_be_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.parse_options(options)
    assert options[1] in capsys.readouterr().err


def test_p_values_are_of_confirming_studies_and_count_methods_that_miss_the_level(
    study: Path, monkeypatch: pytest.MonkeyPatch
):
    def compare() -> dict[str, dict[str, float]]:
        results = Results(study, "test", RATES | {"grpo": 1e-4, "raft": 1e-4, "raft_cool": 1e-4})
        return compare_arms(results, RECIPE, [arm for arm in results.arms if arm != RECIPE])["coverage@8 at level"]

    assert "holm" not in compare()["dr_grpo"]
    monkeypatch.setitem(PRESETS, "test", replace(SMALL, fresh=True))
    alone = compare()["dr_grpo"]
    assert alone["holm"] == alone["p"]
    for seed in SEEDS:
        for arm, noise in (("grpo", -0.3), ("raft", -0.3), ("raft_cool", 0.0)):  # GRPO and RAFT do not come to .5
            write_run(Run(study, "test", arm, seed, 1e-4), 1, noise)
    compared = compare()
    assert set(compared) == {"dr_grpo", "raft_cool"}
    assert compared["dr_grpo"]["holm"] == pytest.approx(min(1.0, 3 * alone["p"]))
    assert "holm" not in compared["raft_cool"]


def test_a_folder_keeps_what_its_runs_were_made_with_and_takes_no_runs_of_other_sizes(
    study: Path, monkeypatch: pytest.MonkeyPatch
):
    assert analyze_study(study, "test")["versions"] == "not recorded"
    for _ in range(2):
        record_study(study, "test")
    result = analyze_study(study, "test")
    assert result["versions"].startswith("torch ")
    assert len(result["commits"]) <= 1
    monkeypatch.setitem(PRESETS, "test", replace(SMALL, warm_steps=7))
    with pytest.raises(ValueError, match=r"as it is now, {'warm_steps': 7}.*got {'warm_steps': 400}"):
        record_study(study, "test")


def load_result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize("names", [("confirm", "cpu", COUNTDOWN), ("graph_confirm", "graph", GRAPH)])
def test_a_tasks_table_has_a_row_for_each_arm_with_the_confirmed_differences(names):
    fresh, first = map(load_result, names[:2])
    lines = format_task(fresh, first, names[2]).splitlines()[2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == [
        fresh["arms"][arm]["name"] for arm in names[2]
    ]
    at = choose_level(fresh, names[2])
    pair = fresh["comparisons"][RECIPE][f"coverage@8 at {at}"]["tpo"]
    assert f"| {100 * pair['mean']:+.1f} [{100 * pair['seed_low']:+.1f}, " in lines[names[2].index("tpo")]


def test_levels_of_comparison_are_the_ones_that_more_runs_reach(study: Path):
    result = analyze_study(study, "test")
    assert choose_level(result, ("dr_grpo", RECIPE)) == "level"
    result["arms"]["dr_grpo"]["per_seed"][1]["pass@8 at level"] = None
    assert choose_level(result, ("dr_grpo", RECIPE)) == "common"


def test_the_committed_page_and_appendices_are_those_of_the_committed_json(tmp_path: Path):
    page = tmp_path / "RESULTS.md"
    committed = (RESULTS.parent / "RESULTS.md").read_text()
    page.write_text(committed)
    write_page(page, RESULTS)
    assert page.read_text() == committed
    for file in RESULTS.glob("*.json"):
        assert format_appendix(json.loads(file.read_text())) == file.with_suffix(".md").read_text(), file


def test_the_page_can_be_read_in_one_sitting():
    page = (RESULTS.parent / "RESULTS.md").read_text()
    assert len(page.splitlines()) <= 150
    for block in page.split("\n\n"):
        if block.startswith("|"):
            assert len(block.splitlines()) - 2 <= 10, block
        else:
            numbers = re.findall(r"(?<![\w/])[−+]?(?:\d*\.)?\d+", re.sub(r"`[^`]*`|\([^)]*\)", "", block))
            assert len(numbers) <= 10, block
