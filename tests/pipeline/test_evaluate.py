"""The evaluation script: the demo's figures again, the curves and their intervals, and LightEval's commands."""

import json
import os
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from maxent_grpo.pipeline import evaluate
from maxent_grpo.pipeline.evaluation.curves import measure_curve
from maxent_grpo.pipeline.evaluation.generation import Sampling, Transformers, choose_engine, render_prompts
from maxent_grpo.pipeline.launch.options import parse_options as parse_launch
from maxent_grpo.pipeline.starts import STARTS, Start
from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict
from maxent_grpo.pipeline.tasks.metrics import hit_probability
from maxent_grpo.pipeline.tiny import evaluation
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.options import parse_options
from maxent_grpo.pipeline.tiny.runs import Job, warm_up
from maxent_grpo.pipeline.tiny.sampling import sample
from maxent_grpo.pipeline.tiny.storage import save_checkpoint
from maxent_grpo.pipeline.tiny.wide_countdown import MAX_NEW_TOKENS, TOKENIZER

PROMPTS, SAMPLES = 16, 8
ASKED = ["--task", "countdown-wide", "--max_new_tokens", str(MAX_NEW_TOKENS), "--prompts", str(PROMPTS)]


def ignore(entry: object) -> None:
    del entry


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A warm start of the demo, evaluated by the demo on what `generate` draws, as evaluate.py does."""
    folder = tmp_path_factory.mktemp("demo")
    small = ["--warm-steps", "110", "--eval-prompts", str(PROMPTS), "--eval-samples", str(SAMPLES), "--seed", "3"]
    job = Job(parse_options([*small, "--output", str(folder)], None), "warm_start", seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "sample", partial(sample, static_cache=True))
        warm_up(job, ignore, lambda: False)
    return job


def report(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return result


def test_the_demos_checkpoints_get_the_demos_figures(demo: Job, tmp_path: Path) -> None:
    logged = [row for row in demo.log.rows() if "temperature" in row]
    assert any(row["mean@8"] > 0 for row in logged)
    for row in logged:
        flags = ["--samples", str(SAMPLES), "--seed", "3", "--temperature", str(row["temperature"]), "--greedy"]
        evaluate.main([str(demo.folder), *ASKED, *flags, "--output", str(tmp_path)])
        (result,) = report(tmp_path)["results"]
        assert result["greedy_accuracy"] == row["greedy"]
        for name in ("mean", "pass", "distinct", "coverage"):
            assert result[f"{name}@k"]["value"][8 - 1] == pytest.approx(row[f"{name}@8"], rel=1e-12)
        assert result["distinct_per_solved"][8 - 1] == pytest.approx(row["distinct_per_solved"], rel=1e-12)


def test_64_samples_give_every_k_to_64_with_an_interval_and_three_files(demo: Job, tmp_path: Path) -> None:
    evaluate.main([str(demo.folder), *ASKED, "--samples", "64", "--batch_prompts", "4", "--output", str(tmp_path)])
    (result,) = report(tmp_path)["results"]
    assert result["k"] == list(range(1, 65))
    for name in ("mean@k", "pass@k", "distinct@k", "coverage@k"):
        low, value, high = (np.array(result[name][end]) for end in ("low", "value", "high"))
        assert low.shape == (64,)
        assert (low <= value).all()
        assert (value <= high).all()
        assert name == "mean@k" or (np.diff(value) >= -1e-12).all()  # more samples find no less
    assert result["pass@k"]["value"][0] == pytest.approx(result["mean@k"]["value"][0])
    assert (tmp_path / "evaluation.png").stat().st_size > 10_000
    table = (tmp_path / "evaluation.md").read_text().splitlines()
    assert [line.split("|")[2].strip() for line in table[2:]] == ["1", "2", "4", "8", "16", "32", "64"]


def test_a_model_that_is_made_on_the_spot_is_made_beside_the_results(
    demo: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Start(lambda folder: shutil.copytree(demo.folder, folder), lambda: None)
    monkeypatch.setitem(STARTS, "tiny-countdown", copied)
    evaluate.main(["tiny-countdown", *ASKED, "--samples", "4", "--output", str(tmp_path / "evaluation")])
    (result,) = report(tmp_path / "evaluation")["results"]
    assert result["model"] == "tiny-countdown"
    assert (tmp_path / "tiny-countdown" / "config.json").exists()


def test_a_model_that_is_missing_is_named_before_another_is_sampled(demo: Job, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"evaluate.py: Expected a model that can be read, got '{tmp_path}/none'"):
        evaluate.main([str(demo.folder), str(tmp_path / "none"), *ASKED, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_what_one_model_gave_is_kept_when_the_next_one_fails(
    demo: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = evaluate.evaluate_model

    def fails_on_the_second(model: str, *rest: Any) -> Any:
        if model.endswith("/."):
            raise RuntimeError(model)
        return real(model, *rest)

    monkeypatch.setattr(evaluate, "evaluate_model", fails_on_the_second)
    with pytest.raises(RuntimeError):
        evaluate.main([str(demo.folder), f"{demo.folder}/.", *ASKED, "--samples", "8", "--output", str(tmp_path)])
    assert [result["model"] for result in report(tmp_path)["results"]] == [str(demo.folder)]


def test_an_unknown_dtype_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["model", "--task", "countdown-wide", "--dtype", "floaty"])
    assert "Expected --dtype auto or a dtype of torch, got 'floaty'" in capsys.readouterr().err


def test_a_dataset_is_judged_by_its_reward(demo: Job, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"prompt": ["2 3 = 5 :", "2 4 = 6 :"], "numbers": [[2, 3], [2, 4]], "target": [5, 6]})
    rows.to_json(tmp_path / "rows.jsonl")
    flags = ["--dataset", str(tmp_path / "rows.jsonl"), "--reward", "countdown", "--samples", "4"]
    evaluate.main([str(demo.folder), *flags, "--max_new_tokens", "8", "--output", str(tmp_path / "out")])
    (result,) = report(tmp_path / "out")["results"]
    assert result["k"] == [1, 2, 3, 4]
    assert "distinct" not in (tmp_path / "out/evaluation.md").read_text()
    assert not [name for name in result if "distinct" in name or "coverage" in name]


def test_the_environment_says_how_long_a_prompt_may_be_unless_a_flag_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Dataset.from_dict({"prompt": ["a" * 3000], "solution": ["1"]}).to_json(tmp_path / "rows.jsonl")

    def measure_prompt(*flags: str) -> int:
        options = evaluate.parse_options(["model", "--dataset", str(tmp_path / "rows.jsonl"), *flags])
        (prompt,) = evaluate.build_subject(options, chat=False).prompts
        return len(prompt)

    solution = ["--solution_column", "solution", "--reward", "pure_accuracy_math"]
    assert measure_prompt(*solution) == 2048
    monkeypatch.setenv("MAX_PROMPT_CHARS", "300")
    assert measure_prompt(*solution) == 300
    assert measure_prompt(*solution, "--max_prompt_chars", "5") == 5
    monkeypatch.setenv("MAX_PROMPT_CHARS", "many")
    with pytest.raises(SystemExit, match=r"evaluate\.py: .*got MAX_PROMPT_CHARS='many'"):
        evaluate.main(["model", "--task", "countdown"])


def verdicts(*rows: str) -> list[list[Verdict | None]]:
    """Return verdicts written as letters: a mode each, `.` for wrong, `?` for no verdict."""
    letter = {".": WRONG, "?": None}
    return [[letter.get(each, Verdict(correct=True, mode=each)) for each in row] for row in rows]


def test_the_curve_is_the_unbiased_estimate_at_every_k() -> None:
    curve = measure_curve(verdicts("aab.", "...."), [3, 1], ks=[1, 2, 3, 4])
    for k in (1, 2, 3, 4):
        passed, distinct = hit_probability(4, 3, k), hit_probability(4, 2, k) + hit_probability(4, 1, k)
        expected = {"mean": 3 / 4, "pass": passed, "distinct": distinct, "coverage": distinct / 3}
        for name, value in expected.items():
            assert curve.points[name][k - 1].value == pytest.approx(value / 2)
        assert curve.distinct_per_solved[k - 1] == pytest.approx(distinct / passed)


def test_a_sample_without_a_verdict_is_left_out() -> None:
    curve = measure_curve(verdicts("a?.?", "aaaa"), [1, 1], ks=[1, 2, 3])
    assert curve.prompts == [2, 2, 1]
    assert curve.points["mean"][0].value == pytest.approx((1 / 2 + 1) / 2)
    assert curve.points["pass"][2].value == 1.0
    assert measure_curve(verdicts("a?", "?a"), [1, 1], ks=[1, 2]).ks == [1]  # the rest of the evaluation is kept
    with pytest.raises(ValueError, match="samples that have a verdict, got none"):
        measure_curve(verdicts("??"), [1], ks=[1])


def test_the_interval_covers_the_mean_of_prompts_as_often_as_it_says() -> None:
    chance, covered = np.random.default_rng(0), 0
    for trial in range(200):
        rows = ["a" if right else "." for right in chance.random(60) < 0.4]
        point = measure_curve(verdicts(*rows), [1] * 60, ks=[1], resamples=400, seed=trial).points["pass"][0]
        covered += point.low <= 0.4 <= point.high
    assert 0.89 <= covered / 200 <= 0.99  # 95 %, give or take three standard errors and the grid of 60 prompts


def test_prompts_alike_leave_no_doubt() -> None:
    (point,) = measure_curve(verdicts("a.", "a.", "a."), [1] * 3, ks=[2]).points["pass"]
    assert (point.low, point.value, point.high) == (1.0, 1.0, 1.0)


def test_the_same_seed_gives_the_same_completions_and_leaves_chance_alone(demo: Job) -> None:
    sampler = Transformers(str(demo.folder), None, "float32")
    before = torch.get_rng_state()
    one, again, other = (sampler.draw_samples(["2 3 5 = 10 :"] * 3, Sampling(4, 1.0, 8, seed)) for seed in (0, 0, 1))
    assert one == again != other
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(each) for each in one] == [4, 4, 4]


def test_a_samples_tokens_are_those_of_its_text_with_the_one_that_ends_it(demo: Job) -> None:
    sampler = Transformers(str(demo.folder), None, "float32")
    (drawn,) = sampler.draw_samples(["2 3 5 = 10 :"], Sampling(16, 1.0, 8, 0))
    end = sampler.tokenizer.eos_token_id
    for one in drawn:
        assert sampler.tokenizer.decode(one.ids, skip_special_tokens=True) == one.text
        assert end not in one.ids[:-1]
        assert len(one.ids) == 8 or one.ids[-1] == end
    assert len({len(one.ids) for one in drawn}) > 1


def test_what_a_checkpoint_prefers_does_not_change_its_samples(tmp_path: Path) -> None:
    model = build_model(TOKENIZER)
    save_checkpoint(model, TOKENIZER, tmp_path / "plain")
    model.generation_config.update(do_sample=True, top_p=0.1, top_k=2, repetition_penalty=1.5, temperature=0.1)
    save_checkpoint(model, TOKENIZER, tmp_path / "picky")
    drawn = [
        Transformers(str(tmp_path / name), None, "float32").draw_samples(["2 3 = 5 :"], Sampling(16, 1.0, 8, 0))
        for name in ("plain", "picky")
    ]
    assert drawn[0] == drawn[1]


def test_a_chat_goes_through_the_template_once() -> None:
    tokenizer = SimpleNamespace(
        bos_token="<s>",
        apply_chat_template=lambda chat, **_: "<s>" + "".join(f"[{each['role']}]{each['content']}" for each in chat),
    )
    chat = [{"role": "user", "content": "1+1"}]
    assert render_prompts([chat, "plain"], tokenizer) == ["[user]1+1", "plain"]  # type: ignore[arg-type]


def test_vllm_is_asked_for_samples_of_the_model_itself(
    demo: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_seen: dict[str, Any] = {}

    class Engine:
        def __init__(self, **settings: Any) -> None:
            settings_seen.update(settings)

        def generate(self, prompts: list[str], settings: dict[str, Any]) -> list[Any]:
            settings_seen.update(settings)
            answers = [SimpleNamespace(text=text, token_ids=(1,)) for text in ("2+3", "3+2", "5", "2+3")]
            return [SimpleNamespace(outputs=answers) for _ in prompts]

    module = ModuleType("vllm")
    module.__spec__ = SimpleNamespace(name="vllm")  # type: ignore[assignment]
    module.LLM, module.SamplingParams = Engine, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    rows = Dataset.from_dict({"prompt": ["2 3 = 5 :"], "numbers": [[2, 3]], "target": [5]})
    rows.to_json(tmp_path / "rows.jsonl")
    flags = ["--engine", "vllm", "--dataset", str(tmp_path / "rows.jsonl"), "--reward", "countdown"]
    evaluate.main(
        [str(demo.folder), *flags, "--samples", "4", "--temperature", "0.7", "--output", str(tmp_path / "o")]
    )
    assert {"n": 4, "temperature": 0.7, "top_p": 1.0, "top_k": 0}.items() <= settings_seen.items()
    assert report(tmp_path / "o")["results"][0]["mean@k"]["value"][0] == 3 / 4


def test_vllm_that_is_missing_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="vLLM to be installed"):
        choose_engine("vllm")
    assert choose_engine("auto") == "transformers"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "one of --task, --dataset and --lighteval"),
        (["--task", "countdown", "--dataset", "x"], "one of --task, --dataset and --lighteval"),
        (["--task", "chess"], "invalid choice: 'chess'"),
        (["--task", "countdown", "--samples", "0"], "--samples >= 1, got 0"),
        (["--task", "countdown", "--temperature", "-1"], "--temperature >= 0 and finite, got -1.0"),
        (["--task", "countdown", "--temperature", "inf"], "--temperature >= 0 and finite, got inf"),
        (["--task", "countdown", "--right", "nan"], "--right to be finite, got nan"),
        (["--task", "countdown", "--seed", "-1"], "--seed >= 0, got -1"),
        (
            ["--task", "countdown", "--key_func", "final_answer"],
            "--dataset with --key_func, got --key_func final_answer",
        ),
        (["--task", "countdown", "--dry-run"], "--lighteval with --dry-run"),
        (["--lighteval", ","], "benchmarks in --lighteval, got ','"),
        (["--lighteval", "math_500,math_50"], "got 'math_50' (did you mean math_500?)."),
        (["--lighteval", "gpqa:diamnd|0"], "got 'gpqa:diamnd|0' (did you mean gpqa:diamond?)."),
        (["--lighteval", "nothing_like_it"], "Expected a task of LightEval 0.13, or --custom_tasks with a file of"),
        (["--lighteval", "gsm8k|five"], "Expected TASK or TASK|EXAMPLES in --lighteval, got 'gsm8k|five'."),
        (["--lighteval", "a|b|gsm8k|5"], "Expected TASK or TASK|EXAMPLES in --lighteval, got 'a|b|gsm8k|5'."),
    ],
)
def test_bad_options_are_named(flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.parse_options(["model", *flags])
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    "tasks", ["math_500", "mmlu", "gsm8k|5", "lighteval|gpqa:diamond|0", "tiny:gsm8k", "aime24@k=4|0"]
)
def test_what_lighteval_knows_is_taken_and_with_a_file_of_ones_own_anything(tasks: str) -> None:
    assert evaluate.parse_options(["model", "--lighteval", tasks]).lighteval == [tasks]
    mine = evaluate.parse_options(["model", "--lighteval", "mine", "--custom_tasks", "mine.py"])
    assert mine.lighteval == ["mine"]


def test_a_dataset_without_the_reward_columns_is_named(demo: Job, tmp_path: Path) -> None:
    Dataset.from_dict({"prompt": ["x"]}).to_json(tmp_path / "rows.jsonl")
    with pytest.raises(SystemExit, match=r"Expected column 'solution' .*rows\.jsonl"):
        evaluate.main([str(demo.folder), "--dataset", str(tmp_path / "rows.jsonl")])


LIGHT = ["runs/one", "--lighteval", "math_500,gpqa:diamond", "--max_new_tokens", "64", "--temperature", "0.6"]


def test_a_dry_run_prints_a_command_for_each_benchmark(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    evaluate.main([*LIGHT, "--dry-run", "--output", "out"])
    printed = capsys.readouterr().out.splitlines()
    settings = "'model_name=runs/one,dtype=bfloat16,generation_parameters={max_new_tokens:64,temperature:0.6}'"
    assert printed == [
        f"lighteval vllm {settings} '{task}|0' --output-dir out --save-details"
        for task in ("math_500", "gpqa:diamond")
    ]


def test_lighteval_keeps_its_own_settings_unless_others_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main(["runs/one", "--lighteval", "math_500", "--dry-run"])
    assert "{max_new_tokens:32768,temperature:0.6}" in capsys.readouterr().out


def test_the_command_of_the_docstring_parses() -> None:
    (line,) = [line for line in str(evaluate.__doc__).splitlines() if "--submit" in line]
    options = evaluate.parse_options(shlex.split(line)[2:])
    assert (options.submit, options.sbatch) == (True, "--gres=gpu:1")


def test_a_batch_is_bounded_and_the_demos_evaluation_is_one() -> None:
    assert Sampling(16, 1.0, MAX_NEW_TOKENS, 0).prompts_at_once >= 512
    assert Sampling(16, 1.0, 1024, 0).prompts_at_once == 16  # 2^18 tokens
    assert Sampling(16, 1.0, 1024, 0, batch_prompts=500).prompts_at_once == 500


def test_submit_sends_a_slurm_job_for_each_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text('#!/bin/sh\nfor each in "$@"; do printf "%s\\n" "$each"; done >> "$SENT"; echo >> "$SENT"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SENT", str(tmp_path / "sent"))
    flags = ["--submit", "--sbatch", "--gres=gpu:1 --time=2:00:00", "--custom_tasks", "mine.py"]
    evaluate.main([*LIGHT, *flags, "--output", str(tmp_path / "out")])
    jobs = [job.splitlines() for job in (tmp_path / "sent").read_text().strip().split("\n\n")]
    for job, name in zip(jobs, ("lighteval-math_500", "lighteval-gpqa-diamond"), strict=True):
        script = job.index("examples/slurm_train.sh")
        assert job[script - 3 : script] == [f"--job-name={name}", "--gres=gpu:1", "--time=2:00:00"]
        options = parse_launch(job[script + 1 :])  # as the script reads them in the job
        assert options.command[:2] == ("lighteval", "vllm")
        assert options.command[-2:] == ("--custom-tasks", "mine.py")


def test_a_missing_program_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="Expected sbatch to submit with"):
        evaluate.main([*LIGHT, "--submit"])
