"""Rewards by name, for `reward_funcs` of a recipe; any other reward goes by its dotted path.

A reward takes completions (texts, or chats whose last message counts) and the columns it needs. It returns a number
for each completion, or None where it cannot tell: such a completion is masked, which is not the same as being wrong.
"""

import logging
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from threading import Lock
from types import NoneType
from typing import Any

from maxent_grpo.pipeline.answers.text import canonicalize, find_answer
from maxent_grpo.pipeline.answers.verifier import Comparison, Verifier
from maxent_grpo.pipeline.data.chats import read_content
from maxent_grpo.pipeline.functions import find_function
from maxent_grpo.pipeline.tasks import countdown as countdown_task
from maxent_grpo.pipeline.tasks import geography as geography_task
from maxent_grpo.pipeline.tasks import graph_coloring as graph_coloring_task

logger = logging.getLogger(__name__)

Completion = str | list[dict[str, Any]]
Function = Callable[..., Sequence[Any]]

_FORMAT = re.compile(r"\s*<think>(?:(?!</?think>).)*</think>\s*<answer>(?:(?!</?answer>).)+</answer>\s*", re.DOTALL)


def pure_accuracy_math(
    completions: Sequence[Completion], solution: Sequence[str | None], **_: Any
) -> list[float | None]:
    r"""Return 1.0 where the answer in <answer> tags or a box is spelled like the solution, once both are canonical.

    Without a solution it is None; an answer of which nothing is left is 0.0.

    >>> pure_accuracy_math(["<answer>1/2</answer>", r"so \boxed{0.5} is \boxed{\frac12}", "1/2"], [r"$\frac12$"] * 3)
    [1.0, 1.0, 0.0]
    """
    check_column("solution", solution, (str, Real, NoneType))
    answers = [canonicalize(find_answer(read_completion(completion)) or "") for completion in completions]
    return [
        None if gold is None else float(answer != "" and answer == canonicalize(str(gold)))
        for answer, gold in zip(answers, solution, strict=True)
    ]


