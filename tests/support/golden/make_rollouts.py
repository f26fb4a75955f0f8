"""Make tests/support/golden/rollouts.json: a small batch of rollouts and what every setting makes of it.

    cd tests && python -m support.golden.make_rollouts

Coefficients, losses and gradients come from the NumPy oracle alone. `golden_table` reads the file and says what
its entries mean; a new row needs an entry in SETTINGS and a run of this script.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maxent_grpo import MaxEntConfig, reference
from support.reference_gradients import clipped_surrogate_grad, maxent_weighted_nll_grad

PATH = Path(__file__).with_name("rollouts.json")
MAX_LENGTH = 5
REWARD_WEIGHTS = (0.75, 0.25)
SEED = 7
"""Of the generator that pruning draws from, in place of the one that a framework seeds."""

# One line a group: the rewards of its candidates by two functions, then its completions. Groups 0, 3 and 4 hold
# candidates that one function or both could not score; group 1 has duplicates, group 2 is all right, group 3 has an
# empty candidate, group 4 is all wrong.
REWARDS = [
    [(1.0, 0.5), (0.0, None), (0.0, 1.0), (1.0, None)],
    [(1.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0), (1.0, 1.0), (0.0, 0.25)],
    [(1.0, 1.0), (1.0, 1.0), (1.0, 1.0)],
    [(0.0, 1.0), (None, None), (1.0, 0.0), (0.0, 0.0), (None, 1.0)],
    [(0.0, 0.0), (0.0, 0.0), (0.0, None), (0.0, 0.0)],
]
COMPLETIONS = [
    [[3, 4, 5], [6, 1], [7, 8, 9, 10, 3], [4]],
    [[3, 4], [3, 4], [5, 6, 7], [5, 6, 7], [3, 4], [8, 8, 8, 8]],
    [[9, 9, 1], [9, 9, 1], [10, 2]],
    [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3], [], [5, 8]],
    [[7], [7, 7], [7], [2, 7, 1, 8]],
]

SETTINGS: dict[str, dict[str, Any]] = {
    "published": {},
    "pulled to the reference": {"beta": 0.1},
    "pulled to the summed reference": {"beta": 0.05, "length_normalize_ref": False},
    "pulled to the rollout policy": {"beta": 0.3, "anchor": "old"},
    "no anchor": {"anchor": "none", "q_temperature": 0.5, "q_eps": 1e-3},
    "ranks": {"utility_transform": "rank"},
    "z-scores, mean over tokens": {"utility_transform": "zscore", "nll_reduction": "mean"},
    "centred, divided by the limit": {"center": True, "nll_reduction": "max_length", "max_length": MAX_LENGTH},
    "duplicates discounted": {"dedup": 0.5, "beta": 0.1},
    "diverse": {
        "center": True, "dedup": 1.0, "skip": "all_min", "nll_reduction": "max_length", "max_length": MAX_LENGTH,
    },
    "scaled by the success": {
        "center": True, "dedup": 0.5, "success_power": 1.0, "skip": "all_min", "nll_reduction": "max_length",
        "max_length": MAX_LENGTH,
    },
    "equal groups skipped": {"skip": "equal", "success_power": 0.5},
    "pruned": {
        "center": True, "dedup": 1.0, "skip": "all_min", "nll_reduction": "max_length", "max_length": MAX_LENGTH,
        "keep_fraction": 0.6,
    },
    "listwise": {"projection": "listwise", "dedup": 1.0},
    "listwise by length": {"projection": "listwise", "nll_reduction": "mean", "anchor": "old", "beta": 0.2},
    "regression": {"projection": "regression", "anchor": "old", "beta": 0.2, "nll_reduction": "mean"},
    "uniform": {"tau": float("inf")},
    "effective size 2": {"target_ess": 2.0, "beta": 0.02},
    "RAFT": {"tau": 0.0, "beta": 0.0, "skip": "all_min"},
    "KL-regularised optimum": {"tau": 0.0, "beta": 0.5, "q_eps": 0.0},
    "TPO": {
        "tau": 0.0, "beta": 1.0, "anchor": "old", "projection": "listwise", "utility_transform": "zscore",
        "q_eps": 0.0,
    },
    "xDr.GRPO": {"projection": "surrogate", "surrogate_tau": 0.2, "max_length": MAX_LENGTH},
    "Dr.GRPO": {"projection": "surrogate", "max_length": MAX_LENGTH},
    "softly discounted": {
        "center": True, "soft_dedup": 0.25, "skip": "all_min", "nll_reduction": "max_length",
        "max_length": MAX_LENGTH,
    },
    "scaled by distinct successes": {"tau": 0.0, "center": True, "dedup": 1.0, "distinct_power": 1.0},
    "pass@2": {"tau": 0.0, "center": True, "pass_k": 2},
    "pass@2, normalized": {"tau": 0.0, "center": True, "pass_k": 2, "pass_k_normalize": True},
    "no baseline": {"projection": "surrogate", "baseline": "none", "max_length": MAX_LENGTH},
    **{
        "+".join(transforms): {
            "projection": "surrogate", "utility_transform": transforms, "max_length": MAX_LENGTH,
        }
        for transforms in (
            ("ips", "zscore"), ("zscore", "ucpo"), ("gapo", "zscore"), ("darling",), ("unlikeliness", "zscore"),
        )
    },
}  # fmt: skip
CLIPPED = ("diverse", "listwise by length", "published", "xDr.GRPO", "Dr.GRPO")


def rollouts() -> list[dict[str, Any]]:
    """Return the candidates of all groups in order; log-probabilities are multiples of 2^-10, so exact anywhere."""
    rng = np.random.default_rng(2025)
    rows = []
    for group, (rewards, completions) in enumerate(zip(REWARDS, COMPLETIONS, strict=True)):
        prompt = rng.integers(1, 11, size=2 + group % 3).tolist()
        for pair, completion in zip(rewards, completions, strict=True):
            old = rng.integers(-3000, -20, size=len(completion)) / 1024
            rows.append({
                "group": group,
                "prompt_ids": prompt,
                "completion_ids": completion,
                "rewards": list(pair),
                "old_logps": old.tolist(),
                "policy_logps": (old + rng.integers(-500, 500, size=len(completion)) / 1024).tolist(),
                "reference_logps": (old + rng.integers(-800, 800, size=len(completion)) / 1024).tolist(),
            })  # fmt: skip
    return rows


def padded(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    """Return a ragged entry as [N, T], zeros behind each completion."""
    return np.array([row[key] + [0.0] * (MAX_LENGTH - len(row[key])) for row in rows])


def utility(rewards: list[float | None]) -> float:
    """Return the weighted sum of the rewards, NaN where one is missing."""
    known = [w * r for w, r in zip(REWARD_WEIGHTS, rewards, strict=True) if r is not None]
    return sum(known) if len(known) == len(rewards) else float("nan")


def compute_coefficients(config: MaxEntConfig, rows: list[dict[str, Any]]) -> np.ndarray:
    """Return the oracle's coefficients [N]; zeros for candidates that do not count."""
    groups = np.array([row["group"] for row in rows])
    utilities = np.array([utility(row["rewards"]) for row in rows])
    lengths = np.array([len(row["completion_ids"]) for row in rows])
    texts = [str(row["completion_ids"]) for row in rows]
    keys = np.array([sorted(set(texts)).index(text) for text in texts])
    old, ref = (np.array([sum(row[key]) for row in rows]) for key in ("old_logps", "reference_logps"))
    per_token = np.maximum(lengths, 1)
    scores = old / per_token if config.nll_reduction == "mean" else old
    anchors = {"reference": ref / per_token if config.length_normalize_ref else ref, "old": scores, "none": 0 * old}
    coefficients = np.zeros(len(rows))
    for group in range(len(REWARDS)):
        at = (groups == group) & ~np.isnan(utilities) & (lengths > 0)
        u, a = utilities[at], anchors[config.anchor][at]
        tau = config.tau
        if config.target_ess is not None and u.max() > u.min():
            log_q = reference.listwise_log_q(u, temperature=config.q_temperature, eps=config.q_eps)
            tau = float(reference.tau_for_ess(log_q, a, ess=config.target_ess, beta=config.beta))
        coefficients[at] = reference.group_coefficients(
            u, a, transform=config.utility_transform, temperature=config.q_temperature, eps=config.q_eps, tau=tau,
            beta=config.beta, keys=keys[at], dedup=config.dedup, projection=config.projection, center=config.center,
            policy_scores=scores[at], lengths=lengths[at], max_length=config.max_length or 1,
            surrogate_tau=config.surrogate_tau, success_power=config.success_power, skip=config.skip,
            min_utility=config.min_utility, soft_dedup=config.soft_dedup, distinct_power=config.distinct_power,
            pass_k=config.pass_k, pass_k_normalize=config.pass_k_normalize, baseline=config.baseline,
        )  # fmt: skip
    if config.keep_fraction is None:
        return coefficients
    return reference.prune_candidates(coefficients, keep=config.keep_fraction, start=draw_start())


