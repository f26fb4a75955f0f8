"""A run through TRL's trainer and our recipe, to show that it ends where the plain loop does."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from transformers import PreTrainedModel

from maxent_grpo.pipeline.tiny.storage import load_checkpoint

ROOT = Path(__file__).parents[2]
RECIPE = "examples/recipes/SmolLM2-135M-Instruct/maxent/config_geography.yaml"


def train(
    start: Path, folder: Path, *, task: str, seed: int, rate: float, updates: int, completions: int
) -> tuple[PreTrainedModel, list[float]]:
    """Return the trained model and the mean reward of each update.

    Args:
        start: the checkpoint to begin with.
        folder: begun anew, and gone at the end.
        task: of the catalog.
        completions: of an update.
    """
    shutil.rmtree(folder, ignore_errors=True)
    settings = {
        "model_name_or_path": start,
        "dataset_name": f"task:{task}",
        "learning_rate": rate,
        "seed": seed,
        "per_device_train_batch_size": completions,
        "max_steps": updates,
        "save_steps": updates,
        "output_dir": folder,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "examples/train.py", "--config", RECIPE, *flags], cwd=ROOT, check=True)
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    model = load_checkpoint(folder)
    shutil.rmtree(folder)
    return model, [entry["reward"] for entry in log if "reward" in entry]
