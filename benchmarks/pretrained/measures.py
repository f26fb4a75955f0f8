"""What sampled answers say of a model: accuracy, variety, and how different its right answers are."""

from collections import Counter
from collections.abc import Sequence
from math import comb
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.study.outcomes import KS
from benchmarks.study.runs import DIGITS
from maxent_grpo.pipeline.tasks.answers import Verdict
from maxent_grpo.pipeline.tasks.metrics import sample_metrics
from maxent_grpo.pipeline.tiny.sampling import Task, sample, shared_prompt_logits

Verdicts = Sequence[Sequence[Verdict]]
PROMPTS_AT_ONCE = {"cpu": 16, "cuda": 160}
"""How many prompts are sampled at once: a GPU takes as long for one token of many as of few."""
SCORED_AT_ONCE = 16
"""How many are scored at once: their logits are as many numbers as the vocabulary has tokens, for each token."""


def draw_verdicts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Any],
    *,
    num_samples: int,
    temperature: float,
    max_new_tokens: int,
) -> Verdicts:
    """Return [P][n] verdicts on fresh samples, the same ones at every call for the same model."""
    limits = {"num_samples": num_samples, "max_new_tokens": max_new_tokens, "temperature": temperature}
    at_once = PROMPTS_AT_ONCE[model.device.type]
    torch.manual_seed(0)
    verdicts: list[list[Verdict]] = []
    for start in range(0, len(problems), at_once):
        drawn = sample(model, tokenizer, task, problems[start : start + at_once], **limits).verdicts
        verdicts += [drawn[at : at + num_samples] for at in range(0, len(drawn), num_samples)]
    return verdicts


@torch.no_grad()
def measure_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Any],
    *,
    num_samples: int,
    max_new_tokens: int,
) -> dict[str, float]:
    """Return the entropy of an answer in nats and its length in tokens, at temperature 1."""
    limits = {"num_samples": num_samples, "max_new_tokens": max_new_tokens}
    torch.manual_seed(0)
    entropy = tokens = 0.0
    for start in range(0, len(problems), SCORED_AT_ONCE):
        drawn = sample(model, tokenizer, task, problems[start : start + SCORED_AT_ONCE], **limits)
        owners = torch.arange(len(drawn.ids), device=model.device) // num_samples
        logits = shared_prompt_logits(model, drawn.prompts[::num_samples], drawn.ids, owners)
        logps = logits.log_softmax(-1).gather(-1, drawn.ids.unsqueeze(-1)).squeeze(-1)
        entropy -= logps.masked_fill(~drawn.mask, 0.0).sum().item()
        tokens += drawn.mask.sum().item()
    answers = len(problems) * num_samples
    return {"entropy": entropy / answers, "tokens": tokens / answers}


def measure_verdicts(verdicts: Verdicts, total_modes: Sequence[int], *, k: int = 8) -> dict[str, float]:
    """Return mean, pass, coverage and PCMD at k, averaged over prompts, unbiased."""
    averages = sample_metrics(verdicts, total_modes, k=k).averages()
    return {f"{name}@{k}": averages[f"{name}@{k}"] for name in ("mean", "pass", "coverage")} | {
        f"PCMD@{k}": measure_difference(verdicts, k)
    }


def measure_difference(verdicts: Verdicts, k: int) -> float:
    """Return PCMD: the chance that two right samples differ, over the prompts of which k samples hold two.

    The estimate of `benchmarks.study.outcomes` from samples: a prompt with c right ones of n, n_m of each mode, has
    1 − Σ n_m (n_m − 1) / c (c − 1), and counts by the chance that k of the n hold two right ones.

    >>> right, other, wrong = Verdict(True, "a"), Verdict(True, "b"), Verdict(False, None)
    >>> measure_difference([[right, other, wrong], [wrong] * 3], 2)
    1.0
    """
    weighted = weights = 0.0
    for samples in verdicts:
        counts, n = Counter(mode for correct, mode in samples if correct), len(samples)
        c = counts.total()
        if c < 2:
            continue
        weight = 1 - (comb(n - c, k) + c * comb(n - c, k - 1)) / comb(n, k)
        equal = sum(count * (count - 1) for count in counts.values()) / (c * (c - 1))
        weighted, weights = weighted + weight * (1 - equal), weights + weight
    return weighted / weights if weights else float("nan")


def measure_curves(verdicts: Verdicts, total_modes: Sequence[int]) -> dict[str, list[float]]:
    """Return pass@k and coverage@k at every k of `KS` that there are samples for."""
    ks = [k for k in KS if k <= min(map(len, verdicts))]
    rows = [sample_metrics(verdicts, total_modes, k=k).averages() for k in ks]
    return {
        f"{name}@k": [round(row[f"{name}@{k}"], DIGITS) for k, row in zip(ks, rows, strict=True)]
        for name in ("pass", "coverage")
    }
