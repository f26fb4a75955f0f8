"""The README's Python runs as written, and its figures are those of the committed JSON.

The TRL example, which needs a hub, has its own tests.
"""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_the_training_loop_raises_the_reward() -> None:
    (loop,) = [block for block in BLOCKS if "model.generate" in block]
    seen: list[float] = []
    exec(
        compile(
            loop.replace("    logits =", "    seen.append(rewards.mean().item())\n    logits ="), "README.md", "exec"
        ),
        {"seen": seen},
    )
    assert len(seen) == 30
    assert sum(seen[-5:]) / 5 > sum(seen[:5]) / 5 + 0.1


def test_the_pure_functions_give_the_loss_by_hand() -> None:
    (functions,) = [block for block in BLOCKS if "listwise_q(" in block]
    names: dict[str, torch.Tensor] = {}
    exec(compile(functions, "README.md", "exec"), names)
    torch.testing.assert_close(names["weights"].sum(), torch.tensor(1.0))
    torch.testing.assert_close(names["loss"], torch.tensor(5 * 0.7))


def test_its_tables_are_those_of_the_committed_results() -> None:
    spec = importlib.util.spec_from_file_location("update_readme", ROOT / "docs" / "tools" / "update_readme.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    update_readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update_readme)
    assert update_readme.update_sections(README) == README
    with pytest.raises(ValueError, match="section 'train' once, got them 0 times"):
        update_readme.update_sections("")
