"""The methods that are compared, each as settings of the library."""

from dataclasses import dataclass, field, replace
from typing import Literal

from benchmarks.study import oracle
from maxent_grpo import MaxEntConfig, MaxEntObjective
from maxent_grpo.bank import ExemplarBank
from maxent_grpo.methods import METHODS


@dataclass(frozen=True)
class Arm:
    """A method.

    Attributes:
        name: how tables call it.
        config: its settings, but for `max_length`, which is the task's.
        entropy_bonus: λ of the loop's entropy bonus.
        temperature: the sampling temperature in training.
        passes: optimizer steps on a batch, clipped from the second on.
        keys: what counts as the same answer: a completion's tokens, the part of its text that is judged, or of right
            answers the mode that the verifier names.
        rehearses: whether there is a bank; with a `bank_weight` of 0 its rows are a control.
    """

    name: str
    config: MaxEntConfig = field(default_factory=MaxEntConfig)
    entropy_bonus: float = 0.0
    temperature: float = 1.0
    passes: int = 1
    keys: Literal["tokens", "answer", "mode"] = "tokens"
    rehearses: bool = False

    def build_objective(self, max_length: int) -> MaxEntObjective:
        """Return the loss of completions of at most `max_length` tokens."""
        return MaxEntObjective(replace(self.config, max_length=max_length))

    def build_bank(self) -> ExemplarBank | None:
        """Return an empty bank, if there is one."""
        return ExemplarBank(capacity=self.config.bank_capacity) if self.rehearses else None


def _publish(name: str, **others: object) -> Arm:
    """Return a published method at its settings, on the scale that a trainer has: divided by the generation limit."""
    config = METHODS[name].config
    reduction = config.nll_reduction if config.projection == "surrogate" else "max_length"
    return Arm(name, replace(config, nll_reduction=reduction), rehearses=config.bank_weight > 0, **others)


def _discount(name: str, *, dedup: float = 1.0, **settings: object) -> Arm:
    """Return centered weights with a discount on duplicates, groups without a success left out."""
    config = MaxEntConfig(center=True, skip="all_min", nll_reduction="max_length", dedup=dedup, **settings)
    return Arm(name, config, rehearses=config.bank_weight > 0)


def _strengthen(arm: Arm, name: str) -> Arm:
    """Return a method with eight prompts of its bank at every update, at five times the published weight.

    As published, a bank rehearses one prompt per update, over ten times as many updates as here, and weighs more
    beside fresh answers, which are divided by a generation limit of 192 there and of 8 here.
    """
    return replace(arm, name=name, config=replace(arm.config, bank_weight=0.5, bank_prompts=8), rehearses=True)


DR_GRPO = METHODS["Dr.GRPO"].config
KAPPA = _discount("κ = 1")
REMAX = _publish("Re:Max", keys="mode")
ARMS = {
    "grpo": _publish("GRPO"),
    "dr_grpo": _publish("Dr.GRPO"),
    "dr_grpo_cold": Arm("Dr.GRPO, sampled at .6", DR_GRPO, temperature=0.6),
    "entropy": Arm("Dr.GRPO, entropy bonus .05", DR_GRPO, entropy_bonus=0.05),
    "raft": _publish("RAFT"),
    "maxrl": _publish("MaxRL"),
    "tpo": _publish("TPO"),
    "xdr": _publish("xDr.GRPO"),
    "xdr_mild": Arm("xDr.GRPO, τ = .25", replace(DR_GRPO, surrogate_tau=0.25)),
    "ips": _publish("IPS-GRPO"),
    "ucpo": _publish("UCPO"),
    "gapo": _publish("GAPO"),
    "gapo_oracle": Arm(
        "GAPO by modes, told their number",
        replace(DR_GRPO, utility_transform=(oracle.NAME, "zscore")),
        keys="mode",
    ),
    "remax": REMAX,
    "remax_strong": _strengthen(REMAX, "Re:Max, a stronger bank"),
    "redr": _publish("Re:Dr", keys="mode"),
    "soft_quarter": _discount("soft κ = ¼", dedup=0.0, soft_dedup=0.25),
    "soft_half": _discount("soft κ = ½", dedup=0.0, soft_dedup=0.5),
    "soft_one": _discount("soft κ = 1", dedup=0.0, soft_dedup=1.0),
    "kappa": KAPPA,
    "kappa_distinct": _discount("κ = 1, d = 1 (IPS-GRPO, centered)", distinct_power=1.0),
    "kappa_bank": _strengthen(KAPPA, "κ = 1, a strong bank"),
    "soft_bank": _strengthen(_discount("", dedup=0.0, soft_dedup=0.25), "soft κ = ¼, a strong bank"),
    "kappa_twice": replace(KAPPA, name="κ = 1, two passes", passes=2),
    "kappa_distinct_twice": replace(_discount("κ = 1, d = 1, two passes", distinct_power=1.0), passes=2),
    "kappa_cold": replace(KAPPA, name="κ = 1, sampled at .6", temperature=0.6),
    "kappa_modes": replace(KAPPA, name="κ = 1 by modes", keys="mode"),
    "kappa_modes_cold": replace(KAPPA, name="κ = 1 by modes, sampled at .6", keys="mode", temperature=0.6),
    "kappa_joined": replace(
        KAPPA, name="κ = 1 by modes, sampled at .6, two passes", keys="mode", temperature=0.6, passes=2
    ),
    "ips_modes": replace(_publish("IPS-GRPO", keys="mode"), name="IPS-GRPO by modes"),
    "answer_keys": replace(KAPPA, name="κ = 1 by answers", keys="answer"),
}
WARM = "warm_start"
"""Where every method starts, which is measured as well."""
