r"""Math in OpenRLHF: 1 for the right answer in <answer> tags or \boxed{...}, none where that cannot be told.

    --reward.remote_url examples/openrlhf/math_reward.py --maxent.key_func examples/openrlhf/math_reward.py

A label is the solution. Needs `pip install math-verify`, whose comparisons run in processes of their own. Right
answers are all one here, so what counts as the same is the way: the equations that a completion writes.
"""

from collections.abc import Sequence
from typing import Any

from maxent_grpo.pipeline.key_functions import equation_skeleton
from maxent_grpo.pipeline.rewards import math_verify


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    (reward,) = math_verify(read_completions(queries, prompts), labels)  # OpenRLHF asks for one at a time
    return {"rewards": reward, "scores": reward}


def key_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]) -> list[str | None]:
    return equation_skeleton(read_completions(queries, prompts))


def read_completions(queries: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """Return what follows the prompts: the prompt itself may show an answer's format."""
    return [query.removeprefix(prompt) for query, prompt in zip(queries, prompts, strict=True)]
