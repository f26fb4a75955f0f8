"""OpenRLHF's command line end to end on a CPU, a part of `make nightly`: what examples/openrlhf/tiny_cpu.py says.

    .venv-openrlhf/bin/python tests/adapters/openrlhf/end_to_end.py tests/golden/openrlhf-end-to-end.json [CASE ...]

Each case is a run of two global steps, or of more that goes on from another's checkpoint. It fails where a step or a
number is missing, or a process of its Ray lives on. Cases that are in the file already are run anew.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples" / "openrlhf")]

from tiny_cpu import prepare_folder, run_training  # noqa: E402

from support.ray_processes import wait_for_end  # noqa: E402

KEYS = ["--maxent.dedup", "1", "--maxent.key_func", str(ROOT / "examples" / "openrlhf" / "tiny_reward.py")]
CASES: dict[str, tuple[int, list[str]]] = {
    "one rank": (1, KEYS),
    "one rank, pulled to the reference": (1, ["--maxent.beta", "0.04"]),
    "two ranks, several updates": (2, [*KEYS, "--train.batch_size", "8"]),
    "asynchronous": (1, ["--train.async_enable", "--maxent.beta", "0.04"]),
    "dynamic filtering": (1, ["--algo.dynamic_filtering_enable", "--algo.dynamic_filtering_range", "0.01", "0.99"]),
}
"""Number of ranks and options by the name of a case."""
RESUMED = ["--ckpt.load_enable", "--train.num_episodes", "2"]


def main() -> None:
    path, names = Path(sys.argv[1]), sys.argv[2:] or CASES
    for name in names:
        ranks, options = CASES[name]
        result = {name: run_case(ranks, options, resume=name == "one rank")}
        print(json.dumps(result, indent=1), flush=True)
        kept = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(kept | result, indent=1) + "\n")


def run_case(ranks: int, options: list[str], *, resume: bool) -> dict[str, Any]:
    """Return what a case logs.

    Raises:
        AssertionError: on a step that is missing, a number that is none, or a process that is left over.
    """
    with wait_for_end() as name:
        folder = Path(name)
        prepare_folder(folder)
        result = run_training(folder, ranks, options)
        check_steps(result["steps"], ["1", "2"])
        if resume:
            result["resumed"] = run_training(folder, ranks, [*options, *RESUMED])
            check_steps(result["resumed"]["steps"], ["3", "4"])
    return result | {"processes_left": 0}


def check_steps(steps: dict[str, dict[str, float]], expected: list[str]) -> None:
    assert list(steps) == expected, steps
    for status in steps.values():
        assert all(map(math.isfinite, status.values())), status
        assert status["actor_grad_norm"] > 0, status
        assert status["maxent/ess"] >= 1, status


if __name__ == "__main__":
    main()
