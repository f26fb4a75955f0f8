"""The demo: what it leaves on disk, that it goes on where it was stopped, and how it reads its results."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import quickstart
from tiny.evaluation import coverage_at
from tiny.report import matched_coverage, matched_level

ROOT = Path(__file__).parents[2]
SMALL = ["--steps", "4", "--warm-steps", "3", "--eval-prompts", "8", "--eval-samples", "8", "--eval-every", "2"]
SMALL += ["--prompts", "4", "--samples", "4"]


def job(folder: Path, arm: str, *options: str) -> quickstart.Job:
    parsed = quickstart.arguments([*SMALL, *options, "--output", str(folder)])
    return quickstart.Job(parsed, arm, seed=0)


def never() -> bool:
    return False


def silent(entry: object) -> None:
    del entry


@pytest.fixture
def warm(tmp_path: Path) -> Path:
    quickstart.warm_up(job(tmp_path, "warm_start"), silent, never)
    return tmp_path


@pytest.mark.parametrize("arm", quickstart.ARMS)
def test_a_method_logs_every_update_and_leaves_a_checkpoint_that_loads(warm: Path, arm: str) -> None:
    done = job(warm, arm)
    quickstart.train(done, silent, never)
    rows = done.log.rows()
    assert [row["step"] for row in rows if "step" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "step" in row and "coverage@8" in row] == [2, 4]
    assert [row["temperature"] for row in rows if "temperature" in row] == list(quickstart.TEMPERATURES)
    assert all(1 <= row["maxent/ess"] <= 4 for row in rows if "step" in row)
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    tokenizer = AutoTokenizer.from_pretrained(done.folder)
    prompt = "2 3 14 = 15 :"
    assert tokenizer(prompt)["input_ids"] == quickstart.TOKENIZER(prompt)["input_ids"]
    assert model(**tokenizer(prompt, return_tensors="pt")).logits.shape[1:] == (6, len(tokenizer))


@pytest.mark.parametrize("options", [[], ["--beta", "0.1"]], ids=["plain", "with a reference"])
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(
    warm: Path, tmp_path_factory: pytest.TempPathFactory, options: list[str]
) -> None:
    whole = job(warm, "maxent_diverse", *options)
    quickstart.train(whole, silent, never)
    rows, weights = whole.log.rows(), torch.load(whole.folder / "state.pt")["model"]

    again = tmp_path_factory.mktemp("again")
    quickstart.warm_up(job(again, "warm_start"), silent, never)
    parted = job(again, "maxent_diverse", *options)
    quickstart.train(parted, silent, lambda: len(parted.log.rows()) >= 3)
    assert [row["step"] for row in parted.log.rows()] == [1, 2, 3]
    quickstart.train(parted, silent, never)
    assert parted.log.rows() == rows
    for name, value in torch.load(parted.folder / "state.pt")["model"].items():
        assert torch.equal(value, weights[name])


def test_updates_after_the_last_saved_state_are_made_and_logged_again(warm: Path) -> None:
    killed = job(warm, "maxent")
    quickstart.train(killed, silent, lambda: len(killed.log.rows()) >= 2)
    killed.log.append({"arm": "maxent", "seed": 0, "step": 3, "reward": -1.0})  # logged, then killed
    quickstart.train(killed, silent, never)
    assert [row["step"] for row in killed.log.rows() if "step" in row] == [1, 2, 3, 4]
    assert all(row["reward"] >= 0 for row in killed.log.rows() if "step" in row)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_there_and_resume_ends_with_table_and_picture(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "examples/quickstart.py"),
        *SMALL,
        "--arms",
        "maxent",
        "--output",
        str(tmp_path),
    ]
    command[command.index("--steps") + 1] = "40"
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = tmp_path / "seed0/maxent/metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (log.exists() and log.read_text()):
        assert running.poll() is None, running.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=200)
    assert running.returncode == 130, output
    assert "--resume" in output
    stopped_at = len(log.read_text().splitlines())
    assert 0 < stopped_at < 40
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["arm"] == "maxent" and "step" in row] == list(range(1, 41))
    assert {"results.json", "results.md", "curves.png", "config.json"} <= {file.name for file in tmp_path.iterdir()}


def test_resuming_with_other_options_is_refused_by_name(tmp_path: Path) -> None:
    quickstart.open_output(quickstart.arguments(["--output", str(tmp_path), "--tau", "0.3"]))
    with pytest.raises(SystemExit, match=r"--tau 0\.3 as in the run to resume, got 0\.2"):
        quickstart.open_output(quickstart.arguments(["--output", str(tmp_path), "--resume"]))


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="a run to resume"):
        quickstart.open_output(quickstart.arguments(["--output", str(tmp_path / "none"), "--resume"]))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--steps", "0"], "--steps >= 1"),
        (["--eval-samples", "4"], "--eval-samples >= 8"),
        (["--arms", "ppo"], "ppo"),
    ],
)
def test_bad_options_are_named(options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quickstart.arguments(options)
    assert complaint in capsys.readouterr().err


def row(mean: float, coverage: float) -> dict[str, float]:
    return {"mean@8": mean, "coverage@8": coverage}


def test_coverage_at_a_level_is_read_between_neighbouring_temperatures() -> None:
    frontier = {0.6: row(0.6, 0.2), 1.0: row(0.4, 0.4)}
    assert coverage_at(0.5, frontier) == pytest.approx(0.3)
    assert coverage_at(0.6, frontier) == pytest.approx(0.2)
    assert coverage_at(0.61, frontier) is None  # reached at no temperature
    assert coverage_at(0.3, frontier) == pytest.approx(0.4)  # no hotter one was tried: taken at the hottest


def test_methods_are_compared_at_the_highest_accuracy_that_all_of_them_reach() -> None:
    trained = {"a": {0.6: row(0.7, 0.2), 1.0: row(0.5, 0.3)}, "b": {0.6: row(0.6, 0.4), 1.0: row(0.4, 0.5)}}
    assert matched_level(trained) == 0.6
    rows = [
        {"arm": arm, "seed": 0, "temperature": heat, **metrics}
        for arm, by in trained.items()
        for heat, metrics in by.items()
    ]
    level, coverage = matched_coverage([*rows, {"arm": "warm_start", "seed": 0, "temperature": 1.0, **row(0.1, 0.9)}])
    assert level == 0.6
    assert coverage == {"a": pytest.approx(0.25), "b": pytest.approx(0.4)}
