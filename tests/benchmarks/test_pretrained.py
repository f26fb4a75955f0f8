"""The study of a pretrained model: what is measured, and runs that go on where they stopped."""

import doctest
import json
import random
import re
import sys
from dataclasses import replace
from importlib import resources
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.pretrained import boxed, by_trl, measures, plan, report, runs, speed, tasks, thoughts
from benchmarks.pretrained.arms import ARMS, BASE, BY_TRL, SLOW
from benchmarks.pretrained.measures import measure_difference, measure_verdicts
from benchmarks.pretrained.plan import RATES, RESULTS, list_runs
from benchmarks.pretrained.runs import Run, make_line
from benchmarks.pretrained.tasks import ON_CPU, QUESTIONS, Sizes
from benchmarks.study.runs import read_lines
from maxent_grpo.pipeline.run import Run as PipelineRun
from maxent_grpo.pipeline.run import parse_run
from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict
from maxent_grpo.pipeline.tiny.model import build_model, build_tokenizer
from maxent_grpo.pipeline.tiny.sampling import Samples
from maxent_grpo.pipeline.tiny.storage import Log, load_checkpoint, save_checkpoint

ONLY_BEFORE_3_13 = pytest.mark.skipif(sys.version_info >= (3, 13), reason="ModeBench is for Python before 3.13")
BOXED = pytest.param("countdown-boxed", marks=ONLY_BEFORE_3_13)

SMALL = Sizes(
    updates=2, prompts=2, samples=4, max_new_tokens=4, measured_at=(0.5, 1.0), drawn=8, drawn_most=16, save_every=1
)  # fmt: skip


def test_the_measures_are_means_over_all_subsets_of_k_samples() -> None:
    rng = random.Random(0)
    choices = [Verdict(True, "a"), Verdict(True, "b"), WRONG]
    verdicts = [[rng.choice(choices) for _ in range(7)] for _ in range(3)]
    found = measure_verdicts(verdicts, [3] * 3, k=4)
    coverage, weighted, weights = [], 0.0, 0.0
    for samples in verdicts:
        subsets = list(combinations(samples, 4))
        coverage += [len({mode for right, mode in each if right}) / 3 for each in subsets]
        right = [mode for ok, mode in samples if ok]
        pairs = [one != other for one, other in combinations(right, 2)]
        weight = sum(sum(ok for ok, _ in each) >= 2 for each in subsets) / len(subsets)
        weighted, weights = weighted + weight * sum(pairs) / len(pairs), weights + weight
    assert found["coverage@4"] == pytest.approx(sum(coverage) / len(coverage))
    assert found["PCMD@4"] == pytest.approx(weighted / weights)
    assert measure_difference([[WRONG] * 4], 2) != measure_difference([[WRONG] * 4], 2)  # NaN: nothing to compare


def test_an_answer_is_the_same_in_all_its_spellings() -> None:
    texts = [" Czechia", " the Czech Republic\n", " Poland", " poland."]
    right = Verdict(correct=True, mode="Czechia")
    samples = Samples(torch.empty(4, 1), torch.empty(4, 1), torch.empty(4, 1), texts, [right, right, WRONG, WRONG])
    keys = QUESTIONS["name-one"].name_answers(samples).tolist()
    assert keys[0] == keys[1] != keys[2] == keys[3]


@pytest.mark.parametrize("task", QUESTIONS)
def test_what_is_tested_on_is_never_trained_on_nor_chosen_by(task: str) -> None:
    sides = QUESTIONS[task].list_sides()
    ids = [problem.id for side in sides.values() for problem in side]
    assert len(ids) == len(set(ids))
    entities = {getattr(problem, "entity", problem.id) for problem in sides["train"]}
    for use in ("validation", "test"):
        assert entities.isdisjoint(getattr(problem, "entity", problem.id) for problem in sides[use])
    assert all(len(side) >= tasks.VALIDATED for side in sides.values())


