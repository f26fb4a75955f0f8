"""What a completion answers, and what a verifier says of it."""

from typing import NamedTuple

from maxent_grpo.pipeline.answers.text import BOX, read_box

MAX_ANSWER_LENGTH = 256


class Verdict(NamedTuple):
    """Whether an answer is right, and which mode it is; a wrong answer has none."""

    correct: bool
    mode: str | None


WRONG = Verdict(correct=False, mode=None)


def read_answer(text: object, *, boxed: bool = False) -> str:
    r"""Return the answer a completion gives: the content of its last `\boxed{...}`, or else the whole text.

    Reads the text once and keeps at most `MAX_ANSWER_LENGTH` characters of it, so its cost is linear in the
    text with a small constant.

    Args:
        text: the completion; anything but a str holds no answer.
        boxed: whether only a box counts. Without it, a text that has no box is the answer itself.

    Returns:
        The answer without the white space around it.

    Raises:
        ValueError: if there is no answer, the last box is never closed, or the answer is too long.

    >>> read_answer(r"First \boxed{1+2}, no: \boxed{\frac{6}{3}+1}.")
    '\\frac{6}{3}+1'
    >>> read_answer(" 1+2 ")
    '1+2'
    >>> read_answer("1+2", boxed=True)
    Traceback (most recent call last):
    ValueError: Expected an answer in \boxed{...}, got none.
    """
    if not isinstance(text, str):
        raise ValueError(f"Expected text of type str, got {type(text).__name__}.")
    if BOX in text:
        answer = read_box(text, longest=MAX_ANSWER_LENGTH)
        if answer is None:
            raise ValueError(f"Expected the box closed within {MAX_ANSWER_LENGTH} characters, got no closing brace.")
        return answer
    if boxed:
        raise ValueError("Expected an answer in \\boxed{...}, got none.")
    answer = text.strip()
    if len(answer) > MAX_ANSWER_LENGTH:
        raise ValueError(f"Expected an answer of <= {MAX_ANSWER_LENGTH} characters, got {len(answer)}.")
    return answer
