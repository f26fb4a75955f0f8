"""Whole runs of verl on a CPU, two updates each, by examples/verl/tiny_cpu.py: a part of `make nightly`.

cd tests && ../build/verl/bin/python -m support.verl_runs golden/verl_runs.json [RUN ...]

Runs that are in the file already are run anew.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support.ray_processes import wait_for_end

SCRIPT = Path(__file__).parents[2] / "examples/verl/tiny_cpu.py"
KEYS = [f"+algorithm.maxent.key_func.path={SCRIPT}", "+algorithm.maxent.key_func.name=find_keys"]
RUNS = {
    "grpo": ["trainer.v1.trainer_mode=sync", "~algorithm.maxent"],
    "maxent_sync": [],
    "maxent_sync, two updates per rollout": ["actor_rollout_ref.actor.ppo_epochs=2"],
    "maxent_colocate_async, a reference and keys": [
        "trainer.v1.trainer_mode=maxent_colocate_async",
        "+algorithm.maxent.beta=0.1",
        *KEYS,
    ],
    "maxent_separate_async": [
        "trainer.v1.trainer_mode=maxent_separate_async",
        "trainer.v1.separate_async.parameter_sync_step=1",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=tiny",
        "ray_kwargs.ray_init.num_gpus=2",
    ],
}
KEPT = ("maxent/", "actor/pg_loss", "actor/grad_norm", "critic/score/mean", "training/rollout_probs_diff_max")
STATISTICS = {"maxent/ess", "maxent/improvement_gap", "maxent/frac_distinct", "maxent/frac_unscored"}


def run_verl(overrides: list[str]) -> dict[str, Any]:
    """Return the seconds that a run took, and what its second update logged.

    Raises:
        SystemExit: if it fails.
        AssertionError: if a process of its Ray outlives it.
    """
    started = time.monotonic()
    with wait_for_end() as folder:
        command = [sys.executable, str(SCRIPT), folder, *overrides]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VERL_")}
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stdout[-4000:]}{result.stderr[-4000:]}")
    (line,) = re.findall(r"step:2 - (.*)", result.stdout + result.stderr)
    metrics = dict(re.findall(r"(\S+):(-?[0-9.e+-]+|nan)(?: - |\s*$)", line))
    kept = {name: float(f"{float(value):.3g}") for name, value in metrics.items() if name.startswith(KEPT)}
    return {"seconds": round(time.monotonic() - started), "second update": kept}


def find_faults(name: str, run: dict[str, Any]) -> list[str]:
    """Return what a run's log lacks; every number of it has to be finite."""
    metrics = run["second update"]
    missing = (STATISTICS if name.startswith("maxent") else set()) - metrics.keys()
    if "reference" in name:
        missing |= {"maxent/kl_target_anchor"} - metrics.keys()
    return sorted(missing) + [key for key, value in metrics.items() if not abs(value) < float("inf")]


def main(path: Path, names: list[str]) -> None:
    runs = json.loads(path.read_text()) if path.exists() else {}
    for name in names or RUNS:
        runs[name] = run_verl(RUNS[name])
        path.write_text(json.dumps({name: runs[name] for name in RUNS if name in runs}, indent=1) + "\n")
    faults = {name: found for name, run in runs.items() if (found := find_faults(name, run))}
    if faults:
        raise SystemExit(f"Expected statistics of every run, finite, got {faults}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
