"""What SmolLM2-135M-Instruct is asked, how large the runs are, and what counts as the same answer."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.pretrained import boxed, thoughts
from benchmarks.study.tasks import load_problems as load_toy_problems
from maxent_grpo import answer_keys
from maxent_grpo.pipeline.key_functions import name_modes
from maxent_grpo.pipeline.starts import make_once, make_start
from maxent_grpo.pipeline.tasks import geography
from maxent_grpo.pipeline.tasks.catalog import split_problems
from maxent_grpo.pipeline.tiny.sampling import Samples, Task
from maxent_grpo.pipeline.tiny.storage import load_checkpoint, save_checkpoint
from maxent_grpo.pipeline.tiny.warm_start import build_skewed_sampler, warm_start

START = "smollm2-135m"
VALIDATED, TESTED = 40, 160
"""Held-out problems that learning rates are chosen by, and, of the Countdown problems, those that are tested on."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cuda":
    torch.set_float32_matmul_precision("high")
Sides = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Sizes:
    """How large a run is.

    Attributes:
        taught: steps of supervised learning before it, of so many answers each.
        measured_at: sampling temperatures of the frontier.
        drawn: samples per prompt at each of them; at temperature 1 `drawn_most`.
        save_every: updates between saved states.
    """

    updates: int = 60
    prompts: int = 8
    samples: int = 8
    max_new_tokens: int = 10
    taught: tuple[int, int] = (0, 0)
    measured_at: tuple[float, ...] = (0.2, 0.6, 1.0, 1.3)
    drawn: int = 16
    drawn_most: int = 64
    save_every: int = 20


@dataclass(frozen=True)
class Question:
    """A task as the pretrained model sees it.

    Attributes:
        list_sides: returns the problems to train on, to choose rates by and to test on.
        read_answer: returns the part of a text that is judged.
        by_mode: whether a right answer has several spellings, which the verifier knows to be the same.
        write: makes a whole completion of a right answer, where the model is taught the form.
    """

    task: Task
    list_sides: Callable[[], Sides]
    read_answer: Callable[[str], str]
    by_mode: bool
    sizes: Sizes = Sizes()
    write: Callable[[str, random.Random], str] = lambda answer, rng: answer

    def name_answers(self, samples: Samples) -> Tensor:
        """Return integers [N], equal for the same answer, whatever stands before it."""
        answers = [self.read_answer(text) for text in samples.texts]
        return answer_keys(name_modes(samples.verdicts, answers) if self.by_mode else answers)


@cache
def split_known(name: str) -> Sides:
    """Return the problems of a task of the catalog by their use; those on a country have one use."""
    sides = split_problems(name)
    return {"train": sides.train, "validation": sides.held_out[:VALIDATED], "test": sides.held_out[VALIDATED:]}


def split_countdown() -> Sides:
    """Return the problems of the toy study by their use, fewer of them to test on."""
    problems = load_toy_problems("countdown")
    return {
        "train": problems.train,
        "validation": problems.validation[:VALIDATED],
        "test": problems.test[:TESTED],
    }


GEOGRAPHY = Task(prompt=geography.prompt, verify=geography.verify)
REASONED = Sizes(updates=120, prompts=24, max_new_tokens=96, taught=(200, 64), save_every=1000)
QUESTIONS = {
    "name-one": Question(GEOGRAPHY, partial(split_known, "name-one"), geography.fold, by_mode=True),
    "capitals": Question(GEOGRAPHY, partial(split_known, "capitals"), geography.fold, by_mode=True),
    "countdown": Question(
        Task(prompt=thoughts.prompt, verify=thoughts.verify),
        split_countdown,
        thoughts.read_answer,
        by_mode=False,
        sizes=REASONED,
        write=thoughts.think,
    ),
    "countdown-boxed": Question(
        Task(prompt=boxed.prompt, verify=boxed.verify),
        partial(split_known, "countdown"),
        str.strip,
        by_mode=True,
        sizes=replace(REASONED, max_new_tokens=16),
        write=boxed.write,
    ),
}
ON_CPU = ("name-one", "capitals")
"""What two cores can run; teaching the model a form takes a GPU."""


def load_start(root: Path, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model that a task's runs start from and its tokenizer, made in a folder if they are not there."""
    folder = make_task_start(root, name)
    return load_checkpoint(folder).to(DEVICE), _load_tokenizer(folder)


def make_task_start(root: Path, name: str) -> Path:
    """Return the folder of the model that a task's runs start from, made now if it is not there."""
    folder, question = Path(make_start(START, root)), QUESTIONS[name]
    if question.sizes.taught[0]:
        folder = Path(make_once(partial(teach, question, folder), root / f"{START}-{name}"))
    return folder


def teach(question: Question, start: Path, folder: Path) -> None:
    """Save in a folder what a model is after it was taught the form of an answer, and a skewed choice of modes."""
    model, tokenizer = load_checkpoint(start).to(DEVICE), _load_tokenizer(start)
    pairs = build_skewed_sampler(question.task, question.list_sides()["train"], complete=question.write)
    steps, batch = question.sizes.taught
    torch.manual_seed(0)
    for _ in warm_start(model, tokenizer, pairs, steps=steps, batch_size=batch, learning_rate=1e-4):
        pass
    save_checkpoint(model, tokenizer, folder)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder, padding_side="left")
