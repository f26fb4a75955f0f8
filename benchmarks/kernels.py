"""Time every kernel against its peers, next to the floor measured on the same machine in the same run.

`python benchmarks/kernels.py` writes `benchmarks/results/kernels-<preset>.json` with a table and a bar chart made
from it; `--report FILE` makes those again. A run that was cut off goes on with the cases that are missing, as long as
the code, the machine and the packages are the same.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _exact
import _load
import _measure
import _report
import torch
from _cases import PRESETS, Case, Preset, list_cases

RESULTS = Path(__file__).parent / "results"
CODE = [*Path(__file__).parent.glob("*.py"), *Path(__file__).parents[1].glob("maxent_grpo/kernels/*.py")]
ALONE = ("maxent_grpo", "eager", "TRL", "cut-cross-entropy")
"""How the names begin of the steps that are also timed alone under load, on a GPU."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="h200" if torch.cuda.is_available() else "cpu-goals")
    parser.add_argument("--threads", type=int, help="threads of a CPU, by default all cores")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON, the table and the chart")
    parser.add_argument("--report", type=Path, help="only make table and chart again, from this JSON")
    parser.add_argument("--brief", action="store_true", help="print medians and goals instead of the whole table")
    arguments = parser.parse_args()
    path = arguments.report
    if path is None:
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / f"kernels-{arguments.preset}.json"
        unfinished = path.with_suffix(".part")
        before = json.loads(path.read_text()) if path.exists() else {}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for result in measure_cases(arguments.preset, device, before):
            unfinished.write_text(json.dumps(result, indent=1) + "\n")
            unfinished.replace(path)  # a run that is cut off leaves the last case's JSON whole
    text = _report.write_report(path)
    print(_report.format_brief(json.loads(path.read_text())) if arguments.brief else text)


def measure_cases(name: str, device: str, before: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the result after every case, so that a run that is cut off keeps what it has measured."""
    preset = PRESETS[name]
    cases = list_cases(preset, device)
    fresh: dict[str, Any] = {
        "preset": name,
        "code": hash_code(),
        **_measure.describe_machine(device),
        "planned": [{"case": case.name, "model": case.head, "shape": case.shape} for case in cases],
    }
    same = all(before.get(key) == fresh[key] for key in ("code", "hardware", "versions", "threads"))
    unfinished = same and len(before["cases"]) < len(cases)
    result = before if unfinished else fresh | {"copy": _load.measure_copy(device), "floors": {}, "cases": []}
    done = {(case["case"], case["model"]) for case in result["cases"]}
    for case in cases:
        if (case.name, case.head) in done:
            continue
        if case.head not in result["floors"]:
            matmuls = _load.measure_matmuls(device, preset.dtype, preset.heads[case.head])
            result["floors"][case.head] = format_load(matmuls)
        outcome = measure_case(case, result["floors"][case.head]["median_ms"], result["copy"], preset, device)
        result = {**result, "cases": [*result["cases"], outcome], "load_average_after": os.getloadavg()}
        yield result


def hash_code() -> str:
    """Return what tells one state of the kernels and of this benchmark from another."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(CODE))).hexdigest()[:12]


def measure_case(case: Case, matmuls: list[float], copy: float, preset: Preset, device: str) -> dict[str, Any]:
    """Build and time one case's steps; ratios are to the first, ours."""
    start = time.perf_counter()
    inputs = case.draw()
    runners = case.build(*inputs)
    built = time.perf_counter()
    rounds = -(-preset.rounds // case.part)
    timed = _measure.time_in_turns(runners.steps, rounds, device, case.often, case.bases)
    timings = _measure.format_timings(timed)
    exact = _exact.compute_exact_gradients(*inputs) if case.weighted else None
    for name, step in runners.steps.items():
        if device == "cuda" and name.startswith(ALONE):
            timings[name]["alone"] = format_load(_load.run_under_load([step], device))
        if exact is not None and not name.endswith("(uniform)"):
            errors = _exact.compare_gradients(step(), exact)
            timings[name]["error"] = {leaf: float(f"{error:.3g}") for leaf, error in errors.items()}
    medians = ", ".join(f"{name} {timing.median_ms:.4g} ms" for name, timing in timed.items())
    effort = f"{built - start:.0f} s to build, {time.perf_counter() - built:.0f} s"
    print(f"{case.head}: {case.name} {runners.note}: {medians} ({effort})", flush=True)
    floor = sum(share * each for share, each in zip(case.matmuls, matmuls, strict=True)) + 1e3 * case.bytes / copy
    return {
        "case": case.name,
        "model": case.head,
        "note": runners.note,
        "shape": case.shape,
        "dtype": str(preset.dtype).removeprefix("torch."),
        "floor_ms": float(f"{floor:.4g}"),
        "timings": timings,
        "absent": runners.absent,
    }


def format_load(load: _load.Load) -> dict[str, Any]:
    """Turn a load into a plain dictionary: times with four significant digits, what was not read left out."""
    values = {name: value for name, value in asdict(load).items() if value not in (None, "")}
    return values | {"median_ms": [float(f"{each:.4g}") for each in load.median_ms]}


if __name__ == "__main__":
    main()
