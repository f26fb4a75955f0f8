"""The oracle: the library's functions once more, in NumPy float64, one group at a time.

Nothing here is shared with the torch functions. Of every group the counted candidates are taken out of their
padding, a plain function of them alone is applied, and its result is put back, so padding cannot matter.
Arguments mean what they mean in the function of the same name; equation numbers are those of the method.
A NaN in a counted candidate, an impossible entry in an array of temperatures, or a q of zeros alone makes its
whole group NaN.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Data = npt.ArrayLike
Maybe = npt.ArrayLike | None


def _checked(name: str, value: Data, relation: str = ">= 0", *, finite: bool = False) -> Array:
    """Return the value as an array; a bad scalar raises, a bad entry of an array becomes NaN."""
    values = np.asarray(value, dtype=np.float64)
    inside = {">= 0": values >= 0, "> 0": values > 0, ">= 1": values >= 1}[relation]
    valid = inside & ~(np.isinf(values) & finite)
    if values.ndim == 0 and not valid:
        expected = f"finite {name}" if values == np.inf else f"{name} {relation}"
        raise ValueError(f"Expected {expected}, got {name}={float(values):g}.")
    return np.where(valid, values, np.nan)


def _counted(mask: Maybe, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    return np.broadcast_to(np.asarray(True if mask is None else mask, dtype=np.bool_), shape)


def _anchored(
    shape: tuple[int, ...], anchor_logps: Maybe, tau: Data, beta: Data, *, finite: bool
) -> tuple[Array, Array, Array]:
    """Return anchors [..., K], zero where beta is 0 and they have no say, and the checked tau and beta."""
    taus, betas = _checked("tau", tau, finite=finite), _checked("beta", beta, finite=finite)
    if anchor_logps is None and np.any(betas > 0):
        raise ValueError(f"Expected anchor_logps with beta > 0, got beta={beta!r}.")
    undefined = np.isinf(taus) & np.isinf(betas)
    if undefined.ndim == 0 and undefined:
        raise ValueError("Expected finite tau or finite beta, got tau=inf, beta=inf.")
    betas = np.where(undefined, np.nan, betas)
    anchors = np.broadcast_to(np.asarray(0.0 if anchor_logps is None else anchor_logps, dtype=np.float64), shape)
    return np.where(betas[..., None] == 0, 0.0, anchors), taus, betas


@np.errstate(all="ignore")
def _by_group(
    function: Callable[..., Any],
    candidates: list[Data],
    knobs: list[Array],
    mask: Maybe,
    fill: float,
    *,
    per: Literal["candidate", "group"] = "candidate",
) -> Array:
    """Apply to every group a function of its counted entries, each [n], and its knobs; the rest is `fill`."""
    values = np.broadcast_arrays(*(np.asarray(entries, dtype=np.float64) for entries in candidates))
    shape = values[0].shape
    counted = _counted(mask, shape)
    numbers = [np.broadcast_to(knob, shape[:-1]) for knob in knobs]
    result = np.full(shape if per == "candidate" else shape[:-1], fill)
    for group in np.ndindex(shape[:-1]):
        keep = counted[group]
        if keep.any():
            inputs = [entries[group][keep] for entries in values] + [number[group] for number in numbers]
            known = not any(np.isnan(entries).any() for entries in inputs)
            result[(*group, keep) if per == "candidate" else group] = function(*inputs) if known else np.nan
    return result


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), dtype=np.float64)


def _tilted(log_q: Array, anchors: Array, beta: float) -> Array:
    """Return log q + β log ρ, the exponents of (4) times τ + β."""
    return log_q + beta * _log_softmax(anchors)


def _group_log_q(utilities: Array, temperature: float, eps: float) -> Any:
    K = len(utilities)
    if K * eps > 1:
        return np.nan
    shares = _log_softmax((utilities - utilities.max()) / temperature)
    return np.logaddexp(np.log1p(-K * eps) + shares, np.log(eps))


def _group_log_target(log_q: Array, anchors: Array, tau: float, beta: float) -> Array:
    if log_q.max() == -np.inf:
        return np.full(len(log_q), np.nan)
    if np.isinf(tau):
        return np.full(len(log_q), -np.log(len(log_q)))
    if np.isinf(beta):
        return _log_softmax(anchors)
    if tau + beta == 0:
        best = log_q == log_q.max()
        return np.where(best, -np.log(best.sum()), -np.inf)
    exponents = _tilted(log_q, anchors, beta)
    return _log_softmax((exponents - exponents.max()) / (tau + beta))


def _group_ranks(utilities: Array) -> Any:
    if len(utilities) == 1:
        return 0.5
    below = (utilities[:, None] > utilities).sum(axis=1)
    ties = (utilities[:, None] == utilities).sum(axis=1)
    return (below + (ties - 1) / 2) / (len(utilities) - 1)


def _group_discounted(weights: Array, counts: Array, strength: float) -> Any:
    # A count of 0 belongs to a masked candidate, whose weight is 0 already.
    shares = weights * np.maximum(counts, 1) ** -strength
    return shares / shares.sum()


def _group_tau_for_ess(log_q: Array, anchors: Array, ess: float, beta: float) -> float:
    exponents = _tilted(log_q, anchors, beta)
    if exponents.max() == -np.inf:
        return np.nan
    exponents = exponents[exponents > -np.inf] - exponents.max()

    def reached(tau: float) -> bool:
        powers = np.exp(exponents / (tau + beta)) if tau + beta > 0 else np.where(exponents == 0, 1.0, 0.0)
        return bool(powers.sum() ** 2 / (powers**2).sum() >= ess)

    if ess >= len(exponents):
        return np.inf
    if reached(0.0):
        return 0.0
    high = 1.0
    while not reached(high):
        high *= 2
    while reached(high / 2):
        high /= 2
    low = high / 2
    while low < (middle := low + (high - low) / 2) < high:
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def listwise_log_q(utilities: Data, *, temperature: Data = 1.0, eps: float = 1e-6, mask: Maybe = None) -> Array:
    """Return log q of (1); -inf at masked candidates."""
    temperatures, floor = _checked("temperature", temperature, "> 0"), _checked("eps", eps)
    K = np.shape(utilities)[-1]
    if mask is None and K * eps > 1:
        raise ValueError(f"Expected K * eps <= 1, got K={K}, eps={eps:g}.")
    return _by_group(_group_log_q, [utilities], [temperatures, floor], mask, -np.inf)


def listwise_q(utilities: Data, *, temperature: Data = 1.0, eps: float = 1e-6, mask: Maybe = None) -> Array:
    """Return q of (1); 0 at masked candidates."""
    return np.exp(listwise_log_q(utilities, temperature=temperature, eps=eps, mask=mask))


def tempered_log_target(
    log_q: Data, anchor_logps: Maybe = None, *, tau: Data, beta: Data = 0.0, mask: Maybe = None
) -> Array:
    """Return log π* of (4) and its limits; -inf at masked candidates."""
    anchors, taus, betas = _anchored(np.shape(log_q), anchor_logps, tau, beta, finite=False)
    return _by_group(_group_log_target, [log_q, anchors], [taus, betas], mask, -np.inf)


def tempered_target(q: Data, anchor_logps: Maybe = None, *, tau: Data, beta: Data = 0.0, mask: Maybe = None) -> Array:
    """Return π* of (4) and its limits; 0 at masked candidates."""
    with np.errstate(all="ignore"):
        log_q = np.log(np.asarray(q, dtype=np.float64))
    return np.exp(tempered_log_target(log_q, anchor_logps, tau=tau, beta=beta, mask=mask))


def center_weights(weights: Data, *, mask: Maybe = None) -> Array:
    """Return the weights less one over the number of counted candidates."""
    return _by_group(lambda counted: counted - 1 / len(counted), [weights], [], mask, 0.0)


def duplicate_counts(keys: Data, *, mask: Maybe = None) -> Array:
    """Return how often each counted candidate's key occurs among the counted ones of its group."""
    names = np.asarray(keys)
    counted = _counted(mask, names.shape)
    same = (names[..., :, None] == names[..., None, :]) & counted[..., :, None] & counted[..., None, :]
    return np.asarray(same.sum(axis=-1), dtype=np.float64)


