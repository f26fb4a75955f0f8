"""The tasks and sizes of a study."""

from dataclasses import dataclass, field, replace
from functools import cache

from benchmarks.study.tasks import FAMILIES, Family, Problems
from maxent_grpo.pipeline.tasks.splits import split


@dataclass(frozen=True)
class Preset:
    """A study: its task, its sizes, and the arms that it is for.

    Attributes:
        arms: those that are trained where the command names none.
        level: the mean@8 at which methods are compared; learning rates are chosen at `tuning_margin` above it.
        rates_of: a preset whose committed learning rates are taken over instead of tuning.
        fresh: whether it confirms another study: it is tested on problems that no other study tests or chooses on.
    """

    arms: tuple[str, ...]
    family_name: str = "countdown"
    hidden_size: int = 96
    layers: int = 3
    warm_steps: int = 400
    updates: int = 300
    prompts: int = 32
    samples: int = 8
    learning_rates: tuple[float, ...] = (2.5e-5, 5e-5, 1e-4, 2e-4)
    tuning_seeds: tuple[int, ...] = (100,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    save_every: int = 60
    validation: int = 256
    test: int = 512
    level: float = 0.6
    tuning_margin: float = 0.03
    rates_of: str | None = None
    fresh: bool = False
    temperatures: tuple[float, ...] = field(default=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2))

    @property
    def family(self) -> Family:
        """The task."""
        return FAMILIES[self.family_name]


RIVALS = ("raft", "maxrl", "tpo", "xdr", "xdr_mild")
CPU = Preset((
    "grpo", "dr_grpo", "entropy_low", "entropy_high", "dr_grpo_hot", *RIVALS, "published", "dr_grpo_cool",
    "dr_grpo_cold", "raft_cool", "raft_kappa_1", "kappa_0", "kappa_half", "diverse", "two_passes",
))  # fmt: skip
GRAPH = Preset(
    ("grpo", "dr_grpo", "entropy_low", "entropy_high", "dr_grpo_hot", *RIVALS, "published", "dr_grpo_cool",
     "raft_kappa_1", "kappa_half", "diverse", "two_passes"),
    family_name="graph", warm_steps=300, updates=240, learning_rates=(1e-4, 2e-4), level=0.4,
)  # fmt: skip
PRESETS = {
    "cpu": CPU,
    "confirm": replace(
        CPU,
        arms=("grpo", "dr_grpo", "entropy_high", *RIVALS, "dr_grpo_cool", "dr_grpo_cold", "raft_cool", "diverse",
              "two_passes"),
        seeds=(5, 6, 7, 8, 9), rates_of="cpu", fresh=True,
    ),
    "graph": GRAPH,
    "graph_confirm": replace(
        GRAPH,
        arms=("grpo", "dr_grpo", "entropy_low", *RIVALS, "raft_kappa_1", "diverse", "two_passes"),
        seeds=(5, 6, 7, 8, 9), rates_of="graph", fresh=True,
    ),
    "graph_long": replace(GRAPH, arms=("dr_grpo", "diverse"), updates=480, rates_of="graph"),
    "single": Preset(("dr_grpo", "raft", "diverse"), family_name="single", learning_rates=(5e-5, 1e-4)),
    "noted": Preset(("dr_grpo", "kappa_0", "diverse", "answer_keys"), family_name="noted", rates_of="cpu"),
    "hard": Preset(("dr_grpo", "raft", "diverse"), warm_steps=250, level=0.4),
    "small": Preset(
        ("dr_grpo", "diverse", "two_passes"), hidden_size=64, layers=2, learning_rates=(5e-5, 1e-4, 2e-4), level=0.5
    ),
    "large": Preset(
        ("dr_grpo", "raft", "diverse", "two_passes"), hidden_size=160, layers=4, learning_rates=(5e-5, 1e-4),
        seeds=(0, 1, 2),
    ),
    "smoke": Preset(
        ("dr_grpo", "published", "diverse"), updates=60, learning_rates=(1e-4,), seeds=(0,), test=256, level=0.5
    ),
}  # fmt: skip


@cache
def load_problems(preset: Preset) -> Problems:
    """Return the problems of a preset."""
    sides = split(preset.family.list_problems(), held_out=preset.test + preset.validation, seed=0)
    train, held_out = sides.train, sides.held_out
    if preset.fresh:
        again = split(train, held_out=len(held_out), seed=1)
        train, held_out = [*again.train, *held_out], again.held_out
    return Problems(train, held_out[preset.test :], held_out[: preset.test])
