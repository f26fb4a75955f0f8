"""ModeBench on a pretrained model: its commands, what it refuses, and its report from evaluations."""

import json
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from scipy import stats

from benchmarks.diversity import __main__ as cli
from benchmarks.diversity import machine
from benchmarks.diversity.arms import ARMS, RECIPE
from benchmarks.diversity.pretrained import RECIPES, TEMPERATURES, PretrainedStudy, launch, maxent_fields, recorded
from benchmarks.diversity.pretrained_report import pretrained_analysis, pretrained_markdown
from maxent_grpo import MaxEntConfig
from maxent_grpo.pipeline import evaluate
from maxent_grpo.pipeline.evaluation.curves import METRICS, Curve, Interval
from maxent_grpo.pipeline.evaluation.report import curve_as_dict

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
SLURM = ["--model", MODEL, "--launcher", "slurm", "--dry-run"]
FALLING = (0.7, 0.6, 0.5, 0.4, 0.3)


def write(root: Path, arm: str, seed: int, coverage: tuple[float, ...] | float, mean=FALLING, **changed) -> None:
    """Write the evaluations of a run as `examples/evaluate.py` does, with pass@8 = mean@8 + 0.2."""
    coverages = coverage if isinstance(coverage, tuple) else (coverage,) * len(TEMPERATURES)
    options = evaluate.options_of(["model", "--task", "countdown-4", "--samples", "16"])
    settings = evaluate.settings_of(options, SimpleNamespace(name="countdown-4", prompts=["1"] * 32), "transformers")
    for temperature, accuracy, covered in zip(TEMPERATURES, mean, coverages, strict=True):
        values = {"mean": accuracy, "pass": accuracy + 0.2, "distinct": 2.0, "coverage": covered}
        nothing = Interval(0.0, 0.0, 0.0)  # at any k but 8
        points = {
            name: [nothing] * 7 + [Interval(values[name], values[name] - 0.1, values[name] + 0.1)] + [nothing] * 8
            for name in METRICS
        }
        curve = Curve(list(range(1, 17)), points, [1.0] * 16, [32] * 16)
        result = {"model": arm, "greedy_accuracy": 0.65, **curve_as_dict(curve, has_modes=True)}
        file = root / f"seed{seed}" / arm / f"evaluation-{temperature}" / "evaluation.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({**settings, "temperature": temperature, **changed, "results": [result]}))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The recipe covers 10, 12 and 15 points more than GRPO, one and two less and as much as two others."""
    for seed, (gap, more) in enumerate(((0.10, 0.01), (0.12, -0.02), (0.15, 0.0))):
        write(tmp_path, "grpo", seed, 0.3)
        write(tmp_path, RECIPE, seed, 0.3 + gap)
        write(tmp_path, "raft", seed, 0.3 + gap + more)
        write(tmp_path, "half_0", seed, 0.3 + gap + 2 * more)
    return tmp_path


@pytest.mark.parametrize("name", [name for name in ARMS if name != "grpo"])
@pytest.mark.parametrize("recipe", ["Qwen2.5-0.5B-Instruct"])
def test_flags_over_a_recipe_are_the_arms_settings(name, recipe):
    file = Path(__file__).parents[2] / "examples/recipes" / recipe / "maxent/config_countdown.yaml"
    entries = yaml.safe_load(file.read_text()) | maxent_fields(ARMS[name])
    assert MaxEntConfig.from_recipe(entries, {}) == ARMS[name].config


def test_a_slurm_study_is_an_array_over_arms_and_seeds(tmp_path: Path, capsys):
    cli.main([*SLURM, "--seeds", "2", "--runs", str(tmp_path), "--arms", "grpo", "entropy_low", "mode_keys"])
    commands = (tmp_path / "commands.txt").read_text().splitlines()
    assert len(commands) == 2 * 3
    assert "--entropy_coef 0.02" in commands[1]
    assert ["--key_func countdown_mode" in line for line in commands] == [False, False, True] * 2
    assert all(subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0 for line in commands)
    script = tmp_path / "study.sbatch"
    assert "#SBATCH --array=0-5" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True)
    assert f"sbatch {script}" in capsys.readouterr().out


def test_accelerate_is_this_pythons_and_takes_any_free_port(tmp_path: Path):
    (job,) = PretrainedStudy(MODEL, ["grpo"], [0], tmp_path, gpus=1).jobs()
    train = shlex.split(job.split(" && ")[1])
    assert Path(train[0]).is_absolute()
    assert train[1:3] == ["-m", "accelerate.commands.launch"]
    options = launch_command_parser().parse_args(train[3:])
    assert (options.main_process_port, options.num_processes) == (0, 1)
    assert options.training_script == "examples/train.py"


