"""What a model is asked, and who judges its answers: a task of `tasks/`, or a dataset with a registered reward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from maxent_grpo.pipeline.rewards import Reward
from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict
from maxent_grpo.pipeline.tasks.catalog import find_task, split_problems

RIGHT = Verdict(correct=True, mode="right")
Judge = Callable[[Sequence[Sequence[str]]], list[list[Verdict | None]]]


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


def build_task_subject(name: str, *, limit: int | None, chat: bool) -> Subject:
    """Return the problems of a task that are never trained on.

    Args:
        name: of `tasks.catalog.TASKS`.
        limit: take the first so many, a random sample of them; None takes all.
        chat: ask in plain language.

    Raises:
        ValueError: if there is no such task.
    """
    module, problems = find_task(name).module, split_problems(name).held_out[:limit]

    def judge(texts: Sequence[Sequence[str]]) -> list[list[Verdict | None]]:
        return [
            [module.verify(problem, text) for text in each] for problem, each in zip(problems, texts, strict=True)
        ]

    questions = [module.prompt(problem, boxed=chat) for problem in problems]
    prompts = [[{"role": "user", "content": question}] for question in questions] if chat else questions
    return Subject(name, prompts, [len(problem.modes) for problem in problems], judge, has_modes=True)


def build_dataset_subject(name: str, rows: Dataset, reward: Reward, *, right: float = 1.0) -> Subject:
    """Return the prompts of a dataset, judged by a reward.

    Args:
        name: what a report calls it.
        rows: with a `prompt` and the columns of the reward.
        reward: of `rewards.REWARDS`, or any other.
        right: the reward from which an answer is right.
    """
    columns = {column: rows[column] for column in rows.column_names if column != "prompt"}

    def judge(texts: Sequence[Sequence[str]]) -> list[list[Verdict | None]]:
        counts = [len(samples) for samples in texts]
        repeated = {
            column: [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
            for column, values in columns.items()
        }
        rewards = iter(reward.function(completions=[text for samples in texts for text in samples], **repeated))
        return [[_judge_reward(next(rewards), right) for _ in range(count)] for count in counts]

    return Subject(name, list(rows["prompt"]), [1] * len(rows), judge, has_modes=False)


def _judge_reward(reward: float | None, right: float) -> Verdict | None:
    return None if reward is None else RIGHT if reward >= right else WRONG
