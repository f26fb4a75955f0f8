"""The demo: what it trains, what it leaves on disk, and that it goes on where it was stopped."""

import argparse
import copy
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from maxent_grpo import MaxEntConfig, listwise_q, tempered_target
from maxent_grpo.adapters.torch_loop import RolloutConstants
from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict
from maxent_grpo.pipeline.tiny import demo, runs
from maxent_grpo.pipeline.tiny.options import ARMS, build_config, parse_options
from maxent_grpo.pipeline.tiny.sampling import Samples, Task, token_logps
from maxent_grpo.pipeline.tiny.storage import load_checkpoint
from maxent_grpo.pipeline.tiny.training import Reinforcement
from maxent_grpo.pipeline.tiny.wide_countdown import MAX_NEW_TOKENS, TASK, TOKENIZER
from support.precision import evaluate

ROOT = Path(__file__).parents[2]
SMALL = ["--steps", "4", "--warm-steps", "3", "--eval-prompts", "8", "--eval-samples", "8", "--eval-every", "2"]
SMALL += ["--prompts", "4", "--samples", "4"]


def parse(flags: list[str]) -> argparse.Namespace:
    return parse_options(flags, None)


def job(folder: Path, arm: str, *options: str) -> runs.Job:
    parsed = parse([*SMALL, *options, "--output", str(folder)])
    return runs.Job(parsed, arm, seed=0)


def never() -> bool:
    return False


def silent(entry: object) -> None:
    del entry


@pytest.fixture
def warm(tmp_path: Path) -> Path:
    runs.warm_up(job(tmp_path, "warm_start"), silent, never)
    return tmp_path


@pytest.mark.parametrize("arm", ARMS)
def test_a_method_logs_every_update_and_leaves_a_checkpoint_that_loads(warm: Path, arm: str) -> None:
    done = job(warm, arm)
    runs.train(done, silent, never)
    rows = done.log.rows()
    assert [row["step"] for row in rows if "step" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "step" in row and "coverage@8" in row] == [2, 4]
    assert [row["temperature"] for row in rows if "temperature" in row] == list(runs.TEMPERATURES)
    assert all(1 <= row["maxent/ess"] <= 4 for row in rows if "step" in row)
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    tokenizer = AutoTokenizer.from_pretrained(done.folder)
    prompt = "2 3 14 = 15 :"
    assert tokenizer(prompt)["input_ids"] == TOKENIZER(prompt)["input_ids"]
    assert model(**tokenizer(prompt, return_tensors="pt")).logits.shape[1:] == (6, len(tokenizer))


CHANGED = ["--tau", "0.3", "--beta", "0.1", "--dedup", "0.25", "--success-power", "0.75"]


@pytest.mark.parametrize("option", [None, *CHANGED[::2]])
def test_every_method_trains_with_its_own_settings_and_the_flags_that_concern_it(option: str | None) -> None:
    expected = {"tau": 0.2, "beta": 0.0, "dedup": 1.0, "success_power": 0.0}  # as published, and as measured
    flags: list[str] = []
    if option is not None:
        value = CHANGED[CHANGED.index(option) + 1]
        flags = [option, value]
        expected[option.removeprefix("--").replace("-", "_")] = float(value)
    options = parse(flags)
    longest = MAX_NEW_TOKENS
    assert build_config("dr_grpo", options) == MaxEntConfig(projection="surrogate", max_length=longest)
    assert build_config("maxent", options) == MaxEntConfig(tau=expected["tau"], beta=expected["beta"])
    assert build_config("maxent_diverse", options) == MaxEntConfig(
        **expected, center=True, skip="all_min", nll_reduction="max_length", max_length=longest
    )


