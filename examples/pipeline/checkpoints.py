"""The checkpoint that a run goes on from: the newest one that was written whole."""

import json
import logging
import re
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)


def find_checkpoint(args: Any) -> str | None:
    """Return the checkpoint to go on from: with `last`, the newest whole one if there is any.

    Raises:
        ValueError: if it is not there, or is not whole.
    """
    name = args.resume_from_checkpoint
    if name in (None, "false", "False"):
        return None
    if name not in ("last", "true", "True"):
        damage = find_damaged_file(Path(name))
        if damage is not None:
            raise ValueError(
                f"Expected a whole checkpoint, or last, got resume_from_checkpoint={name!r} without a readable "
                f"{damage}."
            )
        return str(name)
    for checkpoint in _list_checkpoints(Path(args.output_dir)):
        damage = find_damaged_file(checkpoint)
        if damage is None:
            return str(checkpoint)
        if args.process_index == 0:
            logger.warning("%s was not written whole, it has no readable %s: skipped.", checkpoint, damage)
    return None


def find_damaged_file(checkpoint: Path) -> str | None:
    """Return the name of a file that is missing from a checkpoint or cut off; None if it is whole.

    The trainer writes trainer_state.json last.
    """
    if not (checkpoint / "trainer_state.json").is_file():
        return "trainer_state.json"
    files = (file for file in sorted(checkpoint.rglob("*")) if file.is_file())
    return next((str(file.relative_to(checkpoint)) for file in files if not _is_readable(file)), None)


def _list_checkpoints(folder: Path) -> list[Path]:
    matches = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    steps = {path: int(match[1]) for path, match in matches.items() if match and path.is_dir()}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def _is_readable(file: Path) -> bool:
    """Return whether a file ends as its format demands; of other formats nothing is known."""
    if file.suffix in (".pt", ".pth", ".bin"):
        return zipfile.is_zipfile(file)
    try:
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
    except (ValueError, OSError, SafetensorError):
        return False
    return True
