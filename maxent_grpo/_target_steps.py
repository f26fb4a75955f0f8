"""The steps from a rollout's groups to what they are fitted to, in the order in which the objective takes them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maxent_grpo._checks import expect, expect_shape
from maxent_grpo._masked import below_peak, center, divide_gap, fill, log_softmax, per_group
from maxent_grpo.config import MaxEntConfig
from maxent_grpo.duplicates import discount_likely, discount_log_weights, duplicate_counts
from maxent_grpo.group_weights import pass_at_k_weights, power_weights
from maxent_grpo.target import informative_groups, tau_for_ess


@dataclass(frozen=True)
class Target:
    """What a rollout's groups are fitted to; everything detached.

    Attributes:
        utilities: [..., K] transformed utilities, 0 where masked.
        log_q: [..., K] log q of the target's potential: with duplicates discounted, that of eq. (4b).
        log_weights: [..., K] log π*; for the surrogate, the logarithm of its candidate weights.
        weights: [..., K] π*, exactly 0 where masked.
        tau: [...] τ of each group.
        mask: [..., K] bool, the candidates that count: given as such, and not empty.
        informative: [...] bool, False where all counted utilities are equal.
        scale: [...] what the group's coefficients are multiplied by; 0 where the group is skipped.
        right: [..., K] bool, the candidates that count and are right.
        counts: [..., K] how many candidates of the group give the same answer, or None if nothing says so.
        answers: [...] M, the number of different right answers, or None without counts.
        anchor_logps: [..., K] normalised anchor log-probabilities, or None if the target has none.
        lengths: [..., K] number of tokens of each candidate.
    """

    utilities: Tensor
    log_q: Tensor
    log_weights: Tensor
    weights: Tensor
    tau: Tensor
    mask: Tensor
    informative: Tensor
    scale: Tensor
    right: Tensor
    counts: Tensor | None
    answers: Tensor | None
    anchor_logps: Tensor | None
    lengths: Tensor


def count_equal(config: MaxEntConfig, keys: Tensor | None, counts: Tensor | None, mask: Tensor) -> Tensor | None:
    """Return how many candidates of the group give each one's answer, [..., K], or None if nothing says so."""
    if counts is not None:
        expect_shape("counts", counts, mask.shape)
        return counts
    if keys is not None:
        expect_shape("keys", keys, mask.shape)
        return duplicate_counts(keys, mask=mask)
    names = ("dedup", "distinct_power", "utility_transform")
    settings = ", ".join(f"{name}={getattr(config, name)!r}" for name in names)
    expect(not config.needs_keys, f"keys or counts with {settings}", keys=None)
    return None


def normalize_logps(config: MaxEntConfig, logps: Tensor, lengths: Tensor) -> Tensor:
    """Return the candidates' scores under a policy: per token iff the loss is, else summed."""
    return logps / lengths.clamp(min=1) if config.nll_reduction == "mean" else logps


def normalize_anchors(
    config: MaxEntConfig, lengths: Tensor, ref_logps: Tensor | None, old_logps: Tensor | None
) -> Tensor | None:
    """Return the anchor's scores, [..., K]; those that the target does not need are optional."""
    if config.anchor == "none":
        return None
    name, logps = ("ref_logps", ref_logps) if config.anchor == "reference" else ("old_logps", old_logps)
    if logps is None:
        expect(
            config.beta == 0,
            f"{name} with anchor={config.anchor!r} and beta={config.beta!r}",
            **{name: logps},
        )
        return None
    expect_shape(name, logps, lengths.shape)
    if config.anchor == "reference":
        return logps / lengths.clamp(min=1) if config.length_normalize_ref else logps
    return normalize_logps(config, logps, lengths)


