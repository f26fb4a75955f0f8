"""What a rollout does that its settings were not meant to do, said once or once in a while."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from maxent_grpo.config import MaxEntConfig
from maxent_grpo.objective import MaxEntObjective, Target
from maxent_grpo.potential import effective_sample_size

logger = logging.getLogger(__name__)

ENOUGH_GROUPS = 64
"""How many groups are looked at before it is said that the discount of duplicates does nothing."""
NEARLY_ALL, MOST = 0.95, 0.5
LEAST_ESS = 1.5


@dataclass
class Tally:
    """Groups of which something was found to hold, and groups looked at; judged when they are enough."""

    holds: int = 0
    groups: int = 0

    def add(self, holds: Tensor, share: float) -> bool:
        """Count groups [n] bool; return whether of enough ones more than this share held, and begin anew then."""
        self.holds, self.groups = self.holds + int(holds.sum()), self.groups + len(holds)
        if self.groups < ENOUGH_GROUPS:
            return False
        held, self.holds, self.groups = self.holds / self.groups, 0, 0
        return held > share


@dataclass
class RolloutWarnings:
    """Warns of rollouts that are skipped altogether, of discounts that are idle or degenerate, and of an idle bank.

    Each is said of the first such rollout, and then of one per `every`; of the bank once, after that many.

    Attributes:
        prefix: what the names of the settings begin with in the framework's arguments.
        every: number of such rollouts per warning.
    """

    prefix: str = "maxent_"
    every: int = 100
    _said: dict[str, int] = field(default_factory=dict)
    _tallies: dict[str, Tally] = field(default_factory=dict)
    _idle_rehearsals: int = 0

    def check_rollout(self, objective: MaxEntObjective, target: Target, utilities: Tensor) -> None:
        """Warn of what holds of a rollout. Reads the tensors, so once per rollout.

        Args:
            objective: the method.
            target: of the rollout's groups.
            utilities: [G, K], NaN for a candidate that does not count.
        """
        config, present = objective.config, target.mask.any(-1)
        if not bool(present.any()):
            return
        if config.skip != "none" and not bool((target.scale[present] != 0).any()):
            self._warn_of_skips(config, utilities[target.mask])
        if config.needs_keys and target.counts is not None:
            self._check_duplicates(target, target.counts, present)
        if config.soft_dedup > 0:
            self._check_soft_discount(target)

    def check_bank(self, *, is_revisited: bool) -> None:
        """Warn once of a bank that knows no more of a prompt than its own group did, after `every` rollouts of it."""
        self._idle_rehearsals += 1
        if self._idle_rehearsals == self.every and not is_revisited:
            logger.warning(
                f"The bank is idle so far: in {self.every} rollouts no prompt came twice, so of none does it know "
                f"more than its own group. Train for several epochs, or leave out {self.prefix}bank_weight."
            )

    def _warn_of_skips(self, config: MaxEntConfig, counted: Tensor) -> None:
        self._warn(
            f"Nothing to learn from this rollout: {self.prefix}skip={config.skip!r} skips all of its groups, at "
            f"{self.prefix}min_utility={config.min_utility:g} and utilities from {float(counted.min()):g} to "
            f"{float(counted.max()):g}. If there are successes among them, set {self.prefix}min_utility to the "
            "highest utility of a failure.",
            "skip",
        )

    def _check_duplicates(self, target: Target, counts: Tensor, present: Tensor) -> None:
        different = (counts.masked_fill(~target.mask, 1) <= 1).all(-1)[present]
        if self._tally("different").add(different, NEARLY_ALL):
            self._warn(
                f"{self.prefix}dedup is idle: no two answers of a group are equal. Where every text is another one, "
                "keys must say what an answer is: the verifier's mode, the final answer, the equations of the way.",
                "different",
            )
        # A key for all right answers of a group: their counts are all its size, and Σ 1/n is at most 1.
        several = target.right.sum(-1) > 1
        assert target.answers is not None  # there are counts
        one = target.answers[several] < 1 + 1e-3
        if self._tally("one").add(one, NEARLY_ALL):
            self._warn(
                f"{self.prefix}dedup is idle: all right answers of a group are one. Where one final answer is right, "
                "keys by the way to it (equation_skeleton) tell solutions apart; keys by final answers cannot.",
                "one",
            )

    def _check_soft_discount(self, target: Target) -> None:
        right = target.right & (target.weights > 0)
        several = right.sum(-1) > 1
        weights = target.weights.masked_fill(~right, 0.0)[several]
        sizes = effective_sample_size(weights / weights.sum(-1, keepdim=True))
        if self._tally("soft").add(sizes < LEAST_ESS, MOST):
            self._warn(
                f"{self.prefix}soft_dedup leaves one right answer in most groups (an effective sample size under "
                f"{LEAST_ESS}): a smaller one, or {self.prefix}nll_reduction='mean', weighs more of them.",
                "soft",
            )

    def _tally(self, name: str) -> Tally:
        return self._tallies.setdefault(name, Tally())

    def _warn(self, message: str, name: str) -> None:
        """Warn unless this was said of one of the latest such rollouts."""
        rollouts = self._said.get(name, 0)
        if rollouts % self.every == 0:
            logger.warning(message)
        self._said[name] = rollouts + 1


class BonusWarning:
    """Warns once of candidates that count as right though the verifier, the function of the largest weight, says no.

    Among functions of equal weight the first is taken for the verifier.

    Args:
        weights: [F] of the functions.
        names: those of the functions.
        config: says whether it matters who is right, and above which utility.
    """

    def __init__(self, weights: Tensor, names: Sequence[str], config: MaxEntConfig) -> None:
        self.min_utility = config.min_utility
        self.is_due = config.needs_right and int((weights != 0).sum()) > 1
        if self.is_due:
            self.verifier = int(weights.argmax())
            self.weight, self.name = float(weights[self.verifier]), names[self.verifier]

    def check_rollout(self, rewards: Tensor, utilities: Tensor) -> None:
        """Warn if bonuses lift failures of a rollout. Reads the tensors, so once per rollout.

        Args:
            rewards: [N, F] by the functions.
            utilities: [N], NaN where there is none.
        """
        if not self.is_due:
            return
        failed = rewards[:, self.verifier] * self.weight <= self.min_utility
        failures = utilities[failed & ~utilities.isnan()]
        lifted = int((failures > self.min_utility).sum())
        if lifted:
            self.is_due = False
            logger.warning(
                "%d of %d candidates count as right, with a utility over maxent_min_utility=%g, though %s alone "
                "leaves them at or under it: other rewards lift them. Set maxent_min_utility to the highest utility "
                "of a failure (here %g) and the weight of %s above that, or give the other functions a weight of 0.",
                *(lifted, len(utilities), self.min_utility, self.name, float(failures.max()), self.name),
            )
