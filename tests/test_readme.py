"""The README's Python runs as written; the TRL example, which needs a hub, has its own tests."""

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text()
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
