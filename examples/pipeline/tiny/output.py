"""The output folder of a run: begun afresh or gone on with, and nothing removed that the run has not written."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maxent_grpo.pipeline.files import write_text

SETTINGS = "config.json"


def start_run(folder: Path, settings: dict[str, Any], *, files: Iterable[str]) -> None:
    """Write the settings into a new or empty folder, or into one of an earlier run, which is removed.

    Args:
        folder: where the run goes.
        settings: its options; `seed` and `seeds` among them say which folders seed<int> it makes.
        files: the names of what it writes beside them.

    Raises:
        SystemExit: if the folder holds anything but an earlier run.
    """
    before = _read_settings(folder, set(settings))
    if before is not None:
        for name in (*(f"seed{seed}" for seed in range(before["seed"], before["seed"] + before["seeds"])), *files):
            _remove(folder / name)
    elif folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise SystemExit(f"Expected a new or empty folder or an earlier run of this demo, got --output {folder}.")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")


def expect_same_run(folder: Path, settings: dict[str, Any]) -> None:
    """Check that the folder holds a run with these settings.

    Raises:
        SystemExit: naming the option that differs, or that there is no run.
    """
    before = _read_settings(folder, set(settings))
    if before is None:
        raise SystemExit(f"Expected a run to resume in {folder}/, got no {SETTINGS} of this demo's there.")
    for name, value in before.items():
        if settings[name] != value:
            option = name.replace("_", "-")
            raise SystemExit(f"Expected --{option} {value} as in the run to resume, got {settings[name]}.")


def _read_settings(folder: Path, names: set[str]) -> dict[str, Any] | None:
    """Return the settings of the run in a folder, None if it holds none: other programs write a config.json too."""
    try:
        settings = json.loads((folder / SETTINGS).read_text())
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) and settings.keys() == names else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
