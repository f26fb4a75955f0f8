"""Importing the package is cheap: torch, and nothing of the frameworks it adapts to."""

import importlib
import json
import subprocess
import sys

import pytest

import maxent_grpo
import maxent_grpo.pipeline

BUDGET = 0.2  # seconds on top of importing torch
FRAMEWORKS = ("triton", "transformers", "trl", "openrlhf", "verl", "deepspeed", "vllm", "scipy", "matplotlib")


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_brings_no_framework():
    program = f"import json, sys, maxent_grpo; print(json.dumps([m for m in {FRAMEWORKS} if m in sys.modules]))"
    assert json.loads(run(program)) == []


@pytest.mark.slow
def test_takes_a_fifth_of_a_second_more_than_torch_at_most():
    """Timed in fresh processes; the least of up to five is free of the machine's other work."""
    program = """
import time
import torch
start = time.perf_counter()
import maxent_grpo
print(time.perf_counter() - start)
"""
    assert any(float(run(program)) <= BUDGET for _ in range(5))


def test_everything_public_is_there():
    assert [name for name in maxent_grpo.__all__ if not hasattr(maxent_grpo, name)] == []


def test_the_pipeline_names_the_extra_that_brings_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in ("rich", "yaml", "openrlhf", "verl") else name
    )
    with pytest.raises(ImportError, match=r"Expected yaml, rich .*pip install 'maxent-grpo\[pipeline\]'"):
        importlib.reload(maxent_grpo.pipeline)


def test_reward_functions_of_another_trainer_do_without_what_training_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name == "openrlhf" else None)
    importlib.reload(maxent_grpo.pipeline)