def draw_start() -> float:
    """Return the number that the seeded generator gives to pruning."""
    return float(torch.rand((), generator=torch.Generator().manual_seed(SEED), dtype=torch.float64))


def make_row(config: MaxEntConfig, rows: list[dict[str, Any]], *, clipped: bool) -> dict[str, Any]:
    """Return the oracle's coefficients, loss and gradient of one setting."""
    coefficients = compute_coefficients(config, rows)
    mask = np.array([[t < len(row["completion_ids"]) for t in range(MAX_LENGTH)] for row in rows])
    logps, old = padded(rows, "policy_logps"), padded(rows, "old_logps")
    divided = config.nll_reduction == "max_length" or config.projection == "surrogate"
    options: dict[str, Any] = {
        "length_normalize": config.nll_reduction == "mean",
        "max_length": config.max_length if divided else None,
        "num_groups": len(REWARDS),
    }
    if clipped:
        options |= {"clip_low": config.clip_low, "clip_high": config.clip_high}
        loss = reference.clipped_surrogate(logps, old, coefficients, mask, **options)
        gradient = clipped_surrogate_grad(logps, old, coefficients, mask, **options)
    else:
        loss = reference.maxent_weighted_nll(logps, coefficients, mask, **options)
        gradient = maxent_weighted_nll_grad(logps, coefficients, mask, **options)
    return {
        "clipped": clipped,
        "coefficients": coefficients.tolist(),
        "loss": loss,
        "gradient": [slopes[kept].tolist() for slopes, kept in zip(gradient, mask, strict=True)],
    }


def contents() -> dict[str, Any]:
    """Return what belongs into the file."""
    rows = rollouts()
    settings = {}
    for name, fields in SETTINGS.items():
        for clipped in (False, True) if name in CLIPPED else (False,):
            label = f"{name}, clipped" if clipped else name
            settings[label] = {"config": fields, **make_row(MaxEntConfig(**fields), rows, clipped=clipped)}
    return {
        "reward_weights": list(REWARD_WEIGHTS), "max_length": MAX_LENGTH, "num_groups": len(REWARDS),
        "seed": SEED, "rollouts": rows, "settings": settings,
    }  # fmt: skip


if __name__ == "__main__":
    PATH.write_text(json.dumps(contents(), indent=1) + "\n")
