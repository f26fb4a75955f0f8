"""What a run leaves on disk: metrics, a state to resume from, and a checkpoint that `from_pretrained` loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase


class Log:
    """Metrics, a JSON line each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def rows(self) -> list[dict[str, Any]]:
        """Return what was logged."""
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def append(self, row: dict[str, Any]) -> None:
        """Log a row."""
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the other rows: those of updates that a resumed run makes again."""
        kept = [row for row in self.rows() if wanted(row)]
        self.file.write_text("".join(json.dumps(row) + "\n" for row in kept))


def save_state(state: dict[str, Any], file: Path) -> None:
    """Save a state in one step: a kill leaves the former or the new one, never half of it."""
    torch.save(state, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def load_state(file: Path) -> dict[str, Any] | None:
    """Return a saved state, or None where there is none."""
    return torch.load(file, weights_only=True) if file.exists() else None


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model and tokenizer in the Hugging Face format."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_checkpoint(folder: Path) -> PreTrainedModel:
    """Return the model of a checkpoint."""
    return AutoModelForCausalLM.from_pretrained(folder)
