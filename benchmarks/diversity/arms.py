"""The methods that are compared, as settings of the library's objective."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.diversity.objectives import GradedObjective, GrpoObjective, RareObjective
from maxent_grpo import MaxEntConfig, MaxEntObjective
from maxent_grpo.pipeline.tiny.sampling import Samples


@dataclass(frozen=True)
class Arm:
    """A method.

    Attributes:
        name: how it is called in tables.
        config: its settings; `max_length` is filled in by `objective`.
        make: the class that composes the loss of the settings.
        entropy_bonus: λ of the loop's entropy bonus.
        temperature: the sampling temperature in training.
        passes: optimiser steps on a batch, clipped from the second on.
        correct_reference: the anchor is the reference over the sampling policy instead of the reference.
        keys: what counts as the same answer: its tokens, the part of its text that is judged, or the mode that the
            verifier reports.
        tuned_as: the arm whose learning rate it takes over, for variants of a recipe; None: it is tuned itself.
        learning_rate: given instead of tuned.
    """

    name: str
    config: MaxEntConfig = field(default_factory=MaxEntConfig)
    make: Callable[[MaxEntConfig], MaxEntObjective] = MaxEntObjective
    entropy_bonus: float = 0.0
    temperature: float = 1.0
    passes: int = 1
    correct_reference: bool = False
    keys: Literal["tokens", "answer", "mode"] = "tokens"
    tuned_as: str | None = None
    learning_rate: float | None = None

    def sized(self, max_length: int) -> MaxEntConfig:
        """Return the settings with the generation limit filled in."""
        return replace(self.config, max_length=max_length)


def mode_keys(samples: Samples) -> Tensor:
    """Return integers [N], equal where right answers have the same mode or wrong ones the same text."""
    verdicts = zip(samples.verdicts, samples.texts, strict=True)
    return _numbered([verdict.mode if verdict.correct else ("wrong", text) for verdict, text in verdicts], samples)


def answer_keys(samples: Samples, answer: Callable[[str], str]) -> Tensor:
    """Return integers [N], equal where the part of the text that is judged is the same."""
    return _numbered([answer(text) for text in samples.texts], samples)


def _numbered(values: Sequence[Hashable], samples: Samples) -> Tensor:
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(value, len(numbers)) for value in values], device=samples.ids.device)


SURROGATE = MaxEntConfig(projection="surrogate")
CENTRED = MaxEntConfig(center=True, nll_reduction="max_length")
RAFT = MaxEntConfig(tau=0.0, skip="all_min")
TPO = MaxEntConfig(tau=0.0, beta=1.0, anchor="old", projection="listwise", utility_transform="zscore", q_eps=0.0)
HALF = replace(CENTRED, dedup=0.5, skip="all_min")
DIVERSE = MaxEntConfig.diverse()
ANCHORED = {"beta": 0.05, "length_normalize_ref": False}


def _variant(name: str, base: MaxEntConfig, tuned_as: str | None = None, **changes: Any) -> Arm:
    """Return an arm that differs from a base in what it names; it takes over an arm's rate, or is tuned itself."""
    return Arm(f"MaxEnt {name}", replace(base, **changes), tuned_as=tuned_as)


PLANNED = {
    "grpo": Arm("GRPO", MaxEntConfig(nll_reduction="mean"), make=GrpoObjective),
    "dr_grpo": Arm("Dr.GRPO", SURROGATE),
    "entropy_low": Arm("Dr.GRPO + entropy .02", SURROGATE, entropy_bonus=0.02),
    "entropy_high": Arm("Dr.GRPO + entropy .05", SURROGATE, entropy_bonus=0.05),
    "hot": Arm("Dr.GRPO sampled at 1.3", SURROGATE, temperature=1.3),
    "raft": Arm("RAFT", RAFT),
    "maxrl": Arm("MaxRL", replace(CENTRED, tau=0.0, skip="all_min")),
    "tpo": Arm("TPO", TPO),
    "xdr": Arm("xDr.GRPO τ=.05", replace(SURROGATE, surrogate_tau=0.05)),
    "xdr_mild": Arm("xDr.GRPO τ=.25", replace(SURROGATE, surrogate_tau=0.25)),
    "maxent": Arm("MaxEnt, published"),
    "centred": Arm("MaxEnt, centred", CENTRED),
    "none_0": _variant("κ=0 a=0", HALF, "half_0", dedup=0.0),
    "quarter_0": _variant("κ=¼ a=0", HALF, "half_0", dedup=0.25),
    "half_0": _variant("κ=½ a=0", HALF),
    "half_half": _variant("κ=½ a=½", HALF, "half_0", success_power=0.5),
    "half_1": _variant("κ=½ a=1", HALF, success_power=1.0),
    "pruned": _variant("κ=½ a=0, pruned to half", HALF, "half_0", keep_fraction=0.5),
    "full_0": _variant("κ=1 a=0", DIVERSE),
    "full_half": _variant("κ=1 a=½", DIVERSE, "full_0", success_power=0.5),
    "full_1": _variant("κ=1 a=1", DIVERSE, "full_0", success_power=1.0),
    "tau_0": _variant("κ=1 a=0 τ=0", DIVERSE, "full_0", tau=0.0),
    "tau_half": _variant("κ=1 a=0 τ=.5", DIVERSE, "full_0", tau=0.5),
    "tau_1": _variant("κ=1 a=0 τ=1", DIVERSE, "full_0", tau=1.0),
    "ess": _variant("κ=1 a=0, ESS 4", DIVERSE, "full_0", target_ess=4.0),
    "cool": replace(_variant("κ=1 a=0, sampled at .8", DIVERSE, "full_0"), temperature=0.8),
    "both": replace(_variant("κ=1 a=0 + entropy .02", DIVERSE, "full_0"), entropy_bonus=0.02),
    "mode_keys": replace(_variant("κ=1 a=0, modes as keys", DIVERSE, "full_0"), keys="mode"),
    "raft_full": Arm("RAFT κ=1", replace(RAFT, dedup=1.0), tuned_as="raft"),
    "tpo_full": Arm("TPO κ=1", replace(TPO, dedup=1.0), tuned_as="tpo"),
}


