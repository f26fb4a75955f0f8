"""What a run leaves on disk: metrics, a state to resume from, and a checkpoint that `from_pretrained` loads."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.pipeline.files import read_json_lines, write_folder, write_text, write_whole


class Log:
    """Metrics, a JSON line each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def rows(self) -> list[dict[str, Any]]:
        """Return what was logged."""
        return read_json_lines(self.file)

    def append(self, row: dict[str, Any]) -> None:
        """Log a row."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the other rows: those of updates that a resumed run makes again."""
        kept = [row for row in self.rows() if wanted(row)]
        write_text(self.file, "".join(json.dumps(row) + "\n" for row in kept))


def save_state(state: dict[str, Any], file: Path) -> None:
    """Save a state in one step: a kill leaves the former or the new one, never half of it."""
    write_whole(file, lambda place: torch.save(state, place))


def load_state(file: Path) -> dict[str, Any] | None:
    """Return a saved state, or None where there is none.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        state: dict[str, Any] | None = torch.load(file, weights_only=True) if file.exists() else None
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"Expected a whole state in {file}; delete it, and the method is trained anew.") from error
    return state


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model and tokenizer in the Hugging Face format, whole or not at all: `config.json` comes last."""

    def save_all(place: Path) -> None:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)

    folder.mkdir(parents=True, exist_ok=True)
    write_folder(folder, save_all, marker="config.json")


def load_checkpoint(folder: Path) -> PreTrainedModel:
    """Return the model of a checkpoint.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"Expected a whole checkpoint in {folder}/; delete its config.json to make it anew."
        ) from error