@ONLY_BEFORE_3_13
def test_modebench_poses_and_judges_its_own_problems() -> None:
    walkthrough = json.loads((resources.files("modebench") / "walkthrough.json").read_text())["records"][0]
    assert boxed.ask(countdown.Problem((3, 6, 9), 18, ())) == walkthrough["problem"]
    question, rng = QUESTIONS["countdown-boxed"], random.Random(0)
    sides = question.list_sides()
    assert sum(map(len, sides.values())) == 787
    for problem in rng.sample(list(sides["train"]), 30):
        texts = [question.write(rng.choice(ways), rng) for ways in countdown.solutions(problem).values()]
        verdicts = [question.task.verify(problem, text) for text in texts]
        assert all(verdict.correct for verdict in verdicts)
        assert len({verdict.mode for verdict in verdicts}) == len(problem.modes)  # its modes are ours
        assert question.task.verify(problem, question.write("2+2", rng)) == WRONG
    prompt = question.task.prompt(problem)
    assert prompt.startswith("<|im_start|>system\nReturn only the final answer inside \\boxed{}.")
    assert prompt.endswith(f"{boxed.ask(problem)}<|im_end|>\n<|im_start|>assistant\n")


def test_thoughts_end_in_a_right_answer_after_tries_that_fail() -> None:
    rng, question = random.Random(0), QUESTIONS["countdown"]
    texts, tries = set(), set()
    for problem in question.list_sides()["train"][:50]:
        for mode in problem.modes:
            text = thoughts.think(mode, rng)
            assert question.task.verify(problem, text) == Verdict(True, mode)
            for step in re.findall(r"[-+*/\d]+=-?\d+", text):
                expression, value = step.split("=")
                assert eval(expression) == int(value), step
            texts.add(text)
            tries.add(text.count(", no."))
    assert tries == {0, 1, 2}
    assert len(texts) > 200
    assert question.task.verify(problem, text.replace("Answer:", "")) == WRONG
    nothing = torch.empty(2, 1)
    samples = Samples(nothing, nothing, nothing, [" 1+1=2. Answer: 1+1", " yes. Answer: 1+1"], [WRONG, WRONG])
    first, second = question.name_answers(samples).tolist()
    assert first == second


@pytest.fixture(scope="module")
def root(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the first two layers of the pretrained model."""
    folder = tmp_path_factory.mktemp("pretrained")
    model = load_checkpoint(smollm2)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    save_checkpoint(model, AutoTokenizer.from_pretrained(smollm2), folder / tasks.START)
    return folder


def find_every_second_right(problem: Any, text: str) -> Verdict:
    return Verdict(True, problem.modes[0]) if len(text) % 2 else WRONG


@pytest.fixture
def few(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return that folder; few problems are held out, and two layers find every second answer of geography right."""
    geography = replace(tasks.GEOGRAPHY, verify=find_every_second_right)
    for name, question in QUESTIONS.items():
        sides = question.list_sides()
        few = {"train": sides["train"], "validation": sides["validation"][:2], "test": sides["test"][:3]}
        changes = (
            {"sizes": replace(SMALL, taught=(2, 2))} if "countdown" in name else {"sizes": SMALL, "task": geography}
        )
        monkeypatch.setitem(QUESTIONS, name, replace(question, list_sides=lambda few=few: few, **changes))
    return root


@pytest.mark.slow
@pytest.mark.nightly
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("name-one", "kappa", 0, 1e-3)
    whole = make_line(run, few)
    drawn = runs.Reinforcement.draw

    def cut(loop, problems):
        if loop.step == 1:
            raise KeyboardInterrupt
        return drawn(loop, problems)

    with monkeypatch.context() as patch:
        patch.setattr(runs.Reinforcement, "draw", cut)
        with pytest.raises(KeyboardInterrupt):
            make_line(run, few)
    (state,) = (few / "states").iterdir()
    resumed = make_line(run, few)
    assert not state.exists()
    timed = ("seconds per update", "share of sampling")
    assert {name: value for name, value in resumed.items() if name not in timed} == {
        name: value for name, value in whole.items() if name not in timed
    }
    assert len(whole["rewards"]) == 2
    base = make_line(Run("name-one", BASE, 0), few)
    assert base["entropy"] != whole["entropy"]
    assert len(base["pass@k"]) == 5  # 1 to 16


@pytest.mark.slow
def test_every_way_to_sample_and_to_learn_is_timed(few: Path) -> None:
    timed = speed.measure(*tasks.load_start(few, "name-one"), SMALL, rounds=1)
    assert timed.keys() >= speed.LEARNING.keys()
    for name, row in timed.items():
        if name != "machine":
            assert 8 <= row["tokens"] <= 32
            assert row["tokens per second"] == pytest.approx(1e3 * row["tokens"] / row["median_ms"], rel=0.01)
    peaks = [timed[name]["peak_mib"] for name in speed.LEARNING]
    assert peaks[2] < peaks[1] < peaks[0]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["countdown", BOXED])
