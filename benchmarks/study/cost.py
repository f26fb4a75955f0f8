"""How much longer an update takes than Dr.GRPO's: methods in turns, on one core, with nothing else running.

python -m benchmarks.study.cost            # benchmarks/study/results/cost.json
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from benchmarks._measure import describe_machine, format_timings, time_in_turns
from benchmarks.study.arms import ARMS, WARM
from benchmarks.study.runs import Run, build_loop, work
from benchmarks.study.stages import RESULTS, TUNED_WITH
from benchmarks.study.tasks import load_problems
from maxent_grpo.pipeline.files import write_text
from maxent_grpo.pipeline.markdown import format_table

NOT_YET = "Not measured yet."
FILE = RESULTS / "cost.json"
COSTED = ("dr_grpo", "kappa", "kappa_modes", "remax", "remax_strong", "kappa_bank", "kappa_twice")
RATE = 1e-12
"""So low that a model stays at its start, where every method finds as many right answers."""
BEFORE = 20
"""Updates that come first: a bank has its prompts then."""


def measure(root: Path, rounds: int, *, task: str = "countdown", before: int = BEFORE) -> dict[str, object]:
    """Return the time of an update of each method, as a multiple of Dr.GRPO's."""
    start = Run(root, task, WARM, TUNED_WITH[0])
    if not (start.warm / "config.json").exists():
        work(start, lambda entry: None, lambda: False)
    problems, steps = load_problems(task).train, {}
    for arm in COSTED:
        loop = build_loop(Run(root, task, arm, TUNED_WITH[0], RATE))
        for _ in range(before):
            loop.update(problems)
        steps[ARMS[arm].name] = partial(loop.update, problems)
    return {"machine": describe_machine("cpu"), **format_timings(time_in_turns(steps, rounds, "cpu"))}


def format_costs(file: Path = FILE) -> str:
    """Return the table of what was measured."""
    if not file.exists():
        return NOT_YET
    measured = json.loads(file.read_text())
    rows = [[name, f"{row['ratio']:.2f}"] for name, row in measured.items() if name != "machine"]
    return format_table(["method", "seconds per update, of Dr.GRPO's"], rows)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--root", type=Path, default=Path("runs/study"), help="where warm starts are (%(default)s)")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # as in the study's runs
    write_text(FILE, json.dumps(measure(options.root, options.rounds), indent=2) + "\n")
    Console().print(format_costs())
    return 0


if __name__ == "__main__":
    sys.exit(main())