@pytest.mark.parametrize("name", [*sorted(path.name for path in RECIPES.iterdir()), "another", "tiny-countdown"])
def test_a_model_of_any_name_gets_a_countdown_recipe_that_there_is(name, tmp_path: Path):
    for job in PretrainedStudy(f"org/{name}", ["grpo", RECIPE], [0], tmp_path).jobs():
        assert Path(shlex.split(job)[shlex.split(job).index("--config") + 1]).is_file()


def test_a_folder_takes_no_runs_that_are_made_otherwise(tmp_path: Path):
    one, other = (PretrainedStudy(MODEL, ["grpo"], [0], tmp_path, samples=samples) for samples in (16, 64))
    launch(one, "slurm", dry_run=True, command="first")
    launch(other, "slurm", dry_run=True, command="second")  # nothing has been trained yet
    assert recorded(tmp_path)["commands"] == ["second"]
    (tmp_path / "seed0/grpo").mkdir(parents=True)
    launch(other, "slurm", dry_run=True, command="third")
    assert recorded(tmp_path)["commands"] == ["second", "third"]
    with pytest.raises(
        ValueError, match=r"Expected {'samples': 64}, as the runs in .* or other --runs, got {.*: 16}"
    ):
        launch(one, "slurm", dry_run=True, command="fourth")


def test_a_run_knows_every_machine_that_it_was_on(tmp_path: Path, monkeypatch):
    machine.note(tmp_path)
    machine.note(tmp_path)
    assert "torch" in machine.noted(tmp_path)[0]["versions"]
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 1000)
    machine.note(tmp_path)
    assert ["1000 CPU cores" in each["hardware"] for each in machine.noted(tmp_path)] == [False, True]


def test_the_difference_is_students_over_seeds_and_adjusted_within_methods_and_within_variants(runs: Path):
    found = pretrained_analysis(runs, MODEL)["comparisons"]["coverage@8 at level"]
    gaps = {"grpo": [0.10, 0.12, 0.15], "raft": [-0.01, 0.02, 0.0], "half_0": [-0.02, 0.04, 0.0]}
    p = {}
    for arm, values in gaps.items():
        test = stats.ttest_1samp(values, 0.0)
        low, high = test.confidence_interval(0.95)
        pair, p[arm] = found[arm], test.pvalue
        assert pair["seeds"] == 3
        expected = [np.mean(values), low, high, test.pvalue]
        assert [pair[name] for name in ("mean", "seed_low", "seed_high", "p")] == pytest.approx(expected)
    assert found["grpo"]["holm"] == pytest.approx(2 * p["grpo"])
    assert found["raft"]["holm"] == pytest.approx(p["raft"])
    assert found["half_0"]["holm"] == pytest.approx(p["half_0"])


def test_values_are_read_between_temperatures_at_the_ceiling_of_the_weakest_run(tmp_path: Path):
    write(tmp_path, "grpo", 0, 0.2, mean=(0.55, 0.5, 0.4, 0.3, 0.2))
    write(tmp_path, RECIPE, 0, (0.1, 0.2, 0.3, 0.4, 0.5))
    result = pretrained_analysis(tmp_path, MODEL)
    assert (result["level"], result["level is"]) == (0.55, "the ceiling of grpo with seed 0")
    mean = result["arms"][RECIPE]["mean"]
    assert mean == pytest.approx(
        {"coverage@8 at level": 0.25, "pass@8 at level": 0.75, "best mean@8": 0.7, "greedy": 0.65}
    )
    frontier = result["arms"][RECIPE]["seeds"]["0"]["frontier"]
    assert [row["temperature"] for row in frontier] == list(TEMPERATURES)
    assert frontier[1]["coverage@8 over prompts"] == pytest.approx([0.1, 0.3])
    assert "| +5.0 n=1 | – |" in pretrained_markdown(result)


