"""Twenty mistakes as a new user makes them, each answered by one line that says what to do, before a model loads."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from maxent_grpo import preview
from maxent_grpo.adapters.trl.fitting import expect_tokenizer
from maxent_grpo.pipeline import evaluate, train
from maxent_grpo.pipeline.checkpoints import SETTINGS, describe_settings, find_checkpoint, list_changes
from maxent_grpo.pipeline.run import parse_run
from maxent_grpo.pipeline.tiny import demo
from support import trl_tiny
from support.recipes import MATH, write_recipe, write_rows

Mistake = Callable[[Path], Any]


def run_train(folder: Path, *flags: str, **fields: Any) -> None:
    train.main(["--config", str(write_recipe(folder, **fields)), *flags])


def train_on(folder: Path, prompts: Any, solutions: Any, **fields: Any) -> None:
    rows = write_rows(folder, prompt=prompts, solution=solutions)
    run_train(folder, **{**MATH, "dataset_name": rows, **fields})


def train_on_file(folder: Path, content: bytes, name: str = "rows.jsonl") -> None:
    (folder / name).write_bytes(content)
    run_train(folder, **{**MATH, "dataset_name": str(folder / name)})


def write_yaml(folder: Path, text: str) -> None:
    (folder / "recipe.yaml").write_text(text)
    train.main(["--config", str(folder / "recipe.yaml")])


def look_at(folder: Path, content: bytes) -> None:
    (folder / "rollouts.jsonl").write_bytes(content)
    raise SystemExit(preview.main([str(folder / "rollouts.jsonl")]))


COUNTDOWN = {"dataset_name": None, "reward_funcs": ["countdown"], "do_eval": False}
MISTAKES: dict[str, tuple[Mistake, str]] = {
    "a dataset file that is not there, with do_eval": (
        lambda folder: run_train(folder, "--dataset_name", "nope.jsonl"),
        r"Expected a dataset, got 'nope\.jsonl': no such file\.",
    ),
    "fewer prompts than a rollout": (
        lambda folder: train_on(folder, ["1+1"], ["2"]),
        r"Expected at least \d+ prompts, which one rollout takes \(generation_batch_size=.*, got 1 to train on\.",
    ),
    "verl's nested solution": (
        lambda folder: train_on(folder, ["1+1"], [{"style": "rule", "ground_truth": "5"}]),
        r"Expected column 'solution' of texts in .*, got dict .* in row 0; columns: .*names a field\.",
    ),
    "a list of solutions": (
        lambda folder: train_on(folder, ["1+1", "2"], [["2"], ["2", "3"]]),
        r"Expected column 'solution' of texts in dataset .*, got list \"\['2'\]\" in row 0\.",
    ),
    "a target that is text": (
        lambda folder: run_train(
            folder,
            **COUNTDOWN | {"dataset_name": write_rows(folder, prompt=["x"], numbers=[[1, 2]], target=["3"])},
        ),
        r"Expected column 'target' of whole numbers in dataset .*, got str '3' in row 0\.",
    ),
    "numbers that are text": (
        lambda folder: run_train(
            folder,
            **COUNTDOWN | {"dataset_name": write_rows(folder, prompt=["x"], numbers=["1 2"], target=[3])},
        ),
        r"Expected column 'numbers' of lists of whole numbers .*, got str '1 2' in row 0\.",
    ),
    "data that is not UTF-8": (
        lambda folder: train_on_file(folder, b'{"prompt": "1", "solution": "2"}\n{"prompt": "caf\xe9"}\n'),
        r"no UTF-8 in line 2, byte 16 is 0xe9",
    ),
    "a cache that is set too late": (
        lambda folder: run_train(folder, env={"HF_HOME": "elsewhere"}),
        r"Expected env of variables that are read after start-up, got HF_HOME: set it before the command, HF_HOME=",
    ),
    "a learning rate that is none": (
        lambda folder: run_train(folder, "--learning_rate", "nan"),
        r"command line: Expected learning_rate >= 0 and finite, got learning_rate=nan\.",
    ),
    "a negative learning rate in the recipe": (
        lambda folder: run_train(folder, learning_rate=-1.0),
        r"recipe\.yaml: Expected learning_rate >= 0 and finite, got learning_rate=-1\.0\.",
    ),
    "a τ below 0 as a flag": (
        lambda folder: run_train(folder, "--maxent_tau", "-1"),
        r"command line: Expected maxent_tau >= 0, got maxent_tau=-1\.0\.",
    ),
    "YAML that contains itself": (
        lambda folder: write_yaml(folder, "model_init_kwargs: &a {inside: *a}\n"),
        r"recipe\.yaml: Expected YAML, got values nested too deep, or inside themselves\.",
    ),
    "YAML that is nested without end": (
        lambda folder: write_yaml(folder, "a: " + "[" * 3000),
        r"recipe\.yaml: Expected YAML, got ",
    ),
    "a checkpoint that is not there": (
        lambda folder: evaluate.main(
            [str(folder / "nothere"), "--task", "countdown", "--output", str(folder / "out")]
        ),
        r"Expected a model that can be read, got '.*nothere': no such folder$",
    ),
    "a benchmark that is nearly one": (
        lambda folder: evaluate.main(["model", "--lighteval", "math_50", "--dry-run"]),
        r"Expected a benchmark of LightEval, got 'math_50' \(did you mean math_500\?\)",
    ),
    "an output that cannot be written to": (
        lambda folder: run_train(folder, output_dir=str(folder / "recipe.yaml" / "run")),
        r"Expected a folder that can be written to, got .*: Not a directory\.",
    ),
    "a demo that cannot be written to": (
        lambda folder: (folder / "file").touch() or demo.main(["--output", str(folder / "file" / "run")]),
        r"quickstart\.py: Expected a folder that can be written to, got .*: Not a directory\.",
    ),
    "an infinite loop of a setting": (
        lambda folder: run_train(folder, "--maxent_tau", "1e39"),
        r"Expected maxent_tau <= 3\.40282e\+38, the largest number of float32, got maxent_tau=1e\+39\.",
    ),
    "completions without a reward in a preview": (
        lambda folder: look_at(folder, b'{"prompt": "1+1", "completion": "2"}\n'),
        r"got no rewards among 'prompt', 'completion'\.",
    ),
    "a preview of another encoding": (
        lambda folder: look_at(folder, b'{"rewards": [1]}\n{"rewards": [1], "texts": ["caf\xe9"]}\n'),
        r"Expected UTF-8 in .*rollouts\.jsonl after line ",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_by_one_line(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", loaded)
    monkeypatch.setattr(train, "make_start", loaded)
    act, answer = MISTAKES[mistake]
    with pytest.raises(SystemExit) as refused:
        act(tmp_path)
    line = str(refused.value) if isinstance(refused.value.code, str) else capsys.readouterr().err.splitlines()[-1]
    assert re.search(answer, line), line
    assert "\n" not in line.strip()


def test_the_files_that_people_have_are_read(tmp_path: Path) -> None:
    """Capitals, compression, a byte order mark and a separator inside a text are no mistakes."""
    import gzip

    from maxent_grpo.pipeline.arguments import GRPOScriptArguments
    from maxent_grpo.pipeline.data.prompts import load_rows
    from maxent_grpo.pipeline.rewards import find_reward

    rows = (
        json.dumps({"prompt": "a\u2028b\u0085c", "extra_info": {"answer": "2"}}, ensure_ascii=False).encode() + b"\n"
    )
    (tmp_path / "rows.JSONL").write_bytes(b"\xef\xbb\xbf" + rows)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(rows))
    for name in ("rows.JSONL", "rows.jsonl.gz"):
        script = GRPOScriptArguments(
            dataset_name=str(tmp_path / name), solution_column="extra_info.answer", prompt_format="text"
        )
        assert load_rows(script, [find_reward("pure_accuracy_math")])[:] == {
            "prompt": ["a\u2028b\u0085c"],
            "solution": ["2"],
        }


@pytest.mark.parametrize(
    ("data", "policy", "complaint"),
    [
        (Dataset.from_dict({"question": ["a"] * 9}), {}, "a column 'prompt' in train_dataset, got columns="),
        (Dataset.from_dict({"prompt": []}), {}, "Expected at least 2 prompts, .*got 0 to train on"),
        (Dataset.from_dict({"prompt": ["a"]}), {}, "Expected at least 2 prompts, .*got 1 to train on"),
        (trl_tiny.make_prompts(8), {"is_encoder_decoder": True}, "Expected a causal language model, got model_type="),
    ],
)
def test_the_trainer_itself_refuses_before_it_builds_anything(
    data: Dataset, policy: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    model = trl_tiny.build_model()
    for name, value in policy.items():
        setattr(model.config, name, value)
    arguments = trl_tiny.build_arguments(tmp_path)
    with pytest.raises(ValueError, match=complaint):
        trl_tiny.MaxEntGRPOTrainer(
            model, trl_tiny.reward, arguments, data, processing_class=trl_tiny.build_tokenizer()
        )


def test_a_tokenizer_that_the_model_cannot_follow_is_refused() -> None:
    tokenizer, config = trl_tiny.build_tokenizer(), trl_tiny.build_model().config
    expect_tokenizer(tokenizer, config)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=r"at most the model's 11 tokens \(resize_token_embeddings .*got tokens=12"):
        expect_tokenizer(tokenizer, config)
    tokenizer = trl_tiny.build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="a tokenizer with a pad_token or an eos_token"):
        expect_tokenizer(tokenizer, config)


def test_a_run_that_goes_on_with_other_settings_names_them(tmp_path: Path) -> None:
    recipe = ["--config", str(write_recipe(tmp_path))]
    args = parse_run(recipe).training
    (tmp_path / SETTINGS).write_text(json.dumps(describe_settings(args)))
    assert list_changes(args, str(tmp_path)) == []
    other = parse_run([*recipe, "--maxent_tau", "0.5", "--learning_rate", "0.25", "--logging_steps", "3"]).training
    assert list_changes(other, str(tmp_path)) == [
        f"learning_rate=0.25 (it was {args.learning_rate})",
        f"maxent_tau=0.5 (it was {args.maxent_tau})",
    ]
    assert list_changes(args, str(tmp_path / "older")) == []


def test_nothing_to_go_on_from_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = parse_run(["--config", str(write_recipe(tmp_path)), "--resume_from_checkpoint", "last"]).training
    assert find_checkpoint(args) is None
    assert "No whole checkpoint in" in caplog.text
    assert "starts at step 0" in caplog.text


def test_help_begins_with_the_recipe_and_our_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: train.py --config RECIPE.yaml [--task {maxent,grpo}]")
    assert len(lines) < 150
    text = "\n".join(lines)
    assert text.index("--reward_funcs") < text.index("--maxent_tau")
    assert "default: None" not in text
    assert "%%" not in text
