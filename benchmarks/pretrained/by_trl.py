"""A run through TRL's trainer and our recipe, to show that it ends where the plain loop does."""

import json
import subprocess
import sys
import time
from pathlib import Path

from transformers import PreTrainedModel

from benchmarks.pretrained.tasks import Sizes
from maxent_grpo.pipeline.tiny.jobs import Stopped
from maxent_grpo.pipeline.tiny.storage import load_checkpoint

ROOT = Path(__file__).parents[2]
RECIPE = "examples/recipes/SmolLM2-135M-Instruct/maxent/config_geography.yaml"


def train(
    start: Path, folder: Path, stopped: Stopped, *, task: str, sizes: Sizes, seed: int, rate: float
) -> tuple[PreTrainedModel, list[float]] | None:
    """Return the trained model and the mean reward of each update; None if it was stopped, with its checkpoint kept.

    Args:
        start: the checkpoint to begin with.
        folder: where it goes; a run whose checkpoint is there goes on.
        stopped: asked every second.
        task: of the catalog.
        sizes: how many updates of how many completions, and how often the run is saved.
    """
    settings = {
        "model_name_or_path": start,
        "dataset_name": f"task:{task}",
        "learning_rate": rate,
        "seed": seed,
        "per_device_train_batch_size": sizes.prompts * sizes.samples,
        "max_steps": sizes.updates,
        "save_steps": sizes.save_every,
        "output_dir": folder,
    }
    if any(folder.glob("checkpoint-*")):
        settings["resume_from_checkpoint"] = "last"
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "examples/train.py", "--config", RECIPE, *flags]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while process.poll() is None:
            if stopped():
                process.terminate()
                return None
            time.sleep(1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return load_checkpoint(folder), [entry["reward"] for entry in log if "reward" in entry]
