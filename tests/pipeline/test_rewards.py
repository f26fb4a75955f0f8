"""Rewards: what becomes of answers, of comparisons that fail, and how rewards are found."""

import pytest
from hypothesis import example, given, strategies

from maxent_grpo.pipeline import rewards
from maxent_grpo.pipeline.answers.verifier import Comparison, Verifier
from maxent_grpo.pipeline.rewards import ErrorCount, find_reward, math_verify, pure_accuracy_math

HANGING = r"\int_0^1 \sin(\cos(\tan(x^x))) dx"


def test_an_error_is_none_and_counted_and_a_wrong_answer_is_zero(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool, errors, logged = Verifier(workers=2, seconds=1.0), ErrorCount(), []
    monkeypatch.setattr(rewards, "_VERIFIER", pool)
    monkeypatch.setattr(rewards, "_ERRORS", errors)
    chats = [[{"role": "assistant", "content": rf"so \boxed{{{answer}}}"}] for answer in ("9", HANGING, "8")]
    scores = math_verify([*chats, "nothing"], ["9"] * 4, log_metric=lambda *entry: logged.append(entry))
    assert scores == [1.0, None, 0.0, 0.0]
    assert logged == [("math_verify/errors", 1.0)]
    assert "no verdict on 1 of 4 answers" in caplog.text
    assert errors.total == 1
    pool.close()


def test_a_chain_of_equalities_and_an_empty_answer_are_wrong() -> None:
    assert math_verify(["<answer>1=2=3</answer>", "<answer>x=1+2=3</answer>"], ["3"] * 2) == [0.0, 1.0]
    assert pure_accuracy_math(["<answer>$</answer>"], ["$$"]) == [0.0]


def test_a_solution_may_be_a_whole_text_with_a_box() -> None:
    assert math_verify([r"\boxed{0.5}", r"\boxed{2}"], [r"Half of it: $\boxed{\frac12}$."] * 2) == [1.0, 0.0]


def test_without_a_solution_there_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "_ERRORS", ErrorCount())
    assert pure_accuracy_math(["<answer>None</answer>"], [None]) == [None]
    assert math_verify(["<answer>None</answer>"], [None]) == [None]


@given(strategies.text(max_size=40), strategies.text(max_size=40))
@example("9" * 5000 + "/2", "1/2")
def test_no_text_makes_a_reward_raise(answer: str, gold: str) -> None:
    for completion in (answer, f"<answer>{answer}</answer>", rf"\boxed{{{answer}}}"):
        assert pure_accuracy_math([completion], [gold])[0] in (0.0, 1.0)
        assert rewards.answer_format([completion])[0] in (0.0, 1.0)


def test_a_wall_of_errors_stops_the_run() -> None:
    errors = ErrorCount(window=100, least=5, share=0.5)
    failed, fine = Comparison(None, "broken"), Comparison(equal=False)
    assert errors.count([failed] * 5) == 5  # few of them are borne
    assert errors.count([fine] * 7 + [failed] * 2) == 2  # 7 of 14 are half of them
    with pytest.raises(RuntimeError, match=r"got 8 errors in the last 15; the last one: broken"):
        errors.count([failed])


def test_errors_that_are_rare_do_not_stop_the_run() -> None:
    errors = ErrorCount(window=100, least=5, share=0.5)
    for _ in range(50):
        errors.count([Comparison(None, "broken"), Comparison(equal=True)])
    assert errors.total == 50


@pytest.mark.parametrize("solution", [{"style": "rule", "ground_truth": "5"}, ["5"], True, b"5"])
def test_a_solution_that_is_no_text_and_no_number_is_named(solution: object) -> None:
    for reward in (math_verify, pure_accuracy_math):
        with pytest.raises(
            ValueError, match=f"Expected a column solution of str or Real, got {type(solution).__name__}"
        ):
            reward(["<answer>5</answer>"], [solution])


def test_a_solution_may_be_a_number() -> None:
    assert math_verify(["<answer>5</answer>", "<answer>0.5</answer>"], [5, 0.5]) == [1.0, 1.0]


@pytest.mark.parametrize(("numbers", "target"), [([2, 3], "16"), (["2", "3"], 16), ([2, None], 16), ([2, 3], None)])
def test_numbers_that_are_text_or_missing_are_named(numbers: list[object], target: object) -> None:
    with pytest.raises(ValueError, match=r"Expected a column (target|numbers) of Integral, got (str|NoneType)"):
        rewards.countdown(["2+3"], [numbers], [target])


def test_countdown_and_colouring_rewards_read_their_columns() -> None:
    assert rewards.countdown(["6/4*2", "2*6/4"], [[2, 4, 6]] * 2, [3, 3], [True, True]) == [0.0, 1.0]
    scores = rewards.graph_coloring(["GRB", "RGB"], [[[0, 1], [1, 3]]] * 2, ["R???"] * 2)
    assert scores == [1.0, 0.0]


def test_a_reward_goes_by_its_name_or_its_dotted_path() -> None:
    assert find_reward("countdown").columns == ("numbers", "target")
    assert find_reward("maxent_grpo.pipeline.rewards.answer_format").function is rewards.answer_format


@pytest.mark.parametrize(
    "name",
    [
        "accuracy",
        "maxent_grpo.pipeline.rewards.no_such",
        "no_such_module.reward",
        "maxent_grpo.pipeline.answers.text.BOX",
    ],
)
def test_an_unknown_reward_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"Expected .*{name}"):
        find_reward(name)
