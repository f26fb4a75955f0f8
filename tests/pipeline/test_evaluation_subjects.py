"""A dataset as what a model is asked: the reward's verdicts, and the answers that a key function tells apart."""

from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from maxent_grpo.adapters import KeyFunction
from maxent_grpo.pipeline.answers.verifier import Comparison
from maxent_grpo.pipeline.evaluation.curves import measure_curve
from maxent_grpo.pipeline.evaluation.generation import Sample
from maxent_grpo.pipeline.evaluation.subjects import build_dataset_subject
from maxent_grpo.pipeline.rewards import Reward, find_reward
from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict


def draw(*texts: str) -> list[Sample]:
    return [Sample(text, []) for text in texts]


def test_a_reward_that_cannot_tell_gives_no_verdict() -> None:
    rows = Dataset.from_dict({"prompt": ["a", "b"], "solution": ["1", "2"]})
    scores = {("1", "1"): 1.0, ("1", "x"): 0.5, ("2", "1"): None, ("2", "x"): 0.0}

    def judge(completions: list[str], solution: list[str], **_: Any) -> list[float | None]:
        return [scores[pair] for pair in zip(solution, completions, strict=True)]

    subject = build_dataset_subject("s", rows, Reward(judge, ("solution",)))
    right = Verdict(correct=True, mode="right")
    assert subject.judge([draw("1", "x"), draw("1", "x")]) == [[right, WRONG], [None, WRONG]]
    lenient = build_dataset_subject("s", rows, Reward(judge), right=0.5)
    assert lenient.judge([draw("1", "x"), draw("x", "x")])[0] == [right, right]


def test_a_key_function_counts_different_right_answers() -> None:
    rows = Dataset.from_dict({"prompt": ["a"], "solution": ["1"]})
    called: list[dict[str, Any]] = []

    def name(completions: list[str], **columns: Any) -> list[str | None]:
        called.append(columns)
        return [None if text == "other" else text.lower() for text in completions]

    reward = Reward(lambda completions, **_: [float(text != "wrong") for text in completions])
    subject = build_dataset_subject("s", rows, reward, keys=KeyFunction(name))
    samples = [Sample("A", [1]), Sample("a", [2]), Sample("other", [3]), Sample("other", [4]), Sample("wrong", [5])]
    (verdicts,) = subject.judge([samples])
    modes = [verdict.mode for verdict in verdicts if verdict]
    assert modes[0] == modes[1] == "a"
    assert len(set(modes[:4])) == 3  # where the function cannot tell, tokens decide
    assert modes[4] is None
    assert called[0]["solution"] == ["1"] * 5
    curve = measure_curve([verdicts], subject.total_modes, ks=[5])
    assert curve.points["distinct"][0].value == 3
    assert subject.metrics == ("mean", "pass", "distinct")


def test_answers_to_mathematics_are_judged_in_their_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def compare_all(pairs: list[tuple[str, str]]) -> list[Comparison]:
        compared.extend(pairs)
        return [Comparison(gold == answer) for gold, answer in pairs]

    monkeypatch.setattr("maxent_grpo.pipeline.rewards._VERIFIER", SimpleNamespace(compare_all=compare_all))
    rows = Dataset.from_dict({"prompt": ["a"], "solution": ["1"]})
    (verdicts,) = build_dataset_subject("s", rows, find_reward("math_verify")).judge([draw(r"\boxed{1}", "1")])
    assert [verdict.correct for verdict in verdicts if verdict] == [True, False]
    assert compared == [("1", "1")]
