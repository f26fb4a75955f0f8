"""The tiny recipe with other fields, as a file of its own, and rewards of a user's own."""

from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

TINY = Path(__file__).parents[2] / "examples/recipes/tiny-cpu/grpo/config_countdown.yaml"
FIELDS = yaml.safe_load(TINY.read_text()) | {"task": "maxent", "loss_type": None, "scale_rewards": None, "beta": None}

MATH = {"dataset_name": None, "prompt_format": "chat", "reward_funcs": ["pure_accuracy_math"], "do_eval": False}
"""Fields for a local dataset of mathematics."""

SHORT = ["--max_steps", "6", "--save_steps", "2", "--per_device_train_batch_size", "16", "--eval_limit", "4"]
SHORT += ["--per_device_eval_batch_size", "32"]
"""Flags for a run of seconds."""


def write_recipe(folder: Path, **fields: Any) -> Path:
    """Return a recipe that trains the tiny model by our method, with other fields; None takes one out."""
    settings = FIELDS | {"output_dir": str(folder / "run")} | fields
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({name: value for name, value in settings.items() if value is not None}))
    return file


def write_rows(folder: Path, name: str = "rows.jsonl", **columns: list[Any]) -> str:
    """Return a local dataset of these columns."""
    file = folder / name
    Dataset.from_dict(columns).to_json(file)
    return str(file)


def write_rewards(folder: Path) -> list[str]:
    """Write rewards into files that are named like modules of ours; return their dotted paths from that folder."""
    names = ("rewards", "tasks", "train", "evaluation")
    for name in names:
        text = "def score(completions, **columns):\n    return [len(text) / 8 for text in completions]\n"
        (folder / f"{name}.py").write_text(text)
    return [f"{name}.score" for name in names]
