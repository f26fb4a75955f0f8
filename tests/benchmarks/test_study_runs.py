"""The study's runs: methods that are what they are called, and stages that go on after a stop."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.testing import assert_close

from benchmarks import _measure
from benchmarks.study import cost, oracle, runs, schedule, stages, tasks
from benchmarks.study.arms import ARMS, WARM
from benchmarks.study.runs import Run, build_loop, read_lines, work
from benchmarks.study.schedule import run_stage
from benchmarks.study.stages import STAGES, Stage, choose_rates, list_rates, list_runs
from benchmarks.study.tasks import FAMILIES, SIZES, Sizes, load_problems
from maxent_grpo import MaxEntConfig
from maxent_grpo.pipeline.tasks import graph_coloring
from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict
from maxent_grpo.pipeline.tiny.sampling import Samples

TINY = Sizes(
    rates=(1e-3, 2e-3), bounds=(1e-3, 4e-3), level=0.01, levels=(0.0, 0.1), hidden_size=32, layers=1, warm_steps=4,
    updates=2, prompts=4, samples=4,
)  # fmt: skip
QUIET = Console(quiet=True)
PROBLEMS = graph_coloring.problems(5, sample=100)


def never_stop() -> bool:
    return False


def ignore_news(entry: object) -> None:
    del entry


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Small sizes, and stages whose runs happen in this process, which alone knows them."""

    def work_here(work, jobs, *, on_news, workers):
        for job in jobs:
            work(job, on_news, never_stop)

    monkeypatch.setitem(SIZES, "graph", TINY)
    monkeypatch.setitem(FAMILIES, "graph", replace(FAMILIES["graph"], list_problems=lambda: PROBLEMS))
    monkeypatch.setattr(tasks, "TESTED", 8)
    monkeypatch.setattr(tasks, "VALIDATED", 8)
    monkeypatch.setattr(schedule, "run_jobs", work_here)
    monkeypatch.setattr(stages, "RESULTS", tmp_path)
    monkeypatch.setitem(STAGES, "test", Stage("graph", ("dr_grpo", "kappa_bank"), (0, 1)))
    load_problems.cache_clear()
    yield
    load_problems.cache_clear()


def run_tiny(folder: Path) -> list[dict]:
    run_stage("test", folder / "starts", QUIET, results=folder)
    return read_lines(folder / "test.jsonl")


def test_a_stage_makes_what_is_missing_and_keeps_what_is_there(tmp_path: Path):
    lines = run_tiny(tmp_path)
    assert [(line["arm"], line["seed"], line["rate"]) for line in lines] == [
        (WARM, 0, 0.0), (WARM, 1, 0.0),
        *((arm, seed, rate) for rate in TINY.rates for seed in (0, 1) for arm in ("dr_grpo", "kappa_bank")),
        *((arm, s, 4e-3) for s in (0, 1) for arm in ("dr_grpo", "kappa_bank") if 4e-3 in list_rates("test", arm)),
    ]  # fmt: skip
    file = tmp_path / "test.jsonl"
    whole = file.read_text()
    kept = whole.splitlines(keepends=True)
    file.write_text("".join(kept[:4] + kept[6:]))
    again = run_tiny(tmp_path)
    assert sorted(map(json.dumps, again)) == sorted(map(json.dumps, lines))
    assert file.read_text().startswith("".join(kept[:4]))


def test_lines_of_other_settings_or_of_another_start_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = run_tiny(tmp_path)
    monkeypatch.setitem(ARMS, "dr_grpo", replace(ARMS["dr_grpo"], temperature=0.5))
    changed = run_tiny(tmp_path)
    assert [line for line in changed if line["arm"] != "dr_grpo"] == [
        line for line in lines if line["arm"] != "dr_grpo"
    ]
    assert {line["settings"] for line in changed if line["arm"] == "dr_grpo"}.isdisjoint(
        {line["settings"] for line in lines}
    )