def math_verify(
    completions: Sequence[Completion],
    solution: Sequence[str | None],
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """Return 1.0 where the answer in <answer> tags or a box equals the solution; None where that cannot be told.

    What counts as equal is in docs/grading.md. No answer, or one whose braces stay open, is 0.0. A comparison that
    fails, takes too long or has no solution to compare with is None. Those are counted (`math_verify/errors`) and
    logged, and too many of them stop the run.
    """
    check_column("solution", solution, (str, Real, NoneType))
    answers = [find_answer(read_completion(completion)) for completion in completions]
    shortcuts = [_compare_without_mathematics(gold, answer) for gold, answer in zip(solution, answers, strict=True)]
    # The others are compared all at once, by as many workers as there are.
    triples = zip(solution, answers, shortcuts, strict=True)
    pairs = [(find_answer(str(gold)) or str(gold), str(answer)) for gold, answer, short in triples if short is None]
    results = iter(_VERIFIER.compare_all(pairs))
    comparisons = [next(results) if shortcut is None else shortcut for shortcut in shortcuts]
    errors = _ERRORS.count(comparisons)
    if log_metric is not None:
        log_metric("math_verify/errors", float(errors))
    return [None if comparison.equal is None else float(comparison.equal) for comparison in comparisons]


def _compare_without_mathematics(gold: str | None, answer: str | None) -> Comparison | None:
    """Return the comparison of an answer that needs no mathematics, None where it does."""
    if gold is None:
        return Comparison(None, "there is no solution")
    return Comparison(equal=False) if answer is None else None


def check_column(name: str, values: Sequence[Any], types: tuple[type, ...]) -> None:
    """Raise ValueError where a column holds what its reward does not read: right answers would score 0 all along.

    >>> check_column("solution", ["5", {"ground_truth": "5"}], (str,))
    Traceback (most recent call last):
    ValueError: Expected a column solution of str, got dict: {'ground_truth': '5'}.
    """
    for value in values:
        if not isinstance(value, types) or isinstance(value, bool):
            names = " or ".join(each.__name__ for each in types if each is not NoneType)
            kind = type(value).__name__
            raise ValueError(f"Expected a column {name} of {names}, got {kind}: {str(value)[:60]}.")


def answer_format(completions: Sequence[Completion], **_: Any) -> list[float]:
    """Return 1.0 for <think>...</think> followed by <answer>...</answer> and nothing else.

    >>> answer_format(["<think>1+1</think> <answer>2</answer>", "<answer>2</answer>"])
    [1.0, 0.0]
    """
    return [float(_FORMAT.fullmatch(read_completion(completion)) is not None) for completion in completions]


def countdown(
    completions: Sequence[Completion],
    numbers: Sequence[Sequence[int]],
    target: Sequence[int],
    whole_steps: Sequence[bool] | None = None,
    **_: Any,
) -> list[float]:
    r"""Return 1.0 where the numbers, each used once, make the target; a \boxed{...} answer or the whole text.

    >>> countdown([r"\boxed{(3+5)*2}", "3+5+2"], [[2, 3, 5]] * 2, [16, 16])
    [1.0, 0.0]
    """
    problems = build_countdown_problems(numbers, target, whole_steps)
    return [countdown_task.reward(p, read_completion(c)) for p, c in zip(problems, completions, strict=True)]


def build_countdown_problems(
    numbers: Sequence[Sequence[int]], target: Sequence[int], whole_steps: Sequence[bool] | None
) -> list[countdown_task.Problem]:
    """Return the problems that columns hold."""
    check_column("target", target, (Integral,))
    check_column("numbers", [number for row in numbers for number in row], (Integral,))
    columns = zip(numbers, target, whole_steps or [False] * len(numbers), strict=True)
    return [countdown_task.Problem(tuple(row_numbers), value, (), whole) for row_numbers, value, whole in columns]


def graph_coloring(
    completions: Sequence[Completion], edges: Sequence[Any], partial: Sequence[str], **_: Any
) -> list[float]:
    """Return 1.0 where the hidden vertices' colours are given and no edge joins two of one colour."""
    problems = build_coloring_problems(edges, partial)
    return [graph_coloring_task.reward(p, read_completion(c)) for p, c in zip(problems, completions, strict=True)]


def build_coloring_problems(edges: Sequence[Any], partial: Sequence[str]) -> list[graph_coloring_task.Problem]:
    """Return the problems that columns hold."""
    return [
        graph_coloring_task.Problem(tuple((a, b) for a, b in each), colors, ())
        for each, colors in zip(edges, partial, strict=True)
    ]


def geography(
    completions: Sequence[Completion], answers: Sequence[Sequence[Mapping[str, Any]]], **_: Any
) -> list[float]:
    """Return 1.0 where a text is one of the right names and nothing else.

    >>> geography(["Poland.", "Poland, I think"], [[{"name": "Poland", "spellings": ["poland"]}]] * 2)
    [1.0, 0.0]
    """
    problems = build_geography_problems(answers)
    return [geography_task.reward(p, read_completion(c)) for p, c in zip(problems, completions, strict=True)]


def build_geography_problems(answers: Sequence[Sequence[Mapping[str, Any]]]) -> list[geography_task.Problem]:
    """Return the problems that a column holds, without their questions."""
    return [
        geography_task.Problem("", tuple((each["name"], tuple(each["spellings"])) for each in row)) for row in answers
    ]


@dataclass(frozen=True)
class Reward:
    """A function that scores completions, and the columns that it reads; None where they are not known: all."""

    function: Function
    columns: tuple[str, ...] | None = None


REWARDS = {
    "pure_accuracy_math": Reward(pure_accuracy_math, ("solution",)),
    "math_verify": Reward(math_verify, ("solution",)),
    "format": Reward(answer_format, ()),
    "countdown": Reward(countdown, ("numbers", "target")),
    "graph_coloring": Reward(graph_coloring, ("edges", "partial")),
    "geography": Reward(geography, ("answers",)),
}


def find_reward(name: str) -> Reward:
    """Return a reward by its name in `REWARDS`, or by a dotted path such as `my_rewards.brevity`.

    Raises:
        ValueError: if there is none.

    >>> find_reward("countdown").columns
    ('numbers', 'target')
    """
    return REWARDS[name] if name in REWARDS else Reward(find_function(name, REWARDS))


def read_completion(completion: Completion) -> str:
    """Return the text of a completion: itself, or the content of a chat's last message, parts of text joined."""
    return completion if isinstance(completion, str) else read_content(completion[-1].get("content"))


class ErrorCount:
    """Counts the comparisons that failed, of any thread, and stops a run in which most of them do.

    Args:
        window: how many of the last comparisons are looked at.
        least: how many of them may fail, however few there are.
        share: the share of them that may fail.
    """

    def __init__(self, *, window: int = 512, least: int = 32, share: float = 0.5) -> None:
        self.recent: deque[bool] = deque(maxlen=window)
        self.least, self.share, self.total = least, share, 0
        self._lock = Lock()

    def count(self, comparisons: Sequence[Comparison]) -> int:
        """Return how many of these failed; log the first of them.

        Raises:
            RuntimeError: if too many of the last comparisons failed.
        """
        errors = [comparison.error for comparison in comparisons if comparison.equal is None]
        with self._lock:
            return self._count(comparisons, errors)

    def _count(self, comparisons: Sequence[Comparison], errors: Sequence[str]) -> int:
        self.total += len(errors)
        self.recent.extend(comparison.equal is None for comparison in comparisons)
        if errors:
            logger.warning(
                "math_verify: no verdict on %d of %d answers (%d so far), for example: %s",
                *(len(errors), len(comparisons), self.total, errors[0]),
            )
        if sum(self.recent) > max(self.least, self.share * len(self.recent)):
            raise RuntimeError(
                f"Expected verdicts on most answers, got {sum(self.recent)} errors in the last {len(self.recent)}; "
                f"the last one: {errors[-1]}."
            )
        return len(errors)


_VERIFIER = Verifier()  # its processes start when they are first asked
_ERRORS = ErrorCount()
