"""Tables of the study of a pretrained model, from the committed lines alone, for its page of results."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np

from benchmarks.pretrained.arms import ARMS, BASE, BY_TRL, SLOW
from benchmarks.pretrained.plan import RESULTS, SEEDS, is_asked
from benchmarks.pretrained.runs import TUNED_WITH, Line
from benchmarks.pretrained.tasks import QUESTIONS
from benchmarks.study.analysis import estimate_difference, group_lines, pair_seeds, read_at_level
from benchmarks.study.report import format_difference, format_number
from benchmarks.study.runs import read_lines
from maxent_grpo.pipeline.markdown import format_table, replace_section

PAGE = Path(__file__).parent / "RESULTS.md"
FIRST = "dr_grpo"
"""What the others are compared with."""
STEP = 0.05
AT_ONE = ("mean@8", "pass@8", "coverage@8", "PCMD@8")
FOUND = ("mean@k", "pass@k", "coverage@k")
TITLES = {BASE: BASE, **{name: arm.name for name, arm in ARMS.items()}}
TITLES |= {
    name: f"{ARMS[name].name} by answers" for name in ("kappa", "remax", "ips")
}  # the toy study has them by text
TITLES[BY_TRL] = f"{TITLES['kappa']}, through TRL"
Runs = Mapping[str, Mapping[int, Line]]


def write_report(page: Path = PAGE) -> None:
    """Put the table of each task into its marked section of the page."""
    text = page.read_text()
    for task in QUESTIONS:
        text = replace_section(text, task, f"\n{write_section(task)}\n")
    text = replace_section(text, "recipe", f"\n{format_recipe()}\n")
    page.write_text(replace_section(text, "speed", f"\n{format_speed()}\n"))


def write_section(task: str, results: Path = RESULTS) -> str:
    """Return the tables of a task: at temperature 1, and at equal accuracy."""
    runs = group_tested(read_lines(results / f"{task}.jsonl"))
    if FIRST not in runs:
        return "Not measured yet."
    missing = [TITLES[name] for name in ARMS if is_asked(task, name) and len(runs.get(name, {})) < len(SEEDS)]
    notes = f"\n\nNot measured yet, or not with all seeds: {'; '.join(missing)}." if missing else ""
    level = find_level(runs)
    return f"""At a sampling temperature of 1:

{format_means(runs)}

At equal accuracy, mean@8 = {level:.2f}, by choice of the temperature:

