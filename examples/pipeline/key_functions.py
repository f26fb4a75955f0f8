"""What makes two completions the same answer, for `answer_keys` of a recipe; other functions go by a dotted path.

Reasoning makes every completion another text, while the answers that it comes to repeat: `maxent_dedup` counts those.
A function takes what a reward takes and returns a text for each completion, or None where only equal tokens are the
same.
"""

from collections.abc import Sequence
from typing import Any

from maxent_grpo.pipeline.answers.text import canonical, given_answer
from maxent_grpo.pipeline.rewards import Completion, Reward, countdown_problems, named, text_of
from maxent_grpo.pipeline.tasks import countdown as countdown_task


def final_answer(completions: Sequence[Completion], **_: Any) -> list[str | None]:
    r"""Return what stands in <answer> tags or in the last \boxed{...}, in one spelling; None without either.

    >>> final_answer([r"half: \boxed{\frac12}", "<answer>1/2</answer>", "1/2"])
    ['\\frac{1}{2}', '\\frac{1}{2}', None]
    """
    given = [given_answer(text_of(completion)) for completion in completions]
    return [None if answer is None else canonical(answer) for answer in given]


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
    problems = countdown_problems(numbers, target, whole_steps)
    verdicts = [countdown_task.verify(p, text_of(c)) for p, c in zip(problems, completions, strict=True)]
    return [
        f"right: {verdict.mode}" if verdict.correct else answer
        for verdict, answer in zip(verdicts, final_answer(completions), strict=True)
    ]


ANSWER_KEYS = {
    "final_answer": Reward(final_answer, ()),
    "countdown_mode": Reward(countdown_mode, ("numbers", "target")),
}


def keys_of(name: str) -> Reward:
    """Return a key function by its name in `ANSWER_KEYS`, or by a dotted path.

    Raises:
        ValueError: if there is none.
    """
    return named(name, ANSWER_KEYS)
