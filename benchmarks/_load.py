"""Timings under load: a big GPU's clock falls with its power, so a step is also timed alone, back to back."""

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from _measure import time_step

Step = Callable[[], object]
SECONDS = 0.6
"""How long a step runs alone; a third more goes before, to warm the chip up."""
MOST_RUNS = 300


@dataclass(frozen=True)
class Load:
    """Milliseconds of each step of a round that ran back to back, the GPU's clock and power meanwhile.

    `clock_mhz` and `power_w` are medians, or None with the reason in `unread` where they cannot be read.
    """

    median_ms: tuple[float, ...]
    rounds: int
    clock_mhz: float | None = None
    power_w: float | None = None
    unread: str = ""


def run_under_load(steps: Sequence[Step], device: str, seconds: float = SECONDS) -> Load:
    """Run the steps in turn without a pause; they must have run before."""
    each = [max(time_step(step, device), 1e-6) for step in steps]
    rounds = int(min(MOST_RUNS, max(5, seconds / sum(each))))
    if device != "cuda":
        timed = [[time_step(step, device) for step in steps] for _ in range(rounds)]
        return Load(tuple(1e3 * statistics.median(column) for column in zip(*timed, strict=True)), rounds)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds * len(steps) + 1)]
    with Sensors() as sensors:
        for _ in range(rounds // 3 + 1):
            for step in steps:
                step()
        marks[0].record()
        for number in range(rounds):
            for place, step in enumerate(steps):
                step()
                marks[number * len(steps) + place + 1].record()
        torch.cuda.synchronize()
    between = [start.elapsed_time(end) for start, end in itertools.pairwise(marks)]
    medians = tuple(statistics.median(between[place :: len(steps)]) for place in range(len(steps)))
    return Load(medians, rounds, *sensors.read_medians(), sensors.unread)


@dataclass
class Sensors:
    """Reads the GPU's clock and power every 20 ms in a thread, which needs the package nvidia-ml-py."""

    samples: list[tuple[float, float]] = field(default_factory=list)
    unread: str = ""

    def __enter__(self) -> "Sensors":
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def read_medians(self) -> tuple[float | None, float | None]:
        """Return MHz and watts over the second half, when the chip is warm."""
        warm = self.samples[len(self.samples) // 2 :]
        if not warm:
            return None, None
        clocks, powers = zip(*warm, strict=True)
        return statistics.median(clocks), statistics.median(powers)

    def _sample(self) -> None:
        while not self._done.is_set():
            try:
                self.samples.append((torch.cuda.clock_rate(), torch.cuda.power_draw() / 1e3))
            except Exception as error:  # each driver fails in its own way, and a time without a clock is still a time
                self.unread = f"{type(error).__name__}: {error}"[:150]
                return
            time.sleep(0.02)


def measure_matmuls(device: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> Load:
    """Time the three matmuls of a training step through the head, H·Wᵀ, G·W and Gᵀ·H, one after another."""
    rows, width, vocabulary = shape
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, device=device).to(dtype)
    weight = (torch.randn(vocabulary, width, device=device) / width**0.5).to(dtype)
    logits = torch.empty(rows, vocabulary, device=device, dtype=dtype)
    gradients = torch.randn(rows, vocabulary, device=device).to(dtype)
    for_hidden, for_weight = torch.empty_like(hidden), torch.empty_like(weight)
    steps = [
        lambda: torch.mm(hidden, weight.t(), out=logits),
        lambda: torch.mm(gradients, weight, out=for_hidden),
        lambda: torch.mm(gradients.t(), hidden, out=for_weight),
    ]
    for step in steps:
        step()
    return run_under_load(steps, device, 2 * SECONDS)


def measure_copy(device: str) -> float:
    """Return the bytes per second of a large copy, read and write counted."""
    source = torch.empty((1 << 30) if device == "cuda" else (1 << 27), dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    target.copy_(source)
    (milliseconds,) = run_under_load([lambda: target.copy_(source)], device, SECONDS / 3).median_ms
    return 2e3 * source.numel() / milliseconds
