"""Countdown answers with a note behind them that says nothing, so that hardly two texts are equal: a test of keys.

An answer is an expression, a colon, and two numbers of no meaning. The verifier reads up to the colon. Unlike a chain
of thought the note comes after the answer and has no part in it.
"""

import random

from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict

prompt = countdown.prompt
MARK = ":"
NUMBERS = 60


def read_answer(text: str) -> str:
    """Return an answer without its note."""
    return text.split(MARK, maxsplit=1)[0].strip()


def add_note(text: str, rng: random.Random) -> str:
    """Return an answer with a note: 3,600 texts of each.

    >>> add_note("2*3-4:", random.Random(0))
    '2*3-4:54 24'
    """
    return f"{read_answer(text)}{MARK}{rng.randrange(NUMBERS)} {rng.randrange(NUMBERS)}"


def verify(problem: countdown.Problem, text: str) -> Verdict:
    """Return the verdict on the answer alone; without the mark that ends it, it is wrong.

    >>> verify(countdown.Problem((2, 3, 4), 2, ("2*3-4",)), "3*2-4:17 5").mode
    '2*3-4'
    """
    return countdown.verify(problem, read_answer(text)) if MARK in text else WRONG


def solutions(problem: countdown.Problem) -> dict[str, tuple[str, ...]]:
    """Return how the texts of every mode begin: what comes after the mark does not matter."""
    return {mode: tuple(text + MARK for text in texts) for mode, texts in countdown.solutions(problem).items()}


def random_answer(problem: countdown.Problem, rng: random.Random) -> str:
    """Return a uniform draw from the well-formed answers, with a note."""
    return add_note(countdown.random_answer(problem, rng), rng)
