"""ModeBench's runs: arms that are what they are called, exact outcomes, and runs that go on after a stop."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.testing import assert_close

from benchmarks.diversity.arms import ARMS, CORE, RECIPE, answer_keys, mode_keys
from benchmarks.diversity.outcomes import exact_outcomes
from benchmarks.diversity.presets import FAMILIES, PRESETS, Preset, problems_of, skewed_pairs
from benchmarks.diversity.run import WARM, Run, _loop, work
from benchmarks.diversity.study import committed_rates, learning_rates, read_rates, run_study, with_untuned
from maxent_grpo import MaxEntConfig
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.sampling import Samples, sample, token_logps
from maxent_grpo.pipeline.tiny.storage import Log, load_checkpoint
from maxent_grpo.pipeline.tiny.training import Reinforcement, warm_start

TINY = Preset(
    family_name="graph", hidden_size=32, layers=1, warm_steps=6, updates=4, prompts=4, samples=4, eval_every=2,
    validation=8, test=8, level=0.01, seeds=(0,), learning_rates=(1e-3, 2e-3),
)  # fmt: skip


def never():
    return False


def silent(entry):
    del entry


@pytest.fixture(autouse=True)
def presets(monkeypatch):
    monkeypatch.setitem(PRESETS, "test", TINY)


@pytest.fixture(scope="module")
def graph_model():
    """A model that answers graph problems well enough to be measured."""
    family = FAMILIES["graph"]
    model = build_model(family.tokenizer(), hidden_size=32, layers=1)
    pairs = skewed_pairs(family, problems_of(TINY).train)
    for _ in warm_start(model, family.tokenizer(), pairs, steps=60, learning_rate=1e-2):
        pass
    return model


@pytest.mark.parametrize("heat", [0.5, 1.0])
def test_exact_probabilities_agree_with_the_share_of_samples(graph_model, heat):
    family, problems = FAMILIES["graph"], problems_of(TINY).test
    (exact,) = exact_outcomes(graph_model, family.tokenizer(), family, problems, [heat])
    torch.manual_seed(0)
    samples = sample(
        graph_model, family.tokenizer(), family.task, problems, num_samples=512, max_new_tokens=4, temperature=heat
    )
    counts = np.zeros_like(exact)
    for row, verdict in enumerate(samples.verdicts):
        if verdict.correct:
            counts[row // 512, problems[row // 512].modes.index(verdict.mode)] += 1
    right = np.nansum(exact, -1)
    assert 0.02 < right.mean() < 1
    assert (right <= 1 + 1e-6).all()
    error = np.sqrt(np.nanmax(exact * (1 - exact)) / 512)
    assert np.nanmax(abs(exact - counts / 512)) < 5 * error
    assert np.isnan(exact[0, len(problems[0].modes) :]).all()


def test_grpo_divides_centred_rewards_by_their_deviation():
    arm = ARMS["grpo"]
    objective = arm.make(arm.sized(8))
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    mask = torch.ones(2, 4, dtype=torch.bool)
    target = objective.target(rewards, mask=mask, lengths=mask.long())
    deviation = (0.25 * 0.75) ** 0.5
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.0] * 4]) / deviation / 4
    assert_close(objective.coefficients(target), expected)


def test_maxrl_weighs_successes_by_the_mean_success():
    objective = ARMS["maxrl"].make(ARMS["maxrl"].sized(8))
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0], [0.0] * 5])
    mask = torch.ones(2, 5, dtype=torch.bool)
    target = objective.target(rewards, mask=mask, lengths=mask.long())
    expected = torch.stack([(rewards[0] - 0.4) / 0.4 / 5, torch.zeros(5)])
    assert_close(objective.coefficients(target), expected, atol=1e-5, rtol=1e-4)


def test_the_core_study_has_the_recipe_and_variants_share_a_tuned_arms_learning_rate():
    assert ARMS[RECIPE].config == MaxEntConfig.diverse()
    assert {RECIPE, "grpo", "dr_grpo"} <= set(CORE) <= set(ARMS)
    assert with_untuned({"half_0": 1e-4})["half_half"] == 1e-4
    assert with_untuned({})["grpo_slow"] == ARMS["grpo_slow"].learning_rate
    assert with_untuned({"passes_2": 5e-5})["cool_passes_2"] == 5e-5
    assert all(ARMS[arm.tuned_as].tuned_as is None for arm in ARMS.values() if arm.tuned_as)


def test_notes_make_texts_different_and_answers_the_same():
    preset, rng = PRESETS["noted"], random.Random(0)
    family, problem = preset.family, problems_of(preset).test[0]
    beginnings = [text for texts in family.solutions(problem).values() for text in texts]
    texts = [family.finish(beginnings[0], rng) for _ in range(3)] + ["1+1:3 4", "1+1"]
    assert len(set(texts)) == 5
    ids = torch.zeros(5, 1, dtype=torch.long)
    verdicts = [family.task.verify(problem, text) for text in texts]
    assert [verdict.correct for verdict in verdicts] == [True] * 3 + [False] * 2
    assert not family.task.verify(problem, texts[0].split(":")[0]).correct  # an answer that has no end
    keys = answer_keys(Samples(ids, ids, ids.bool(), texts, verdicts), family.answer).tolist()
    assert keys == [0, 0, 0, 1, 1]
    pair = skewed_pairs(family, problems_of(preset).train[:50])
    assert {text.count(":") for _, text in (pair(rng) for _ in range(20))} == {1}
    model = build_model(family.tokenizer(), hidden_size=32, layers=1)
    (outcomes,) = exact_outcomes(model, family.tokenizer(), family, [problem], [1.0])
    asked = family.tokenizer()([family.prompt(problem)], return_tensors="pt")["input_ids"]
    chances = [
        [
            token_logps(model, asked, family.tokenizer()([text], return_tensors="pt")["input_ids"]).sum().exp()
            for text in mode
        ]
        for mode in family.solutions(problem).values()
    ]
    assert_close(outcomes[0].tolist(), [sum(mode).item() for mode in chances])  # whatever the note is


def test_rates_may_be_those_of_committed_results_and_no_others(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("benchmarks.diversity.study.RESULTS", tmp_path)
    (tmp_path / "cpu.json").write_text(json.dumps({"tuning": {"chosen": {"dr_grpo": 5e-5, "full_0": 1e-4}}}))
    assert committed_rates("cpu", ["dr_grpo", "cool"]) == {"dr_grpo": 5e-5, "cool": 1e-4}
    with pytest.raises(ValueError, match=r"learning rate is in .*cpu\.json, got arms=\['raft'\]"):
        committed_rates("cpu", ["raft"])
    monkeypatch.setitem(PRESETS, "test", replace(TINY, rates_of="cpu"))
    with pytest.raises(ValueError, match="learning rate is in"):
        run_study(tmp_path / "runs", "test", ["raft"], Console(quiet=True))
    assert not (tmp_path / "runs").exists()
    here = lambda work, jobs, **_: [work(job, silent, never) for job in jobs]  # noqa: E731 - processes lack this preset
    monkeypatch.setattr("benchmarks.diversity.study.run_jobs", here)
    run_study(tmp_path / "runs", "test", ["dr_grpo"], Console(quiet=True))
    assert Run(tmp_path / "runs", "test", "dr_grpo", 0, 5e-5).done
    (tmp_path / "cpu.json").write_text(json.dumps({"tuning": {"chosen": {"dr_grpo": 2e-4}}}))
    run_study(tmp_path / "runs", "test", ["dr_grpo"], Console(quiet=True))  # which keeps its rate
    assert read_rates(tmp_path / "runs")["chosen"] == {"dr_grpo": 5e-5}
    weights = tmp_path / "runs/seed0/warm_start/model.safetensors"
    taught = weights.read_bytes()
    weights.unlink()
    run_study(tmp_path / "runs", "test", ["dr_grpo"], Console(quiet=True))  # nothing is left to do
    assert not weights.exists()
    (tmp_path / "cpu.json").write_text(json.dumps({"tuning": {"chosen": {"grpo": 2e-4}}}))
    run_study(tmp_path / "runs", "test", ["grpo"], Console(quiet=True))
    assert weights.read_bytes() == taught


@pytest.mark.parametrize(("preset", "modes", "control"), [("cpu", (2, 8), (1, 1)), ("single", (1, 1), (2, 8))])
def test_control_problems_have_as_many_right_answers_as_the_others_have_not(preset, modes, control):
    problems = problems_of(PRESETS[preset])
    for part, (fewest, most) in ((problems.train, modes), (problems.test, modes), (problems.control, control)):
        assert all(fewest <= len(problem.modes) <= most for problem in part)
    assert not {problem.id for problem in problems.train} & {problem.id for problem in problems.test}


@pytest.mark.parametrize("names", [("cpu", "confirm"), ("graph", "graph_confirm")])
def test_confirming_studies_are_tested_and_choose_on_problems_that_the_first_ones_were_not(names: tuple[str, str]):
    first, again = (problems_of(PRESETS[name]) for name in names)
    used, fresh = ({problem.id for problem in (*each.test, *each.validation)} for each in (first, again))
    assert len(used) == len(fresh) == 768
    assert not used & fresh
    trained = {problem.id for problem in again.train}
    assert trained >= used
    assert not trained & fresh


def test_verifier_keys_join_different_texts_of_one_mode():
    family = FAMILIES["countdown"]
    problem = next(p for p in family.pool() if any(len(texts) > 1 for texts in family.solutions(p).values()))
    texts = max(family.solutions(problem).values(), key=len)[:2]
    answers = [*texts, "1+1", "1+1", "1-1"]
    verdicts = [family.task.verify(problem, text) for text in answers]
    ids = torch.zeros(5, 1, dtype=torch.long)
    keys = mode_keys(Samples(ids, ids, ids.bool(), answers, verdicts)).tolist()
    assert keys[0] == keys[1] != keys[2] == keys[3] != keys[4]


def test_seldom_solved_groups_weigh_more_and_their_duplicates_are_discounted_less():
    rewards, keys = torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 1, 0]]), torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2]])
    inputs = {"mask": torch.ones(2, 4, dtype=torch.bool), "lengths": torch.ones(2, 4, dtype=torch.long), "keys": keys}

    def coefficients(arm):
        objective = ARMS[arm].make(ARMS[arm].sized(4))
        return objective.coefficients(objective.target(rewards, **inputs))

    shares = torch.tensor([[1 / 4], [3 / 4]])
    assert_close(coefficients("rare"), coefficients(RECIPE) * shares**-0.5)
    plain = coefficients("none_0") + 1 / 4
    expected = plain * torch.tensor([[1.0, 1, 1, 1], [2, 2, 1, 1]]) ** -shares
    assert_close(coefficients("graded"), expected / expected.sum(-1, keepdim=True) - 1 / 4)


@pytest.mark.parametrize("arm", ["rare", "graded"])
def test_what_is_masked_changes_no_coefficient(arm):
    objective = ARMS[arm].make(ARMS[arm].sized(4))
    rewards, keys = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([[0, 0, 1], [2, 2, 2]])
    mask = torch.ones(2, 3, dtype=torch.bool)
    plain = objective.coefficients(objective.target(rewards, mask=mask, lengths=mask.long(), keys=keys))
    for stranger in (99.0, torch.nan):
        padded = {
            "mask": torch.cat([mask, torch.zeros(2, 1, dtype=torch.bool)], dim=1),
            "lengths": torch.ones(2, 4, dtype=torch.long),
            "keys": torch.cat([keys, torch.zeros(2, 1, dtype=torch.long)], dim=1),
        }
        wider = torch.cat([rewards, torch.full((2, 1), stranger)], dim=1)
        found = objective.coefficients(objective.target(wider, **padded))
        assert_close(found[:, :3], plain)
        assert found[:, 3].tolist() == [0.0, 0.0]
    nobody = objective.target(rewards, mask=~mask, lengths=mask.long(), keys=keys)
    assert objective.coefficients(nobody).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("name", ["passes_2", "corrected", "rare", "answer_keys", "cool", "both"])
def test_a_runs_loop_is_its_arms(tmp_path: Path, name):
    run, arm = Run(tmp_path, "test", name, 0, 1e-3), ARMS[name]
    work(run.warm, silent, never)
    loop = _loop(run)
    expected = {"passes": arm.passes, "temperature": arm.temperature, "entropy_bonus": arm.entropy_bonus}
    assert {field: getattr(loop, field) for field in expected} == expected
    assert (loop.correct_reference, loop.reference is not None) == (arm.correct_reference, arm.config.beta > 0)
    assert type(loop.loss_fn.objective) is arm.make
    assert loop.loss_fn.objective.config == arm.sized(4)
    assert (loop.keys is None) == (arm.keys == "tokens")


@pytest.mark.parametrize("arm", ["dr_grpo", RECIPE, "tpo", "pruned", "passes_2", "corrected"])
def test_leaving_idle_completions_out_changes_no_update(graph_model, arm):
    family, problems = FAMILIES["graph"], problems_of(TINY).train

    def trained(*, active_only):
        model = build_model(family.tokenizer(), hidden_size=32, layers=1)
        model.load_state_dict(graph_model.state_dict())
        loop = Reinforcement(
            model, family.tokenizer(), family.task, ARMS[arm].sized(4), learning_rate=1e-3, prompts_per_step=8,
            num_samples=4, max_new_tokens=4, active_only=active_only, passes=ARMS[arm].passes, reference=graph_model,
            correct_reference=ARMS[arm].correct_reference,
        )  # fmt: skip
        loop.update(problems)
        return [parameter.grad for parameter in model.parameters()]

    everyone, active = trained(active_only=False), trained(active_only=True)
    assert max(float(gradient.abs().max()) for gradient in everyone) > 1e-5
    for one, other in zip(everyone, active, strict=True):
        assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_an_entropy_bonus_raises_the_entropy(graph_model):
    family, problems = FAMILIES["graph"], problems_of(TINY).train

    def entropy_after(bonus):
        model = build_model(family.tokenizer(), hidden_size=32, layers=1)
        model.load_state_dict(graph_model.state_dict())
        loop = Reinforcement(
            model, family.tokenizer(), family.task, ARMS["dr_grpo"].sized(4), learning_rate=3e-3,
            prompts_per_step=8, num_samples=4, max_new_tokens=4, entropy_bonus=bonus,
        )  # fmt: skip
        for _ in range(3):
            samples, _ = loop.update(problems)
        logps = loop._frozen_logps(model, samples).masked_fill(~samples.mask, 0.0)
        return -logps.sum(-1).mean()

    assert entropy_after(5.0) > entropy_after(0.0) + 0.1


def test_a_stopped_run_goes_on_to_the_same_end(tmp_path: Path):
    whole, halted = (Run(tmp_path / name, "test", RECIPE, 0, 1e-3) for name in ("whole", "halted"))
    for run in (whole, halted):
        work(run.warm, silent, never)
    work(whole, silent, never)
    asked = iter([False, False, True])
    work(halted, silent, lambda: next(asked))
    assert not halted.done
    work(halted, silent, never)
    for file in ("outcomes.npz",):
        with np.load(whole.folder / file) as one, np.load(halted.folder / file) as other:
            np.testing.assert_array_equal(one["test"], other["test"])
    steps = [row["step"] for row in Log(halted.folder / "metrics.jsonl").rows()]
    assert steps == [1, 2, 3, 4]
    rows = Log(halted.folder / "evaluations.jsonl").rows()
    assert len(rows) == len(TINY.temperatures) * 4  # validation twice, control, test
    assert Log(whole.folder / "evaluations.jsonl").rows() == rows
    before = halted.outcomes_file.stat().st_mtime_ns
    work(halted, silent, never)
    assert halted.outcomes_file.stat().st_mtime_ns == before


def test_the_learning_rate_is_the_one_with_the_best_coverage_at_the_level(tmp_path: Path):
    for rate, coverage in ((1e-3, 0.2), (2e-3, 0.3)):
        for accuracy, out_of_reach in ((0.5, "dr_grpo"), (0.0, "grpo")):
            run = Run(tmp_path, "test", out_of_reach, 100, rate)
            rows = [
                {
                    "split": "validation",
                    "step": TINY.updates,
                    "mean@8": accuracy * each + rate,
                    "coverage@8": coverage,
                }
                for each in (1.0, 0.0)
            ]
            for row in rows:
                Log(run.folder / "evaluations.jsonl").append(row)
    assert learning_rates(tmp_path, "test", ["dr_grpo", "grpo"]) == {"dr_grpo": 2e-3, "grpo": 2e-3}
    assert read_rates(tmp_path)["grid"]["dr_grpo"]["0.002"]["score"] == pytest.approx(0.3)
    assert read_rates(tmp_path)["grid"]["grpo"]["0.001"]["score"] == pytest.approx(0.001 - 1)


def test_the_gpu_preset_runs_small_on_a_cpu(tmp_path: Path, monkeypatch):
    small = replace(
        PRESETS["h200"], hidden_size=16, layers=1, warm_steps=2, updates=2, prompts=2, samples=4, eval_every=1,
        validation=2, test=3, temperatures=(1.0,),
    )  # fmt: skip
    monkeypatch.setitem(PRESETS, "test", small)
    run = Run(tmp_path, "test", RECIPE, 0, 1e-3)
    work(run.warm, silent, never)
    work(run, silent, never)
    assert run.done
    rows = Log(run.folder / "evaluations.jsonl").rows()
    assert {row["split"] for row in rows} == {"validation", "control", "test"}
    assert all(0 <= row["pass@64"] <= 1 for row in rows)
    assert load_checkpoint(run.warm.folder).config.hidden_size == 16
    assert json.loads((run.warm.folder / "config.json").read_text())["num_hidden_layers"] == 1
    assert Run(tmp_path, "test", WARM, 0).done
