"""What the coefficients of a whole group are multiplied by: powers of its success rate and variety, and pass@k."""

import math

import torch
from torch import Tensor

from maxent_grpo._checks import LARGEST, expect, expect_candidates, expect_in, expect_mask
from maxent_grpo._masked import count, fill, mean, upcast

ROUNDINGS = 16
"""By how many units in the last place of float32 a weighted sum of rewards may be off 1."""


def power_weights(
    utilities: Tensor,
    *,
    success_power: float = 0.0,
    failure_power: float = 0.0,
    distinct_power: float = 0.0,
    answers: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return p̂^a·(1−p̂)^b·M^d of each group, p̂ its mean utility and M its number of different right answers.

    On centred coefficients of binary rewards with τ = 0, a = 1 is Dr.GRPO, a = ½ and b = −½ is GRPO, b = γ − ½ in
    place of that F-GRPO (arXiv 2602.06717), nothing is MaxRL (arXiv 2602.02710); κ = 1 and d = 1 is the centred form
    of IPS-GRPO (arXiv 2601.21669).

    Args:
        utilities: [..., K], in [0, 1] if a or b is not 0.
        success_power: a.
        failure_power: b.
        distinct_power: d.
        answers: [...], M of `count_answers`; needed if d is not 0.
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        weights [...]: 0 wherever a factor is 0 to a power other than 0; NaN where a utility is outside [0, 1].

    Raises:
        ValueError: on a power that is not finite, or no answers with d other than 0.

    >>> power_weights(torch.tensor([1.0, 0.0, 0.0, 0.0]), success_power=0.5, failure_power=-0.5)
    tensor(0.5774)
    """
    expect_candidates("utilities", utilities, mask)
    values = upcast(utilities)
    log_weight = torch.zeros_like(values[..., 0])
    powers = {"success_power": success_power, "failure_power": failure_power, "distinct_power": distinct_power}
    for name, power in powers.items():
        expect_in(name, power, -LARGEST, LARGEST)
    expect(distinct_power == 0 or answers is not None, "answers with distinct_power", distinct_power=distinct_power)
    rates = [mean(each, mask).squeeze(-1) for each in (values, 1 - values)]
    rounded = ROUNDINGS * torch.finfo(values.dtype).eps
    bases = (*(rate.masked_fill(rate <= rounded, 0.0) for rate in rates), answers)
    for power, base in zip(powers.values(), bases, strict=True):
        if power != 0:
            assert base is not None  # checked
            log_weight = log_weight + (power * base.to(values.dtype).log()).masked_fill(base == 0, -math.inf)
    # A factor too large for the dtype stays a number: the coefficients that it meets may be 0.
    weight = log_weight.exp().clamp(max=torch.finfo(values.dtype).max)
    return weight if success_power == failure_power == 0 else _mark_outside(weight, values, mask)


def pass_at_k_weights(
    utilities: Tensor, right: Tensor, *, k: int, normalize: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Return what turns the direction of MaxRL into that of pass@k, for each group of K with n₊ right candidates.

    p̂·k·C(K−1−n₊, k−1)/C(K−1, k−1), p̂ the mean utility: PKPO's plain estimator with the group's mean as baseline
    (arXiv 2505.15201). Normalized, it is divided by k·σ_k with σ_k² = R̄(1−R̄) and R̄ = 1 − C(K−n₊, k)/C(K, k):
    Pass@k training (arXiv 2508.10751).

    Args:
        utilities: [..., K], in [0, 1].
        right: [..., K] bool.
        k: at least 1 and less than K.
        normalize: divide by k·σ_k.
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        weights [...]: 0 where k > 1 and n₊ > K − k, or masking leaves no more than k candidates; NaN where a
        utility is outside [0, 1].

    Raises:
        ValueError: on k outside [1, K).

    >>> pass_at_k_weights(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([True, False, False, False]), k=2)
    tensor(0.3333)
    """
    expect_candidates("utilities", utilities, mask)
    expect_mask("right", right, utilities.shape)
    candidates = utilities.shape[-1]
    expect(isinstance(k, int) and 1 <= k < candidates, f"pass_k >= 1 and < K={candidates} candidates", pass_k=k)
    values = upcast(utilities)
    total, successes = count(values, mask), count(values, right if mask is None else right & mask)
    weight = mean(values, mask) * k * _choose_ratio(total - 1 - successes, total - 1, k - 1)
    if normalize:
        failure = _choose_ratio(total - successes, total, k)
        certain = (successes == 0) | (total - successes < k)  # k draws pass always, or never
        weight = (weight / (k * (failure * (1 - failure)).sqrt())).masked_fill(certain, 0.0)
    return _mark_outside(weight.masked_fill(total <= k, 0.0).squeeze(-1), values, mask)


def _choose_ratio(part: Tensor, whole: Tensor, k: int) -> Tensor:
    """Return C(part, k)/C(whole, k), the chance that k draws from `whole` are all of `part`; 0 where part < k."""
    ratio = torch.ones_like(whole)
    for drawn in range(k):
        ratio = ratio * (part - drawn).clamp(min=0) / (whole - drawn).clamp(min=1)
    return ratio


def is_rate(utilities: Tensor) -> Tensor:
    """Return where a utility is between 0 and 1, [...] bool, or beyond by the rounding of a sum of rewards."""
    slack = ROUNDINGS * torch.finfo(torch.float32).eps
    return (utilities >= -slack) & (utilities <= 1 + slack)


def _mark_outside(weights: Tensor, utilities: Tensor, mask: Tensor | None) -> Tensor:
    """Return group weights with NaN where a counted utility is no number from 0 to 1, so that p̂ is no rate."""
    return weights.masked_fill(~is_rate(fill(utilities, mask, 0.0)).all(-1), math.nan)
