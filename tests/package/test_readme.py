"""The README's Python runs as written, and its figures are those of the committed JSON.

The TRL example, which needs a hub, has its own tests.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from maxent_grpo import MaxEntConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_it_is_read_in_one_sitting() -> None:
    assert len(README.splitlines()) <= 120


@pytest.mark.slow
def test_the_training_loop_raises_the_reward() -> None:
    (loop,) = [block for block in BLOCKS if "model.generate" in block]
    rewards: list[float] = []
    names = {"record": lambda values: rewards.append(values.mean().item())}
    exec(compile(loop.replace("    logits =", "    record(rewards)\n    logits ="), "README.md", "exec"), names)
    assert len(rewards) == 30
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


def test_its_change_of_one_import_is_enough_for_trl() -> None:
    (block,) = [block for block in BLOCKS if "# before" in block]
    imports = "\n".join(line for line in block.splitlines() if line.startswith("from "))
    names: dict[str, Any] = {}
    exec(compile(imports, "README.md", "exec"), names)
    config = names["GRPOConfig"]("runs", num_generations=8, maxent_preset="diverse", use_cpu=True, bf16=False)
    assert names["GRPOTrainer"].__name__ == "MaxEntGRPOTrainer"
    assert config.maxent_config() == MaxEntConfig.diverse(max_length=config.max_completion_length)


def test_tables_are_those_of_the_committed_results() -> None:
    spec = importlib.util.spec_from_file_location("update_tables", ROOT / "docs" / "tools" / "update_tables.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    update_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update_tables)
    for name in update_tables.SECTIONS:
        assert update_tables.update_page(name) == (ROOT / name).read_text()
