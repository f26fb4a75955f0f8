"""What a model is asked, and who judges its answers: a task of `tasks/`, or a dataset with a registered reward."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from maxent_grpo.adapters import KeyFunction
from maxent_grpo.adapters._groups import call_key_function
from maxent_grpo.adapters._rewards import call_reward_function, name_function, weigh_rewards
from maxent_grpo.pipeline.evaluation.curves import METRICS
from maxent_grpo.pipeline.evaluation.generation import Sample
from maxent_grpo.pipeline.rewards import Reward
from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict
from maxent_grpo.pipeline.tasks.catalog import find_task, split_problems

UNKNOWN = sys.maxsize
Judge = Callable[[Sequence[Sequence[Sample]]], list[list[Verdict | None]]]


@dataclass(frozen=True)
class Subject:
    """Prompts and their judge.

    Attributes:
        name: what a report calls it.
        prompts: [P] texts or chats.
        total_modes: [P] how many right answers each prompt has; `UNKNOWN` where nobody can say.
        judge: from [P][n] completions to as many verdicts, None where it cannot tell.
        metrics: of `curves.METRICS`, those that say something.
    """

    name: str
    prompts: list[Any]
    total_modes: list[int]
    judge: Judge
    metrics: tuple[str, ...]


def build_task_subject(name: str, *, limit: int | None, chat: bool, system: str | None = None) -> Subject:
    """Return the problems of a task that are never trained on.

    Args:
        name: of `tasks.catalog.TASKS`.
        limit: take the first so many, a random sample of them; None takes all.
        chat: ask in plain language.
        system: the system message of such a chat.

    Raises:
        ValueError: if there is no such task.
    """
    module, problems = find_task(name).module, split_problems(name).held_out[:limit]

    def judge(samples: Sequence[Sequence[Sample]]) -> list[list[Verdict | None]]:
        asked = zip(problems, samples, strict=True)
        return [[module.verify(problem, sample.text) for sample in drawn] for problem, drawn in asked]

    questions = [module.prompt(problem, boxed=chat) for problem in problems]
    first = [{"role": "system", "content": system}] if system else []
    prompts = [[*first, {"role": "user", "content": question}] for question in questions] if chat else questions
    return Subject(name, prompts, [len(problem.modes) for problem in problems], judge, METRICS)


def build_dataset_subject(
    name: str, rows: Dataset, reward: Reward, *, right: float = 1.0, keys: KeyFunction | None = None
) -> Subject:
    """Return the prompts of a dataset, judged by a reward.

    Args:
        name: what a report calls it.
        rows: with a `prompt` and the columns of the reward and of the key function.
        reward: of `rewards.REWARDS`, or any other.
        right: the reward from which an answer is right.
        keys: says which right answers are the same, so that different ones can be counted.
    """
    columns = {"prompts" if column == "prompt" else column: rows[column] for column in rows.column_names}
    name_of_reward = name_function(reward.function)

    def judge(samples: Sequence[Sequence[Sample]]) -> list[list[Verdict | None]]:
        counts = [len(drawn) for drawn in samples]
        repeated = {
            column: [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
            for column, values in columns.items()
        }
        answers = [sample for drawn in samples for sample in drawn]
        completions = {
            "completions": [
                _answer_prompt(p, sample.text) for p, sample in zip(repeated["prompts"], answers, strict=True)
            ],
            "completion_ids": [sample.ids for sample in answers],
        }
        called = _UNHEARD | repeated | completions
        rewards = call_reward_function(reward.function, called)
        utilities = weigh_rewards(rewards.unsqueeze(-1), torch.ones(1), [name_of_reward]).tolist()
        modes = ["right"] * len(answers)
        if keys is not None:
            named = call_key_function(keys, called, len(answers))
            modes = [
                f"tokens {sample.ids}" if key is None else key for key, sample in zip(named, answers, strict=True)
            ]
        verdicts = iter(
            None if math.isnan(utility) else Verdict(correct=True, mode=mode) if utility >= right else WRONG
            for utility, mode in zip(utilities, modes, strict=True)
        )
        return [[next(verdicts) for _ in range(count)] for count in counts]

    metrics = METRICS[:2] if keys is None else METRICS[:3]
    return Subject(name, list(rows["prompt"]), [UNKNOWN] * len(rows), judge, metrics)


def _answer_prompt(prompt: Any, text: str) -> Any:
    """Return a completion as training hands it to a reward: a chat's is a message of the assistant."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _ignore(*entry: Any) -> None:
    del entry


_UNHEARD: dict[str, Any] = {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}
"""What a reward may use in training, where somebody listens."""