def test_a_run_of_a_form_that_is_taught_starts_from_what_was_taught(task: str, few: Path) -> None:
    line = make_line(Run(task, "kappa", 100, 1e-3), few)
    assert line["validation"]["mean@8"] == [0.0, 0.0]  # four tokens are no answer
    assert len(line["rewards"]) == 2
    taught = (few / f"smollm2-135m-{task}" / "model.safetensors").read_bytes()
    assert taught != (few / "smollm2-135m" / "model.safetensors").read_bytes()


def test_rates_come_first_and_the_seeds_run_at_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "RESULTS", tmp_path)
    asked = list_runs(ON_CPU, ["kappa"])
    assert asked == list_runs(ON_CPU, ["kappa", "ips"])  # whose turn comes when κ's rate is chosen
    assert asked == [
        *(Run(task, BASE, 0) for task in ON_CPU),
        *(Run("name-one", "kappa", 100, rate) for rate in RATES),
    ]
    for run in asked:
        values = [0.9, 0.2 + run.rate]  # at temperature 1 the larger rate wins
        row = {"mean@8": values, "coverage@8": values}
        Log(tmp_path / f"{run.task}.jsonl").append(run.describe() | {"temperatures": [0.5, 1.0], "validation": row})
    assert list_runs(ON_CPU, ["kappa", "ips"])[:6] == list_runs(ON_CPU, ["kappa"])  # all seeds before the next
    seeds = list_runs(ON_CPU, ["kappa"])
    assert {run.rate for run in seeds} == {max(RATES)}
    assert [(run.task, run.seed) for run in seeds] == [(task, seed) for task in ON_CPU for seed in (0, 1, 2)]
    # At κ's rate, whatever its own would be, and where they run at all; through TRL likewise.
    assert list_runs(ON_CPU, [SLOW]) == [replace(run, arm=SLOW) for run in seeds]
    assert list_runs(ON_CPU, [BY_TRL]) == [replace(run, arm=BY_TRL) for run in seeds if run.task == "name-one"]
    assert list_runs(["countdown"], [SLOW]) == [Run("countdown", BASE, 0)]
    assert list_runs(["countdown"], ["kappa"]) == [
        Run("countdown", BASE, 0), *(Run("countdown", "kappa", 100, rate) for rate in RATES)
    ]  # fmt: skip
    for task in ON_CPU:
        longer = replace(QUESTIONS[task].sizes, updates=1000)
        monkeypatch.setitem(QUESTIONS, task, replace(QUESTIONS[task], sizes=longer))
    assert list_runs(ON_CPU, ["kappa"]) == asked


def write_line(arm: str, seed: int, coverage: float) -> dict:
    """Return a line with a mean@8 of .5 and .3 at temperatures .5 and 1, and this coverage@8 at both."""
    test = {"mean@8": [0.5, 0.3], "pass@8": [0.6, 0.6], "coverage@8": [coverage] * 2, "PCMD@8": [None, 0.4]}
    rest = {"rate": 3e-5, "pass@k": [0.3, 0.8], "greedy": 0.5, "entropy": 2.0, "tokens": 3.5}
    return {"task": "name-one", "arm": arm, "seed": seed, "temperatures": [0.5, 1.0], "test": test} | rest


def test_tables_pair_methods_by_seed_and_say_what_is_missing(tmp_path: Path) -> None:
    assert report.write_section("name-one", tmp_path) == "Not measured yet."
    log = Log(tmp_path / "name-one.jsonl")
    for seed, gain in enumerate((0.04, 0.05, 0.06)):
        log.append(write_line("dr_grpo", seed, 0.2))
        log.append(write_line("kappa", seed, 0.2 + gain))
    log.append(write_line("kappa", 100, 0.9))  # chose a rate, and counts in no table
    log.append(write_line(BASE, 0, 0.3))
    section = report.write_section("name-one", tmp_path)
    assert "mean@8 = 0.50" in section
    nothing = "+0.0 [+0.0, +0.0]"
    assert f"| κ = 1 by answers | 0.250 | 0.600 | +5.0 [+2.5, +7.5] | {nothing} | – | {nothing} |" in section
    still = " ± 0.000"  # all seeds alike
    cells = [*(f"{mean}{still}" for mean in ("0.300", "0.600", "0.200", "0.400")), "0.800", "0.500", "2.0", "3.5"]
    assert f"| Dr.GRPO | 3 | 3e-05 | {' | '.join(cells)} |" in section
    assert "not with all seeds: κ = 1 by text; Dr.GRPO at κ's rate; Re:Max by answers; IPS" in section
    assert "before training | 1 |" in section
    assert "minus Dr.GRPO at κ's rate" not in section
    for seed in range(3):
        log.append(write_line("dr_grpo_slow", seed, 0.2))
    found = "κ = 1 by answers minus Dr.GRPO at κ's rate: coverage@8 +5.0 [+2.5, +7.5], pass@8 +0.0 [+0.0, +0.0]."
    assert found in report.write_section("name-one", tmp_path)
    log.append(write_line("kappa", 0, 0.9))
    with pytest.raises(ValueError, match="Expected one run of kappa with seed 0, got two"):
        report.write_section("name-one", tmp_path)


