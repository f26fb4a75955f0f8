"""The loop that shows the whole method: short, made of the public core alone, and it learns."""

import ast
import importlib.util
from pathlib import Path
from statistics import mean

import pytest

import maxent_grpo

FILE = Path(__file__).parents[2] / "examples/minimal_loop.py"


def test_it_is_short_and_takes_nothing_but_the_public_core() -> None:
    lines = FILE.read_text().splitlines()
    assert len(lines) <= 150
    imports = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.ImportFrom)]
    ours = {node.module: {name.name for name in node.names} for node in imports if "maxent_grpo" in str(node.module)}
    assert set(ours) == {"maxent_grpo"}
    assert {"listwise_q", "tempered_target", "maxent_weighted_nll"} <= ours["maxent_grpo"] <= set(maxent_grpo.__all__)


@pytest.mark.slow
def test_the_reward_rises() -> None:
    spec = importlib.util.spec_from_file_location("minimal_loop", FILE)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    minimal_loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(minimal_loop)
    rewards = minimal_loop.train(steps=64, kappa=1.0)
    assert len(rewards) == 64
    # 64 updates bring it to between 5 and 18 times as much, by how a processor rounds: samples are chaotic.
    assert mean(rewards[-10:]) > 3 * mean(rewards[:10])