def choose_tau(config: MaxEntConfig, log_q: Tensor, anchors: Tensor | None, mask: Tensor) -> Tensor:
    """Return τ of each group, [...]; where no candidate is better than another none has its effective size."""
    constant = torch.full_like(log_q[..., 0], config.tau)
    if config.target_ess is None:
        return constant
    tau = tau_for_ess(log_q, anchors, ess=config.target_ess, beta=config.beta, mask=mask)
    return torch.where(informative_groups(log_q, mask=mask), tau, constant)


def measure_advantages(config: MaxEntConfig, utilities: Tensor, mask: Tensor) -> Tensor:
    """Return A of eq. (8), [..., K]: the utilities less their group's mean, exactly 0 where all are equal."""
    if config.baseline == "none":
        return fill(utilities, mask, 0.0)
    return fill(center(utilities, mask), mask & informative_groups(utilities, mask=mask).unsqueeze(-1), 0.0)


def weigh_by_return(config: MaxEntConfig, advantages: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    """Return log w of eq. (8), [..., K]: U_i = A_i·length/T_max at the rollout policy, where every ratio is 1."""
    returns = advantages * lengths / (config.max_length or 1)
    temperature = per_group("surrogate_tau", config.surrogate_tau, returns)
    return log_softmax(divide_gap(below_peak(returns, mask), temperature), mask)


@dataclass(frozen=True)
class Discounted:
    """A target of which sampling has been taken back: log π* and the log q that it is the target of, [..., K]."""

    log_weights: Tensor
    log_q: Tensor


def discount_sampling(
    config: MaxEntConfig,
    log_weights: Tensor,
    log_q: Tensor,
    temperature: Tensor,
    *,
    mask: Tensor,
    right: Tensor,
    counts: Tensor | None,
    scores: Tensor | None,
) -> Discounted:
    """Return the target with duplicates discounted, eq. (4b), or likely answers, eq. (4c).

    Args:
        temperature: [...], τ + β; where it is infinite log q stays, for no log q has this target.
        scores: [..., K] ℓ, log-probabilities of the rollout policy.
    """
    factor = temperature.unsqueeze(-1).masked_fill(~temperature.unsqueeze(-1).isfinite(), 0.0)
    if config.dedup > 0:
        assert counts is not None  # checked where they are made
        log_weights = discount_log_weights(log_weights, counts, strength=config.dedup, mask=mask)
        log_copies = counts.clamp(min=1).to(log_q.dtype).log()  # the logarithm of an integer would be float32
        log_q = log_q - factor * config.dedup * log_copies
    if config.soft_dedup > 0:
        if scores is None:
            raise ValueError(f"Expected old_logps with soft_dedup={config.soft_dedup!r}, got old_logps=None.")
        before = log_weights
        log_weights = discount_likely(before, scores, right, strength=config.soft_dedup, mask=mask)
        log_q = log_q + (factor * (log_weights - before)).masked_fill(before.isneginf(), 0.0)
    return Discounted(log_weights, log_q)


def weigh_groups(
    config: MaxEntConfig,
    utilities: Tensor,
    *,
    mask: Tensor,
    informative: Tensor,
    right: Tensor,
    answers: Tensor | None,
) -> Tensor:
    """Return what multiplies each group's coefficients, [...]: powers and pass@k, or 0 in a skipped group.

    Args:
        utilities: [..., K], not transformed.
    """
    powers = ("success_power", "failure_power", "distinct_power")
    weights = power_weights(utilities, answers=answers, mask=mask, **{name: getattr(config, name) for name in powers})
    if config.pass_k is not None:
        weights = weights * pass_at_k_weights(
            utilities, right, k=config.pass_k, normalize=config.pass_k_normalize, mask=mask
        )
    weights = weights.masked_fill(fill(utilities, mask, 0.0).isnan().any(-1), math.nan)
    if config.skip == "equal":
        return weights.masked_fill(~informative, 0.0)
    if config.skip == "all_min":
        failed = (fill(utilities, mask, config.min_utility) <= config.min_utility).all(-1)
        return weights.masked_fill(failed, 0.0)
    return weights
