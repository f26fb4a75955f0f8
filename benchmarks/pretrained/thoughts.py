"""Countdown behind a chain of thought: tries that fail, then one that works, so that hardly two texts are equal.

A problem asks "Use 3, 4, 7 once each to make 25." and a completion tries, step by step, until it says yes:
" 3+7=10, 10+4=14, no. 3*7=21, 21+4=25, yes. Answer: 3*7+4". The verifier reads what stands behind "Answer:".
"""

import random

from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict
from maxent_grpo.pipeline.tasks.expressions import Tree, evaluate, leaves, parse

MARK = "Answer:"
MOST_FAILURES = 2


def prompt(problem: countdown.Problem) -> str:
    """Return the problem in plain language.

    >>> prompt(countdown.Problem((3, 4, 7), 25, ()))
    'Use 3, 4, 7 once each to make 25.'
    """
    return f"Use {', '.join(map(str, problem.numbers))} once each to make {problem.target}."


def read_answer(text: str) -> str:
    """Return what stands behind the last mark; nothing where there is none.

    >>> read_answer(" 3*7=21, 21+4=25, yes. Answer: 3*7+4")
    '3*7+4'
    """
    return text.rpartition(MARK)[2].strip() if MARK in text else ""


def verify(problem: countdown.Problem, text: str) -> Verdict:
    """Return the verdict on the answer alone."""
    return countdown.verify(problem, read_answer(text)) if MARK in text else WRONG


def think(answer: str, rng: random.Random) -> str:
    """Return a whole completion for a right answer: up to two tries that fail, that which works, and the answer.

    >>> think("3*7+4", random.Random(1))
    ' 3*7=21, 21+4=25, yes. Answer: 3*7+4'
    """
    found = _write_steps(answer)
    assert found is not None  # problems with whole steps have answers with whole steps
    problem = countdown.Problem(tuple(sorted(leaves(parse(answer, max_numbers=len(answer))))), found[1], ())
    tries = []
    for _ in range(rng.randint(0, MOST_FAILURES)):
        while (steps := _write_steps(countdown.random_answer(problem, rng))) is None or steps[1] == problem.target:
            pass
        tries.append(f"{steps[0]}, no.")
    return f" {' '.join([*tries, f'{found[0]}, yes.'])} {MARK} {answer}"


def _write_steps(text: str) -> tuple[str, int] | None:
    """Return an expression as steps, "3*7=21, 21+4=25", and its value; None where a step is no whole number."""
    steps: list[str] = []

    def compute(tree: Tree) -> int:
        if isinstance(tree, int):
            return tree
        operator, left, right = tree[0], compute(tree[1]), compute(tree[2])
        value = evaluate((operator, left, right), whole_steps=True)
        if value is None:
            raise ArithmeticError
        steps.append(f"{left}{operator}{right}={value}")
        return int(value)

    try:
        value = compute(parse(text, max_numbers=len(text)))
    except ArithmeticError:
        return None
    return ", ".join(steps), value