def test_the_loop_gets_the_options_of_the_command_line(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BegunError(Exception):
        pass

    def begin(*arguments: object, **frozen: object) -> None:
        raise BegunError(*arguments)

    monkeypatch.setattr(runs, "Reinforcement", begin)
    flags = ["--learning-rate", "0.02", "--temperature", "0.7", "--prompts", "5", "--samples", "6", "--tau", "0.3"]
    with pytest.raises(BegunError) as begun:
        runs.train(job(warm, "maxent", *flags), silent, never)
    *_, task, config, settings = begun.value.args
    assert (task, config) == (TASK, MaxEntConfig(tau=0.3))
    assert (settings.learning_rate, settings.temperature) == (0.02, 0.7)
    assert (settings.prompts_per_step, settings.num_samples) == (5, 6)


def starts_with_a_large_number(problem: countdown.Problem, answer: str) -> Verdict:
    """Judge answers by something that a hardly trained model can learn within a few updates."""
    return Verdict(True, problem.modes[0]) if answer.startswith(("1", "2")) and answer[1:2].isdigit() else WRONG


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_training_raises_the_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str) -> None:
    monkeypatch.setattr(runs, "TASK", Task(countdown.prompt, starts_with_a_large_number))
    monkeypatch.setattr(runs, "TEMPERATURES", (1.0,))
    flags = ["--steps", "20", "--warm-steps", "5", "--prompts", "8", "--samples", "8", "--eval-every", "20"]
    flags += ["--learning-rate", "3e-3", "--eval-prompts", "32"]
    start, done = job(tmp_path, "warm_start", *flags), job(tmp_path, arm, *flags)
    runs.warm_up(start, silent, never)
    runs.train(done, silent, never)
    rewards = [row["reward"] for row in done.log.rows() if "step" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2
    before, after = (each.log.rows()[-1] for each in (start, done))
    assert after["mean@8"] > before["mean@8"] + 0.2  # counted by verdicts, not by what training calls a reward


class Watched(Reinforcement):
    """A loop that remembers what each loss was taken of: the samples, the model, and the loss."""

    seen: list[tuple[Samples, PreTrainedModel, torch.Tensor]]

    def _loss(self, samples: Samples, constants: RolloutConstants | None = None):
        model = copy.deepcopy(self.model)
        loss, constants = super()._loss(samples, constants)
        self.seen.append((samples, model, loss.detach()))
        return loss, constants


@pytest.mark.numerical
def test_the_pull_is_to_the_frozen_warm_start_after_the_policy_has_moved(
    warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Watched.seen = []
    monkeypatch.setattr(runs, "Reinforcement", Watched)
    done = job(warm, "maxent", "--beta", "0.5", "--learning-rate", "0.01", "--steps", "2")
    runs.train(done, silent, never)
    samples, model, loss = Watched.seen[1]

    @torch.no_grad()
    def loss_with(reference: PreTrainedModel) -> list[torch.Tensor]:
        logps, anchors = (token_logps(each, samples.prompts, samples.ids) for each in (model, reference))
        lengths, groups = samples.mask.sum(-1), (-1, 4)
        per_token = ((anchors * samples.mask).sum(-1) / lengths).reshape(groups)
        weights = tempered_target(listwise_q(samples.rewards.reshape(groups)), per_token, tau=0.2, beta=0.5)
        return [-(weights * (logps * samples.mask).sum(-1).reshape(groups)).sum(-1).mean()]

    (exact,) = evaluate(lambda: loss_with(load_checkpoint(done.warm_folder)))
    exact.assert_near(loss)
    assert exact.distance(*loss_with(model)) > 10 * exact.error


def test_all_methods_are_shown_the_same_groups_and_weigh_them_by_the_flags(
    warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "TASK", Task(countdown.prompt, starts_with_a_large_number))
    monkeypatch.setattr(runs, "TEMPERATURES", (1.0,))
    groups = {}
    for arm in ARMS:
        done = job(warm, arm, "--steps", "1", "--tau", "0.6")
        runs.train(done, silent, never)
        groups[arm] = [row for row in done.log.rows() if "group" in row]
        assert 0 < len(groups[arm]) <= 3
    shown = [[(row["prompt"], row["texts"], row["rewards"]) for row in rows] for rows in groups.values()]
    assert shown[0] == shown[1] == shown[2]
    for row in groups["maxent"]:
        (exact,) = evaluate(lambda q=row["q"]: [tempered_target(torch.tensor(q).double(), tau=0.6)])
        exact.assert_near(torch.tensor(row["weights"]))
    for row in groups["dr_grpo"]:
        mean = sum(row["rewards"]) / 4
        assert row["coefficients"] == pytest.approx([(reward - mean) / 4 for reward in row["rewards"]])


@pytest.mark.parametrize("options", [[], ["--beta", "0.1"]], ids=["plain", "with a reference"])
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(
    warm: Path, tmp_path_factory: pytest.TempPathFactory, options: list[str]
) -> None:
    whole = job(warm, "maxent_diverse", *options)
    runs.train(whole, silent, never)
    rows, weights = whole.log.rows(), torch.load(whole.folder / "state.pt")["model"]

    again = tmp_path_factory.mktemp("again")
    runs.warm_up(job(again, "warm_start"), silent, never)
    parted = job(again, "maxent_diverse", *options)
    runs.train(parted, silent, lambda: len(parted.log.rows()) >= 3)
    assert [row["step"] for row in parted.log.rows()] == [1, 2, 3]
    runs.train(parted, silent, never)
    assert parted.log.rows() == rows
    for name, value in torch.load(parted.folder / "state.pt")["model"].items():
        assert torch.equal(value, weights[name])


def test_updates_after_the_last_saved_state_are_made_and_logged_again(warm: Path) -> None:
    killed = job(warm, "maxent")
    runs.train(killed, silent, lambda: len(killed.log.rows()) >= 2)
    killed.log.append({"arm": "maxent", "seed": 0, "step": 3, "reward": -1.0})  # logged, then killed
    runs.train(killed, silent, never)
    assert [row["step"] for row in killed.log.rows() if "step" in row] == [1, 2, 3, 4]
    assert all(row["reward"] >= 0 for row in killed.log.rows() if "step" in row)


@pytest.mark.slow
@pytest.mark.nightly
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
    assert "Not in the table, because unfinished: MaxEnt, published, seed 0." in " ".join(output.split())
    stopped_at = len(log.read_text().splitlines())
    assert 0 < stopped_at < 40
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["arm"] == "maxent"] == list(range(1, stopped_at + 1))
    assert "| warm start |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "curves.png").exists()
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["arm"] == "maxent" and "step" in row] == list(range(1, 41))
    assert {*demo.RESULTS, "config.json"} <= {file.name for file in tmp_path.iterdir()}
    table = (tmp_path / "results.md").read_text()
    assert "| MaxEnt, published |" in table
    assert "unfinished" not in table


