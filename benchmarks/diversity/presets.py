"""The tasks and sizes of a study."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import ModuleType
from typing import Any

from transformers import PreTrainedTokenizerBase

from benchmarks.diversity import noted
from maxent_grpo.pipeline.tasks import countdown, graph_coloring
from maxent_grpo.pipeline.tasks.splits import split
from maxent_grpo.pipeline.tiny.model import build_tokenizer
from maxent_grpo.pipeline.tiny.sampling import Task


@dataclass(frozen=True)
class Family:
    """A task whose right answers can all be listed: its problems, and how they are asked and judged.

    Attributes:
        module: of `prompt`, `verify`, `solutions` and `random_answer`.
        pool: all problems.
        control_pool: problems of another kind, for comparison.
        words: tokens beside numbers and signs.
        largest_number: that is a token.
        max_new_tokens: the generation limit.
        ends: whether the listed texts are whole answers; otherwise anything may follow them.
        finish: makes a whole answer of a listed text, for the warm start.
        answer: the part of a text that is judged.
    """

    module: ModuleType
    pool: Callable[[], list[Any]]
    control_pool: Callable[[], list[Any]]
    words: tuple[str, ...] = ()
    largest_number: int = 60
    max_new_tokens: int = 8
    ends: bool = True
    finish: Callable[[str, random.Random], str] = lambda text, rng: text
    answer: Callable[[str], str] = str.strip

    @property
    def task(self) -> Task:
        """How the loop sees it."""
        return Task(prompt=self.module.prompt, verify=self.module.verify)

    @property
    def prompt(self) -> Callable[[Any], str]:
        """How a problem is asked."""
        return self.module.prompt

    def solutions(self, problem: Any) -> dict[str, tuple[str, ...]]:
        """Return the texts of every mode."""
        return self.module.solutions(problem)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of its prompts and answers."""
        return build_tokenizer(self.largest_number, self.words)


def _countdown(
    rules: countdown.Rules, control: countdown.Rules | None = None, module: ModuleType = countdown, **changes: Any
) -> Family:
    control = control or replace(rules, min_modes=1, max_modes=1)
    return Family(
        module,
        pool=lambda: countdown.problems(rules),
        control_pool=lambda: countdown.problems(control),
        **changes,
    )


FAMILIES = {
    "countdown": _countdown(countdown.WIDE),
    "single": _countdown(replace(countdown.WIDE, min_modes=1, max_modes=1), countdown.WIDE),
    "noted": _countdown(
        countdown.WIDE,
        module=noted,
        max_new_tokens=11,
        ends=False,
        finish=noted.noted,
        answer=noted.answer,
    ),
    "countdown4": _countdown(countdown.MODEBENCH_4, max_new_tokens=12),
    "graph": Family(
        graph_coloring,
        pool=lambda: graph_coloring.problems(5, sample=8000),
        control_pool=lambda: graph_coloring.problems(5, sample=400, min_modes=1, max_modes=1),
        words=("R", "G", "B", "?"),
        max_new_tokens=4,
    ),
}


@dataclass(frozen=True)
class Preset:
    """The sizes of a study.

    Attributes:
        level: the mean@8 at which methods are compared; learning rates are chosen at `tuning_margin` above it.
        rates_of: a preset whose committed learning rates are taken over instead of tuning.
        fresh: whether it is tested on other problems than the same task's presets are tested or choose on.
    """

    family_name: str = "countdown"
    hidden_size: int = 96
    layers: int = 3
    warm_steps: int = 400
    updates: int = 300
    prompts: int = 32
    samples: int = 8
    learning_rates: tuple[float, ...] = (2.5e-5, 5e-5, 1e-4, 2e-4)
    tuning_seeds: tuple[int, ...] = (100,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    eval_every: int = 60
    validation: int = 256
    test: int = 512
    level: float = 0.6
    tuning_margin: float = 0.03
    rates_of: str | None = None
    fresh: bool = False
    temperatures: tuple[float, ...] = field(default=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2))

    @property
    def family(self) -> Family:
        """The task."""
        return FAMILIES[self.family_name]


GRAPH = Preset(
    family_name="graph", warm_steps=300, updates=240, learning_rates=(1e-4, 2e-4), eval_every=80, level=0.4
)
PRESETS = {
    "cpu": Preset(),
    "confirm": Preset(seeds=(5, 6, 7, 8, 9), rates_of="cpu", fresh=True),
    "smoke": Preset(updates=60, learning_rates=(1e-4,), seeds=(0,), eval_every=30, test=256, level=0.5),
    "graph": GRAPH,
    "graph_confirm": replace(GRAPH, seeds=(5, 6, 7, 8, 9), rates_of="graph", fresh=True),
    "graph_long": replace(GRAPH, updates=480, rates_of="graph"),
    "single": Preset(family_name="single", learning_rates=(5e-5, 1e-4)),
    "noted": Preset(family_name="noted", rates_of="cpu"),
    "hard": Preset(warm_steps=250, level=0.4),
    "small": Preset(hidden_size=64, layers=2, learning_rates=(5e-5, 1e-4, 2e-4), level=0.5),
    "large": Preset(hidden_size=160, layers=4, learning_rates=(5e-5, 1e-4), seeds=(0, 1, 2)),
    "countdown4": Preset(
        family_name="countdown4", warm_steps=2000, learning_rates=(5e-5, 1e-4), level=0.1, tuning_margin=0.01
    ),
    "h200": Preset(
        family_name="countdown4",
        hidden_size=512,
        layers=8,
        warm_steps=3000,
        prompts=128,
        samples=16,
        level=0.5,
    ),
}


@dataclass(frozen=True)
class Problems:
    """Problems by their use; no problem has two uses. Control problems are of another pool, and never trained on."""

    train: Sequence[Any]
    validation: Sequence[Any]
    test: Sequence[Any]
    control: Sequence[Any]


@cache
def problems_of(preset: Preset) -> Problems:
    """Return the problems of a preset."""
    family = preset.family
    sides = split(family.pool(), held_out=preset.test + preset.validation, seed=0)
    train, held_out = sides.train, sides.held_out
    if preset.fresh:
        others = split(train, held_out=len(held_out), seed=1)
        train, held_out = [*others.train, *held_out], others.held_out
    control = split(family.control_pool(), held_out=preset.validation, seed=0)
    return Problems(train, held_out[preset.test :], held_out[: preset.test], control.held_out)


def skewed_pairs(family: Family, problems: Sequence[Any]) -> Callable[[random.Random], tuple[str, str]]:
    """Return a sampler of (prompt, answer): each mode half as likely as the one before, written in any way."""
    solutions = [family.solutions(problem) for problem in problems]

    def pair(rng: random.Random) -> tuple[str, str]:
        which = rng.randrange(len(problems))
        modes = sorted(solutions[which])
        rank = next((rank for rank in range(len(modes) - 1) if rng.random() < 0.5), len(modes) - 1)
        return family.prompt(problems[which]), family.finish(rng.choice(solutions[which][modes[rank]]), rng)

    return pair
