"""What makes two completions the same answer, for `key_func` of a recipe; any other function goes by a dotted path.

Reasoning makes every completion another text, while the answers that it comes to repeat: `maxent_dedup` counts those.
A key function takes what a reward takes and returns a text for each completion. Where it returns None, only equal
tokens are the same.
"""

from collections.abc import Sequence
from typing import Any

from maxent_grpo.adapters import KeyFunction
from maxent_grpo.pipeline.answers.text import canonicalize, find_answer
from maxent_grpo.pipeline.functions import find_function
from maxent_grpo.pipeline.rewards import Completion, build_countdown_problems, read_completion
from maxent_grpo.pipeline.tasks import countdown as countdown_task


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
    return [
        f"right: {verdict.mode}" if verdict.correct else answer
        for verdict, answer in zip(verdicts, final_answer(completions), strict=True)
    ]


KEY_FUNCTIONS = {
    "final_answer": KeyFunction(final_answer, ()),
    "countdown_mode": KeyFunction(countdown_mode, ("numbers", "target")),
}


def find_key_function(name: str) -> KeyFunction:
    """Return a key function by its name in `KEY_FUNCTIONS`, or by a dotted path.

    Raises:
        ValueError: if there is none.
    """
    return KEY_FUNCTIONS[name] if name in KEY_FUNCTIONS else KeyFunction(find_function(name, KEY_FUNCTIONS))