def test_a_run_that_misses_the_level_has_no_value_there_and_still_counts_in_the_adjustment(runs: Path):
    for seed in range(3):
        write(runs, "dr_grpo", seed, 0.9, mean=tuple(each / 2 for each in FALLING))
    reached = pretrained_analysis(runs, MODEL, level=0.5)
    assert reached["arms"]["dr_grpo"]["mean"]["coverage@8 at level"] is None
    found = reached["comparisons"]["coverage@8 at level"]
    assert (found["dr_grpo"]["mean"], found["dr_grpo"]["seeds"]) == (None, 0)
    assert found["grpo"]["holm"] == pytest.approx(3 * found["grpo"]["p"])
    assert "| Dr.GRPO | – | – | – | – |" in pretrained_markdown(reached)
    low = pretrained_analysis(runs, MODEL)
    assert low["level"] == pytest.approx(0.35)
    assert low["hotter only"] == []
    assert len(pretrained_analysis(runs, MODEL, level=0.2)["hotter only"]) == 4 * 3  # .15 for Dr.GRPO


def test_an_unfinished_run_is_left_out_by_name(runs: Path):
    (runs / f"seed1/raft/evaluation-{TEMPERATURES[-1]}/evaluation.json").unlink()
    (runs / "seed1/tiny-countdown").mkdir()  # a start that was made there
    result = pretrained_analysis(runs, MODEL)
    assert result["unfinished"] == ["raft with seed 1"]
    assert list(result["arms"]["raft"]["seeds"]) == ["0", "2"]
    assert result["comparisons"]["coverage@8 at level"]["raft"]["mean"] == pytest.approx(-0.005)
    assert "left out: raft with seed 1." in pretrained_markdown(result)


def test_what_cannot_be_compared_is_refused(runs: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"Expected runs evaluated at all of \(0.4, .* got none"):
        pretrained_analysis(tmp_path / "none", MODEL)
    (runs / "pretrained.json").write_text(json.dumps({"model": "other", "commands": []}))
    with pytest.raises(ValueError, match=f"Expected runs of model='{MODEL}' in .*, got those of 'other'"):
        pretrained_analysis(runs, MODEL)
    write(runs, "dr_grpo", 0, 0.3, prompts=16)
    with pytest.raises(ValueError, match=r"'prompts': 32, .* got .*'prompts': 16, .* in .*dr_grpo"):
        pretrained_analysis(runs, MODEL)


def test_a_report_of_what_is_there_trains_nothing(runs: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "launch", lambda *_, **__: pytest.fail("launched"))
    machine.note(runs / "seed0/grpo")
    (runs / "pretrained.json").write_text(json.dumps({"model": MODEL, "commands": ["make it"]}))
    out = tmp_path / "out"
    assert cli.main(["--model", MODEL, "--report-only", "--runs", str(runs), "--results", str(out)]) == 0
    result = json.loads((out / "Qwen2.5-0.5B-Instruct.json").read_text())
    assert result["model"] == MODEL
    assert result["arms"]["grpo"]["seeds"]["0"]["machines"] == [machine.machine()]
    tables = (out / "Qwen2.5-0.5B-Instruct.md").read_text()
    assert tables == pretrained_markdown(result)
    assert "Learning rates were not tuned" in tables
    assert "Run by `make it`" in tables
    assert machine.machine()["hardware"] in tables
    assert "| +12.3 [+6.1, +18.6] n=3 | 0.0272 | +0.0 [+0.0, +0.0] n=3 | 1.0000 |" in tables
    assert "Qwen2.5-0.5B-Instruct.md" in capsys.readouterr().out.replace("\n", "")


