"""The study's runs: arms that are what they are called, exact outcomes, and runs that go on after a stop."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.testing import assert_close

from benchmarks.diversity.arms import ARMS, RECIPE, YARDSTICKS
from benchmarks.diversity.presets import PRESETS, Preset, load_problems
from benchmarks.diversity.run import Run, build_loop, hash_answers, work
from benchmarks.diversity.study import read_committed_rates, read_rates, run_study, share_rates, tune_rates
from benchmarks.study.outcomes import compute_outcomes
from benchmarks.study.tasks import FAMILIES
from maxent_grpo import MaxEntConfig
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.sampling import Samples, sample, token_logps
from maxent_grpo.pipeline.tiny.storage import Log
from maxent_grpo.pipeline.tiny.training import LoopSettings, Reinforcement
from maxent_grpo.pipeline.tiny.warm_start import warm_start
from support.precision import evaluate

TINY = Preset(
    ("dr_grpo",), family_name="graph", hidden_size=32, layers=1, warm_steps=6, updates=4, prompts=4, samples=4,
    save_every=2, validation=8, test=8, level=0.01, seeds=(0,), learning_rates=(1e-3, 2e-3),
)  # fmt: skip
QUIET = Console(quiet=True)


def never_stop() -> bool:
    return False


def ignore_news(entry: object) -> None:
    del entry


def work_here(work, jobs, **options):
    """Do jobs in this process: others do not know the presets that a test adds."""
    for job in jobs:
        work(job, ignore_news, never_stop)


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PRESETS, "test", TINY)
    monkeypatch.setattr("benchmarks.diversity.study.run_jobs", work_here)


@pytest.fixture(scope="module")
def graph_model():
    """A model that answers graph problems well enough to be measured."""
    family = FAMILIES["graph"]
    model = build_model(family.build_tokenizer(), hidden_size=32, layers=1)
    pairs = family.build_pair_sampler(load_problems(TINY).train)
    for _ in warm_start(model, family.build_tokenizer(), pairs, steps=60, learning_rate=1e-2):
        pass
    return model


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_exact_probabilities_agree_with_the_share_of_samples(graph_model, temperature: float):
    family, problems, count = FAMILIES["graph"], load_problems(TINY).test, 512
    tokenizer = family.build_tokenizer()
    (exact,) = compute_outcomes(graph_model, tokenizer, family, problems, [temperature])
    torch.manual_seed(0)
    samples = sample(
        graph_model, tokenizer, family.task, problems, num_samples=count, max_new_tokens=4, temperature=temperature
    )
    counts = np.zeros_like(exact)
    for row, verdict in enumerate(samples.verdicts):
        if verdict.correct:
            counts[row // count, problems[row // count].modes.index(verdict.mode)] += 1
    right = np.nansum(exact, -1)
    assert right.mean() > 0.02
    assert right.max() < 1
    error = np.sqrt(np.nanmax(exact * (1 - exact)) / count)
    assert np.nanmax(abs(exact - counts / count)) < 5 * error
    assert np.isnan(exact[0, len(problems[0].modes) :]).all()


def coefficients_of_arm(name: str, rewards: torch.Tensor) -> torch.Tensor:
    objective = ARMS[name].build_objective(8)
    mask = torch.ones_like(rewards, dtype=torch.bool)
    return objective.coefficients(objective.target(rewards, mask=mask, lengths=mask.long()))


def test_grpo_divides_centered_rewards_by_their_deviation():
    deviation = (0.25 * 0.75) ** 0.5
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.0] * 4]).double() / deviation / 4
    assert_close(coefficients_of_arm("grpo", torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 1, 1]]).double()), expected)


def test_maxrl_weighs_successes_by_the_mean_success():
    rewards = torch.tensor([[1.0, 1, 0, 0, 0], [0.0] * 5]).double()
    expected = torch.stack([(rewards[0] - 0.4) / 0.4 / 5, torch.zeros(5)])
    assert_close(coefficients_of_arm("maxrl", rewards), expected)


def test_arms_name_arms_and_presets_take_the_rates_of_studies_that_have_them():
    assert ARMS[RECIPE].config == MaxEntConfig.diverse()
    assert set(YARDSTICKS) <= set(ARMS)
    assert all(ARMS[arm.tuned_as].tuned_as is None for arm in ARMS.values() if arm.tuned_as)
    assert share_rates({"kappa_half": 1e-4}) == {"kappa_half": 1e-4, "kappa_0": 1e-4}
    for preset in PRESETS.values():
        assert set(preset.arms) <= set(ARMS)
        if preset.rates_of is not None:
            assert set(read_committed_rates(preset.rates_of, preset.arms)) == set(preset.arms)


def test_notes_make_texts_different_and_answers_the_same():
    preset, rng = PRESETS["noted"], random.Random(0)
    family, problem = preset.family, load_problems(preset).test[0]
    tokenizer = family.build_tokenizer()
    beginnings = [text for texts in family.list_solutions(problem).values() for text in texts]
    texts = [family.complete(beginnings[0], rng) for _ in range(3)] + ["1+1:3 4", "1+1"]
    assert len(set(texts)) == 5
    ids = torch.zeros(5, 1, dtype=torch.long)
    verdicts = [family.task.verify(problem, text) for text in texts]
    assert [verdict.correct for verdict in verdicts] == [True] * 3 + [False] * 2
    assert not family.task.verify(problem, texts[0].split(":")[0]).correct  # an answer that has no end
    keys = hash_answers(Samples(ids, ids, ids.bool(), texts, verdicts), family.read_answer).tolist()
    assert keys[0] == keys[1] == keys[2] != keys[3] == keys[4]
    draw_pair = family.build_pair_sampler(load_problems(preset).train[:50])
    assert {text.count(":") for _, text in (draw_pair(rng) for _ in range(20))} == {1}

    model = build_model(tokenizer, hidden_size=32, layers=1)
    (outcomes,) = compute_outcomes(model, tokenizer, family, [problem], [1.0])
    asked = tokenizer([family.task.prompt(problem)], return_tensors="pt")["input_ids"]

    def chance_of(text: str) -> float:  # whatever the note is
        return token_logps(model, asked, tokenizer([text], return_tensors="pt")["input_ids"]).sum().exp().item()

    expected = [sum(map(chance_of, texts)) for texts in family.list_solutions(problem).values()]
    assert_close(outcomes[0].tolist(), expected)


def test_rates_may_be_those_of_committed_results_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def commit_rates(**chosen: float) -> None:
        (tmp_path / "cpu.json").write_text(json.dumps({"tuning": {"chosen": chosen}}))

    monkeypatch.setattr("benchmarks.diversity.study.RESULTS", tmp_path)
    monkeypatch.setitem(PRESETS, "test", replace(TINY, rates_of="cpu"))
    commit_rates(dr_grpo=5e-5)
    assert read_committed_rates("cpu", ["dr_grpo", "dr_grpo_cool"]) == {"dr_grpo": 5e-5, "dr_grpo_cool": 5e-5}
    runs = tmp_path / "runs"
    with pytest.raises(ValueError, match=r"learning rate is in .*cpu\.json, got arms=\['raft'\]"):
        run_study(runs, "test", ["raft"], QUIET)
    assert not runs.exists()
    run_study(runs, "test", ["dr_grpo"], QUIET)
    assert Run(runs, "test", "dr_grpo", 0, 5e-5).done
    commit_rates(dr_grpo=2e-4)
    run_study(runs, "test", ["dr_grpo"], QUIET)  # which keeps its rate
    assert read_rates(runs)["chosen"] == {"dr_grpo": 5e-5}


def test_a_missing_warm_start_is_made_anew_where_a_run_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PRESETS, "test", replace(TINY, learning_rates=(1e-3,)))
    run_study(tmp_path, "test", ["dr_grpo"], QUIET)
    weights = tmp_path / "seed0/warm_start/model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    run_study(tmp_path, "test", ["dr_grpo"], QUIET)  # nothing is left to do
    assert not weights.exists()
    run_study(tmp_path, "test", ["grpo"], QUIET)
    assert weights.read_bytes() == before


@pytest.mark.parametrize(("preset", "fewest", "most"), [("cpu", 2, 8), ("single", 1, 1)])
def test_problems_have_as_many_right_answers_as_their_task_says(preset: str, fewest: int, most: int):
    problems = load_problems(PRESETS[preset])
    assert all(fewest <= len(problem.modes) <= most for part in (problems.train, problems.test) for problem in part)
    assert not {problem.id for problem in problems.train} & {problem.id for problem in problems.test}


@pytest.mark.parametrize("names", [("cpu", "confirm"), ("graph", "graph_confirm")])
def test_confirming_studies_are_tested_on_problems_that_the_first_ones_neither_tested_nor_chose_on(names):
    first, again = (load_problems(PRESETS[name]) for name in names)
    used, fresh = ({problem.id for problem in (*each.test, *each.validation)} for each in (first, again))
    assert len(used) == len(fresh) == 768
    assert not used & fresh
    trained = {problem.id for problem in again.train}
    assert trained >= used
    assert not trained & fresh


@pytest.mark.parametrize("name", ["two_passes", "grpo", "answer_keys", "dr_grpo_cool", "entropy_low"])
def test_a_runs_loop_is_its_arms(tmp_path: Path, name: str):
    run, arm = Run(tmp_path, "test", name, 0, 1e-3), ARMS[name]
    work(run.warm, ignore_news, never_stop)
    loop = build_loop(run)
    assert (loop.settings.passes, loop.settings.temperature, loop.settings.entropy_bonus) == (
        arm.passes,
        arm.temperature,
        arm.entropy_bonus,
    )
    assert type(loop.loss_fn.objective) is arm.objective
    assert loop.loss_fn.objective.config == replace(arm.config, max_length=4)
    assert (loop.keys is None) == (arm.keys == "tokens")


@pytest.mark.numerical
@pytest.mark.parametrize("arm", ["dr_grpo", RECIPE, "tpo", "two_passes"])
def test_leaving_idle_completions_out_changes_no_update(graph_model, arm: str):
    family, problems = FAMILIES["graph"], load_problems(TINY).train
    tokenizer = family.build_tokenizer()
    batch = {"num_samples": 4, "max_new_tokens": 4}
    torch.manual_seed(0)
    samples = sample(graph_model, tokenizer, family.task, problems[:8], **batch)

    def compute_gradients(dtype: torch.dtype, *, active_only: bool) -> list[torch.Tensor]:
        model = build_model(tokenizer, hidden_size=32, layers=1)
        model.load_state_dict(graph_model.state_dict())
        model.to(dtype)
        settings = LoopSettings(
            learning_rate=1e-3, prompts_per_step=8, active_only=active_only, passes=ARMS[arm].passes, **batch
        )
        loop = Reinforcement(model, tokenizer, family.task, ARMS[arm].build_objective(4), settings)
        loop.learn(samples)
        return [torch.cat([parameter.grad.flatten() for parameter in model.parameters()])]

    (everyone,) = evaluate(lambda: compute_gradients(torch.float64, active_only=False))
    assert everyone.error < 1e-3 * float(everyone.value.norm())
    for active_only in (False, True):
        everyone.assert_near(*compute_gradients(torch.float32, active_only=active_only))


def test_an_entropy_bonus_raises_the_entropy(graph_model):
    family, problems = FAMILIES["graph"], load_problems(TINY).train
    tokenizer = family.build_tokenizer()

    def train_entropy(bonus: float) -> torch.Tensor:
        model = build_model(tokenizer, hidden_size=32, layers=1)
        model.load_state_dict(graph_model.state_dict())
        settings = LoopSettings(
            learning_rate=3e-3, prompts_per_step=8, num_samples=4, max_new_tokens=4, entropy_bonus=bonus
        )
        loop = Reinforcement(model, tokenizer, family.task, ARMS["dr_grpo"].build_objective(4), settings)
        for _ in range(3):
            samples, _ = loop.update(problems)
        with torch.no_grad():
            logps = token_logps(model, samples.prompts, samples.ids).masked_fill(~samples.mask, 0.0)
        return -logps.sum(-1).mean()

    assert train_entropy(5.0) > train_entropy(0.0) + 0.1


def test_a_stopped_run_goes_on_to_the_same_end(tmp_path: Path):
    whole, halted = (Run(tmp_path / name, "test", RECIPE, 0, 1e-3) for name in ("whole", "halted"))
    for run in (whole, halted):
        work(run.warm, ignore_news, never_stop)
    work(whole, ignore_news, never_stop)
    answers = iter([False, False, True])
    work(halted, ignore_news, lambda: next(answers))
    assert not halted.done
    work(halted, ignore_news, never_stop)
    with np.load(whole.outcomes_file) as one, np.load(halted.outcomes_file) as other:
        np.testing.assert_array_equal(one["test"], other["test"])
    assert [row["step"] for row in Log(halted.folder / "metrics.jsonl").rows()] == [1, 2, 3, 4]
    rows = Log(halted.folder / "evaluations.jsonl").rows()
    assert len(rows) == len(TINY.temperatures) * 2  # validation and test
    assert Log(whole.folder / "evaluations.jsonl").rows() == rows
    before = halted.outcomes_file.stat().st_mtime_ns
    work(halted, ignore_news, never_stop)
    assert halted.outcomes_file.stat().st_mtime_ns == before


def test_the_learning_rate_is_the_one_with_the_best_coverage_above_the_level(tmp_path: Path):
    for rate, coverage in ((1e-3, 0.2), (2e-3, 0.3)):
        for arm, accuracy in (("dr_grpo", 0.5), ("grpo", 0.0)):  # GRPO does not come to the level
            run = Run(tmp_path, "test", arm, 100, rate)
            for each in (accuracy + rate, rate):
                row = {"split": "validation", "mean@8": each, "coverage@8": coverage}
                Log(run.folder / "evaluations.jsonl").append(row)
            run.outcomes_file.touch()
    Run(tmp_path, "test", "warm_start", 100).folder.mkdir()
    assert tune_rates(tmp_path, "test", ["dr_grpo", "grpo"], QUIET, None) == share_rates(
        {"dr_grpo": 2e-3, "grpo": 2e-3}
    )
    grid = read_rates(tmp_path)["grid"]
    assert grid["dr_grpo"]["0.002"]["score"] == pytest.approx(0.3)
    assert grid["grpo"]["0.001"]["score"] == pytest.approx(0.001 - 1)
