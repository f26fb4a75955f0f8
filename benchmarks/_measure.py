"""Interleaved timings, peak memory and what a machine is, for CPUs and CUDA devices."""

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch loads: the profiler reports every start and stop

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds; `ratio` is the median of this step's time over the first step's in the same round.

    `ratio_to` holds the same to other steps than the first.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    ratio: float
    peak_mib: float
    rounds: int
    ratio_to: dict[str, float]


def time_step(step: Step, device: str) -> float:
    """Return the seconds that one call takes: by CUDA events on a GPU, by a clock on a CPU."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(2_000_000)  # about a millisecond, in which the host gets ahead: its latency is not counted
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def time_in_turns(
    steps: Mapping[str, Step],
    rounds: int,
    device: str,
    often: Collection[str] | None = None,
    bases: Sequence[str] = (),
) -> dict[str, Timing]:
    """Time every step once per round, in an order that rotates, so that a busy moment falls on all alike.

    Where `often` is given, the steps that it does not name take part in every fourth round only. Every step must have
    run once before. `bases` are the steps that ratios are taken to, beside the first.
    """
    names = list(steps)
    seconds: dict[str, dict[int, float]] = {name: {} for name in names}
    for number in range(-2 if device == "cuda" else 0, rounds):  # on a GPU two rounds more, to warm up
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            if number % 4 == 0 or often is None or name in often:
                seconds[name][number] = time_step(steps[name], device)
    by_round = {name: {number: s for number, s in series.items() if number >= 0} for name, series in seconds.items()}
    timings = {}
    for name, series in by_round.items():
        low, median, high = _compute_quantiles(list(series.values()))
        timings[name] = Timing(
            1e3 * median,
            1e3 * low,
            1e3 * high,
            _compare_rounds(series, by_round[names[0]]),
            measure_peak_bytes(steps[name], device) / 2**20,
            len(series),
            {base: _compare_rounds(series, by_round[base]) for base in bases},
        )
    return timings


def _compare_rounds(series: Mapping[int, float], base: Mapping[int, float]) -> float:
    """Return the median ratio of two steps over the rounds that both took part in."""
    return statistics.median(series[number] / base[number] for number in series.keys() & base.keys())


def _compute_quantiles(values: list[float]) -> tuple[float, float, float]:
    """Return the 10 % quantile, the median and the 90 % quantile."""
    ordered = sorted(values)
    tenth = len(ordered) // 10
    return ordered[tenth], statistics.median(ordered), ordered[-1 - tenth]


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return an interval of the median from the order of independent values alone, as a sign test gives it.

    With fewer than six values no two of them reach 0.95: their whole range is returned.

    >>> median_interval(range(1, 21))
    (6, 15)
    """
    ordered, n = sorted(values), len(values)
    # A rank will do if the median lies outside of it with a probability of at most 1 - level.
    ranks = [r for r in range(n // 2) if 2 * sum(math.comb(n, i) for i in range(r + 1)) <= (1 - level) * 2**n]
    rank = max(ranks, default=0)
    return ordered[rank], ordered[-1 - rank]


def measure_peak_bytes(step: Step, device: str) -> int:
    """Return the most bytes held at once by what the step allocates, from the allocators' own events."""
    gc.collect()  # what else were freed while it runs would hide as much of what it takes
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def describe_machine(device: str) -> dict[str, object]:
    """Return hardware, versions, threads and load average: what a figure means nothing without."""
    names = ["torch", "triton", "trl", "liger-kernel", "cut-cross-entropy", "quack-kernels", "transformers", "numpy"]
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        hardware = f"{properties.name}, {properties.multi_processor_count} SMs, {properties.total_memory >> 30} GiB"
    else:
        hardware = f"{_name_processor()}, {os.cpu_count()} cores"
    return {
        "hardware": hardware,
        "python": platform.python_version(),
        "versions": versions,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _name_processor() -> str:
    with open("/proc/cpuinfo") as lines:
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def format_timings(timings: Mapping[str, Timing]) -> dict[str, dict[str, object]]:
    """Turn timings into plain dictionaries: times with four significant digits, memory to the byte."""

    def round_value(key: str, value: object) -> object:
        if isinstance(value, dict):
            return {name: round_value(name, ratio) for name, ratio in value.items()}
        return value if key == "peak_mib" else float(f"{value:.4g}")

    return {
        name: {key: round_value(key, value) for key, value in asdict(timing).items() if value != {}}
        for name, timing in timings.items()
    }
