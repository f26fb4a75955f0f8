"""Ragged groups, and pruning of candidates that carry little of the gradient.

Unlike the losses these may look at values: group sizes decide shapes.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from maxent_grpo._checks import expect, expect_in, expect_mask, expect_tensor, show


def pad_groups(flat: Tensor, group_sizes: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return consecutive groups of a flat batch as one padded tensor with its mask.

    Args:
        flat: [N, ...], the groups one after the other.
        group_sizes: [G] non-negative integers that sum to N.

    Returns:
        padded [G, K, ...] with K the largest size (at least 1) and zeros as padding, differentiable in `flat`;
        mask [G, K] bool.

    Raises:
        ValueError: on negative sizes, or sizes that do not sum to N.

    >>> pad_groups(torch.tensor([1.0, 2.0, 3.0]), [1, 2])
    (tensor([[1., 0.], [2., 3.]]), tensor([[ True, False], [ True,  True]]))
    """
    expect_tensor("flat", flat)
    expect(flat.ndim > 0, "flat of shape [N, ...]", flat=flat)
    sizes = _read_sizes(group_sizes, flat.device)
    listed = sizes.tolist()
    expect(sum(listed) == len(flat), f"group_sizes to sum to the {len(flat)} rows", group_sizes=listed)
    width = max([1, *listed])
    mask = torch.arange(width, device=flat.device) < sizes.unsqueeze(-1)
    padded = flat.new_zeros((len(listed), width, *flat.shape[1:]))
    return padded.index_put((mask,), flat), mask


def _read_sizes(group_sizes: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """Return the sizes of groups as a tensor [G] of integers."""
    expectation = "group_sizes to be a list of whole sizes >= 0"
    try:
        sizes = torch.as_tensor(group_sizes, device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"Expected {expectation}, got group_sizes={show(group_sizes)}.") from None
    whole = sizes.numel() == 0 or not (sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool)
    listed = sizes.tolist()
    expect(whole and sizes.ndim == 1 and all(size >= 0 for size in listed), expectation, group_sizes=listed)
    return sizes.to(torch.int64)


def flatten_groups(padded: Tensor, mask: Tensor) -> Tensor:
    """Return the counted candidates of all groups one after the other: the inverse of `pad_groups`.

    Args:
        padded: [G, K, ...].
        mask: [G, K] bool, True where a candidate counts.

    Returns:
        flat [N, ...], differentiable in `padded`.

    Raises:
        ValueError: on a mask of another shape or dtype.

    >>> flatten_groups(torch.tensor([[1.0, 0.0], [2.0, 3.0]]), torch.tensor([[True, False], [True, True]]))
    tensor([1., 2., 3.])
    """
    expect_tensor("padded", padded)
    if padded.ndim < 2:
        raise ValueError(f"Expected padded of shape [G, K, ...], got padded of shape {list(padded.shape)}.")
    expect_mask("mask", mask, padded.shape[:2])
    return padded[mask]


def prune_candidates(coefficients: Tensor, *, keep: float, generator: torch.Generator) -> Tensor:
    """Return the coefficients with the small ones dropped or rounded up at random, unbiased.

    The threshold t solves Σ min(1, |c|/t) = keep·(number of non-zero c). A coefficient with |c| >= t stays; a
    smaller one survives as ±t with probability |c|/t, drawn by systematic sampling, and else becomes 0.

    Args:
        coefficients: [...], of either sign; the threshold is shared by the whole tensor.
        keep: the expected fraction of non-zero coefficients that survive, in (0, 1].
        generator: source of the one random number drawn. Seed it by (seed, step) alike on every rank that
            must make the same choice.

    Returns:
        coefficients of the same shape, detached, whose expectation is the input.

    Raises:
        ValueError: on keep outside (0, 1].

    >>> pruned = prune_candidates(torch.tensor([4.0, 1.0, -1.0, 0.0]), keep=2 / 3, generator=torch.Generator())
    >>> sorted(pruned.abs().tolist())
    [0.0, 0.0, 2.0, 4.0]
    """
    expect_tensor("coefficients", coefficients)
    expect_in("keep", keep, 0.0, 1.0, open_low=True)
    expect(isinstance(generator, torch.Generator), "a torch.Generator", generator=generator)
    exact = coefficients.detach().to("cpu", torch.float64).flatten()
    size = exact.abs()
    budget = keep * int((size > 0).sum())
    if keep == 1 or budget == 0 or not bool(size.isfinite().all()):
        return coefficients.detach().clone()  # nothing to drop; a NaN stays visible
    threshold = _threshold(size, budget)
    stays = size >= threshold
    chance = (size / threshold).masked_fill(stays, 0.0)
    start = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).to("cpu")
    # Points start, start + 1, … on the line of stacked chances: a candidate survives if one falls on its stretch.
    passed = torch.ceil(chance.cumsum(0) - start).clamp(min=0)
    survives = passed.diff(prepend=passed.new_zeros(1)) > 0
    pruned = torch.where(stays, exact, torch.where(survives, exact.sign() * threshold, 0.0))
    return pruned.view(coefficients.shape).to(coefficients)


