"""What a run is made with and on, noted in its folder by the job itself: it may be reported elsewhere, or later.

python -m benchmarks.diversity.machine runs/diversity/Qwen2.5-0.5B-Instruct/seed0/grpo
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import torch

NOTE = "machine.json"


def machine() -> dict[str, str]:
    """Return the versions and the hardware here."""
    return {"versions": versions("torch", "transformers", "trl", "accelerate"), "hardware": hardware()}


def versions(*packages: str) -> str:
    """Return packages with their versions."""
    return ", ".join(f"{name} {version(name)}" for name in packages)


def commit() -> str | None:
    """Return the commit of this code, or None where there is no repository."""
    if shutil.which("git") is None:
        return None
    command, here = ["git", "rev-parse", "--short=10", "HEAD"], Path(__file__).parent
    return subprocess.run(command, cwd=here, capture_output=True, text=True, check=False).stdout.strip() or None


def hardware() -> str:
    """Return the GPUs and the cores."""
    gpus = Counter(torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count()))
    named = [f"{count} × {name}" for name, count in gpus.items()]
    return ", ".join([*named, f"{os.cpu_count()} CPU cores, {platform.machine()}"])


def note(folder: Path) -> None:
    """Note this machine in the folder of a run, beside those that the run was on before it was requeued."""
    known, here = noted(folder), machine()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOTE).write_text(json.dumps([*known, *([] if here in known else [here])], indent=1) + "\n")


def noted(folder: Path) -> list[dict[str, str]]:
    """Return the machines that a run was on; none where nothing was noted."""
    file = folder / NOTE
    return json.loads(file.read_text()) if file.exists() else []


if __name__ == "__main__":
    note(Path(sys.argv[1]))
