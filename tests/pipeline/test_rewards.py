"""Rewards: which answers count as equal, what happens to comparisons that fail or hang, and how rewards are found."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, strategies

from maxent_grpo.pipeline import rewards
from maxent_grpo.pipeline.answers.text import canonicalize, find_answer
from maxent_grpo.pipeline.answers.verifier import Comparison, Verifier
from maxent_grpo.pipeline.rewards import ErrorCount, find_reward, math_verify, pure_accuracy_math

PAIRS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("answer_pairs.json").read_text())
HANGING = "9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def verifier() -> Any:
    pool = Verifier(workers=2, seconds=20.0)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def verdicts(verifier: Verifier) -> list[bool]:
    """The verdict on every pair, one after the other."""
    return [verdict(verifier, pair) for pair in PAIRS]


def verdict(verifier: Verifier, pair: dict[str, Any]) -> bool:
    answer = find_answer(pair["completion"])
    if answer is None:
        return False
    compared = verifier.compare(pair["gold"], answer)
    assert compared.equal is not None, compared.error
    return compared.equal


def test_the_table_holds_two_hundred_different_pairs_of_every_kind() -> None:
    assert len({(pair["completion"], pair["gold"]) for pair in PAIRS}) == len(PAIRS) >= 200
    kinds = {pair["category"] for pair in PAIRS}
    assert kinds >= {"fractions", "sets", "intervals and tuples", "units and words", "formats", "algebra"}
    assert sum(pair["equal"] for pair in PAIRS) > 60
    assert sum(not pair["equal"] for pair in PAIRS) > 60


def test_every_pair_of_the_table_gets_its_verdict(verdicts: list[bool]) -> None:
    """The pairs of "blind spots of math-verify" are equal, and not seen to be: right answers that get 0."""
    wrong = [pair for pair, equal in zip(PAIRS, verdicts, strict=True) if equal != pair["equal"]]
    assert wrong == []


def test_64_threads_get_the_verdicts_of_one(verifier: Verifier, verdicts: list[bool]) -> None:
    with ThreadPoolExecutor(64) as threads:
        assert list(threads.map(lambda pair: verdict(verifier, pair), PAIRS)) == verdicts


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair['completion']} ~ {pair['gold']}")
def test_answers_count_as_spelt_alike_exactly_where_they_are(pair: dict[str, Any]) -> None:
    assert pure_accuracy_math([pair["completion"]], [pair["gold"]]) == [float(pair["exact"])]


def test_what_is_spelt_alike_is_equal() -> None:
    assert [pair for pair in PAIRS if pair["exact"] and not pair["equal"]] == []


def test_the_canonical_spelling_is_its_own() -> None:
    for gold in (pair["gold"] for pair in PAIRS):
        assert canonicalize(canonicalize(gold)) == canonicalize(gold)


def test_a_hanging_comparison_is_killed_in_time_and_the_next_one_is_answered() -> None:
    pool = Verifier(workers=1, seconds=1.0)
    assert pool.compare("1", "1") == Comparison(equal=True)
    start = time.monotonic()
    hung = pool.compare("9", HANGING)
    assert time.monotonic() - start < 3
    assert hung.equal is None
    assert "within 1 s" in hung.error
    assert pool.compare("1/2", "0.5") == Comparison(equal=True)
    pool.close()


def test_a_worker_that_dies_costs_one_verdict_at_most() -> None:
    pool = Verifier(workers=1)
    assert pool.compare("1", "1").equal
    worker = pool._idle.get()
    assert worker is not None
    os.kill(worker.process.pid, signal.SIGKILL)
    pool._idle.put(worker)
    assert {pool.compare("1", "1").equal, pool.compare("2", "2").equal} <= {None, True}
    assert pool.compare("3", "3").equal
    pool.close()


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
    assert math_verify(["<answer>1=2=3</answer>"], ["3"]) == [0.0]
    assert pure_accuracy_math(["<answer>$</answer>"], ["$$"]) == [0.0]


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
