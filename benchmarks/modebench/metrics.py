"""Mean, pass, distinct and coverage from the probabilities of the modes.

With p_m the probability of mode m under the policy and p = Σ_m p_m, k fresh samples have in expectation

    mean@k = p    pass@k = 1 − (1 − p)^k    distinct@k = Σ_m 1 − (1 − p_m)^k    coverage@k = distinct@k / modes

Where only n samples were drawn, p_m is a share of them and the unbiased 1 − C(n − c, k) / C(n, k) takes the place
of 1 − (1 − p)^k.
"""

import numpy as np
from scipy.special import gammaln

KS = (1, 2, 4, 8, 16, 32, 64)


def hit_chances(shares: np.ndarray, k: int, samples: int | None) -> np.ndarray:
    """Return the chance that k samples hold an answer of each probability, exact or unbiased from n samples.

    >>> hit_chances(np.array([0.5]), 2, None), hit_chances(np.array([0.25]), 2, 4)
    (array([0.75]), array([0.5]))
    """
    if samples is None:
        return 1 - (1 - np.clip(shares, 0, 1)) ** k
    wrong = samples - np.round(shares * samples)
    log_misses = gammaln(wrong + 1) - gammaln(np.maximum(wrong - k, 0) + 1)
    log_all = gammaln(samples + 1) - gammaln(samples - k + 1)
    return np.where(np.isnan(wrong), np.nan, np.where(wrong >= k, 1 - np.exp(log_misses - log_all), 1.0))


def per_problem(outcomes: np.ndarray, k: int, samples: int | None = None) -> dict[str, np.ndarray]:
    """Return mean, pass, distinct and coverage of k samples for every problem.

    Args:
        outcomes: [..., problems, modes] probabilities, NaN beyond a problem's last mode.
        k: how many samples are meant.
        samples: of how many samples the probabilities are shares; None where they are exact.
    """
    right = np.nansum(outcomes, axis=-1)
    found = hit_chances(outcomes, k, samples)
    return {
        "mean": right,
        "pass": hit_chances(right, k, samples),
        "distinct": np.nansum(found, axis=-1),
        "coverage": np.nanmean(found, axis=-1),
    }


def averages(outcomes: np.ndarray, samples: int | None = None) -> dict[str, float]:
    """Return the metrics of one temperature averaged over problems, [problems, modes] → names with their k."""
    at_8 = {name: float(values.mean()) for name, values in per_problem(outcomes, 8, samples).items()}
    result = {f"{name}@8": value for name, value in at_8.items()}
    result["distinct_per_solved"] = at_8["distinct"] / at_8["pass"] if at_8["pass"] else 0.0
    return result | {f"pass@{k}": float(per_problem(outcomes, k, samples)["pass"].mean()) for k in KS}
