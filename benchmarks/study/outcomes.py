"""What a model answers at each sampling temperature: the probability of every mode, and the metrics of it.

A task whose right answers can be listed as texts needs no samples: one pass over the texts of all problems gives the
probability p_m of each mode at every temperature. With p = Σ_m p_m, k fresh samples have in expectation

    mean@k = p    pass@k = 1 − (1 − p)^k    coverage@k = (1/modes) Σ_m 1 − (1 − p_m)^k

PCMD asks how different right answers are from one another, whatever their number: the chance that two right samples
give different ones, 1 − Σ_m (p_m/p)². It is averaged over the problems of which k samples hold two right answers
(remax-rl, "Measuring and Mitigating Solution Mode Collapse in RLVR").
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.study.tasks import Family
from maxent_grpo.pipeline.tiny.sampling import completion_logits

KS = (1, 2, 4, 8, 16, 32, 64)


@torch.no_grad()
def compute_outcomes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    problems: Sequence[Any],
    temperatures: Sequence[float],
    *,
    batch_size: int = 1024,
) -> np.ndarray:
    """Return the probability of each mode: the sum over the texts that `family.list_solutions` has for it.

    Returns:
        [temperatures, problems, modes], NaN beyond a problem's last mode.
    """
    rows = [
        (which, mode, text)
        for which, problem in enumerate(problems)
        for mode, texts in enumerate(family.list_solutions(problem).values())
        for text in texts
    ]
    outcomes = _make_empty(problems, len(temperatures))
    model.eval()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        prompts = [family.task.prompt(problems[which]) for which, _, _ in batch]
        texts = [text + tokenizer.eos_token if family.ends else text for _, _, text in batch]
        asked = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
        answers = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right").to(model.device)
        logits = completion_logits(model, asked["input_ids"], answers["input_ids"])
        chosen = logits.gather(-1, answers["input_ids"].unsqueeze(-1)).squeeze(-1)
        places = tuple(np.array([row[:2] for row in batch]).T)
        for which, temperature in enumerate(temperatures):
            logps = chosen / temperature - (logits / temperature).logsumexp(-1)
            probabilities = logps.masked_fill(answers["attention_mask"] == 0, 0.0).sum(-1).exp()
            np.add.at(outcomes[which], places, probabilities.cpu().numpy())
    return outcomes


def _make_empty(problems: Sequence[Any], temperatures: int) -> np.ndarray:
    sizes = np.array([len(problem.modes) for problem in problems])
    grid = np.where(np.arange(sizes.max()) < sizes[:, None], 0.0, np.nan)
    return np.repeat(grid[None], temperatures, axis=0)


def measure_problems(outcomes: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Return mean, pass and coverage of k samples for every problem.

    Args:
        outcomes: [..., problems, modes] probabilities, NaN beyond a problem's last mode.
        k: how many samples are meant.
    """
    right = np.nansum(outcomes, axis=-1)
    return {
        "mean": right,
        "pass": _find_chance(right, k),
        "coverage": np.nanmean(_find_chance(outcomes, k), axis=-1),
    }


def _find_chance(probabilities: np.ndarray, k: int) -> np.ndarray:
    """Return the chance that k samples hold an answer of each probability."""
    return 1 - (1 - np.clip(probabilities, 0, 1)) ** k


def measure_difference(outcomes: np.ndarray, k: int) -> float:
    """Return PCMD of [problems, modes]: the chance that two right samples differ, where k samples hold two."""
    right = np.nansum(outcomes, axis=-1)
    wrong = 1 - np.clip(right, 0, 1)
    weights = 1 - wrong**k - k * right * wrong ** (k - 1)
    shares = np.nan_to_num(outcomes) / np.where(right > 0, right, 1.0)[:, None]
    return float(np.average(1 - (shares**2).sum(-1), weights=weights)) if weights.sum() > 0 else float("nan")


def average_metrics(outcomes: np.ndarray) -> dict[str, float]:
    """Return the metrics of one temperature averaged over problems, [problems, modes] → names with their k."""
    at_8 = {f"{name}@8": float(values.mean()) for name, values in measure_problems(outcomes, 8).items()}
    curve = {f"pass@{k}": float(measure_problems(outcomes, k)["pass"].mean()) for k in KS}
    return at_8 | {"PCMD@8": measure_difference(outcomes, 8)} | curve
