"""GAPO as published: it is told how many right answers a problem has, which no trainer knows of its prompts."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.study.tasks import Family
from maxent_grpo.pipeline.tasks.answers import Verdict
from maxent_grpo.pipeline.tiny.sampling import Task
from maxent_grpo.transforms import TRANSFORMS, reward_rare

NAME = "gapo_oracle"
_ANSWERS: list[int] = []


def build_oracle_task(family: Family) -> Task:
    """Return a task that notes, with each verdict, how many right answers the problem has."""

    def verify(problem: Any, text: str) -> Verdict:
        _ANSWERS.append(len(problem.modes))
        verdict: Verdict = family.module.verify(problem, text)
        return verdict

    return Task(prompt=family.module.prompt, verify=verify)


def reward_rare_by_oracle(utilities: Tensor, *, mask: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    """Return GAPO's utilities with the L of the latest verdicts, one per candidate."""
    answers = torch.tensor(_ANSWERS[-utilities.numel() :], dtype=utilities.dtype).view(utilities.shape)
    _ANSWERS.clear()
    without = reward_rare(utilities, mask=mask, right=right, counts=counts, valid_answers=torch.inf)
    return torch.where(right & mask, without + 1 / answers, without)


TRANSFORMS[NAME] = reward_rare_by_oracle
