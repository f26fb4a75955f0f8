"""Independent jobs on all cores, with news while they run and an orderly stop."""

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from maxent_grpo.pipeline.files import describe_full_disk

Report = Callable[[Any], None]
Stopped = Callable[[], bool]
Work = Callable[[Any, Report, Stopped], None]


def run_jobs(work: Work, jobs: Sequence[Any], *, on_news: Callable[[Any], None], workers: int | None = None) -> None:
    """Call work(job, report, stopped) for every job, each in a process with its share of the cores.

    What a job reports reaches `on_news` here. On Ctrl-C every running job sees stopped() turn true, and is waited for
    so that it can save what it has. Then KeyboardInterrupt goes on to the caller.

    Raises:
        ValueError: of the first job that failed, if it says itself what is wrong, or that the disk is full.
        RuntimeError: with the traceback of any other.
    """
    cores = os.cpu_count() or 1
    workers = min(workers or cores, len(jobs))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait starve their neighbours
    context = multiprocessing.get_context("spawn")
    waiting, news, stop = context.Queue(), context.Queue(), context.Event()
    for job in [*jobs, *[None] * workers]:
        waiting.put(job)
    arguments = (work, waiting, news, stop, max(1, cores // max(1, workers)))
    processes = [context.Process(target=_work_through, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        failure = _listen(processes, news, on_news)
    finally:
        stop.set()
        while any(process.is_alive() for process in processes):
            _listen(processes, news, on_news)
        waiting.cancel_join_thread()
    if isinstance(failure, _Complaint):
        raise ValueError(failure)
    if failure:
        raise RuntimeError(f"A job failed:\n{failure}")


class _Failure(str):
    """The traceback of a job."""

    __slots__ = ()


class _Complaint(_Failure):
    """What a job itself says is wrong."""

    __slots__ = ()


def _listen(processes: Sequence[Any], news: Any, on_news: Callable[[Any], None]) -> str | None:
    """Pass news on until all processes have ended or one has failed; return the failure."""
    while True:
        ended = not any(process.is_alive() for process in processes)
        try:
            entry = news.get(timeout=0.2)
        except queue.Empty:
            if not ended:
                continue
            codes = [process.exitcode for process in processes if process.exitcode]
            return f"A process ended with exit code {codes[0]}." if codes else None
        if isinstance(entry, _Failure):
            return entry
        on_news(entry)


def _work_through(work: Work, waiting: Any, news: Any, stop: Any, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes Ctrl-C on as a request to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    while not stop.is_set() and (job := waiting.get()) is not None:
        try:
            work(job, news.put, stop.is_set)
        except BaseException as error:
            complaint = str(error) if isinstance(error, ValueError) else describe_full_disk(error)
            news.put(_Failure(traceback.format_exc()) if complaint is None else _Complaint(complaint))
            return


def _end_with_parent() -> None:
    """End this process once its parent has: a run that goes on must not meet a worker of the one before."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
