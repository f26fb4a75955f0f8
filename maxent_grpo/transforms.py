"""What may be done to utilities before a target or an advantage is made of them: a registry to add to.

A transform is a function `(utilities, *, ...)` that returns utilities of the same shape. It names what else it
reads: `mask` [..., K] bool, `right` [..., K] bool, `counts` [..., K] (how many candidates of the group give the same
answer) and `old_logps` [..., K] (log-probabilities under the policy that sampled). `TRANSFORMS["mine"] = function`
adds one; where no line of yours runs first, as in a worker, `package.module.function` is its name.
"""

import importlib
import inspect
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from maxent_grpo._checks import expect, expect_candidates, expect_in, expect_shape
from maxent_grpo._masked import below_peak, center, count, fill, log_softmax, mean, result_dtype, upcast
from maxent_grpo.duplicates import count_answers
from maxent_grpo.target import informative_groups

Transform = Callable[..., Tensor]
INPUTS = ("mask", "right", "counts", "old_logps")
"""What a transform may read beside the utilities."""


def keep_utilities(utilities: Tensor) -> Tensor:
    """Return the utilities as they are."""
    return utilities


def rank_utilities(utilities: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the ranks of the utilities in [0, 1], ties averaged: what is left when only the order counts.

    r_i = (#{j: u_j < u_i} + (#{j: u_j = u_i} − 1)/2) / (K − 1), and ½ for a candidate alone in its group.

    Args:
        utilities: [..., K].
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        ranks [..., K]; 0 where masked; NaN throughout a group with a NaN utility.

    Raises:
        ValueError: on a mask of another shape or dtype.

    >>> rank_utilities(torch.tensor([3.0, 1.0, 1.0]))
    tensor([1.0000, 0.2500, 0.2500])
    """
    expect_candidates("utilities", utilities, mask)
    values = fill(upcast(utilities), mask, math.inf).contiguous()  # no counted one is above those that are masked
    among = count(values, mask)
    ordered = values.detach().sort(dim=-1).values
    first, end = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    below = (first + torch.minimum(end, among) - 1) / 2  # ties share the mean of their places
    ranks = torch.where(among > 1, below / (among - 1).clamp(min=1), 0.5)
    ranks = torch.where(fill(values, mask, 0.0).isnan().any(-1, keepdim=True), math.nan, ranks)
    return fill(ranks, mask, 0.0).to(result_dtype(utilities))


def standardize_utilities(utilities: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return z-scores within each group, (u_i − mean) / std with the population deviation.

    Args:
        utilities: [..., K].
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        z-scores [..., K]; 0 where masked and where all counted utilities are equal.

    Raises:
        ValueError: on a mask of another shape or dtype.

    >>> standardize_utilities(torch.tensor([1.0, 3.0]))
    tensor([-1.,  1.])
    """
    expect_candidates("utilities", utilities, mask)
    values = upcast(utilities)
    constant = ~informative_groups(utilities, mask=mask).unsqueeze(-1)  # a rounded mean leaves a deviation of 1e-9
    # Differences first, they are exact where utilities are close; half of large ones, whose difference is no float.
    size = fill(values, mask, 0.0).abs().amax(-1, keepdim=True)
    gap = fill(below_peak(torch.where(size > 1, values * 0.5, values), mask), mask, 0.0)
    # Then in units of the largest, so that no square is beyond the smallest or the largest float.
    scaled = gap / gap.detach().amin(-1, keepdim=True).neg().masked_fill(constant, 1.0)
    centered = center(scaled, mask)
    deviation = mean(centered.square(), mask).masked_fill(constant, 1.0).sqrt()
    return fill((centered / deviation).masked_fill(constant, 0.0), mask, 0.0).to(result_dtype(utilities))


def divide_by_counts(utilities: Tensor, *, mask: Tensor, counts: Tensor) -> Tensor:
    """Return u_i·K/n_i: the reward over the answer's share of its group.

    IPS-GRPO (arXiv 2601.21669); with counts Σ_j S_ij of a similarity, DRA-GRPO (arXiv 2505.09655) up to the factor K.

    >>> counted = torch.tensor([True, True, True, True])
    >>> divide_by_counts(torch.tensor([1.0, 1.0, 1.0, 0.0]), mask=counted, counts=torch.tensor([2, 2, 1, 1]))
    tensor([2., 2., 4., 0.])
    """
    return utilities * count(utilities, mask) / counts.clamp(min=1)


def reward_rare(
    utilities: Tensor, *, mask: Tensor, right: Tensor, counts: Tensor, valid_answers: float | None = None
) -> Tensor:
    """Return GAPO's utilities (arXiv 2511.12596): −1 for a wrong answer, 1 − (n_i/n₊ − 1/L) for a right one.

    Args:
        valid_answers: L, the number of right answers that there are; by default those among the group's candidates.

    >>> counted, right = torch.tensor([True] * 4), torch.tensor([True, True, True, False])
    >>> reward_rare(torch.zeros(4), mask=counted, right=right, counts=torch.tensor([2, 2, 1, 1]))
    tensor([ 0.8333,  0.8333,  1.1667, -1.0000])
    """
    counted = right & mask
    copies = counts.clamp(min=1).to(utilities.dtype)
    if valid_answers is None:
        answers = count_answers(copies, counted).unsqueeze(-1)
    else:
        answers = torch.full_like(copies[..., :1], valid_answers)
    shares = copies / count(utilities, counted).clamp(min=1)
    return torch.where(counted, 1 - (shares - 1 / answers), -1.0)


def scale_by_distance(utilities: Tensor, *, mask: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    """Return DARLING's utilities (arXiv 2509.02534): a right one times the share of the other right ones unlike it.

    u_i·max(0.1, (n₊ − n_i)/(n₊ − 1)), and u_i for a right answer alone.

    >>> counted = right = torch.tensor([True, True, True])
    >>> scale_by_distance(torch.ones(3), mask=counted, right=right, counts=torch.tensor([2, 2, 1]))
    tensor([0.5000, 0.5000, 1.0000])
    """
    counted = right & mask
    successes = count(utilities, counted)
    unlike = (successes - counts.clamp(min=1)) / (successes - 1).clamp(min=1)
    factor = torch.where(successes > 1, unlike.clamp(min=0.1), 1.0)
    return torch.where(counted, utilities * factor, utilities)


def reward_unlikely(utilities: Tensor, *, mask: Tensor, right: Tensor, old_logps: Tensor) -> Tensor:
    """Return the unlikeliness reward (arXiv 2506.02355): u_i·(1 − rank_i/(4K)) for a right one, 1 the least likely.

    >>> counted = right = torch.tensor([True, True])
    >>> reward_unlikely(torch.ones(2), mask=counted, right=right, old_logps=torch.tensor([-1.0, -3.0]))
    tensor([0.7500, 0.8750])
    """
    candidates = count(utilities, mask)
    ranks = 1 + rank_utilities(old_logps.to(utilities.dtype), mask=mask) * (candidates - 1)
    return torch.where(right & mask, utilities * (1 - 0.25 * ranks / candidates.clamp(min=1)), utilities)


def share_by_unlikeliness(
    utilities: Tensor, *, mask: Tensor, right: Tensor, old_logps: Tensor, strength: float = 1.0
) -> Tensor:
    """Return UCPO's utilities (arXiv 2605.00365): what the right ones have in all, shared anew among them.

    û_i = (Σ_{j∈R} u_j)·((1 − s)/n₊ + s·v_i/Σ_{j∈R} v_j), v_i = exp(−ℓ_i): the less likely has more. After `zscore`
    it shares GRPO's advantages, and leaves their mean at 0.

    Args:
        strength: s in [0, 1].

    >>> counted = right = torch.tensor([True, True])
    >>> share_by_unlikeliness(torch.ones(2), mask=counted, right=right, old_logps=torch.tensor([0.75, 0.25]).log())
    tensor([0.5000, 1.5000])
    """
    expect_in("strength", strength, 0.0, 1.0)
    counted = right & mask
    total = fill(utilities, counted, 0.0).sum(-1, keepdim=True)
    shares = log_softmax(-old_logps.to(utilities.dtype), counted).exp()
    mixed = (1 - strength) / count(utilities, counted).clamp(min=1) + strength * shares
    return torch.where(counted, total * mixed, utilities)


TRANSFORMS: dict[str, Transform] = {
    "raw": keep_utilities,
    "rank": rank_utilities,
    "zscore": standardize_utilities,
    "ips": divide_by_counts,
    "gapo": reward_rare,
    "darling": scale_by_distance,
    "unlikeliness": reward_unlikely,
    "ucpo": share_by_unlikeliness,
}
"""Transforms by the name that `MaxEntConfig.utility_transform` gives them."""


def find_transform(name: str, field: str = "utility_transform") -> Transform:
    """Return a transform by its name in `TRANSFORMS`, or by the dotted path of a function.

    Args:
        field: what complaints call the setting.

    Raises:
        ValueError: if there is none of that name, or it reads what no transform is given.
    """
    function = TRANSFORMS[name] if name in TRANSFORMS else _import_function(name)
    if not callable(function):
        known = f"{list(TRANSFORMS)} or a function's dotted path"
        raise ValueError(f"Expected {field} to be one of {known}, got {field}={name!r}.")
    unknown = sorted(set(list_inputs(function)) - set(INPUTS))
    expect(not unknown, f"{field}={name!r} to read {list(INPUTS)} alone", reads=unknown)
    return function


def _import_function(path: str) -> object:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None) if module else None
    except ImportError:
        return None


def list_inputs(function: Transform, *, optional: bool = False) -> list[str]:
    """Return the names of what a transform cannot do without beside the utilities, or of all that it may be given."""
    try:
        _, *others = inspect.signature(function).parameters.values()
    except ValueError:  # written in C, without a signature: of one argument
        return []
    return [each.name for each in others if each.default is each.empty or (optional and each.name in INPUTS)]


def transform_utilities(
    names: Sequence[str],
    utilities: Tensor,
    *,
    mask: Tensor,
    right: Tensor,
    counts: Tensor | None = None,
    old_logps: Tensor | None = None,
) -> Tensor:
    """Return the utilities after the transforms of these names, one after the other.

    Args:
        names: of `find_transform`.
        utilities: [..., K] floats.
        mask: [..., K] bool, True where a candidate counts.
        right: [..., K] bool, by the utilities as they were.
        counts: [..., K], or None if nothing says which answers are the same.
        old_logps: [..., K], or None if they are not known.

    Returns:
        utilities [..., K]; 0 where masked; NaN throughout a group with a counted NaN.

    Raises:
        ValueError: on a transform that needs what is not there, or returns another shape.
    """
    inputs = {"mask": mask, "right": right, "counts": counts, "old_logps": old_logps}
    broken = fill(utilities, mask, 0.0).isnan().any(-1, keepdim=True)
    for name in names:
        function = find_transform(name)
        given = {key: inputs[key] for key in list_inputs(function, optional=True)}
        missing = [key for key in list_inputs(function) if given[key] is None]
        expect(not missing, f"{' and '.join(missing)} with utility_transform={name!r}", **dict.fromkeys(missing))
        shape = utilities.shape
        utilities = function(utilities, **given)
        expect_shape(f"the result of the transform {name}", utilities, shape)
    return fill(torch.where(broken, math.nan, utilities), mask, 0.0)
