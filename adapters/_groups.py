"""Whole groups of a rollout, as every framework's adapter needs them: keys, gathering, chance for pruning.

Frameworks deal the candidates of a group over ranks, but a target needs its group whole. So each rank reduces its
completions to a few numbers per candidate, and only those are gathered.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maxent_grpo._checks import expect
from maxent_grpo.duplicates import duplicate_counts
from maxent_grpo.groups import answer_keys, completion_keys
from maxent_grpo.objective import MaxEntObjective, Target

Answers = Sequence[str | None]
Gather = Callable[[Tensor], Tensor]
"""A collective: returns the tensors [B, ...] of all ranks one after the other, on every rank."""


@dataclass(frozen=True)
class KeyFunction:
    """What says which completions are the same answer; it is called as a reward function is.

    Attributes:
        function: returns a text for each completion, or None where only equal tokens are the same answer.
        columns: the columns of the data that it reads; None where they are not known.
    """

    function: Callable[..., Answers]
    columns: tuple[str, ...] | None = None

    def __call__(self, **columns: Any) -> Answers:
        """Return the function's answers, one per completion."""
        return self.function(**columns)


def call_key_function(function: Callable[..., Answers], columns: Mapping[str, Any], candidates: int) -> Answers:
    """Return what a key function says of some candidates.

    Raises:
        ValueError: if it returns another number of answers, or answers that are neither a text nor None.
    """
    answers = function(**columns)
    expect(len(answers) == candidates, f"key_func to return {candidates} answers", answers=len(answers))
    expect_texts("key_func", answers)
    return answers


def expect_texts(name: str, answers: Answers) -> None:
    """Check that each answer, of the function or the list of this name, is a text or None."""
    others = [answer for answer in answers if not (answer is None or isinstance(answer, str))]
    expect(not others, f"texts or None of {name}", **{name: others[:3]})


def build_keys(answers: Answers | None, ids: Tensor | None, mask: Tensor) -> Tensor | None:
    """Return a key of each candidate, equal where two give the same answer; None if nothing says which do.

    Args:
        answers: N texts; where one is None, and without any, equal tokens are the same answer.
        ids: [N, T] completion tokens; needed where an answer is None.
        mask: [N, T] bool, True where a token belongs to the completion.

    Returns:
        keys [N] int64, the same on every rank and in every run.

    Raises:
        ValueError: on another number of answers, or on an answer that is None without ids.
    """
    keys = None if ids is None else completion_keys(ids, mask)
    if answers is None:
        return keys
    expect(len(answers) == len(mask), f"keys of {len(mask)} candidates", keys=len(answers))
    has_text = torch.tensor([answer is not None for answer in answers], device=mask.device)
    text_keys = answer_keys(["" if answer is None else answer for answer in answers]).to(mask.device)
    if keys is None:
        expect(all(answer is not None for answer in answers), "ids, or a text for every candidate", ids=None)
        return text_keys
    return torch.where(has_text, text_keys, keys)


@dataclass(frozen=True)
class Candidates:
    """What one rank knows of its B candidates of a rollout, a number each.

    Attributes:
        prompts: [B] int64, equal for equal prompts.
        keys: [B] int64, equal for the same answer.
        lengths: [B] number of tokens that count.
        ref_logps: [B] log-probabilities of the frozen reference, summed over those tokens, or None.
        old_logps: [B] those of the rollout policy, or None.
    """

    prompts: Tensor
    keys: Tensor
    lengths: Tensor
    ref_logps: Tensor | None = None
    old_logps: Tensor | None = None


@dataclass(frozen=True)
class Groups:
    """The candidates of whole groups, [G, K] each.

    Attributes:
        lengths, ref_logps, old_logps: as of `Candidates`.
        keys: as of `Candidates`, or None if nothing says which answers are the same.
        right: bool, the verifier's verdict, or None where utilities above `min_utility` are right.
        counts: how many candidates give each one's answer, in place of counting keys, or None.
    """

    lengths: Tensor
    ref_logps: Tensor | None
    old_logps: Tensor | None
    keys: Tensor | None
    right: Tensor | None = None
    counts: Tensor | None = None

    def build_target(self, objective: MaxEntObjective, utilities: Tensor) -> Target:
        """Return the groups' target. Reads the tensors, so once per rollout.

        Args:
            objective: the method.
            utilities: [G, K], NaN for a candidate that does not count.

        Raises:
            ValueError: on utilities that the method cannot take, or log-probabilities that are not finite.
        """
        objective.expect_utilities(utilities)
        counted = ~utilities.isnan() & (self.lengths > 0)
        config = objective.config
        if config.needs_reference:
            _expect_finite("ref_logps", self.ref_logps, counted)
        if config.needs_old_logps:
            _expect_finite("old_logps", self.old_logps, counted)
        return objective.target(
            utilities,
            mask=~utilities.isnan(),
            lengths=self.lengths,
            right=self.right,
            ref_logps=self.ref_logps,
            old_logps=self.old_logps,
            keys=self.keys,
            counts=self.counts,
        )

    def measure_distinct(self, mask: Tensor) -> Tensor:
        """Return the share of different answers among the candidates that count; where it is 1, κ does nothing."""
        if self.keys is None:
            raise ValueError("Expected keys, got keys=None.")
        counts = duplicate_counts(self.keys, mask=mask)
        return (1 / counts[mask]).mean()

    def seed_generator(self, seed: int, step: int) -> torch.Generator:
        """Return the source of chance for pruning: the same on all ranks, and in a run that is resumed."""
        # The keys tell rollouts of one step apart, such as those of training and evaluation.
        rollout = 0 if self.keys is None else int(self.keys.sum())
        return torch.Generator().manual_seed(hash((seed, step, rollout)) % 2**63)


def _expect_finite(name: str, logps: Tensor | None, counted: Tensor) -> None:
    """Refuse log-probabilities [G, K] that would make NaN of their group's target; `target` refuses missing ones."""
    broken = 0 if logps is None else int((~logps.isfinite() & counted).sum())
    expect(not broken, f"finite {name}", candidates_without=broken)


def gather_groups(candidates: Candidates, group_size: int, gather: Gather) -> Groups:
    """Return the whole groups of all ranks, the same on every rank.

    Args:
        candidates: this rank's. Groups are consecutive in the order of the ranks, and may straddle them.
        group_size: K.
        gather: the framework's collective.

    Raises:
        ValueError: on every rank, if there is no whole number of groups, or the candidates of one do not share their
            prompt.
    """
    whole = torch.stack([candidates.prompts, candidates.keys, candidates.lengths.to(torch.int64)], -1)
    gathered = gather(whole)
    expect(len(gathered) % group_size == 0, f"whole groups of {group_size} candidates", candidates=len(gathered))
    prompts, keys, lengths = gathered.view(-1, group_size, 3).unbind(-1)
    torn = int((prompts != prompts[:, :1]).any(-1).sum())
    expect(not torn, "the candidates of a group to share their prompt", torn_groups=torn)

    def gather_sums(logps: Tensor | None) -> Tensor | None:
        return None if logps is None else gather(logps).view(-1, group_size)

    ref_logps, old_logps = gather_sums(candidates.ref_logps), gather_sums(candidates.old_logps)
    return Groups(lengths=lengths, ref_logps=ref_logps, old_logps=old_logps, keys=keys)