{format_matched(runs, level)}{format_at_one_rate(runs, level)}{notes}"""


def group_tested(lines: Sequence[Line]) -> Runs:
    """Return the lines by method and seed, without those that chose rates.

    Raises:
        ValueError: if a method has two runs with a seed.
    """
    runs = group_lines([line for line in lines if line["seed"] != TUNED_WITH])
    return {name: runs[name] for name in (BASE, *ARMS) if name in runs}


def format_means(runs: Runs) -> str:
    """Return the table at temperature 1: means over seeds, some with half of their 95 % interval."""
    rows = []
    for name, seeds in runs.items():
        each = [_read_at_one(line) for line in seeds.values()]
        values = {measure: [row[measure] for row in each] for measure in each[0]}
        rows.append(
            [
                TITLES[name],
                str(len(seeds)),
                ", ".join(sorted({f"{line['rate']:g}" for line in seeds.values() if line["rate"]})) or "–",
                *(_format_mean(values[measure]) for measure in AT_ONE),
                *(format_number(float(np.mean(values[measure]))) for measure in ("pass@64", "greedy")),
                *(f"{np.mean(values[measure]):.1f}" for measure in ("entropy", "tokens")),
            ]
        )
    head = ["method", "seeds", "learning rate", *AT_ONE, "pass@64", "greedy", "entropy in nats", "tokens"]
    return format_table(head, rows)


def _format_mean(values: Sequence[float]) -> str:
    """Return a mean over seeds with half of Student's 95 % interval, where there are two seeds.

    >>> _format_mean([0.41, 0.43])
    '0.420 ± 0.127'
    """
    interval = estimate_difference(values)
    reach = "" if interval is None else f" ± {interval.high - interval.mean:.3f}"
    return format_number(float(np.mean(values))) + reach


def _read_at_one(line: Line) -> dict[str, float]:
    at = line["temperatures"].index(1.0)
    figures = {name: line["test"][name][at] for name in AT_ONE} | {"pass@64": line["pass@k"][-1]}
    figures |= {name: line[name] for name in ("greedy", "entropy", "tokens")}
    return {name: math.nan if value is None else value for name, value in figures.items()}


def find_level(runs: Runs) -> float:
    """Return the highest accuracy that every run of `FIRST` reaches, rounded down to a multiple of `STEP`."""
    reached = [max(line["test"]["mean@8"]) for line in runs[FIRST].values()]
    return STEP * math.floor(min(reached) / STEP + 1e-9)


def format_matched(runs: Runs, level: float) -> str:
    """Return the table at equal accuracy: means, and differences from `FIRST` paired by seed, in points."""
    rows = []
    for name, seeds in runs.items():
        cells = []
        for measure in ("coverage@8", "pass@8"):
            values = [read_at_level(line["test"], level, measure) for line in seeds.values()]
            cells.append(format_number(float(np.mean(values))))
        for measure in ("coverage@8", "pass@8", "PCMD@8", "ceiling"):
            read = partial(_read_test, level=level, measure=measure)
            pair = None if name in (FIRST, BASE) else pair_seeds(seeds, runs[FIRST], read)
            cells.append(format_difference(pair, len(SEEDS)))
        rows.append([TITLES[name], *cells])
    head = ["method", "coverage@8", "pass@8", "Δ coverage@8", "Δ pass@8", "Δ PCMD@8", "Δ best mean@8"]
    return format_table(head, rows)


def format_at_one_rate(runs: Runs, level: float) -> str:
    """Return κ's differences from Dr.GRPO at κ's learning rate, nothing where that did not run."""
    if SLOW not in runs or "kappa" not in runs:
        return ""
    differences = []
    for measure in ("coverage@8", "pass@8"):
        pair = pair_seeds(runs["kappa"], runs[SLOW], partial(_read_test, level=level, measure=measure))
        differences.append(f"{measure} {format_difference(pair, len(SEEDS))}")
    return f"\n\n{TITLES['kappa']} minus {TITLES[SLOW]}: {', '.join(differences)}."


def _read_test(line: Line, level: float, measure: str) -> float:
    return read_at_level(line["test"], level, measure)


def format_recipe(results: Path = RESULTS) -> str:
    """Return what the recipe's short run gained, from its trainer's state and its evaluation."""
    state, evaluated = (results / f"recipe-{name}.json" for name in ("trainer_state", "evaluation"))
    if not (state.exists() and evaluated.exists()):
        return "Not measured yet."
    log = json.loads(state.read_text())["log_history"]
    rewards = [entry["reward"] for entry in log if "reward" in entry]
    third = len(rewards) // 3
    first, last = rewards[:third], rewards[-third:]
    error = math.sqrt((np.var(first, ddof=1) + np.var(last, ddof=1)) / third)
    minutes = sum(entry.get("train_runtime", 0.0) for entry in log) / 60
    evaluation = json.loads(evaluated.read_text())
    before, after = (
        {name: each[name]["value"][each["k"].index(8)] for name in FOUND} for each in evaluation["results"]
    )
    gains = ", ".join(
        f"{name.replace('@k', '@8')} goes from {before[name]:.2f} to {after[name]:.2f}" for name in FOUND
    )
    return (
        f"{minutes:.0f} minutes of training: the reward of the last third of {len(rewards)} updates lies "
        f"{np.mean(last) - np.mean(first):.2f} above that of the first (s.e. {error:.2f}). "
        f"On {evaluation['prompts']} questions {gains}."
    )


def format_speed(results: Path = RESULTS) -> str:
    """Return what `benchmarks.pretrained.speed` measured: on a CPU, and on a GPU."""
    tables = []
    for device, name in (("cpu", "a CPU"), ("cuda", "a GPU")):
        file = results / f"speed-{device}.json"
        if not file.exists():
            tables.append(f"On {name}: not measured yet.")
            continue
        measured = json.loads(file.read_text())
        machine = measured.pop("machine")
        rounds = next(iter(measured.values()))["rounds"]
        conditions = (
            f"{machine['hardware']}, {rounds:.0f} rounds at a load average of {machine['load_average'][0]:.1f}"
        )
        rows = [
            [name, f"{row['ratio']:.2f}", f"{row['tokens per second']:.0f}", f"{row['peak_mib']:.0f}"]
            for name, row in measured.items()
        ]
        table = format_table(["step", "time, of the first way's", "tokens per second", "MiB at the peak"], rows)
        tables.append(f"{conditions}:\n\n{table}\n\n{format_pace(measured)}")
    return "\n\n".join(tables)


def format_pace(rows: Mapping[str, Line]) -> str:
    """Return how many updates a minute the first ways to sample and to learn make, and the fastest."""
    times = [
        [row["median_ms"] for name, row in rows.items() if name.startswith(step)] for step in ("sampling", "learning")
    ]
    first, fastest = (60e3 / sum(map(choose, times)) for choose in (itemgetter(0), min))
    return f"Updates a minute: {first:.1f} by the first ways to sample and to learn, {fastest:.1f} by the fastest."
