"""Whole runs of OpenRLHF's command line on a CPU by examples/openrlhf/tiny_cpu.py: a part of `make nightly`.

cd tests && ../build/openrlhf/bin/python -m support.openrlhf_runs golden/openrlhf_runs.json [CASE ...]

A case is two global steps; one of them is resumed from its checkpoint. It fails where a step or a number is missing,
or a process of its Ray lives on a minute later. Cases that are in the file already are run anew.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples" / "openrlhf"
PATH = Path(__file__).parents[1] / "golden" / "openrlhf_runs.json"


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        options: what is added to a plain GRPO command line.
        ranks: data-parallel ranks of the actor.
        resumed: whether another run goes on from the checkpoint.
        logged: statistics beside those of every run.
    """

    options: tuple[str, ...] = ()
    ranks: int = 1
    resumed: bool = False
    logged: frozenset[str] = frozenset()


KEYS = ("--maxent.dedup", "1", "--maxent.key_func", str(EXAMPLES / "tiny_reward.py"))
FILTERED = ("--algo.dynamic_filtering_enable", "--algo.dynamic_filtering_range", "0.01", "0.99")
PULLED = ("--maxent.beta", "0.04")
ANCHORED = frozenset({"maxent/kl_target_anchor"})
CASES = {
    "one rank": Case(KEYS, resumed=True),
    "one rank, a reference": Case(PULLED, logged=ANCHORED),
    "one rank, a reference and a KL term": Case(
        (*PULLED, "--algo.kl.use_loss", "--algo.kl.init_coef", "0.01", "--algo.kl.estimator", "k3"),
        logged=ANCHORED | {"kl"},
    ),
    "two ranks, several updates": Case((*KEYS, "--train.batch_size", "8"), ranks=2),
    "asynchronous, a reference": Case(("--train.async_enable", *PULLED), logged=ANCHORED),
    "dynamic filtering": Case(FILTERED),
}
STATISTICS = {"maxent/ess", "maxent/improvement_gap", "maxent/frac_distinct", "maxent/frac_unscored"}


def run_case(case: Case) -> dict[str, Any]:
    """Return what a case logs.

    Raises:
        AssertionError: if a process of its Ray outlives it.
    """
    # Not at the top: what looks at the committed file needs none of it.
    sys.path.insert(0, str(EXAMPLES))
    from tiny_cpu import prepare_folder, run_training

    from support.ray_processes import wait_for_end

    with wait_for_end() as name:
        folder = Path(name)
        prepare_folder(folder)
        result = run_training(folder, case.ranks, list(case.options))
        if case.resumed:
            again = [*case.options, "--ckpt.load_enable", "--train.num_episodes", "2"]
            result["resumed"] = run_training(folder, case.ranks, again)
    return result


def find_faults(name: str, run: dict[str, Any]) -> list[str]:
    """Return what the log of a case lacks: its steps, its statistics, numbers that are finite, updates that move."""
    case, parts = CASES[name], {("1", "2"): run}
    if case.resumed:
        parts["3", "4"] = run.get("resumed", {"steps": {}})
    faults = []
    for numbers, part in parts.items():
        if tuple(part["steps"]) != numbers:
            faults.append(f"steps {numbers}, got {list(part['steps'])}")
        for number, status in part["steps"].items():
            faults += [f"{number}: {entry}" for entry in sorted((STATISTICS | case.logged) - status.keys())]
            faults += [f"{number}: {entry}={value}" for entry, value in status.items() if not math.isfinite(value)]
            faults += [] if status["actor_grad_norm"] > 0 else [f"{number}: no gradient"]
    return faults


def main(path: Path, names: list[str]) -> None:
    faults = {}
    for name in names or CASES:
        run = run_case(CASES[name])
        print(json.dumps({name: run}, indent=1), flush=True)
        runs = (json.loads(path.read_text()) if path.exists() else {}) | {name: run}
        path.write_text(json.dumps({case: runs[case] for case in CASES if case in runs}, indent=1) + "\n")
        faults |= {name: found} if (found := find_faults(name, run)) else {}
    if faults:
        raise SystemExit(f"Expected steps and finite statistics of every run, got {faults}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
