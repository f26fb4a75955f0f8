"""What a study's runs were made with and by, kept beside them: a report may be made elsewhere, or later."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.diversity.arms import CORE
from benchmarks.diversity.machine import commit, hardware, versions
from benchmarks.diversity.presets import PRESETS

RECORD = "study.json"


def record(root: Path, preset_name: str, arms: Sequence[str]) -> None:
    """Note in the folder of a study with what these arms are about to be run.

    Raises:
        ValueError: if the runs there are of other sizes: they and the new ones could not be compared.
    """
    known = recorded(root)
    preset = json.loads(json.dumps(asdict(PRESETS[preset_name])))
    before = known.get("preset", {})  # of an older version it may lack some sizes, or have some that are no more
    changed = [name for name, value in preset.items() if before.get(name, value) != value]
    if changed:
        old, new = ({name: each.get(name) for name in changed} for each in (known["preset"], preset))
        raise ValueError(f"Expected runs of preset {preset_name!r} as it is now, {new}, in {root}, got {old}.")
    flags = ([] if preset_name == "cpu" else ["--preset", preset_name]) + (
        [] if set(arms) == set(CORE) else ["--arms", *arms]
    )
    command = f'make study ARGS="{" ".join(flags)}"' if flags else "make study"
    commands = known.get("commands", [])
    if command not in commands:
        commands = [*commands, command]
    root.mkdir(parents=True, exist_ok=True)
    made = {"versions": versions("torch", "transformers", "numpy", "scipy"), "hardware": hardware()}
    commits = [each for each in dict.fromkeys((*known.get("commits", []), commit())) if each]
    content = {"preset": preset, **made, "commands": commands, "commits": commits}
    (root / RECORD).write_text(json.dumps(content, indent=1) + "\n")


def recorded(root: Path) -> dict[str, Any]:
    """Return what was noted; nothing for runs from before there were notes."""
    file = root / RECORD
    return json.loads(file.read_text()) if file.exists() else {}