def test_a_local_study_ends_with_its_report_and_a_submitted_one_says_how_to_get_it(
    tmp_path: Path, monkeypatch, capsys
):
    def fake(study: PretrainedStudy, launcher: str, *, dry_run: bool, command: str) -> None:
        if launcher == "local" and not dry_run:
            write(study.output, "grpo", 0, 0.3)
        print(command)

    monkeypatch.setattr(cli, "launch", fake)
    flags = ["--model", MODEL, "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "out")]
    for more in (["--dry-run"], ["--launcher", "slurm"]):
        assert cli.main([*flags, *more]) == 0
        assert not (tmp_path / "out").exists()
        assert "--report-only" in capsys.readouterr().out
    assert cli.main([*flags, "--seeds", "1", "--train-flags", "--max_steps 3"]) == 0
    assert (tmp_path / "out/Qwen2.5-0.5B-Instruct.json").exists()
    assert "--seeds 1 --train-flags '--max_steps 3'\"" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--model", "x", "--minutes", "9"], "Expected --minutes without --model, got minutes=9.0"),
        (["--model", "x", "--preset", "cpu"], "Expected --preset without --model, got preset='cpu'"),
        (["--model", "x", "--page", "p.md"], "Expected --page without --model"),
        (["--model", "x", "--workers", "2"], "Expected --workers without --model"),
        (["--seeds", "5"], "Expected --seeds with --model, got seeds=5"),
        (["--samples", "64"], "Expected --samples with --model"),
        (["--prompts", "32"], "Expected --prompts with --model"),
        (["--gpus", "8"], "Expected --gpus with --model"),
        (["--launcher", "local"], "Expected --launcher with --model"),
        (["--dry-run"], "Expected --dry-run with --model, got dry_run=True"),
        (["--train-flags", "--max_steps 3"], "Expected --train-flags with --model, got train_flags='--max_steps 3'"),
        (["--level", ".5"], "Expected --level with --model"),
        (["--report-only", "--minutes", "9"], "Expected --minutes without --report-only"),
        (["--model", "x", "--report-only", "--dry-run"], "Expected --dry-run without --report-only"),
        (["--model", "x", "--report-only", "--seeds", "2"], "Expected --seeds without --report-only"),
        (["--model", "x", "--launcher", "slurm", "--level", ".5"], "Expected --level where there is a report"),
        (["--model", "x", "--arms", "grpo", "grpo_slow"], "with --model, got arms=['grpo_slow']"),
        (["--model", "x", "--samples", "4"], "Expected --samples >= 8, got samples=4"),
        (["--model", "x", "--gpus", "-1"], "Expected --gpus >= 0, got gpus=-1"),
        (["--minutes", "0"], "Expected --minutes > 0, got minutes=0.0"),
        (["--model", "x", "--level", "60"], "Expected 0 < --level < 1, got level=60.0"),
    ],
)
def test_an_option_that_would_be_ignored_is_named_before_anything_starts(flags, complaint, monkeypatch, capsys):
    for name in ("launch", "run_study", "analysis"):
        monkeypatch.setattr(cli, name, lambda *_, **__: pytest.fail("started"))
    with pytest.raises(SystemExit) as end:
        cli.main(flags)
    assert end.value.code == 2
    assert complaint in capsys.readouterr().err


def test_all_arms_of_a_pretrained_study_are_those_whose_commands_say_what_they_are():
    chosen, of_presets = (set(cli.arguments([*more, "--arms", "all"]).arms) for more in (["--model", "x"], []))
    assert of_presets == set(ARMS)
    left_out = {name for name in ARMS if name.endswith("_slow")}
    left_out |= {
        "full_0_mild",
        "full_0_fast",
        "answer_keys",
        "rare",
        "cool_rare",
        "graded",
        "corrected",
        "corrected_0",
    }
    assert of_presets - chosen == left_out
    jobs = PretrainedStudy("x", sorted(chosen), [0], Path("out")).jobs()
    settings = [job.replace(f"seed0/{arm}", "") for arm, job in zip(sorted(chosen), jobs, strict=True)]
    assert len(set(settings)) == len(chosen)  # no two arms are the same training
    assert "--num_iterations 2" in jobs[sorted(chosen).index("passes_2")]
    with pytest.raises(SystemExit):
        cli.arguments(["--model", "x", "--arms", "rare"])


@pytest.mark.parametrize(
    "handler", [signal.default_int_handler, signal.SIG_IGN], ids=["in a terminal", "under nohup"]
)
def test_a_study_out_of_time_stops_and_says_how_to_go_on(handler, tmp_path: Path, monkeypatch, capsys):
    def waits(*_, **__):
        for _ in range(6000):
            time.sleep(0.01)

    monkeypatch.setattr(cli, "run_study", waits)
    before = signal.signal(signal.SIGINT, handler)
    try:
        assert cli.main(["--minutes", "0.002", "--runs", str(tmp_path / "runs")]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("Interrupted; what was trained is in")
    assert said.endswith("The same call goes on.")


def test_the_time_limit_is_not_the_reports(tmp_path: Path, monkeypatch):
    def timers() -> int:
        return sum(isinstance(each, threading.Timer) and not each.finished.is_set() for each in threading.enumerate())

    before, seen = timers(), []
    monkeypatch.setattr(cli, "run_study", lambda *_, **__: seen.append(timers()))
    monkeypatch.setattr(cli, "analysis", lambda *_, **__: seen.append(timers()))
    monkeypatch.setattr(cli, "write_report", lambda *_, **__: [])
    assert cli.main(["--minutes", "60", "--runs", str(tmp_path)]) == 0
    assert seen == [before + 1, before]
