"""The methods that are compared: settings of the toy study, with what counts as the same answer."""

from dataclasses import replace

from benchmarks.study.arms import ARMS as KNOWN
from benchmarks.study.arms import Arm

BASE = "before training"
BY_TRL = "kappa_trl"
"""κ by answers once more, with TRL's trainer and our recipe instead of the plain loop."""
SLOW = "dr_grpo_slow"
"""Dr.GRPO at the rate that was chosen for κ, to tell the loss from the rate."""


def _key(name: str) -> Arm:
    """Return a method of the toy study to which an answer is the same in all its spellings."""
    return replace(KNOWN[name], keys="answer")


ARMS = {
    "dr_grpo": KNOWN["dr_grpo"],
    "kappa": _key("kappa"),
    "kappa_text": replace(KNOWN["kappa"], name="κ = 1 by text"),
    SLOW: replace(KNOWN["dr_grpo"], name="Dr.GRPO at κ's rate"),
    "remax": _key("remax"),
    "ips": _key("ips"),
    "soft": KNOWN["soft_quarter"],
    "dr_grpo_cold": KNOWN["dr_grpo_cold"],
    "maxrl": KNOWN["maxrl"],
    BY_TRL: replace(_key("kappa"), name="κ = 1, through TRL"),
}
"""In the order in which they run, each with all of its seeds before the next."""
