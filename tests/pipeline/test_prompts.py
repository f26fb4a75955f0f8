"""Which prompts a recipe's datasets make: columns, mixtures, rows that are left out, what evaluation holds out."""

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from maxent_grpo.pipeline.arguments import MAX_PROMPT_CHARS
from maxent_grpo.pipeline.data.prompts import expect_tokens, load_prompts
from maxent_grpo.pipeline.run import parse_run
from maxent_grpo.pipeline.tiny.model import build_tokenizer
from support.recipes import MATH, write_recipe, write_rows


def make_prompts(folder: Path, **fields: Any) -> tuple[Dataset, Dataset | None]:
    return load_prompts(parse_run(["--config", str(write_recipe(folder, **fields))]))


def test_local_files_of_every_kind_give_the_same_prompts(tmp_path: Path) -> None:
    source = Dataset.from_dict({"problem": ["1+1", "1+2"], "answer": ["2", "3"]})
    source.to_json(tmp_path / "a.jsonl")
    source.to_parquet(tmp_path / "a.parquet")
    source.to_csv(tmp_path / "a.csv", index=False)
    source.save_to_disk(tmp_path / "one")
    DatasetDict({"train": source}).save_to_disk(tmp_path / "several")
    columns = {"prompt_column": "problem", "solution_column": "answer", "system_prompt": "Think."}
    for name in ("a.jsonl", "a.parquet", "a.csv", "one", "several"):
        train, _ = make_prompts(tmp_path, **MATH | columns | {"dataset_name": str(tmp_path / name)})
        assert [str(row["solution"]) for row in train] == ["2", "3"]
        assert train[1]["prompt"] == [
            {"content": "Think.", "role": "system"},
            {"content": "1+2", "role": "user"},
        ]


