"""Models that are made on the spot, for recipes that need no network: names that `model_name_or_path` may have.

`tiny-countdown` is the demo's model after its warm start: 0.3 million parameters of the Qwen2 architecture, taught
by supervised learning to write Countdown expressions of which a quarter is right. It takes half a minute, once.
`tiny-served` is the same with heads of 32 numbers, the least that vLLM can serve on a CPU, and a shorter warm start.

python -m maxent_grpo.pipeline.starts tiny-served runs/rehearsal  # makes it in a folder, if it is not there
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from maxent_grpo.pipeline.tasks.catalog import split_problems
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.storage import save_checkpoint
from maxent_grpo.pipeline.tiny.warm_start import build_skewed_sampler, warm_start
from maxent_grpo.pipeline.tiny.wide_countdown import TASK, TOKENIZER

WARM_STEPS = 300
HIDDEN = {"tiny-countdown": 96, "tiny-served": 128}
"""Width of each start, which four heads share."""


def make_tiny_countdown(folder: Path) -> None:
    """Make the demo's warm start with seed 0 in a folder."""
    teach_model("tiny-countdown", WARM_STEPS, folder)


def make_server_start(folder: Path) -> None:
    """Make a start that vLLM serves on a CPU, in two thirds of the time."""
    teach_model("tiny-served", 2 * WARM_STEPS // 3, folder)


def teach_model(name: str, steps: int, folder: Path) -> None:
    """Make a start with seed 0 in a folder, by so many steps of supervised learning."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that it is the same one on any machine of this kind
    model = build_model(TOKENIZER, hidden_size=HIDDEN[name])
    pairs = build_skewed_sampler(TASK, split_problems("countdown-wide").train)
    for _ in warm_start(model, TOKENIZER, pairs, steps=steps):
        pass
    torch.set_num_threads(threads)
    save_checkpoint(model, TOKENIZER, folder)


STARTS: dict[str, Callable[[Path], None]] = {
    "tiny-countdown": make_tiny_countdown,
    "tiny-served": make_server_start,
}


def build_start_config(name: str) -> Any:
    """Return the configuration of a model of `STARTS`, without its weights."""
    return build_model(TOKENIZER, hidden_size=HIDDEN[name]).config


def make_start(name: str, root: Path) -> str:
    """Return a model's name or, for one of `STARTS`, the folder under root where it is, made now if it is not."""
    if name not in STARTS:
        return name
    folder = root / name
    if not (folder / "config.json").exists():
        unfinished = folder.with_name(f"{name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        STARTS[name](unfinished)
        unfinished.rename(folder)  # a kill leaves a whole model or none
    return str(folder)


if __name__ == "__main__":
    print(make_start(sys.argv[1], Path(sys.argv[2])))
