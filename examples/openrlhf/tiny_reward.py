"""The share of the letter a in a completion; no verdict where it begins with h, so that a run has unscored ones."""

from collections.abc import Sequence
from typing import Any


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    completion = read_completion(queries[0], prompts[0])  # OpenRLHF asks for one at a time
    reward = None if completion.startswith("h") else completion.count("a") / max(len(completion), 1)
    return {"rewards": reward, "scores": reward}


def key_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]) -> list[str | None]:
    """Return the letters of each completion in order of the alphabet: their order makes no other answer."""
    completions = [read_completion(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    return ["".join(sorted(completion)) for completion in completions]


def read_completion(query: str, prompt: str) -> str:
    return query.replace(" ", "").removeprefix(prompt.replace(" ", "")).removesuffix("<eos>")
