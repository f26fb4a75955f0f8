"""Mean, pass, distinct and coverage from the probabilities of the modes.

With p_m the probability of mode m under the policy and p = Σ_m p_m, k fresh samples have in expectation

    mean@k = p    pass@k = 1 − (1 − p)^k    distinct@k = Σ_m 1 − (1 − p_m)^k    coverage@k = distinct@k / modes

Were the right answers of each problem equally likely, its p as it is, coverage@k would be

    even@k = 1 − (1 − p/modes)^k
"""

import numpy as np

KS = (1, 2, 4, 8, 16, 32, 64)


def per_problem(outcomes: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Return mean, pass, distinct, coverage and even coverage of k samples for every problem.

    Args:
        outcomes: [..., problems, modes] probabilities, NaN beyond a problem's last mode.
        k: how many samples are meant.
    """
    right = np.nansum(outcomes, axis=-1)
    found = _hit(outcomes, k)
    return {
        "mean": right,
        "pass": _hit(right, k),
        "distinct": np.nansum(found, axis=-1),
        "coverage": np.nanmean(found, axis=-1),
        "even": _hit(right / np.isfinite(outcomes).sum(-1), k),
    }


def _hit(chances: np.ndarray, k: int) -> np.ndarray:
    """Return the chance that k samples hold an answer of each probability."""
    return 1 - (1 - np.clip(chances, 0, 1)) ** k


def averages(outcomes: np.ndarray) -> dict[str, float]:
    """Return the metrics of one temperature averaged over problems, [problems, modes] → names with their k."""
    at_8 = {name: float(values.mean()) for name, values in per_problem(outcomes, 8).items()}
    result = {f"{name}@8": value for name, value in at_8.items()}
    result["distinct_per_solved"] = at_8["distinct"] / at_8["pass"] if at_8["pass"] else 0.0
    return result | {f"pass@{k}": float(per_problem(outcomes, k)["pass"].mean()) for k in KS}
