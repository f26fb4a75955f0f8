r"""Countdown in OpenRLHF: 1 for a `\boxed{...}` expression that makes the target, and which answers are the same.

    --reward.remote_url examples/openrlhf/countdown_reward.py --maxent.key_func examples/openrlhf/countdown_reward.py

A label is the JSON of a problem, {"numbers": [2, 3, 5], "target": 16}.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from maxent_grpo.pipeline.tasks.answers import Verdict
from maxent_grpo.pipeline.tasks.countdown import Problem, verify


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    (verdict,) = judge_answers(queries, prompts, labels)  # OpenRLHF asks for one at a time
    return {"rewards": float(verdict.correct), "scores": float(verdict.correct)}


def key_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]) -> list[str | None]:
    """Return what a right answer computes, in whatever order it is written; a wrong one is told by its tokens."""
    return [verdict.mode for verdict in judge_answers(queries, prompts, labels)]


def judge_answers(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]) -> Iterator[Verdict]:
    for query, prompt, label in zip(queries, prompts, labels, strict=True):
        columns = json.loads(label)
        problem = Problem(tuple(columns["numbers"]), columns["target"], ())
        yield verify(problem, query.removeprefix(prompt), boxed=True)
