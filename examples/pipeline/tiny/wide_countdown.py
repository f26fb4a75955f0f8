"""Countdown with the wide rules as the tiny model meets it: its task, its tokens, and what it is warmed up on."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tiny.model import build_tokenizer
from maxent_grpo.pipeline.tiny.sampling import Task

TASK = Task(prompt=countdown.prompt, verify=countdown.verify)
TOKENIZER = build_tokenizer()
NAME = "countdown-wide"
MAX_NEW_TOKENS = 8  # the longest answers, (20-19)*18 and its like, with the end token

PairSampler = Callable[[random.Random], tuple[str, str]]


def build_skewed_sampler(
    task: Task,
    problems: Sequence[Any],
    list_solutions: Callable[[Any], Mapping[str, Sequence[str]]] = countdown.solutions,
    *,
    complete: Callable[[str, random.Random], str] = lambda text, rng: text,
) -> PairSampler:
    """Return a sampler of (prompt, answer) that prefers some right answers, as text that people write does.

    Each mode of a problem is half as likely as the one before it, and is written in any of its ways.

    Args:
        task: how a problem becomes a prompt.
        problems: drawn uniformly.
        list_solutions: returns the texts of each mode of a problem.
        complete: makes a whole answer of such a text.
    """
    solutions = [list_solutions(problem) for problem in problems]

    def draw_pair(rng: random.Random) -> tuple[str, str]:
        which = rng.randrange(len(problems))
        modes = sorted(solutions[which])
        rank = next((rank for rank in range(len(modes) - 1) if rng.random() < 0.5), len(modes) - 1)
        answer = complete(rng.choice(solutions[which][modes[rank]]), rng)
        return task.prompt(problems[which]), answer

    return draw_pair
