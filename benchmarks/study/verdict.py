"""What the fresh seeds say of each criterion of NOTES.md."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.study.analysis import Difference, Runs, compare_arms
from benchmarks.study.stages import RECIPE

BEATEN = (RECIPE, "remax", "ips")
"""Whose coverage@8 a new recipe has to be above, with an interval that excludes 0."""
BASELINE = "dr_grpo"
"""Whose best mean@8 it may fall below by a point."""
MARGIN = 0.01
CANDIDATES = ("soft_quarter", "kappa_cold", "kappa_modes_cold", "kappa_twice", "kappa_joined")
"""The winner of both tasks, and what NOTES.md adds."""


@dataclass(frozen=True)
class Verdict:
    """What a task says of a candidate.

    Attributes:
        above: its lead in coverage@8 over each of `BEATEN`.
        passed: its lead in pass@8 over the best other method: negative below that.
        ceiling: its lead over the baseline's ceiling.
    """

    above: tuple[Difference | None, ...]
    passed: Difference | None
    ceiling: Difference | None

    @property
    def holds(self) -> bool:
        """Whether every criterion is met; margins are of means."""
        ahead = all(lead is not None and lead.low > 0 for lead in self.above)
        return ahead and all(lead is not None and lead.mean >= -MARGIN for lead in (self.passed, self.ceiling))


def judge(runs: Runs, arm: str) -> Verdict:
    """Return what the runs of a stage say of a candidate."""
    return Verdict(
        tuple(compare_arms(runs, arm, other, "coverage@8") for other in BEATEN),
        _find_least([compare_arms(runs, arm, other, "pass@8") for other in runs if other != arm]),
        compare_arms(runs, arm, BASELINE, "ceiling"),
    )


def _find_least(leads: Sequence[Difference | None]) -> Difference | None:
    """Return the smallest lead: that over the best of the others, where both have a value."""
    return min((lead for lead in leads if lead is not None), key=lambda lead: lead.mean, default=None)
