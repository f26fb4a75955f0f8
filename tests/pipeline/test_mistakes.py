"""Mistakes as a new user makes them, each answered by one line that says what to do, before a model loads."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from maxent_grpo.adapters.trl.fitting import expect_tokenizer
from maxent_grpo.pipeline import train
from maxent_grpo.pipeline.checkpoints import SETTINGS, describe_settings, find_checkpoint, list_changes
from maxent_grpo.pipeline.run import parse_run
from support import trl_tiny
from support.mistakes import COMMANDS, GOLDEN, MISTAKES, Mistake, answer_mistake, write_transcript
from support.recipes import write_recipe


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_mistake_is_answered_by_one_line_before_a_model_loads(
    mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", loaded)
    monkeypatch.setattr(train, "make_start", loaded)
    answer = answer_mistake(mistake)
    assert write_transcript(mistake, answer) in GOLDEN.read_text()
    assert "\n" not in answer
    assert "Traceback" not in answer


def test_each_mistake_and_each_command_has_its_transcript() -> None:
    transcripts = GOLDEN.read_text().split("\n\n")
    assert len(transcripts) == len(MISTAKES) >= 20
    for command in COMMANDS:
        assert any(f"$ {command}" in transcript for transcript in transcripts)


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
