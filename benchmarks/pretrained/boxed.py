r"""Countdown with the answer alone, in a box, asked and judged as ModeBench's Level 1 does (PyPI `modebench`).

The system message, the verdict, the mode and the rules of its 787 problems are ModeBench's. The sentence that asks is
ours: theirs come with its frozen splits, which are on the Hub. So are the splits: ours are by problem identity.
"""

import random
from typing import Any

from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tasks.answers import Verdict

MISSING = "Countdown judged by ModeBench needs Python before 3.13 and: pip install modebench==0.4.0"


def prompt(problem: countdown.Problem) -> str:
    """Return ModeBench's system message and the question as turns of ChatML, which the model knows."""
    api = _import_api()
    turns = [*api.make_prompt(_pose(problem)), {"role": "assistant", "content": ""}]
    return "<|im_end|>\n".join(f"<|im_start|>{turn['role']}\n{turn['content']}" for turn in turns)


def verify(problem: countdown.Problem, text: str) -> Verdict:
    """Return ModeBench's verdict and mode."""
    graded = _import_api().grade(_pose(problem), text)
    return Verdict(correct=graded["verified"], mode=graded["canonical_key"])


def write(answer: str, rng: random.Random) -> str:
    r"""Return a whole completion for a right answer.

    >>> write("3*7+4", random.Random(0))
    '\\boxed{3*7+4}'
    """
    return rf"\boxed{{{answer}}}"


def _pose(problem: countdown.Problem) -> Any:
    """Return a problem as ModeBench has it."""
    answer = {"verifier": "countdown", "numbers": list(problem.numbers), "target": problem.target}
    question = (
        f"Use each of the numbers {', '.join(map(str, problem.numbers))} exactly once, with +, -, *, / and "
        f"parentheses, to make {problem.target}."
    )
    return _import_api().Task(
        id=problem.id, level=1, domain="countdown", problem=question, answer=answer, dataset_sha256=""
    )


def _import_api() -> Any:
    try:
        from modebench import api  # noqa: PLC0415 - for this task alone, and not for every Python
    except ImportError as error:
        raise ImportError(MISSING) from error
    return api