def discount_duplicates(weights: Data, counts: Data, *, strength: float, mask: Maybe = None) -> Array:
    """Return the weights of (4b)."""
    if not 0 <= strength <= 1:
        raise ValueError(f"Expected 0 <= strength <= 1, got strength={strength:g}.")

    return _by_group(_group_discounted, [weights, counts], [np.asarray(strength)], mask, 0.0)


def informative_groups(utilities: Data, *, mask: Maybe = None) -> npt.NDArray[np.bool_]:
    """Return whether the counted utilities differ; a NaN differs from everything."""
    return np.not_equal(_by_group(lambda u: u.max() != u.min(), [utilities], [], mask, 0.0, per="group"), 0.0)


def rank_utilities(utilities: Data, *, mask: Maybe = None) -> Array:
    """Return ranks in [0, 1], ties averaged, ½ for a lone candidate, 0 at masked ones."""
    return _by_group(_group_ranks, [utilities], [], mask, 0.0)


def tau_for_ess(log_q: Data, anchor_logps: Maybe = None, *, ess: Data, beta: Data = 0.0, mask: Maybe = None) -> Array:
    """Return the least τ whose target has this effective sample size; 0 and inf where out of reach."""
    anchors, _, betas = _anchored(np.shape(log_q), anchor_logps, 0.0, beta, finite=True)
    sizes = _checked("ess", ess, ">= 1")
    return _by_group(_group_tau_for_ess, [log_q, anchors], [sizes, betas], mask, np.inf, per="group")


