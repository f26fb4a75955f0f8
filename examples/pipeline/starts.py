"""Models that are made on the spot, for recipes that need no network: names that `model_name_or_path` may have.

`tiny-countdown` is the demo's model after its warm start: 0.3 million parameters of the Qwen2 architecture, taught
by supervised learning to write Countdown expressions of which a quarter is right. It takes half a minute, once.
`tiny-served` is the same with heads of 32 numbers, the least that vLLM can serve on a CPU, and a shorter warm start.
`smollm2-135m` is a real pretrained model, SmolLM2-135M-Instruct, dequantized from what a package of PyPI brings.

python -m maxent_grpo.pipeline.starts tiny-served runs/rehearsal   # makes it in a folder, if it is not there
python -m maxent_grpo.pipeline.starts path/to/model.gguf runs      # the model of any GGUF file, in runs/model
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from maxent_grpo._secrets import hide_secrets
from maxent_grpo.pipeline.dequantize import dequantize, make_smollm2
from maxent_grpo.pipeline.tasks.catalog import split_problems
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.storage import save_checkpoint
from maxent_grpo.pipeline.tiny.warm_start import build_skewed_sampler, warm_start
from maxent_grpo.pipeline.tiny.wide_countdown import TASK, TOKENIZER

WARM_STEPS = 300
HIDDEN = {"tiny-countdown": 96, "tiny-served": 128}
"""Width of each start, which four heads share."""
SHAPES = Path(__file__).parent / "model_shapes.json"
"""Configurations of models of the Hub, for what is said of them without a network."""


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


def build_tiny_config(name: str) -> Any:
    """Return the configuration of a tiny start."""
    return build_model(TOKENIZER, hidden_size=HIDDEN[name]).config


def read_shape(name: str) -> Any:
    """Return the configuration of a model of the Hub from our table."""
    return AutoConfig.for_model(**json.loads(SHAPES.read_text())[name])


@dataclass(frozen=True)
class Start:
    """A model that is made on the spot.

    Attributes:
        make: makes it in a folder.
        build_config: returns its configuration, without its weights.
    """

    make: Callable[[Path], None]
    build_config: Callable[[], Any]


STARTS = {
    "tiny-countdown": Start(make_tiny_countdown, partial(build_tiny_config, "tiny-countdown")),
    "tiny-served": Start(make_server_start, partial(build_tiny_config, "tiny-served")),
    "smollm2-135m": Start(make_smollm2, partial(read_shape, "HuggingFaceTB/SmolLM2-135M-Instruct")),
}


def make_start(name: str, root: Path) -> str:
    """Return a model's name or, for one of `STARTS`, the folder under root where it is, made now if it is not.

    Raises:
        ValueError: if what it is made of is missing.
    """
    return make_once(STARTS[name].make, root / name) if name in STARTS else name


def make_once(make: Callable[[Path], None], folder: Path) -> str:
    """Make a model in a folder, unless it is there; a kill leaves a whole one or none.

    Raises:
        ValueError: if the folder holds something else, or what the model is made of is missing.
    """
    if not (folder / "config.json").exists():
        if folder.exists():
            raise ValueError(f"Expected a model in {folder}, or no such folder, got one without a config.json.")
        unfinished = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        make(unfinished)
        unfinished.rename(folder)
    return str(folder)


def main(argv: list[str]) -> int:
    """Make a start, by its name or from a GGUF file, and print its folder; return the exit code."""
    if len(argv) != 2 or not (argv[0] in STARTS or argv[0].endswith(".gguf")):
        expected = f"Expected one of {', '.join(STARTS)}, or a .gguf file, and a folder, got {argv}."
        print(hide_secrets(expected), file=sys.stderr)
        return 2
    name, root = argv[0], Path(argv[1])
    try:
        if name in STARTS:
            print(make_start(name, root))
        else:
            print(make_once(partial(dequantize, Path(name)), root / Path(name).stem))
    except ValueError as error:
        print(f"maxent_grpo.pipeline.starts: {hide_secrets(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
