"""The tasks of the study, with the sizes of their models and runs."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

from transformers import PreTrainedTokenizerBase

from benchmarks.study import noted
from maxent_grpo.pipeline.tasks import countdown, graph_coloring
from maxent_grpo.pipeline.tasks.splits import split
from maxent_grpo.pipeline.tiny.model import build_tokenizer
from maxent_grpo.pipeline.tiny.sampling import Task
from maxent_grpo.pipeline.tiny.warm_start import PairSampler, build_skewed_sampler

TEMPERATURES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.7, 2.0)
"""Sampling temperatures that a trained model is measured at, from nearly greedy on."""
TESTED, VALIDATED = 512, 256
"""Problems that a model is tested on, and that learning rates are chosen by."""


@dataclass(frozen=True)
class Family:
    """A task whose right answers can all be listed: its problems, and how they are asked and judged.

    Attributes:
        module: of `prompt`, `verify`, `solutions` and `random_answer`.
        list_problems: returns all problems.
        words: tokens beside numbers and signs.
        max_new_tokens: the generation limit.
        ends: whether the listed texts are whole answers; otherwise anything may follow them.
        complete: makes a whole answer of a listed text, for the warm start.
        read_answer: the part of a text that is judged.
    """

    module: ModuleType
    list_problems: Callable[[], list[Any]]
    words: tuple[str, ...] = ()
    max_new_tokens: int = 8
    ends: bool = True
    complete: Callable[[str, random.Random], str] = lambda text, rng: text
    read_answer: Callable[[str], str] = str.strip

    @property
    def task(self) -> Task:
        """How the loop sees it."""
        return Task(prompt=self.module.prompt, verify=self.module.verify)

    def list_solutions(self, problem: Any) -> dict[str, tuple[str, ...]]:
        """Return the texts of every mode."""
        return self.module.solutions(problem)

    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of its prompts and answers."""
        return build_tokenizer(words=self.words)

    def build_pair_sampler(self, problems: Sequence[Any]) -> PairSampler:
        """Return a sampler of the (prompt, answer) pairs that the warm start learns from."""
        return build_skewed_sampler(self.task, problems, self.list_solutions, complete=self.complete)


ONE_ANSWER = replace(countdown.WIDE, min_modes=1, max_modes=1)
COUNTDOWN_FAMILY = Family(countdown, lambda: countdown.problems(countdown.WIDE))
FAMILIES = {
    "countdown": COUNTDOWN_FAMILY,
    "recurring": COUNTDOWN_FAMILY,
    "graph": Family(
        graph_coloring,
        lambda: graph_coloring.problems(5, sample=8000),
        words=("R", "G", "B", "?"),
        max_new_tokens=4,
    ),
    "single": Family(countdown, lambda: countdown.problems(ONE_ANSWER)),
    "noted": Family(
        noted,
        lambda: countdown.problems(countdown.WIDE),
        max_new_tokens=11,
        ends=False,
        complete=noted.add_note,
        read_answer=noted.read_answer,
    ),
}


@dataclass(frozen=True)
class Sizes:
    """A task's model, its runs, and where methods are compared.

    Attributes:
        rates: two learning rates that every method is tried at first, a factor of two apart.
        bounds: the lowest and the highest rate that a method is tried at.
        level: the mean@8 at which methods are compared.
        levels: first and last mean@8 of the area under a frontier.
        recurring: how many problems are trained on, if not all: few come back often.
    """

    rates: tuple[float, ...]
    bounds: tuple[float, float]
    level: float
    levels: tuple[float, float]
    hidden_size: int = 96
    layers: int = 3
    warm_steps: int = 400
    updates: int = 300
    prompts: int = 32
    samples: int = 8
    recurring: int | None = None

    @property
    def training_sizes(self) -> tuple[int, ...]:
        """What a run depends on."""
        sizes = self.hidden_size, self.layers, self.warm_steps, self.updates, self.prompts, self.samples
        return sizes if self.recurring is None else (*sizes, self.recurring)


COUNTDOWN = Sizes(rates=(5e-5, 1e-4), bounds=(1.25e-5, 4e-4), level=0.6, levels=(0.45, 0.65))
SIZES = {
    "countdown": COUNTDOWN,
    "graph": Sizes(
        rates=(1e-4, 2e-4), bounds=(6.25e-6, 8e-4), level=0.4, levels=(0.3, 0.44), warm_steps=300, updates=240
    ),
    "single": replace(COUNTDOWN, level=0.3, levels=(0.2, 0.35)),
    "noted": COUNTDOWN,
    "recurring": replace(COUNTDOWN, level=0.5, levels=(0.45, 0.55), recurring=512),
}


@dataclass(frozen=True)
class Problems:
    """Problems by their use; no problem has two uses."""

    train: Sequence[Any]
    validation: Sequence[Any]
    test: Sequence[Any]


@cache
def load_problems(task: str, *, fresh: bool = False) -> Problems:
    """Return the problems of a task; fresh ones are tested on problems that no other stage tests or chooses on."""
    sides = split(FAMILIES[task].list_problems(), held_out=TESTED + VALIDATED, seed=0)
    train, held_out = sides.train, sides.held_out
    if fresh:
        again = split(train, held_out=len(held_out), seed=1)
        train, held_out = [*again.train, *held_out], again.held_out
    return Problems(train, held_out[TESTED:], held_out[:TESTED])