def _group_potential(policy: Array, log_q: Array, anchors: Array, tau: float, beta: float) -> Any:
    held = policy != 0
    p, log_p, log_rho = policy[held], np.log(policy[held]), _log_softmax(anchors)[held]
    entropy, divergence = -np.sum(p * log_p), np.sum(p * (log_p - log_rho))
    return np.sum(p * log_q[held]) + tau * entropy - beta * divergence


def _group_optimum(log_q: Array, anchors: Array, tau: float, beta: float) -> Any:
    exponents, spread = _tilted(log_q, anchors, beta), tau + beta
    best = exponents.max()
    if spread == 0:
        return best if best > -np.inf else np.nan
    return best + spread * np.log(np.exp((exponents - best) / spread).sum())


def _group_gap(log_policy: Array, log_q: Array, anchors: Array, tau: float, beta: float) -> Any:
    # (τ + β)(log π − log π*) without ever dividing by τ + β; the exponents' maximum drops out of it.
    exponents, spread = _tilted(log_q, anchors, beta), tau + beta
    exponents -= exponents.max()
    p, excess = np.exp(log_policy), _group_optimum(exponents, np.zeros_like(exponents), spread, 0.0)
    held = p > 0
    return np.sum(p[held] * (spread * log_policy[held] - exponents[held] + excess))


def _group_kl(log_target: Array, log_policy: Array) -> Any:
    held = np.exp(log_target) > 0
    return np.sum(np.exp(log_target[held]) * (log_target[held] - log_policy[held]))


def regularized_potential(
    policy: Data, log_q: Data, anchor_logps: Maybe = None, *, tau: Data, beta: Data = 0.0, mask: Maybe = None
) -> Array:
    """Return J(π) of (3) per group."""
    anchors, taus, betas = _anchored(np.shape(log_q), anchor_logps, tau, beta, finite=True)
    return _by_group(_group_potential, [policy, log_q, anchors], [taus, betas], mask, 0.0, per="group")


def optimal_potential(
    log_q: Data, anchor_logps: Maybe = None, *, tau: Data, beta: Data = 0.0, mask: Maybe = None
) -> Array:
    """Return J* of (5) per group, max log q at τ = β = 0."""
    anchors, taus, betas = _anchored(np.shape(log_q), anchor_logps, tau, beta, finite=True)
    return _by_group(_group_optimum, [log_q, anchors], [taus, betas], mask, 0.0, per="group")


def improvement_gap(
    log_policy: Data,
    log_q: Data,
    anchor_logps: Maybe = None,
    *,
    tau: Data,
    beta: Data = 0.0,
    mask: Maybe = None,
) -> Array:
    """Return J* − J(π) of (6) per group."""
    anchors, taus, betas = _anchored(np.shape(log_q), anchor_logps, tau, beta, finite=True)
    return _by_group(_group_gap, [log_policy, log_q, anchors], [taus, betas], mask, 0.0, per="group")


def forward_kl(log_target: Data, log_policy: Data, *, mask: Maybe = None) -> Array:
    """Return KL(π*‖π) per group."""
    return _by_group(_group_kl, [log_target, log_policy], [], mask, 0.0, per="group")


def effective_sample_size(weights: Data) -> Array:
    """Return 1 / Σ w² per group, 0 where there is no weight."""
    squares = np.asarray((np.asarray(weights, dtype=np.float64) ** 2).sum(axis=-1))
    with np.errstate(divide="ignore"):
        return np.where(squares == 0, 0.0, 1 / squares)


def _group_total(num_groups: int | None, present: Data) -> float:
    return float(_checked("num_groups", max(np.sum(present), 1) if num_groups is None else num_groups, "> 0"))


def _token_scales(weights: Data, mask: Data, token_scale: Maybe, num_groups: int | None) -> Array:
    """Return w_i · token scale / G for every token, 0 where it does not count."""
    counted = np.asarray(mask, dtype=np.bool_)
    total = _group_total(num_groups, counted.any(axis=(-2, -1)))
    per_token = np.asarray(1.0 if token_scale is None else token_scale, dtype=np.float64)
    return np.where(counted, np.asarray(weights, dtype=np.float64)[..., None] * per_token / total, 0.0)


def _lengths(mask: Data, length_normalize: bool, max_length: float | None) -> Any:
    """Return what each candidate's sum over tokens is divided by, broadcast to [..., K, T]."""
    if length_normalize and max_length is not None:
        raise ValueError(f"Expected length_normalize or max_length, got both, max_length={max_length:g}.")
    if length_normalize:
        return np.maximum(np.asarray(mask, dtype=np.bool_).sum(axis=-1, keepdims=True), 1.0)
    return _checked("max_length", 1.0 if max_length is None else max_length, "> 0")


