import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxent_grpo.pipeline.tasks import countdown, graph_coloring
from maxent_grpo.pipeline.tasks.answers import WRONG

SECONDS = 0.5
CASES = {
    "countdown": (countdown, countdown.problems()[0]),
    "countdown in whole steps": (countdown, replace(countdown.problems()[0], whole_steps=True)),
    "graph_coloring": (graph_coloring, graph_coloring.problems(4)[0]),
}
HOSTILE = {
    "nested parentheses": "(" * 10**5 + "2+3" + ")" * 10**5,
    "opening parentheses": "(" * 10**6,
    "closing parentheses": ")" * 10**6,
    "nested fractions": "\\frac{" * 10**5 + "2" + "}{3}" * 10**5,
    "a long sum": "2+" * (5 * 10**5) + "3",
    "minus signs": "-" * 10**6 + "2",
    "spaces": " " * 10**6 + "x",
    "latex spaces": "\\," * (5 * 10**5),
    "letters": "R" * 10**6,
    "separators": ", " * (5 * 10**5),
    "opened boxes": "\\boxed{" * 10**5,
    "boxes": "\\boxed{2}" * 10**5,
    "an endless box": "\\boxed{" + "{" * 10**6 + "}" * 10**6,
    "a power tower": "9**9**9**9**9",
    "a caret power": "9^999999999",
    "a huge exponent": "1e999999999",
    "a huge number": "9" * 5000,
    "a sum of huge numbers": "+".join(["9" * 5000] * 3),
    "division by zero": "2/(3-3)+4",
    "zero over zero": "0/0",
    "unicode digits": "２+３−٤",
    "superscripts": "2²+3",
    "null bytes": "2+3\0-4",
    "lone surrogates": "\ud8002+3",
    "right to left marks": "\u202e2+3-4",
    "code": "__import__('os').getpid()",
    "a format string": "{problem.target}{0!r:>999999999}",
    "nothing": "",
    "a newline": "\n",
}


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(("task", "problem"), CASES.values(), ids=CASES)
def test_hostile_text_is_wrong_at_once_bare_and_in_a_box(task, problem, text, boxed):
    for form in (text, f"\\boxed{{{text}}}", f"\\boxed{{{text}", f"{text}\\boxed{{{text}}}"):
        start = time.perf_counter()
        assert task.verify(problem, form, boxed=boxed) == WRONG
        assert task.reward(problem, form, boxed=boxed) == 0.0
        assert time.perf_counter() - start < SECONDS


@pytest.mark.parametrize("text", [None, 21, 2.5, b"2+3-4", ["2+3-4"], float("nan"), object()])
@pytest.mark.parametrize(("task", "problem"), CASES.values(), ids=CASES)
def test_what_is_no_text_is_wrong(task, problem, text):
    assert task.verify(problem, text) == WRONG


@given(st.text(max_size=40))
def test_no_text_raises_and_a_mode_is_given_exactly_with_a_right_answer(text):
    for task, problem in CASES.values():
        for form in (text, f"\\boxed{{{text}}}"):
            correct, mode = task.verify(problem, form)
            assert correct == (mode in problem.modes) == (mode is not None)