def test_the_page_says_what_the_committed_lines_say(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(report.PAGE.read_text())
    report.write_report(page)
    assert page.read_text() == report.PAGE.read_text()
    assert report.format_recipe(tmp_path) == "Not measured yet."
    assert report.format_speed(tmp_path) == "On a CPU: not measured yet.\n\nOn a GPU: not measured yet."
    timed = {"sampling a": 4e3, "sampling b": 1e3, "learning a": 16e3, "learning b": 5e3}
    rows = {name: {"median_ms": time} for name, time in timed.items()}
    assert "3.0 by the first ways to sample and to learn, 10.0 by the fastest" in report.format_pace(rows)


def test_committed_lines_are_those_of_the_methods_as_they_are_now() -> None:
    for file in RESULTS.glob("*.jsonl"):
        for line in read_lines(file):
            run = Run(line["task"], line["arm"], line["seed"], line["rate"])
            assert line.items() >= run.describe().items(), (file.name, line["arm"], line["seed"])


def test_the_run_through_trl_is_the_recipe_with_the_same_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[PipelineRun] = []

    class Training:
        """A trainer's process that has its checkpoints as soon as it is begun, and ends at the second look."""

        returncode = None

        def __init__(self, command: list[str], **options: object) -> None:
            run = parse_run(command[2:])
            seen.append(run)
            folder = Path(run.training.output_dir)
            save_checkpoint(build_model(build_tokenizer()), build_tokenizer(), folder)
            (folder / "checkpoint-20").mkdir(exist_ok=True)
            log = [{"reward": 0.25}, {"loss": 1.0}, {"reward": 0.5}]
            (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))

        def __enter__(self) -> "Training":
            return self

        def __exit__(self, *error: object) -> None: ...

        def poll(self) -> int | None:
            looked, self.returncode = self.returncode, 0
            return looked

        def terminate(self) -> None:
            self.returncode = -15

    monkeypatch.setattr(by_trl.subprocess, "Popen", Training)
    monkeypatch.chdir(by_trl.ROOT)
    chosen = {"task": "name-one", "seed": 2, "rate": 3e-5, "sizes": Sizes()}
    assert by_trl.train(tmp_path / "start", tmp_path / "trained", lambda: True, **chosen) is None
    _, rewards = by_trl.train(tmp_path / "start", tmp_path / "trained", lambda: False, **chosen)
    assert rewards == [0.25, 0.5]
    begun, resumed = (run.training for run in seen)
    assert (begun.resume_from_checkpoint, resumed.resume_from_checkpoint) == (None, "last")
    arguments, sizes = resumed, Sizes()
    assert (arguments.max_steps, arguments.save_steps) == (sizes.updates, sizes.save_every)
    assert (arguments.seed, arguments.learning_rate) == (2, 3e-5)
    assert arguments.per_device_train_batch_size == sizes.prompts * sizes.samples
    assert (arguments.num_generations, arguments.max_completion_length) == (sizes.samples, sizes.max_new_tokens)
    ours = ARMS[BY_TRL].build_objective(sizes.max_new_tokens).config
    assert arguments.maxent_config() == ours


def test_methods_differ_in_what_is_the_same_answer() -> None:
    assert ARMS["kappa"].config == ARMS["kappa_text"].config
    assert (ARMS["kappa"].keys, ARMS["kappa_text"].keys) == ("answer", "tokens")


@pytest.mark.parametrize(
    ("module", "number"), [(measures, 2), (thoughts, 3), (boxed, 1)], ids=["measures", "thoughts", "boxed"]
)
def test_examples(module: ModuleType, number: int) -> None:
    assert doctest.testmod(module) == (0, number)