@np.errstate(all="ignore")
def maxent_weighted_nll(
    logps: Data,
    weights: Data,
    mask: Data,
    *,
    length_normalize: bool = False,
    max_length: float | None = None,
    num_groups: int | None = None,
    token_scale: Maybe = None,
) -> float:
    """Return (7); what has no weight adds nothing, be its log-probabilities infinite."""
    scales = _token_scales(weights, mask, token_scale, num_groups) / _lengths(mask, length_normalize, max_length)
    return -float(np.where(scales != 0, scales * np.asarray(logps), 0.0).sum())


def _group_cross_entropy(scores: Array, weights: Array) -> Any:
    held = weights != 0
    return -np.sum(weights[held] * _log_softmax(scores)[held])


def listwise_cross_entropy(
    sequence_logps: Data, weights: Data, *, mask: Maybe = None, num_groups: int | None = None
) -> float:
    """Return −(1/G) Σ w_i log p_i, p the softmax of sequence_logps [..., K] over each group."""
    losses = _by_group(_group_cross_entropy, [sequence_logps, weights], [], mask, 0.0, per="group")
    return float(losses.sum()) / _group_total(num_groups, _counted(mask, np.shape(weights)).any(axis=-1))


@np.errstate(all="ignore")
def clipped_surrogate(
    logps: Data,
    old_logps: Data,
    coefficients: Data,
    mask: Data,
    *,
    clip_low: float,
    clip_high: float,
    length_normalize: bool = False,
    max_length: float | None = None,
    num_groups: int | None = None,
    token_scale: Maybe = None,
) -> float:
    """Return (7c), of which (8) is the case of coefficients w·A."""
    low, high = 1 - _checked("clip_low", clip_low), 1 + _checked("clip_high", clip_high)
    counted = _token_scales(np.ones(np.shape(coefficients)), mask, token_scale, num_groups)
    scales = counted / _lengths(mask, length_normalize, max_length)
    ratios, c = np.exp(np.subtract(logps, old_logps)), np.asarray(coefficients, dtype=np.float64)[..., None]
    terms = np.minimum(ratios * c, np.clip(ratios, low, high) * c)
    return -float(np.where((scales != 0) & (c != 0), scales * terms, 0.0).sum())


def group_coefficients(
    utilities: Data,
    anchor_logps: Maybe = None,
    *,
    transform: Literal["raw", "rank", "zscore"] = "raw",
    temperature: float = 1.0,
    eps: float = 1e-6,
    tau: float = 0.2,
    beta: float = 0.0,
    keys: Maybe = None,
    dedup: float = 0.0,
    projection: Literal["mle", "listwise", "surrogate"] = "mle",
    center: bool = False,
    policy_scores: Maybe = None,
    lengths: Data = 1.0,
    max_length: float = 1.0,
    surrogate_tau: float = np.inf,
    success_power: float = 0.0,
    skip: Literal["none", "equal", "all_min"] = "none",
    min_utility: float = 0.0,
) -> Array:
    """Return the coefficients c [K] of one group whose K candidates all count.

    The anchors are normalised already; `listwise` needs the policy's scores [K], `surrogate` reads the lengths [K].
    The group weight and the skipping see the utilities as given, target and advantages see them transformed.
    """
    u = np.asarray(utilities, dtype=np.float64)
    if {"none": False, "equal": u.max() == u.min(), "all_min": np.all(u <= min_utility)}[skip]:
        return np.zeros(len(u))
    scale = np.nan if success_power > 0 and u.min() < 0 else u.mean() ** success_power
    zscores = (u - u.mean()) / (u.std() if u.max() != u.min() else np.inf)
    seen = {"raw": u, "rank": rank_utilities(u), "zscore": zscores}[transform]
    if projection == "surrogate":
        advantages = seen - seen.mean()
        returns = advantages * np.asarray(lengths, dtype=np.float64) / max_length
        target = np.exp(tempered_log_target(returns, tau=surrogate_tau))
    else:
        q = listwise_q(seen, temperature=temperature, eps=eps)
        target = tempered_target(q, anchor_logps, tau=tau, beta=beta)
    counts = duplicate_counts(np.arange(len(u)) if keys is None else keys)
    weights = discount_duplicates(target, counts, strength=dedup)
    if projection == "listwise":
        if policy_scores is None:
            raise ValueError("Expected policy_scores with projection='listwise', got None.")
        weights = weights - np.exp(_log_softmax(np.asarray(policy_scores, dtype=np.float64)))
    elif projection == "surrogate":
        weights = weights * advantages
    elif center:
        weights = center_weights(weights)
    return np.asarray(scale * weights)
