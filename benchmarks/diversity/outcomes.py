"""What a model answers at each sampling temperature: the probability of every mode.

A task whose right answers can be listed as texts needs no samples: one pass over the texts of all problems
gives the probability of each mode at every temperature, and with them mean, pass@k and coverage@k for every k
without any noise of the evaluation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.diversity.presets import Family
from maxent_grpo.pipeline.tiny.sampling import completion_logits

Outcomes = np.ndarray
"""[temperatures, problems, modes] float: the probability of each mode, NaN beyond a problem's last one."""


@torch.no_grad()
def exact_outcomes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    problems: Sequence[Any],
    temperatures: Sequence[float],
    *,
    batch_size: int = 1024,
) -> Outcomes:
    """Return the probability of each mode: the sum over the texts that `family.solutions` lists for it."""
    rows = [
        (which, mode, text)
        for which, problem in enumerate(problems)
        for mode, texts in enumerate(family.solutions(problem).values())
        for text in texts
    ]
    outcomes = _empty(problems, len(temperatures))
    model.eval()
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        prompts = [family.prompt(problems[which]) for which, _, _ in part]
        asked = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
        texts = [text + tokenizer.eos_token if family.ends else text for _, _, text in part]
        told = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right").to(model.device)
        logits = completion_logits(model, asked["input_ids"], told["input_ids"])
        chosen = logits.gather(-1, told["input_ids"].unsqueeze(-1)).squeeze(-1)
        for heat, temperature in enumerate(temperatures):
            logps = chosen / temperature - (logits / temperature).logsumexp(-1)
            chances = logps.masked_fill(told["attention_mask"] == 0, 0.0).sum(-1).exp().cpu().numpy()
            np.add.at(outcomes[heat], tuple(np.array([row[:2] for row in part]).T), chances)
    return outcomes


def _empty(problems: Sequence[Any], temperatures: int) -> Outcomes:
    sizes = np.array([len(problem.modes) for problem in problems])
    grid = np.where(np.arange(sizes.max()) < sizes[:, None], 0.0, np.nan)
    return np.repeat(grid[None], temperatures, axis=0)
