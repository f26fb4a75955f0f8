"""What a model is asked, and who judges its answers: a task of `tasks/`, or a dataset with a registered reward."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from maxent_grpo.adapters._rewards import call_reward_function, name_function, weigh_rewards
from maxent_grpo.pipeline.evaluation.generation import Sample
from maxent_grpo.pipeline.rewards import Reward
from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict
from maxent_grpo.pipeline.tasks.catalog import find_task, split_problems

RIGHT = Verdict(correct=True, mode="right")
Judge = Callable[[Sequence[Sequence[Sample]]], list[list[Verdict | None]]]


@dataclass(frozen=True)
class Subject:
    """Prompts and their judge.

    Attributes:
        name: what a report calls it.
        prompts: [P] texts or chats.
        total_modes: [P] how many right answers each prompt has.
        judge: from [P][n] completions to as many verdicts, None where it cannot tell.
        has_modes: whether right answers differ in a way that counts.
    """

    name: str
    prompts: list[Any]
    total_modes: list[int]
    judge: Judge
    has_modes: bool


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
    return Subject(name, prompts, [len(problem.modes) for problem in problems], judge, has_modes=True)


def build_dataset_subject(name: str, rows: Dataset, reward: Reward, *, right: float = 1.0) -> Subject:
    """Return the prompts of a dataset, judged by a reward.

    Args:
        name: what a report calls it.
        rows: with a `prompt` and the columns of the reward.
        reward: of `rewards.REWARDS`, or any other.
        right: the reward from which an answer is right.
    """
    columns = {"prompts" if column == "prompt" else column: rows[column] for column in rows.column_names}
    name = name_function(reward.function)

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
        rewards = call_reward_function(reward.function, _UNHEARD | repeated | completions)
        utilities = weigh_rewards(rewards.unsqueeze(-1), torch.ones(1), [name]).tolist()
        verdicts = iter(
            None if math.isnan(utility) else RIGHT if utility >= right else WRONG for utility in utilities
        )
        return [[next(verdicts) for _ in range(count)] for count in counts]

    return Subject(name, list(rows["prompt"]), [1] * len(rows), judge, has_modes=False)


def _answer_prompt(prompt: Any, text: str) -> Any:
    """Return a completion as training hands it to a reward: a chat's is a message of the assistant."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _ignore(*entry: Any) -> None:
    del entry


_UNHEARD: dict[str, Any] = {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}
"""What a reward may use in training, where somebody listens."""
