"""What SmolLM2-135M-Instruct is asked, how it is loaded, and what counts as the same answer."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo import answer_keys
from maxent_grpo.pipeline.key_functions import name_modes
from maxent_grpo.pipeline.starts import make_start
from maxent_grpo.pipeline.tasks import geography
from maxent_grpo.pipeline.tasks.catalog import split_problems
from maxent_grpo.pipeline.tasks.splits import Split
from maxent_grpo.pipeline.tiny.sampling import Samples, Task
from maxent_grpo.pipeline.tiny.storage import load_checkpoint

START = "smollm2-135m"
TASKS = ("name-one", "capitals")
TASK = Task(prompt=geography.prompt, verify=geography.verify)
VALIDATED = 40
"""Held-out problems that learning rates are chosen by; the others are for testing."""


def load_start(root: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the pretrained model and its tokenizer, made in a folder if they are not there."""
    folder = make_start(START, root)
    return load_checkpoint(Path(folder)), AutoTokenizer.from_pretrained(folder, padding_side="left")


@cache
def load_problems(task: str) -> Split[Any]:
    """Return the problems of a task, the held-out ones with those for choosing rates first."""
    return split_problems(task)


def name_answers(samples: Samples) -> Tensor:
    """Return integers [N], equal for the same answer: a right one's place, a wrong one's name without its case."""
    return answer_keys(name_modes(samples.verdicts, [geography.read_name(text) for text in samples.texts]))


def list_held_out(task: str) -> dict[str, Sequence[Any]]:
    """Return the problems that are not trained on, by their use."""
    held_out = load_problems(task).held_out
    return {"validation": held_out[:VALIDATED], "test": held_out[VALIDATED:]}
