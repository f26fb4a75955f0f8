"""Time: reading model output costs time in proportion to it, and a verdict comes in its time or not at all."""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from maxent_grpo.pipeline import rewards
from maxent_grpo.pipeline.answers.spelling import normalize_characters, normalize_commands, strip_decorations
from maxent_grpo.pipeline.answers.text import canonicalize, find_answer, find_tagged_answer, read_box
from maxent_grpo.pipeline.answers.verifier import Comparison, Verifier

# What makes a reader that tries again from every place, or in every way, slow: openings that are never closed, runs
# of what two parts of an expression could both take, and closings without an opening.
PIECES = [
    "<answer>", "</answer>", "<answer>1", "<think>", "</think>", "<think></think><answer>", r"\boxed{",
    r"\boxed", "{", "}", "(", "[", "[(", r"\text{", r"\text", r"\frac{", r"\frac", r"\sqrt", "$", "$$", "**",
    "**a", "*", "`", "_", " ", "\n", "1 ", "1,", "1,000", ",000", "1 000 ", "1.", ".1", "0.", "9", "=", "x=",
    "= ", "-", "–", "1–", "^", "^{", "°", "the answer is ", "so ", "answer", "answer ", "=\t", r"\quad",
    r"\,", r"1\,", r"\!", r"{,}", "1{,}", "½", "²", "x²", "。", "\ufdfa", "\\", "\\\\", "|", ":", "1:", "%",
    "a", "a_", "x and ", " or", "…", r"\overline{", r"0.1\overline",
]  # fmt: skip
READERS: dict[str, Callable[[str], object]] = {
    "find_tagged_answer": find_tagged_answer,
    "find_answer": find_answer,
    "read_box": read_box,
    "canonicalize": canonicalize,
    "normalize_characters": normalize_characters,
    "normalize_commands": normalize_commands,
    "strip_decorations": strip_decorations,
    "answer_format": lambda text: rewards.answer_format([text]),
    "pure_accuracy_math": lambda text: rewards.pure_accuracy_math([f"<answer>{text}</answer>"], ["1"]),
    "countdown": lambda text: rewards.countdown([text], [[2, 3, 5]], [10]),
    "graph_coloring": lambda text: rewards.graph_coloring([text], [[[0, 1]]], ["R?"]),
}
SIZE = 5_000
GROWTH = 2.5
"""At twice the length. Linear time is 2, quadratic time 4."""
NO_TIME = 0.05
"""Seconds below which growth is noise of the clock; a quadratic reader takes several times as long at this size."""
HANGING = r"\int_0^1 \sin(\cos(\tan(x^x))) dx"


def measure_seconds(reader: Callable[[str], object], text: str, repeats: int) -> float:
    """Return the least processor time of a few calls, which is the one that nothing else has delayed."""
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        reader(text)
        times.append(time.thread_time() - start)
    return min(times)


def measure_growth(reader: Callable[[str], object], text: str, ending: str) -> float:
    """Return the time of a text twice as long over that of the text."""
    return measure_seconds(reader, text + text + ending, 2) / measure_seconds(reader, text + ending, 2)


@pytest.mark.parametrize("name", READERS)
def test_reading_twice_as_long_a_text_takes_twice_as_long(name: str) -> None:
    gc.collect()
    slow = {}
    for piece in PIECES:
        text = piece * (SIZE // len(piece))
        for ending in ("!", "</answer>"):
            longer = measure_seconds(READERS[name], text + text + ending, repeats=1)
            if longer <= NO_TIME:
                continue
            # Only what takes any time is timed with care, and again where something else may have slowed it.
            ratios = [measure_growth(READERS[name], text, ending)]
            while ratios[-1] > GROWTH and len(ratios) < 5:
                ratios.append(measure_growth(READERS[name], text, ending))
            if ratios[-1] > GROWTH:
                slow[piece + "..." + ending] = ratios
    assert slow == {}


def test_four_thousand_tags_without_a_close_take_a_moment() -> None:
    for text in ("<answer>" * 4_000, "<answer>1" * 40_000, "<answer>" * 40_000 + "</answer>"):
        start = time.thread_time()
        find_answer(text)
        rewards.answer_format([text])
        assert time.thread_time() - start < 0.1  # it was 1.2 s for the first of them


HARD_ANSWERS = [
    "(" * 1_900, "(" * 900 + "1" + ")" * 900, "{" * 900 + "}" * 900, "1+" * 900 + "1", "1," * 900,
    "x" * 1_900, r"\sqrt{" * 300 + "2" + "}" * 300, "2^" * 900 + "2", "1/" * 900 + "1", "[1,2)" * 300,
    r"\frac" * 300, "9" * 1_900, "1 000 " * 300, "5 cm " * 300, "-" * 1_900 + "1", "!" * 1_900, "|" * 1_900,
    "9" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("answer", HARD_ANSWERS)
def test_no_answer_keeps_a_worker_busy_for_seconds(answer: str, pool: Verifier) -> None:
    start = time.monotonic()
    assert pool.compare("17", answer) == Comparison(equal=False)
    # A reference is as long as an answer may be; on two cores shared with others a second is ten times what it takes.
    assert time.monotonic() - start < 2


@pytest.fixture(scope="module")
def pool() -> Verifier:
    verifier = Verifier(workers=1, seconds=10.0)
    assert verifier.compare("1", "1").equal
    return verifier


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


def read_pid(pool: Verifier) -> int:
    worker = pool._idle.get()
    assert worker is not None
    pool._idle.put(worker)
    return worker.process.pid


def test_the_pair_of_a_worker_that_is_killed_while_idle_is_compared() -> None:
    pool = Verifier(workers=1)
    assert pool.compare("1", "1").equal
    os.kill(read_pid(pool), signal.SIGKILL)
    assert [pool.compare("1", "1").equal, pool.compare("2", "3").equal] == [True, False]
    pool.close()


def test_the_pair_of_a_worker_that_is_killed_at_work_is_tried_once_more() -> None:
    pool = Verifier(workers=1, seconds=30.0)
    assert pool.compare("1", "1").equal
    first = read_pid(pool)
    os.kill(first, signal.SIGSTOP)  # so that it has the pair and is not done with it
    results: list[Comparison] = []
    asking = threading.Thread(target=lambda: results.append(pool.compare("1/2", "0.5")))
    asking.start()
    while pool._idle.qsize():
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(first, signal.SIGKILL)
    asking.join()
    assert results == [Comparison(equal=True)]
    assert read_pid(pool) != first
    pool.close()


def test_a_pair_over_which_two_workers_die_has_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Verifier(workers=1, seconds=30.0)
    tries = []

    def die(gold: str, answer: str) -> None:
        tries.append((gold, answer))

    monkeypatch.setattr(pool, "_try", die)
    assert pool.compare("1", "2") == Comparison(None, "2 workers died over '2'")
    assert tries == [("1", "2")] * 2
    pool.close()
