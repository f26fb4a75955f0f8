"""The stages of the study: which methods run on which task, with which seeds and learning rates, and who goes on.

Rates are chosen on two tuning seeds. The best methods of Countdown and every named rival go on to five paired seeds
on both tasks, and the winner to fresh seeds. NOTES.md has the criteria, which were written before the stages ran.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.study.arms import ARMS
from benchmarks.study.runs import Line, Run, read_lines
from benchmarks.study.tasks import SIZES, Sizes
from maxent_grpo.pipeline.frontiers import read_frontier

RESULTS = Path(__file__).parent / "results"
TUNED_WITH, PAIRED, FRESH = (100, 101), (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
BEST = 8
"""How many methods go on by rank."""
RIVALS = ("grpo", "dr_grpo", "maxrl", "tpo", "xdr", "ips", "ucpo", "gapo", "remax", "redr", "kappa")
"""Who goes on in any case: the rivals by name, and today's recipe."""


@dataclass(frozen=True)
class Stage:
    """Methods on a task.

    Attributes:
        arms: the methods.
        seeds: of warm starts, batches and samples.
        rates_of: the stage that chooses each method's rate; None: this one tries several.
        fresh: whether it is tested on problems that nothing was chosen by.
    """

    task: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    rates_of: str | None = None
    fresh: bool = False


RECIPE = "kappa"
"""Today's `diverse()`."""
LIKE = {"answer_keys": "kappa"}
"""Methods with the rate of another one: only what counts as the same answer differs."""
FINALISTS = (
    "grpo", "dr_grpo", "maxrl", "tpo", "xdr", "ips", "ucpo", "gapo", "remax", "redr", "soft_quarter", "kappa",
    "kappa_distinct", "kappa_bank", "kappa_twice", "kappa_distinct_twice", "kappa_modes", "kappa_modes_cold",
)  # fmt: skip
"""What `choose_best` says of the rates of Countdown."""
LATER = ("kappa_cold", "kappa_joined")
"""Parts and sum of what did best on the five seeds of Countdown: fresh seeds alone speak of them."""
FINAL = (
    "dr_grpo", "dr_grpo_cold", "ucpo", "ips", "remax", "soft_quarter", "kappa", "kappa_modes_cold", "kappa_twice",
    *LATER,
)  # fmt: skip
"""Who meets fresh seeds: the winner by `choose_winner`, the rivals by `score_methods`, and what NOTES.md adds."""
BANKS = ("maxrl", "remax", "remax_strong", "kappa", "kappa_bank")
"""Methods with a bank, and without, where prompts come back."""
STAGES = {
    "countdown_rates": Stage("countdown", tuple(arm for arm in ARMS if arm not in LIKE), TUNED_WITH),
    "countdown": Stage("countdown", FINALISTS, PAIRED, rates_of="countdown_rates"),
    "graph_rates": Stage("graph", (*FINALISTS, "dr_grpo_cold", *LATER), TUNED_WITH),
    "graph": Stage("graph", FINALISTS, PAIRED, rates_of="graph_rates"),
    "single": Stage("single", ("dr_grpo", "dr_grpo_cold", "maxrl", "kappa"), PAIRED, rates_of="countdown_rates"),
    "noted": Stage(
        "noted", ("dr_grpo", "maxrl", "soft_quarter", "kappa", "answer_keys"), PAIRED, rates_of="countdown_rates"
    ),
    "recurring": Stage("recurring", BANKS, PAIRED, rates_of="countdown_rates"),
    "countdown_fresh": Stage("countdown", ("xdr", *FINAL), FRESH, rates_of="countdown_rates", fresh=True),
    "graph_fresh": Stage("graph", ("grpo", *FINAL), FRESH, rates_of="graph_rates", fresh=True),
}


