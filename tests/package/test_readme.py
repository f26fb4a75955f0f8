"""The README's Python runs as written, and its figures are those of the committed JSON.

The TRL example, which needs a hub, has its own tests.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch

from maxent_grpo import MaxEntConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_it_is_read_in_one_sitting() -> None:
    assert len(README.splitlines()) <= 120


def test_the_loop_raises_the_reward_once_it_is_told_how_to_sample_verify_and_score() -> None:
    (loop,) = [block for block in BLOCKS if "for prompts in loader" in block]
    spec = importlib.util.spec_from_file_location("minimal_loop", ROOT / "examples" / "minimal_loop.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    minimal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(minimal)
    torch.manual_seed(0)
    model, history = minimal.build_model(), []

    def verify(numbers: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rewards = minimal.score_completions(ids, mask, numbers.repeat_interleave(8))
        history.append(rewards.mean().item())
        return rewards

    def encode(numbers: torch.Tensor) -> torch.Tensor:
        return minimal.encode_prompts(numbers.repeat_interleave(8))

    names = {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-2),
        "loader": [torch.randint(1, 10, (32,)) for _ in range(40)],
        "sample": lambda model, numbers, size: minimal.sample_completions(model, encode(numbers)),
        "verify": verify,
        "score": lambda model, numbers, ids: minimal.score_tokens(model, encode(numbers), ids),
    }
    exec(compile(loop.replace("max_length=512", "max_length=4"), "README.md", "exec"), names)
    assert len(history) == 40
    assert sum(history[-5:]) / 5 > sum(history[:5]) / 5 + 0.05


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