def test_ctrl_c_in_the_warm_up_promises_nothing_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_jobs", interrupted)
    assert demo.main([*SMALL, "--output", str(tmp_path / "run")]) == 130
    printed = " ".join(capsys.readouterr().out.split())
    assert "Nothing has been evaluated yet" in printed
    assert "a warm start that has not finished begins anew" in printed
    assert (tmp_path / "run/metrics.jsonl").read_text() == ""


def test_a_fresh_run_removes_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    old = job(tmp_path, "maxent", "--seeds", "2")
    demo.open_output(old.options)
    old.log.append({"step": 1})
    mine = [tmp_path / name for name in ("seed7/mine.txt", "seeds/mine.txt", "seed_list.txt", "notes.md")]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    for name in demo.RESULTS:
        (tmp_path / name).write_text("of the earlier run")
    demo.open_output(job(tmp_path, "maxent", "--tau", "0.3").options)
    assert not (tmp_path / "seed0").exists()
    assert not any((tmp_path / name).exists() for name in demo.RESULTS)
    assert all(file.read_text() == "mine" for file in mine)
    assert json.loads((tmp_path / "config.json").read_text())["tau"] == 0.3


@pytest.mark.parametrize(
    "files",
    [
        {"seed0/data.csv": "1,2"},
        {"notes.txt": "mine"},
        {"config.json": '{"model_type": "qwen2"}', "seed0/model.bin": "mine"},
        {"config.json": "not JSON"},
        {"config.json": "[1]"},
    ],
    ids=["folders named as ours", "a file", "another program's config", "no JSON", "no object"],
)
def test_a_folder_that_holds_no_earlier_run_is_refused_and_kept(tmp_path: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit, match=r"new or empty folder or an earlier run of this demo, got --output /"):
        demo.open_output(job(tmp_path, "maxent").options)
    with pytest.raises(SystemExit, match="a run to resume"):
        demo.open_output(job(tmp_path, "maxent", "--resume").options)
    assert {name: (tmp_path / name).read_text() for name in files} == files


def test_an_output_that_is_a_file_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit, match="new or empty folder"):
        demo.open_output(job(tmp_path / "file", "maxent").options)
    assert (tmp_path / "file").read_text() == "mine"


def test_resuming_with_other_options_is_refused_by_name(tmp_path: Path) -> None:
    demo.open_output(parse(["--output", str(tmp_path), "--tau", "0.3"]))
    with pytest.raises(SystemExit, match=r"--tau 0\.3 as in the run to resume, got 0\.2"):
        demo.open_output(parse(["--output", str(tmp_path), "--resume"]))


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="a run to resume"):
        demo.open_output(parse(["--output", str(tmp_path / "none"), "--resume"]))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--steps", "0"], "--steps >= 1"),
        (["--eval-samples", "4"], "--eval-samples >= 8"),
        (["--arms", "ppo"], "ppo"),
        (["--tau", "-1"], "Expected tau >= 0, got tau=-1.0."),
        (["--beta", "nan", "--arms", "dr_grpo"], "got beta=nan."),
        (["--tau", "inf", "--beta", "inf"], "tau or beta to be finite"),
        (["--dedup", "2"], "got dedup=2.0."),
        (["--success-power", "nan"], "got success_power=nan."),
        (["--temperature", "0"], "Expected --temperature to be positive and finite, got 0.0."),
        (["--learning-rate", "-1"], "Expected --learning-rate to be positive and finite, got -1.0."),
        (["--learning-rate", "nan"], "Expected --learning-rate to be positive and finite, got nan."),
        (["--eval-prompts", "4992"], "Expected --eval-prompts and --prompts to share 4992 problems, got 5024."),
        (["--eval-prompts", "4900", "--prompts", "93"], "to share 4992 problems, got 4993."),
    ],
)
def test_bad_options_are_named(options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(options)
    assert complaint in capsys.readouterr().err


def test_as_many_problems_may_be_held_out_as_one_update_leaves() -> None:
    assert parse(["--eval-prompts", "4900", "--prompts", "92"]).eval_prompts == 4900
