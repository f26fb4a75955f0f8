"""Questions of geography: their right answers, and the reading of a name."""

import doctest
import random

import pytest

from maxent_grpo.pipeline.tasks import geography
from maxent_grpo.pipeline.tasks.answers import WRONG
from maxent_grpo.pipeline.tasks.geography import Problem, fold, list_capitals, list_name_one, verify

QUESTIONS = {problem.question: problem for problem in list_name_one()}


def test_several_answers_are_right_and_each_question_is_asked_once() -> None:
    problems = list_name_one()
    assert len(problems) == len({problem.id for problem in problems}) >= 250
    assert all(len(problem.modes) == len(set(problem.modes)) > 1 for problem in problems)
    for problem in problems:
        spellings = [name for _, names in problem.answers for name in names]
        assert all(spellings)
        for mode, texts in geography.solutions(problem).items():
            assert all(verify(problem, text).mode == mode for text in texts)


@pytest.mark.parametrize(
    ("question", "answer", "mode"),
    [
        ("Name a country or territory that borders Portugal.", None, None),  # one neighbor
        ("Name a country or territory that borders Germany.", "the Czech Republic", "Czechia"),
        ("Name a country or territory that borders Germany.", " **Austria**.\n", "Austria"),
        ("Name a country or territory that borders Germany.", "Austria.\nIt lies south.", None),
        ("Name a country or territory that borders Germany.", "Italy", None),
        ("Name a country or territory that borders Germany.", "Austria or Poland", None),
        ("Name a country or territory that borders Angola.", "Congo", None),  # there are two
        (
            "Name a country or territory that borders Angola.",
            "Democratic Republic of the Congo",
            "Democratic Republic of the Congo",
        ),
        ("Name a city in Ukraine with over half a million people.", "Kiev", "Kyiv"),
        ("Name a country or territory in Europe that starts with L.", "LATVIA!", "Latvia"),
        ("Name a state of the USA that starts with W.", "Washington", "Washington"),
        ("Name a state of the USA that starts with W.", "", None),
        ("Name a state of the USA that starts with D.", None, None),  # Delaware alone
        ("Name a country or territory that borders United States.", "Cuba", None),
    ],
)
def test_a_name_is_right_in_any_spelling_and_alone(question: str, answer: str | None, mode: str | None) -> None:
    if answer is None:
        assert question not in QUESTIONS
        return
    verdict = verify(QUESTIONS[question], answer)
    assert (verdict.correct, verdict.mode) == (mode is not None, mode)


def test_the_control_has_one_right_answer_each() -> None:
    problems = {problem.question: problem for problem in list_capitals()}
    assert all(len(problem.modes) == 1 for problem in problems.values())
    assert verify(problems["What is the capital of France?"], "Paris.").correct
    assert verify(problems["What is the capital of France?"], "Lyon") == WRONG


@pytest.mark.parametrize("text", [None, 3, "", "\n", "x" * 100_000, "\\boxed{Austria"])
def test_whatever_a_model_writes_is_judged(text: object) -> None:
    assert verify(QUESTIONS["Name a country or territory that borders Germany."], text) == WRONG


def test_a_question_comes_behind_examples_or_alone() -> None:
    problem = QUESTIONS["Name a country or territory that borders Germany."]
    assert geography.prompt(problem).endswith(f"A: Jupiter<|im_end|>\nQ: {problem.question}\nA:")
    assert geography.prompt(problem, boxed=True) == f"{problem.question} Answer with the name alone."
    assert verify(problem, "So: \\boxed{Poland}", boxed=True).correct
    assert not verify(problem, "Poland", boxed=True).correct


def test_a_guess_is_a_country() -> None:
    rng, problem = random.Random(0), Problem("", ())
    guesses = {geography.random_answer(problem, rng) for _ in range(200)}
    assert 50 < len(guesses) <= 200
    assert fold("The Côte d’Ivoire") == "cote d ivoire"


def test_examples() -> None:
    failed, tried = doctest.testmod(geography)
    assert (failed, tried) == (0, 4)
