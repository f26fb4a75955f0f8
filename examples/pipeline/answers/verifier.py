"""Mathematical equality, in worker processes that are killed when they do not answer in time.

A timeout by signal needs the main thread of the process and cannot stop a computation in C; a process of its own can
always be stopped, and any number of threads may ask.
"""

import atexit
import json
import multiprocessing
import os
import queue
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

WORKER = Path(__file__).with_name("worker.py")
START_SECONDS = 120.0
TRIES = 2
"""A worker may die of something that has nothing to do with its pair, such as a machine out of memory."""


@dataclass(frozen=True)
class Comparison:
    """Whether two answers are equal; None where that could not be told, and then why not."""

    equal: bool | None
    error: str = ""


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.pipe, other_end = multiprocessing.Pipe()
        command = [sys.executable, "-P", str(WORKER), str(other_end.fileno()), str(seconds)]
        self.process = subprocess.Popen(command, pass_fds=[other_end.fileno()], stdin=subprocess.DEVNULL)
        other_end.close()
        if self._receive(START_SECONDS) != b"ready":
            self.kill()
            raise RuntimeError(
                f"Expected a worker that compares answers, got none: {' '.join(command)} did not start."
            )

    def compare(self, gold: str, answer: str) -> Comparison | None:
        """Return what the process says, or that its time is over, and then it is killed; None where it has died."""
        start = time.monotonic()
        try:
            self.pipe.send_bytes(json.dumps([gold, answer]).encode())
            reply = self._receive(self.seconds)
        except OSError:
            reply = b""
        if reply:
            return Comparison(**({"equal": None} | json.loads(reply)))
        self.kill()
        if time.monotonic() - start < self.seconds:
            return None
        return Comparison(None, f"no verdict on {answer[:80]!r} within {self.seconds:g} s")

    def _receive(self, seconds: float) -> bytes:
        try:
            return self.pipe.recv_bytes() if self.pipe.poll(seconds) else b""
        except (EOFError, OSError):
            return b""

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


class Verifier:
    """A pool of workers, started when they are first needed.

    Args:
        workers: how many comparisons run at a time; by default this process's share of the cores, at most 8.
        seconds: how long a comparison may take before its process is killed.
    """

    def __init__(self, workers: int | None = None, seconds: float = 5.0) -> None:
        share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.workers = workers or max(1, min(8, share))
        self.seconds = seconds
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.workers):
            self._idle.put(None)
        atexit.register(self.close)

    def compare(self, gold: str, answer: str) -> Comparison:
        """Return whether an answer equals the reference; waits for an idle worker. Any thread may call it.

        The pair of a worker that dies, which is not one that is out of time, is tried once more by a new one.
        """
        for _ in range(TRIES):
            if (compared := self._try(gold, answer)) is not None:
                return compared
        return Comparison(None, f"{TRIES} workers died over {answer[:80]!r}")

    def _try(self, gold: str, answer: str) -> Comparison | None:
        worker = self._idle.get()
        try:
            if worker is None or not worker.is_alive():
                worker = _Worker(self.seconds)
            return worker.compare(gold, answer)
        finally:
            self._idle.put(worker if worker is not None and worker.is_alive() else None)

    def compare_all(self, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
        """Return the comparison of each (reference, answer), all workers at once."""
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(lambda pair: self.compare(*pair), pairs))

    def close(self) -> None:
        """Kill the idle workers."""
        while True:
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                break
            if worker is not None:
                worker.kill()
        for _ in range(self.workers):
            self._idle.put(None)