def list_runs(name: str, root: Path) -> list[Run]:
    """Return the runs of a stage as far as they are known: all methods at one rate, seed by seed, before the next."""
    stage = STAGES[name]
    if stage.rates_of is None:
        tried = {arm: list_rates(name, arm) for arm in stage.arms}
    else:
        expect_whole(stage.rates_of)
        chosen = choose_rates(stage.rates_of)
        tried = {arm: [chosen[LIKE.get(arm, arm)]] for arm in stage.arms}
    return [
        Run(root, stage.task, arm, seed, rates[place], stage.fresh)
        for place in range(max(map(len, tried.values())))
        for seed in stage.seeds
        for arm, rates in tried.items()
        if place < len(rates)
    ]


def list_rates(name: str, arm: str) -> list[float]:
    """Return the rates that a method is tried at: the task's two, then on in the better direction while it is better.

    The next one is known once all runs at those before it are there.
    """
    stage = STAGES[name]
    lines = [line for line in read_stage(name) if line["arm"] == arm]
    (low, high), rates = SIZES[stage.task].bounds, list(SIZES[stage.task].rates)
    while sum(line["rate"] in rates for line in lines) == len(rates) * len(stage.seeds):
        best = _choose_rates([line for line in lines if line["rate"] in rates])[arm]
        further = {min(rates): min(rates) / 2, max(rates): max(rates) * 2}.get(best)
        if further is None or not low <= further <= high:
            break
        rates.append(further)
    return rates


def expect_whole(name: str) -> None:
    """Refuse a stage that lacks runs: what it says may still change.

    Raises:
        ValueError: naming it.
    """
    missing = len(list_runs(name, Path())) - sum(line["arm"] in ARMS for line in read_stage(name))
    if missing:
        raise ValueError(f"Expected all runs of the stage {name}, got {missing} missing: run it first.")


def read_stage(name: str) -> list[Line]:
    """Return the committed lines of a stage."""
    return read_lines(RESULTS / f"{name}.jsonl")


def measure_area(split: Line, sizes: Sizes) -> float:
    """Return the mean coverage@8 over levels of mean@8; a level that is reached at no temperature counts 0."""
    values = [
        read_frontier(level, split["mean@8"], split["coverage@8"]) or 0.0 for level in np.linspace(*sizes.levels, 21)
    ]
    return float(np.mean(values))


def average_areas(lines: Sequence[Line], split: str) -> dict[tuple[str, float], float]:
    """Return the area of each method at each rate, averaged over seeds."""
    areas: dict[tuple[str, float], list[float]] = {}
    for line in lines:
        if line["arm"] in ARMS:
            areas.setdefault((line["arm"], line["rate"]), []).append(measure_area(line[split], SIZES[line["task"]]))
    return {key: float(np.mean(each)) for key, each in areas.items()}


def choose_rates(name: str) -> dict[str, float]:
    """Return each method's best rate in a stage, by the area on validation problems; so far, while it lacks runs."""
    return _choose_rates(read_stage(name))


def _choose_rates(lines: Sequence[Line]) -> dict[str, float]:
    areas = average_areas(lines, "validation")
    return {arm: rate for (arm, rate), _ in sorted(areas.items(), key=lambda item: item[1])}


def choose_best(name: str) -> tuple[str, ...]:
    """Return the methods that go on from a stage: the best by the area on validation problems, and the rivals."""
    areas, rates = average_areas(read_stage(name), "validation"), choose_rates(name)
    ranked = sorted(rates.keys() - set(LATER), key=lambda arm: -areas[arm, rates[arm]])
    return tuple(arm for arm in ARMS if arm in {*ranked[:BEST], *RIVALS})


def score_methods(names: Sequence[str]) -> dict[str, float]:
    """Return each method's area over that of `RECIPE`, on test problems, summed over the tasks of these stages."""
    scores: dict[str, float] = {}
    for name in names:
        areas = {arm: area for (arm, _), area in average_areas(read_stage(name), "test").items()}
        for arm, area in areas.items():
            scores[arm] = scores.get(arm, 0.0) + area / areas[RECIPE]
    return scores


def choose_winner(names: Sequence[str]) -> str:
    """Return the best method of these stages that takes one step per batch and is told no modes, as in NOTES.md."""
    scores = score_methods(names)
    return max((arm for arm in scores if ARMS[arm].passes == 1 and ARMS[arm].keys != "mode"), key=scores.__getitem__)