@pytest.mark.parametrize("shift", [0.0005, 0.002])
def test_lines_of_a_start_that_differs_by_more_than_rounding_are_made_anew(tmp_path: Path, shift: float):
    run_tiny(tmp_path)
    lines = read_lines(tmp_path / "test.jsonl")
    for line in lines:
        if line["seed"] == 0:
            line["entropy"] = None  # as no run reports it
            line["test"]["mean@8"] = [value + shift for value in line["test"]["mean@8"]]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(tmp_path / "starts")
    again = run_tiny(tmp_path)
    assert [line for line in again if line["seed"] == 1] == [line for line in lines if line["seed"] == 1]
    kept = {line["entropy"] is None for line in again if line["seed"] == 0}
    assert kept == {shift < 0.001}


def test_a_rate_is_chosen_by_the_area_on_validation_problems(tmp_path: Path):
    lines = [line for line in run_tiny(tmp_path) if line["rate"] in (0.0, *TINY.rates)]
    for line in lines:
        best = line["rate"] == (2e-3 if line["arm"] == "dr_grpo" else 1e-3)
        line["validation"]["mean@8"], line["validation"]["coverage@8"] = [0.1, 0.0], [0.3 if best else 0.2] * 2
        line["test"]["coverage@8"] = [0.9 if not best else 0.1] * len(line["test"]["mean@8"])
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert choose_rates("test") == {"dr_grpo": 2e-3, "kappa_bank": 1e-3}
    assert list_rates("test", "dr_grpo") == [1e-3, 2e-3, 4e-3]  # on in the direction that is better
    assert list_rates("test", "kappa_bank") == [1e-3, 2e-3]  # no lower than the bounds
    assert [run for run in list_runs("test", tmp_path) if run.rate == 4e-3] == [
        Run(tmp_path, "graph", "dr_grpo", seed, 4e-3) for seed in (0, 1)
    ]
    with pytest.raises(ValueError, match="2 missing"):
        stages.expect_whole("test")
    lines += [line | {"rate": 4e-3} for line in lines if line["rate"] == 2e-3 and line["arm"] == "dr_grpo"]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    STAGES["next"] = Stage("graph", ("kappa_bank",), (3,), rates_of="test")
    assert list_runs("next", tmp_path) == [Run(tmp_path, "graph", "kappa_bank", 3, 1e-3)]
    del STAGES["next"]


def test_a_runs_loop_is_its_method(tmp_path: Path):
    work(Run(tmp_path, "graph", WARM, 0), ignore_news, never_stop)
    for name, arm in ARMS.items():
        loop = build_loop(Run(tmp_path, "graph", name, 0, 1e-3))
        settings = loop.settings
        assert (settings.passes, settings.temperature, settings.entropy_bonus) == (
            arm.passes, arm.temperature, arm.entropy_bonus,
        )  # fmt: skip
        assert loop.loss_fn.objective.config == replace(arm.config, max_length=4)
        assert (loop.keys is None) == (arm.keys == "tokens")
        assert loop.keys is None or loop.keys.keywords["by_mode"] == (arm.keys == "mode")
        assert (loop.bank is not None) == ("bank" in name or name.startswith(("remax", "redr")))
        assert loop.settings.share_prompts
        loop.update(load_problems("graph").train)


def test_banked_rows_of_weight_zero_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The control: what a bank adds is its rows' coefficients, and not that more rows are computed."""
    idle = replace(ARMS["kappa_bank"], config=replace(ARMS["kappa_bank"].config, bank_weight=0.0))
    monkeypatch.setitem(ARMS, "idle_bank", idle)
    monkeypatch.setattr(graph_coloring, "verify", lambda problem, text: Verdict(len(text) % 2 == 0, text))
    work(Run(tmp_path, "graph", WARM, 0), ignore_news, never_stop)
    trained = {}
    for arm in ("kappa", "idle_bank", "kappa_bank"):
        loop = build_loop(Run(tmp_path, "graph", arm, 0, 1e-3))
        for _ in range(4):
            loop.update(load_problems("graph").train)
        trained[arm] = torch.cat([weight.flatten() for weight in loop.model.parameters()])
    assert_close(trained["idle_bank"], trained["kappa"], rtol=0, atol=1e-5)
    assert (trained["kappa_bank"] - trained["kappa"]).abs().max() > 1e-4