def _cooled(name: str, temperature: float = 0.8) -> Arm:
    """Return an arm with another sampling temperature in training, at the learning rate of the one it is made of."""
    arm = PLANNED[name]
    return replace(
        arm,
        name=f"{arm.name} sampled at {f'{temperature:g}'.removeprefix('0')}",
        temperature=temperature,
        tuned_as=name,
    )


SLOW = ("grpo", "dr_grpo", "entropy_low", "entropy_high", "raft", "xdr")
"""Methods that are also run at a rate below the tuned one, at which more variety is left if the level is reached."""
ADDED = {
    "answer_keys": replace(_variant("κ=1 a=0, answers as keys", DIVERSE, "full_0"), keys="answer"),
    "full_0_mild": replace(_variant("κ=1 a=0 at 5e-5", DIVERSE), learning_rate=5e-5),
    "full_0_fast": replace(_variant("κ=1 a=0 at 2e-4", DIVERSE), learning_rate=2e-4),
    "rare": replace(_variant("κ=1 a=−½", DIVERSE, "full_0"), make=RareObjective),
    "cool_rare": replace(_variant("κ=1 a=−½, sampled at .8", DIVERSE, "full_0"), make=RareObjective, temperature=0.8),
    "graded": replace(_variant("κ=p̂ a=0", HALF, "full_0", dedup=0.0), make=GradedObjective),
    "anchored": _variant("κ=1 a=0 β=.05", DIVERSE, "full_0", **ANCHORED),
    "corrected": replace(_variant("κ=1 a=0 β=.05, corrected", DIVERSE, "full_0", **ANCHORED), correct_reference=True),
    "corrected_0": replace(
        _variant("κ=0 a=0 β=.05, corrected", HALF, "full_0", dedup=0.0, **ANCHORED), correct_reference=True
    ),
    "passes_2": replace(_variant("κ=1 a=0, 2 passes", DIVERSE), passes=2),
    "dr_grpo_passes_2": replace(Arm("Dr.GRPO, 2 passes", SURROGATE), passes=2),
    "dr_grpo_cool": _cooled("dr_grpo"),
    "dr_grpo_cold": _cooled("dr_grpo", 0.6),
    "dr_grpo_coldest": _cooled("dr_grpo", 0.4),
    "raft_cool": _cooled("raft"),
    "xdr_mild_cool": _cooled("xdr_mild"),
    "cold": _cooled("full_0", 0.6),
    "cool_passes_2": replace(
        _variant("κ=1 a=0, 2 passes, sampled at .8", DIVERSE, "passes_2"), passes=2, temperature=0.8
    ),
}
"""What was tried after the others had been seen."""
SLOWED = {
    f"{name}_slow": replace(PLANNED[name], name=f"{PLANNED[name].name}, slow", learning_rate=2.5e-5) for name in SLOW
}
ARMS = PLANNED | ADDED | SLOWED
RECIPE = next(name for name, arm in ARMS.items() if arm.config == DIVERSE)
"""The arm that is `MaxEntConfig.diverse()`."""
CORE = (
    "grpo", "dr_grpo", "entropy_low", "entropy_high", "hot", "raft", "xdr", "maxent", "half_0", "half_1", "full_0",
)  # fmt: skip
METHODS = (
    "grpo", "dr_grpo", "entropy_low", "entropy_high", "hot", "raft", "maxrl", "tpo", "xdr", "xdr_mild", "maxent",
    *(f"{name}_slow" for name in SLOW),
)  # fmt: skip
"""What a user would pick instead. Every other arm is a variant of the recipe, which answers another question."""
