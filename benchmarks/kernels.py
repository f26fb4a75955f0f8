"""Time every kernel against its peers, next to the floor measured on the same machine in the same run.

`python benchmarks/kernels.py` writes `benchmarks/results/kernels-<preset>.json` with a table and a bar chart made
from it; `--report FILE` makes those again.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import _measure
import _report
import torch
from _cases import PRESETS, Case, Preset, list_cases

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="h200" if torch.cuda.is_available() else "cpu")
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
        for result in measure_cases(PRESETS[arguments.preset], "cuda" if torch.cuda.is_available() else "cpu"):
            unfinished.write_text(json.dumps({"preset": arguments.preset, **result}, indent=1) + "\n")
            unfinished.replace(path)  # a run that is cut off leaves the last case's JSON whole
    text = _report.write_report(path)
    print(_report.format_brief(json.loads(path.read_text())) if arguments.brief else text)


def measure_cases(preset: Preset, device: str) -> Iterator[dict[str, object]]:
    """Yield the result after every case, so that a run that is cut off keeps what it has measured."""
    cases = list_cases(preset, device)
    result: dict[str, object] = {
        **_measure.describe_machine(device),
        "planned": [{"case": case.name, "model": case.head, "shape": case.shape} for case in cases],
        "cases": [],
    }
    ceilings: dict[str, dict[str, float]] = {}
    for case in cases:
        if case.head not in ceilings:
            ceilings[case.head] = _measure.measure_ceilings(device, preset.dtype, preset.heads[case.head])
            result[f"ceilings {case.head}"] = ceilings[case.head]
        outcome = measure_case(case, ceilings[case.head], preset, device)
        result = {**result, "cases": [*result["cases"], outcome], "load_average_after": os.getloadavg()}
        yield result


def measure_case(case: Case, ceilings: dict[str, float], preset: Preset, device: str) -> dict[str, object]:
    """Build and time one case's steps; ratios are to the first, ours."""
    start = time.perf_counter()
    runners = case.build(*case.draw())
    built = time.perf_counter()
    rounds = -(-preset.rounds // case.part)
    timings = _measure.time_in_turns(runners.steps, rounds, device, case.often, case.bases)
    medians = ", ".join(f"{name} {timing.median_ms:.4g} ms" for name, timing in timings.items())
    effort = f"{built - start:.0f} s to build, {time.perf_counter() - built:.0f} s"
    print(f"{case.head}: {case.name} {runners.note}: {medians} ({effort})", flush=True)
    floor = case.flop / ceilings["flop_per_second"] + case.bytes / ceilings["bytes_per_second"]
    return {
        "case": case.name,
        "model": case.head,
        "note": runners.note,
        "shape": case.shape,
        "dtype": str(preset.dtype).removeprefix("torch."),
        "floor_ms": float(f"{1e3 * floor:.4g}"),
        "timings": _measure.format_timings(timings),
        "absent": runners.absent,
    }


if __name__ == "__main__":
    main()