def test_a_right_answer_has_one_key_in_all_its_texts_where_modes_count():
    countdown = FAMILIES["countdown"]
    texts = ["2*3-4", "3*2-4", "2*3+4", "2*3+4"]
    right = Verdict(correct=True, mode="2*3-4")
    nothing = torch.empty(4, 1)
    samples = Samples(nothing, nothing, nothing, texts, [right, right, WRONG, WRONG])
    by_text = runs.hash_answers(samples, countdown, by_mode=False)
    by_mode = runs.hash_answers(samples, countdown, by_mode=True)
    assert (len(set(by_text.tolist())), len(set(by_mode.tolist()))) == (3, 2)
    assert by_mode[0] == by_mode[1] != by_mode[2] == by_mode[3]


def test_todays_recipe_is_the_arm_that_the_others_are_compared_with():
    assert ARMS["kappa"].config == MaxEntConfig.diverse()


def test_gapo_is_told_the_number_of_right_answers():
    family = FAMILIES["graph"]
    problem = family.list_problems()[0]
    task = oracle.build_oracle_task(family)
    texts = [problem.modes[0], problem.modes[0], problem.modes[1], "RRR"]
    right = torch.tensor([[task.verify(problem, text).correct for text in texts]])
    counts = torch.tensor([[2, 2, 1, 1]])
    rewarded = oracle.reward_rare_by_oracle(right.double(), mask=torch.ones_like(right), right=right, counts=counts)
    share = 1 / len(problem.modes)
    expected = [1 - (2 / 3 - share)] * 2 + [1 - (1 / 3 - share)]
    assert_close(rewarded[0, :3], torch.tensor(expected).double())
    assert rewarded[0, 3] == -1


def test_what_an_update_costs_is_a_multiple_of_dr_grpos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_measure, "time_step", count_optimizer_steps)
    monkeypatch.setattr(graph_coloring, "verify", lambda problem, text: Verdict(len(text) % 2 == 0, text))
    measured = cost.measure(tmp_path, rounds=2, task="graph", before=1)
    names = [ARMS[arm].name for arm in cost.COSTED]
    assert list(measured) == ["machine", *names]
    assert [measured[name]["ratio"] for name in names] == [1, 1, 1, 1, 1, 1, 2]
    (tmp_path / "cost.json").write_text(json.dumps(measured))
    table = cost.format_costs(tmp_path / "cost.json")
    assert [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:]] == names


def count_optimizer_steps(step: Callable[[], object], device: str) -> float:
    """Return how many optimizer steps are taken: a clock that shows the same on every machine."""
    taken = []
    counter = register_optimizer_step_post_hook(lambda *given: taken.append(given))
    step()
    counter.remove()
    return len(taken)


def test_few_problems_to_train_on_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setitem(SIZES, "graph", replace(TINY, recurring=5))
    update = runs.Reinforcement.update
    monkeypatch.setattr(runs.Reinforcement, "update", lambda loop, given: seen.append(given) or update(loop, given))
    warm, run = Run(tmp_path, "graph", WARM, 0), Run(tmp_path, "graph", "dr_grpo", 0, 1e-3)
    for each in (warm, run):
        work(each, ignore_news, never_stop)
    assert seen == [load_problems("graph").train[:5]] * TINY.updates
    limited = run.hash_settings()
    monkeypatch.setitem(SIZES, "graph", TINY)
    assert run.hash_settings() != limited


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_however_it_is_asked_to_end_a_stage_is_interrupted(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)

    def work() -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    assert schedule.run_for(None, Console(), work) == 130
    assert "the same call goes on" in capsys.readouterr().out
    assert signal.getsignal(number) is before