def _threshold(size: Tensor, budget: float) -> float:
    """Return the t with Σ min(1, size/t) = budget: with m kept whole, t = (the others' sum)/(budget − m)."""
    smallest_first = size.sort().values
    others = smallest_first.cumsum(0).flip(0)  # entry m: the sum of all but the m largest
    room = budget - torch.arange(len(size), dtype=size.dtype)
    fits = (room > 0) & (smallest_first.flip(0) * room <= others)  # the largest of the others is not above t
    kept_whole = int(fits.to(torch.int64).argmax())
    return float(others[kept_whole] / room[kept_whole])


def completion_keys(ids: Tensor, mask: Tensor) -> Tensor:
    """Return a 64-bit key of each completion's tokens, equal for equal completions whatever their padding.

    The sum of a mixed hash of every (position among the counted tokens, id) pair: independent of the padded
    width, so that ranks agree; different completions collide with probability about 2⁻⁶⁴.

    Args:
        ids: [..., T] token ids; anything where masked.
        mask: [..., T] bool, True where a token belongs to the completion.

    Returns:
        keys [...] int64, for `duplicate_counts`.

    Raises:
        ValueError: on ids that are not integers, or a mask of another shape or dtype.

    >>> keys = completion_keys(torch.tensor([[5, 6, 0], [5, 6, 9]]), torch.tensor([[True, True, False]] * 2))
    >>> bool(keys[0] == keys[1])
    True
    """
    expect_tensor("ids", ids)
    expect_mask("mask", mask, ids.shape)
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"Expected ids of an integer dtype, got ids of dtype {ids.dtype}.")
    position = mask.cumsum(-1)
    return _mix(_mix(position) + ids.to(torch.int64)).masked_fill(~mask, 0).sum(-1)


def answer_keys(answers: Sequence[str]) -> Tensor:
    """Return a 64-bit key of each answer, equal for equal texts, on every rank and in every run.

    For `duplicate_counts` where completions differ that say the same: reasoning makes every text another one, while
    the answer it comes to, or the kind of answer that a verifier names, repeats.

    Args:
        answers: N texts.

    Returns:
        keys [N] int64.

    Raises:
        ValueError: on an answer that is no text.

    >>> one, other, again = answer_keys(["3 + 5", "2 * 4", "3 + 5"]).tolist()
    >>> one == again, one == other
    (True, False)
    """
    not_texts = [answer for answer in answers if not isinstance(answer, str)]
    expect(not not_texts, "answers to be texts", answers=not_texts[:3])
    digests = [hashlib.blake2b(answer.encode(errors="surrogatepass"), digest_size=8).digest() for answer in answers]
    return torch.tensor([int.from_bytes(each, "big", signed=True) for each in digests], dtype=torch.int64)


def _mix(values: Tensor) -> Tensor:
    """Return int64 values scattered over all 64 bits: splitmix64's finaliser, in wrapping arithmetic."""
    values = values * -7046029254386353131  # 2⁶⁴ divided by the golden ratio
    values = (values ^ (values >> 30)) * -4658895280553007687
    values = (values ^ (values >> 27)) * -7723592293110705685
    return values ^ (values >> 31)
