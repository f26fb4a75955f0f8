"""The methods that are compared, each as settings of the library's objective."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from maxent_grpo import MaxEntConfig, MaxEntObjective, Target, standardize_utilities


class GrpoObjective(MaxEntObjective):
    """GRPO: coefficients z_i / K, z the z-scored rewards, and each completion's NLL a mean over its tokens.

    The surrogate with z-scored utilities divides each NLL by a constant, so this mean is made here.
    """

    @torch.no_grad()
    def coefficients(
        self, target: Target, *, old_logps: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the z-scores over the number of candidates, [..., K]; 0 in a group of equal rewards."""
        counted = target.mask.sum(-1, keepdim=True).clamp(min=1)
        return standardize_utilities(target.utilities, mask=target.mask) / counted


@dataclass(frozen=True)
class Arm:
    """A method.

    Attributes:
        name: how tables call it.
        config: its settings, but for `max_length`, which is the task's.
        objective: the class that composes the loss of the settings.
        entropy_bonus: λ of the loop's entropy bonus.
        temperature: the sampling temperature in training.
        passes: optimizer steps on a batch, clipped from the second on.
        keys: what counts as the same answer: a completion's tokens, or the part of its text that is judged.
        tuned_as: the arm whose learning rate it takes over; None: its own is tuned.
    """

    name: str
    config: MaxEntConfig = field(default_factory=MaxEntConfig)
    objective: Callable[[MaxEntConfig], MaxEntObjective] = MaxEntObjective
    entropy_bonus: float = 0.0
    temperature: float = 1.0
    passes: int = 1
    keys: Literal["tokens", "answer"] = "tokens"
    tuned_as: str | None = None

    def build_objective(self, max_length: int) -> MaxEntObjective:
        """Return the loss of completions of at most `max_length` tokens."""
        return self.objective(replace(self.config, max_length=max_length))


SURROGATE = MaxEntConfig(projection="surrogate")
RAFT = MaxEntConfig(tau=0.0, skip="all_min")
DIVERSE = MaxEntConfig.diverse()
TPO = MaxEntConfig(tau=0.0, beta=1.0, anchor="old", projection="listwise", utility_transform="zscore", q_eps=0.0)

METHODS = {
    "grpo": Arm("GRPO", MaxEntConfig(nll_reduction="mean"), objective=GrpoObjective),
    "dr_grpo": Arm("Dr.GRPO", SURROGATE),
    "entropy_low": Arm("Dr.GRPO, entropy bonus .02", SURROGATE, entropy_bonus=0.02),
    "entropy_high": Arm("Dr.GRPO, entropy bonus .05", SURROGATE, entropy_bonus=0.05),
    "dr_grpo_hot": Arm("Dr.GRPO, sampled at 1.3", SURROGATE, temperature=1.3),
    "raft": Arm("RAFT", RAFT),
    "maxrl": Arm("MaxRL", replace(RAFT, center=True, nll_reduction="max_length")),
    "tpo": Arm("TPO", TPO),
    "xdr": Arm("xDr.GRPO, τ = .05", replace(SURROGATE, surrogate_tau=0.05)),
    "xdr_mild": Arm("xDr.GRPO, τ = .25", replace(SURROGATE, surrogate_tau=0.25)),
    "published": Arm("MaxEnt, as published"),
}
"""What a user would pick instead of the recipe."""

VARIANTS = {
    "dr_grpo_cool": Arm("Dr.GRPO, sampled at .8", SURROGATE, temperature=0.8, tuned_as="dr_grpo"),
    "dr_grpo_cold": Arm("Dr.GRPO, sampled at .6", SURROGATE, temperature=0.6, tuned_as="dr_grpo"),
    "raft_cool": Arm("RAFT, sampled at .8", RAFT, temperature=0.8, tuned_as="raft"),
    "raft_kappa_1": Arm("RAFT with κ = 1", replace(RAFT, dedup=1.0), tuned_as="raft"),
    "kappa_0": Arm("`diverse()` with κ = 0", replace(DIVERSE, dedup=0.0), tuned_as="kappa_half"),
    "kappa_half": Arm("`diverse()` with κ = ½", replace(DIVERSE, dedup=0.5)),
    "diverse": Arm("`diverse()`", DIVERSE),
    "two_passes": Arm("`diverse()`, two passes", DIVERSE, passes=2),
    "answer_keys": Arm("`diverse()`, κ by answers", DIVERSE, keys="answer", tuned_as="diverse"),
}
"""The recipe, what differs from it or from a method in one setting, and methods sampled colder in training."""

ARMS = METHODS | VARIANTS
RECIPE = "diverse"
"""`MaxEntConfig.diverse()`."""
YARDSTICKS = (
    "grpo", "dr_grpo", "entropy_low", "entropy_high", "dr_grpo_hot", "raft", "xdr", "published", "kappa_half", RECIPE,
)  # fmt: skip
"""The arms of the first study. They alone set the level that arms are compared at, so that no later arm moves it."""
