"""ModeBench's report from finished runs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.diversity import __main__ as cli
from benchmarks.diversity import across
from benchmarks.diversity.analysis import Results, analysis, comparisons
from benchmarks.diversity.arms import ARMS, HALF, RECIPE
from benchmarks.diversity.metrics import averages
from benchmarks.diversity.pictures import _doses
from benchmarks.diversity.presets import PRESETS, Preset, problems_of
from benchmarks.diversity.provenance import record
from benchmarks.diversity.report import markdown, name_of, replace_section
from benchmarks.diversity.run import SAMPLED, WARM, Run
from maxent_grpo.pipeline.tiny.storage import Log

SEEDS = (0, 1, 2)
SMALL = Preset(family_name="graph", validation=8, test=16, seeds=SEEDS, level=0.5, temperatures=(0.5, 1.0))


@pytest.fixture
def study(tmp_path: Path, monkeypatch) -> Path:
    """Finished runs whose accuracy is .7 cold and .4 hot; the recipe spreads over twice as many modes."""
    monkeypatch.setitem(PRESETS, "test", SMALL)
    (tmp_path / "learning_rates.json").write_text(
        json.dumps(
            {
                "chosen": {"dr_grpo": 1e-4, RECIPE: 1e-4},
                "grid": {arm: {"0.0001": {"score": 0.3, "highest mean@8": 0.7}} for arm in ("dr_grpo", RECIPE)},
            }
        )
    )
    for seed in SEEDS:
        for arm, spread in ((WARM, 4), ("dr_grpo", 1), (RECIPE, 2)):
            _write(Run(tmp_path, "test", arm, seed, 0.0 if arm == WARM else 1e-4), spread, 0.01 * seed)
    return tmp_path


def _write(run: Run, spread: int, noise: float) -> None:
    outcomes = np.zeros((2, 16, 4))
    for heat, right in enumerate((0.7 + noise, 0.4 + noise)):
        outcomes[heat, :, :spread] = right / spread
    run.folder.mkdir(parents=True)
    np.savez(run.outcomes_file, test=outcomes.astype(np.float16))
    more = {"step": 0 if run.arm == WARM else SMALL.updates, "greedy": 0.7, "entropy": 1.0, "tokens": 3.0}
    for split in ("validation", "control", "test"):
        for temperature, each in zip(SMALL.temperatures, outcomes, strict=True):
            row = {"split": split, "temperature": temperature, **more, **averages(each)}
            row |= {SAMPLED: row["mean@8"] + 0.01 * run.seed}
            Log(run.folder / "evaluations.jsonl").append(row)
    if run.arm != WARM:
        Log(run.folder / "metrics.jsonl").append({"step": 1, "seconds": 0.2, "tokens": 100})


def test_spreading_over_more_modes_shows_at_matched_accuracy(study: Path):
    results = Results(study, "test", {"dr_grpo": 1e-4, RECIPE: 1e-4})
    assert len(problems_of(SMALL).test) == 16
    found = comparisons(results, RECIPE, ["dr_grpo"])
    pair = found["coverage@8 at level"]["dr_grpo"]
    assert pair["seeds"] == len(SEEDS)
    assert 0 < pair["seed_low"] <= pair["mean"] <= pair["seed_high"]
    assert found["pass@8 at level"]["dr_grpo"]["not below -2 points"] < 0.01
    assert found["best mean@8"]["dr_grpo"]["mean"] == pytest.approx(0.0, abs=1e-3)


def test_evenness_and_the_check_by_samples_are_in_the_tables(study: Path):
    result = analysis(study, "test")
    mean = result["arms"]["dr_grpo"]["mean"]
    assert mean["even@8 at common"] > mean["coverage@8 at common"]
    assert mean["samples minus listed"] == pytest.approx(0.01 * np.mean(SEEDS))
    row = next(line for line in markdown(result).split("**Ceilings")[1].splitlines() if line.startswith("| Dr.GRPO"))
    assert row.endswith(f"| +{np.mean(SEEDS):.1f} |")


def test_ceilings_are_compared_with_intervals(study: Path):
    pair = analysis(study, "test")["comparisons"][RECIPE]["best mean@8"]["dr_grpo"]
    assert pair["seed_low"] <= pair["mean"] <= pair["seed_high"]
    assert pair["both_low"] <= pair["mean"] <= pair["both_high"]
    assert pair["equivalent within 3 points"] < 0.01


def test_a_dose_response_has_the_recipe_and_what_differs_from_it_in_one_setting_alone():
    arms = {arm: {"mean": {}} for arm in ("none_0", "full_0", "cool", "mode_keys", "passes_2", "rare", "tau_half")}
    doses = {name: [dose for dose, _ in points] for name, points in _doses({"arms": arms}).items()}
    assert doses == {"dedup": [0.0, 1.0], "tau": [0.2, 0.5]}


def test_the_command_writes_json_tables_and_pictures(study: Path, tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("Reading.\n\n<!-- begin test -->\nold\n<!-- end test -->\nMore.\n")
    options = ["--report-only", "--runs", str(study), "--results", str(tmp_path / "out"), "--page", str(page)]
    assert cli.main([*options, "--preset", "test"]) == 0
    result = json.loads((tmp_path / "out" / "test.json").read_text())
    assert set(result["arms"]) == {WARM, "dr_grpo", RECIPE}
    assert (
        result["arms"][RECIPE]["mean"]["coverage@8 at level"]
        > 1.5 * result["arms"]["dr_grpo"]["mean"]["coverage@8 at level"]
    )
    assert (tmp_path / "out" / "test.png").stat().st_size > 1000
    assert markdown(result) in page.read_text()
    assert "old" not in page.read_text()
    assert page.read_text().endswith("<!-- end test -->\nMore.\n")


def test_tables_across_studies_have_a_row_for_each_study_and_method(study: Path, tmp_path: Path, capsys):
    cli.main(["--report-only", "--preset", "test", "--runs", str(study), "--results", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out/test.json").read_text())
    for size, count in (("small", 1000), ("large", 3000)):
        (tmp_path / f"out/{size}.json").write_text(json.dumps({**result, "parameters": count}))
    page = tmp_path / "page.md"
    (tmp_path / "out/single.json").write_text(json.dumps({**result, "study": "single"}))
    marks = [f"<!-- begin {section} --><!-- end {section} -->" for section in ("scaling", "studies")]
    page.write_text("\n".join(marks))
    across.main(["--results", str(tmp_path / "out"), "--page", str(page)])
    sizes, studies = page.read_text().split("<!-- begin studies -->")
    rows = [line.split(" | ") for line in sizes.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == ["| 1,000"] * 2 + ["| 3,000"] * 2
    assert rows[0][1] == "Dr.GRPO"
    assert rows[0][2] == f"{result['arms']['dr_grpo']['learning_rate']:g}"
    assert rows[0][5] == f"{result['arms']['dr_grpo']['mean']['coverage@8 at level']:.3f}"
    assert rows[0][8].startswith("+")
    assert rows[1][8] == "–"
    rows = [line.split(" | ") for line in studies.splitlines() if line.startswith("| ")][2:]
    assert [row[:2] for row in rows] == [["| `single`", "Dr.GRPO"], ["| `single`", name_of(RECIPE)]]
    assert rows[0][5] == f"{result['arms']['dr_grpo']['mean']['even@8 at level']:.3f}"
    result["arms"][RECIPE]["mean"]["coverage@8 at level"] = None
    assert f" | {result['arms']['dr_grpo']['mean']['even@8 at common']:.3f} | " in across.studies_table([result])
    assert "3,000" in capsys.readouterr().out


def test_arms_that_miss_the_level_count_in_the_adjustment(study: Path):
    results = Results(study, "test", {"dr_grpo": 1e-4, RECIPE: 1e-4})
    found = comparisons(results, RECIPE, ["dr_grpo"])["coverage@8 at level"]["dr_grpo"]
    for arm in ("grpo", "raft"):  # neither comes to .5
        for seed in SEEDS:
            _write(Run(study, "test", arm, seed, 1e-4), 1, -0.3)
    results = Results(study, "test", dict.fromkeys(("dr_grpo", "grpo", "raft", RECIPE), 1e-4))
    again = comparisons(results, RECIPE, ["dr_grpo", "grpo", "raft"])["coverage@8 at level"]
    assert set(again) == {"dr_grpo"}
    assert again["dr_grpo"]["holm"] == pytest.approx(min(1.0, 3 * found["p"]))


def test_a_folder_keeps_what_its_runs_were_made_with_and_takes_no_runs_of_other_sizes(study: Path, monkeypatch):
    assert analysis(study, "test")["commands"] == "not recorded"
    record(study, "test", ["dr_grpo", RECIPE])
    record(study, "test", ["grpo"])
    record(study, "test", ["grpo"])
    made = analysis(study, "test")
    assert made["commands"] == [
        f'make study ARGS="--preset test --arms dr_grpo {RECIPE}"',
        'make study ARGS="--preset test --arms grpo"',
    ]
    assert made["versions"].startswith("torch ")
    monkeypatch.setitem(PRESETS, "test", replace(SMALL, warm_steps=7))
    with pytest.raises(ValueError, match=r"as it is now, {'warm_steps': 7}.*got {'warm_steps': 400}"):
        record(study, "test", ["grpo"])


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="Expected the marks"):
        replace_section("text", "cpu", "table")


def test_variants_differ_from_the_recipe_in_what_they_name():
    assert ARMS["full_half"].config == replace(HALF, dedup=1.0, success_power=0.5)
    assert ARMS["pruned"].config == replace(HALF, keep_fraction=0.5)
