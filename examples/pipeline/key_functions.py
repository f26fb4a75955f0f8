"""What makes two completions the same answer, for `key_func` of a recipe; any other function goes by a dotted path.

Reasoning makes every completion another text, while the answers that it comes to repeat: `maxent_dedup` counts those.
By what they know: the verifier's mode (`countdown_mode`, `graph_coloring_mode`, `geography_mode`), the final answer,
the equations on the way, and without a key function the text. Where one final answer is right, only the way tells
right ones apart. A key function takes what a reward takes and returns a text for each completion. Where it returns
None, only equal tokens are the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from maxent_grpo.adapters import KeyFunction
from maxent_grpo.pipeline.answers.text import canonicalize, find_answer
from maxent_grpo.pipeline.equations import find_equations
from maxent_grpo.pipeline.functions import find_function
from maxent_grpo.pipeline.rewards import (
    Completion,
    build_coloring_problems,
    build_countdown_problems,
    build_geography_problems,
    read_completion,
)
from maxent_grpo.pipeline.tasks import countdown as countdown_task
from maxent_grpo.pipeline.tasks import geography as geography_task
from maxent_grpo.pipeline.tasks import graph_coloring as coloring_task
from maxent_grpo.pipeline.tasks.answers import Verdict


def final_answer(completions: Sequence[Completion], **_: Any) -> list[str | None]:
    r"""Return what stands in <answer> tags or in the last \boxed{...}, in one spelling; None without either.

    >>> final_answer([r"half: \boxed{\frac12}", "<answer>1/2</answer>", "1/2"])
    ['\\frac{1}{2}', '\\frac{1}{2}', None]
    """
    answers = [find_answer(read_completion(completion)) for completion in completions]
    return [None if answer is None else canonicalize(answer) for answer in answers]


def countdown_mode(
    completions: Sequence[Completion],
    numbers: Sequence[Sequence[int]],
    target: Sequence[int],
    whole_steps: Sequence[bool] | None = None,
    **_: Any,
) -> list[str | None]:
    r"""Return the expression of a right answer with the terms of + and × in one order; of a wrong one `final_answer`.

    >>> countdown_mode([r"\boxed{(3+5)*2}", r"\boxed{2*(5+3)}", "3+5+2"], [[2, 3, 5]] * 3, [16] * 3)
    ['right: 2*(3+5)', 'right: 2*(3+5)', None]
    """
    problems = build_countdown_problems(numbers, target, whole_steps)
    verdicts = [countdown_task.verify(p, read_completion(c)) for p, c in zip(problems, completions, strict=True)]
    return name_modes(verdicts, final_answer(completions))


def graph_coloring_mode(
    completions: Sequence[Completion], edges: Sequence[Any], partial: Sequence[str], **_: Any
) -> list[str | None]:
    """Return the hidden vertices' colors of a right answer; of a wrong one `final_answer`.

    >>> graph_coloring_mode(["GR", "G R"], [[[0, 1]]] * 2, ["??"] * 2)
    ['right: GR', 'right: GR']
    """
    problems = build_coloring_problems(edges, partial)
    verdicts = [coloring_task.verify(p, read_completion(c)) for p, c in zip(problems, completions, strict=True)]
    return name_modes(verdicts, final_answer(completions))


def geography_mode(
    completions: Sequence[Completion], answers: Sequence[Sequence[Mapping[str, Any]]], **_: Any
) -> list[str | None]:
    """Return the place that a right answer names, and the text of a wrong one without case and accents.

    >>> geography_mode(["Polen", "poland.", "Mars "], [[{"name": "Poland", "spellings": ["poland", "polen"]}]] * 3)
    ['right: Poland', 'right: Poland', 'mars']
    """
    texts = [read_completion(completion) for completion in completions]
    verdicts = [
        geography_task.verify(p, text) for p, text in zip(build_geography_problems(answers), texts, strict=True)
    ]
    return name_modes(verdicts, [geography_task.fold(text) for text in texts])


def equation_skeleton(completions: Sequence[Completion], **_: Any) -> list[str | None]:
    """Return what a text calculates, in any order, and its final answer; None without an equation.

    Where one final answer is right, right solutions differ by their way: keys by the answer would make them one.

    >>> equation_skeleton(["2+3 = 5, 5*4 = 20", "5 * 4 is needed: 3+2 = 5 so 5*4 = 20", "20"])
    ['2+3; 4*5', '2+3; 4*5', None]
    """
    ways = [sorted(find_equations(read_completion(completion))) for completion in completions]
    answers = final_answer(completions)
    return [
        None if not way else "; ".join(way if answer is None else [*way, f"answer: {answer}"])
        for way, answer in zip(ways, answers, strict=True)
    ]


def name_modes(verdicts: Sequence[Verdict], answers: Sequence[str | None]) -> list[str | None]:
    """Return the verifier's mode of each right answer, and a wrong one as it is named here."""
    return [
        f"right: {verdict.mode}" if verdict.correct else answer
        for verdict, answer in zip(verdicts, answers, strict=True)
    ]


KEY_FUNCTIONS = {
    "final_answer": KeyFunction(final_answer, ()),
    "equation_skeleton": KeyFunction(equation_skeleton, ()),
    "countdown_mode": KeyFunction(countdown_mode, ("numbers", "target")),
    "graph_coloring_mode": KeyFunction(graph_coloring_mode, ("edges", "partial")),
    "geography_mode": KeyFunction(geography_mode, ("answers",)),
}


def find_key_function(name: str) -> KeyFunction:
    """Return a key function by its name in `KEY_FUNCTIONS`, or by a dotted path.

    Raises:
        ValueError: if there is none.
    """
    return KEY_FUNCTIONS[name] if name in KEY_FUNCTIONS else KeyFunction(find_function(name, KEY_FUNCTIONS))
