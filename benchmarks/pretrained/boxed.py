r"""Countdown with the answer alone, in a box, posed and judged as ModeBench's Level 1 does (PyPI `modebench`).

The system message, the question, the verdict, the mode and the rules of its 787 problems are ModeBench's. Its frozen
splits are on the Hub; ours are by problem identity.
"""

import random
from importlib import import_module
from typing import Any

from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tasks.answers import Verdict

LEVEL, DOMAIN = 1, "countdown"
MISSING = "Countdown judged by ModeBench needs Python before 3.13 and: pip install modebench==0.4.0"


def ask(problem: countdown.Problem) -> str:
    """Return ModeBench's question, which asks for the answer in a box."""
    return (
        f"Using the numbers {list(problem.numbers)}, create an arithmetic expression that equals {problem.target}. "
        "Use each given number exactly once. You may use +, -, *, /, and parentheses. Return exactly one final "
        "answer and no explanation: the expression inside \\boxed{}."
    )


def prompt(problem: countdown.Problem) -> str:
    """Return ModeBench's system message and the question as turns of ChatML, which the model knows."""
    messages = _import("prompts").make_messages(LEVEL, DOMAIN, {"problem": ask(problem)})
    turns = [*messages, {"role": "assistant", "content": ""}]
    return "<|im_end|>\n".join(f"<|im_start|>{turn['role']}\n{turn['content']}" for turn in turns)


def verify(problem: countdown.Problem, text: str) -> Verdict:
    """Return ModeBench's verdict and mode.

    Raises:
        ValueError: if ModeBench cannot judge the text.
    """
    answer = {"verifier": DOMAIN, "numbers": list(problem.numbers), "target": problem.target}
    # The public `grade` judges in another process, which finds ModeBench only where it is installed.
    judged = _import("verifier_core").grade_local(LEVEL, DOMAIN, answer, text)
    if judged["status"] in _import("diagnostics").UNSCORABLE:
        raise ValueError(f"Expected an answer that ModeBench can judge, got {judged['status']}: {judged['detail']}")
    return Verdict(correct=judged["verified"], mode=judged["canonical_key"])


def write(answer: str, rng: random.Random) -> str:
    r"""Return a whole completion for a right answer.

    >>> write("3*7+4", random.Random(0))
    '\\boxed{3*7+4}'
    """
    return rf"\boxed{{{answer}}}"


def _import(name: str) -> Any:
    try:
        return import_module(f"modebench.{name}")
    except ImportError as error:
        raise ImportError(MISSING) from error