def test_chats_keep_their_messages(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1"}]
    file = write_rows(tmp_path, prompt=[chat], solution=["2"])
    train, _ = make_prompts(tmp_path, **MATH | {"dataset_name": file, "system_prompt": "Think."})
    assert train[0]["prompt"] == chat


def test_a_mixture_has_its_weights_and_one_name_for_each_column(tmp_path: Path) -> None:
    many = write_rows(tmp_path, "many.jsonl", question=[f"a{i}" for i in range(30)], gold=["1"] * 30)
    few = write_rows(tmp_path, "few.jsonl", prompt=[f"b{i}" for i in range(10)], solution=["2"] * 10)
    mapped = {"path": many, "columns": {"prompt": "question", "solution": "gold"}}
    whole, _ = make_prompts(tmp_path, **MATH | {"datasets": [mapped, {"path": few}]})
    assert [row["solution"] for row in whole] == ["1"] * 30 + ["2"] * 10
    shares, _ = make_prompts(
        tmp_path, **MATH | {"datasets": [mapped | {"weight": 1.0}, {"path": few, "weight": 0.5}]}
    )
    assert sorted(row["solution"] for row in shares) == ["1"] * 20 + ["2"] * 10  # 10 / 0.5 = 20 times the weights
    with pytest.raises(ValueError, match=r"weight > 0 in all sources or in none, got \[1\.0, None\]"):
        make_prompts(tmp_path, **MATH | {"datasets": [mapped | {"weight": 1.0}, {"path": few}]})


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [(None, "None"), (3, "3"), ("", ""), ([], r"\[\]"), ([{"role": "user", "content": None}], r"\[\{.*")],
)
@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_prompt_that_is_none_is_named_with_its_row(prompt: Any, shown: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = [{"role": "user", "content": "a"}] if isinstance(prompt, list) else "a"
    lines = [{"prompt": good if prompt != 3 else 2, "solution": "1"}, {"prompt": prompt, "solution": "1"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = 0 if prompt == 3 or (kind == "text" and isinstance(prompt, list)) else 1
    shown = "2" if prompt == 3 else r"\[\{.*" if row == 0 else shown
    complaint = rf"recipe\.yaml: Expected prompts of text.*rows\.jsonl', got .{shown}.+ in row {row} .*{kind}"
    with pytest.raises(ValueError, match=complaint):
        make_prompts(tmp_path, **MATH | {"dataset_name": str(file), "prompt_format": kind})


def test_rows_without_a_solution_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_rows(tmp_path, prompt=["a", "b", "c"], solution=["1", None, "3"])
    train, _ = make_prompts(tmp_path, **MATH | {"dataset_name": file})
    assert train["solution"][:] == ["1", "3"]
    assert "1 of 3 rows" in caplog.text
    none = write_rows(tmp_path, "none.jsonl", prompt=["a"], solution=[None])
    with pytest.raises(ValueError, match=r"Expected solution in dataset .*none\.jsonl', got none in all 1 rows"):
        make_prompts(tmp_path, **MATH | {"dataset_name": none})


def test_a_mixture_of_types_names_the_source(tmp_path: Path) -> None:
    texts = write_rows(tmp_path, "texts.jsonl", prompt=["a"], solution=["1"])
    numbers = write_rows(tmp_path, "numbers.jsonl", prompt=["b"], solution=[2])
    with pytest.raises(ValueError, match=r"Expected column 'solution' of one type .*int64.* in .*numbers\.jsonl'"):
        make_prompts(tmp_path, **MATH | {"datasets": [{"path": texts}, {"path": numbers}]})


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(ValueError, match=r"broken\.jsonl', split 'train', got .*(JSON|parse)"):
        make_prompts(tmp_path, **MATH | {"dataset_name": str(tmp_path / "broken.jsonl")})


def test_evaluation_on_what_is_trained_on_is_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path, prompt=[f"p{i}" for i in range(40)], solution=["1"] * 40)
    Dataset.from_json(file).save_to_disk(tmp_path / "one")
    same = MATH | {"do_eval": True}
    for name in (file, str(tmp_path / "one")):
        with pytest.raises(ValueError, match=r"recipe\.yaml: Expected dataset_test_split='train' of .*='test'"):
            make_prompts(tmp_path, **same | {"dataset_name": name})
        with pytest.raises(ValueError, match=r"recipe\.yaml: Expected dataset_test_split to name rows .*in both"):
            make_prompts(tmp_path, **same | {"dataset_name": name, "dataset_test_split": "train"})
        with pytest.raises(ValueError, match=r"recipe\.yaml: Expected eval_datasets to name rows .*in both"):
            make_prompts(tmp_path, **same | {"dataset_name": name, "eval_datasets": [{"path": name}]})


def test_a_share_that_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    file = write_rows(tmp_path, prompt=[f"p{i % 100}" for i in range(200)], solution=["1"] * 200)
    fields = MATH | {
        "do_eval": True,
        "dataset_name": file,
        "eval_share": 0.25,
        "eval_limit": 0,
        "prompt_format": "text",
    }
    trained, evaluated = make_prompts(tmp_path, **fields)
    assert evaluated is not None
    assert len(trained) + len(evaluated) == 200
    assert 25 <= len(evaluated) <= 75
    assert not set(evaluated["prompt"]) & set(trained["prompt"])
    other = make_prompts(tmp_path, **fields | {"seed": 1})[1]
    assert other is not None
    assert set(other["prompt"]) != set(evaluated["prompt"])


def test_long_prompts_are_cut_with_one_warning_that_counts_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_rows(tmp_path, prompt=["a" * 2048, "b" * 2049, "c" * 9000], solution=["1"] * 3)
    with caplog.at_level(logging.WARNING, logger="maxent_grpo.pipeline.data.prompts"):
        train, _ = make_prompts(tmp_path, **MATH | {"dataset_name": file, "max_prompt_chars": None})
    assert [len(row["prompt"][-1]["content"]) for row in train] == [MAX_PROMPT_CHARS] * 3
    (warning,) = [
        record.getMessage() for record in caplog.records if record.name == "maxent_grpo.pipeline.data.prompts"
    ]
    assert warning == "2 of 3 prompts are longer than max_prompt_chars=2048 and were cut."


def test_the_warning_of_long_prompts_is_one_for_all_datasets_and_ranks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = write_rows(tmp_path, prompt=["a" * 2049, "b"], solution=["1"] * 2)
    other = write_rows(tmp_path, "other.jsonl", prompt=["c" * 2049], solution=["1"])
    both = {"dataset_name": long, "do_eval": True, "eval_datasets": [{"path": other}], "max_prompt_chars": 2048}
    run = parse_run(["--config", str(write_recipe(tmp_path, **MATH | both))])
    for rank in (0, 1):
        args = SimpleNamespace(do_eval=True, seed=0, process_index=rank)
        load_prompts(dataclasses.replace(run, training=args))  # type: ignore[arg-type]
    messages = [
        record.getMessage() for record in caplog.records if record.name == "maxent_grpo.pipeline.data.prompts"
    ]
    assert messages == ["2 of 3 prompts are longer than max_prompt_chars=2048 and were cut."]


def test_evaluation_is_on_a_seeded_sample_of_prompts_that_are_never_trained_on(tmp_path: Path) -> None:
    trained, evaluated = make_prompts(tmp_path, eval_limit=16)
    again = make_prompts(tmp_path, eval_limit=16)[1]
    other = make_prompts(tmp_path, eval_limit=16, seed=1)[1]
    assert evaluated is not None
    assert again is not None
    assert other is not None
    assert len(evaluated) == 16
    assert evaluated["prompt"] == again["prompt"] != other["prompt"]
    assert not set(evaluated["prompt"]) & set(trained["prompt"])


def test_a_reward_by_dotted_path_sees_all_columns(tmp_path: Path) -> None:
    file = write_rows(tmp_path, prompt=["x"], solution=["1"], hint=["y"])
    named, _ = make_prompts(tmp_path, **MATH | {"dataset_name": file})
    dotted, _ = make_prompts(
        tmp_path, **MATH | {"dataset_name": file, "reward_funcs": ["maxent_grpo.pipeline.rewards.answer_format"]}
    )
    assert set(named.column_names) == {"prompt", "solution"}
    assert set(dotted.column_names) == {"prompt", "solution", "hint"}


def test_a_prompt_of_which_the_tokenizer_knows_nothing_is_refused() -> None:
    tokenizer = build_tokenizer()
    known = Dataset.from_dict({"prompt": ["1 2 3 = 6"] * 1001})
    expect_tokens(known, tokenizer)
    with pytest.raises(ValueError, match="a token, got prompt='Ω'"):
        expect_tokens(Dataset.from_dict({"prompt": [*known["prompt"], "Ω"]}), tokenizer)
    expect_tokens(Dataset.from_dict({"prompt": [[{"role": "user", "content": "Ω"}]]}), tokenizer)
