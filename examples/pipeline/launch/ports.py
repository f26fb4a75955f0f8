"""Ports of a job: derived from its id, below the range from which the kernel takes ports of its own."""

from collections.abc import Sequence
from pathlib import Path

FIRST, COUNT = 20000, 10
"""The lowest port, and how many each job may choose from."""
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def choose_window(job_id: int, ephemeral: int = 32768) -> tuple[int, int]:
    """Return the first port of a job and how many it has; jobs that run at the same time have others.

    >>> choose_window(3), choose_window(4)
    ((20030, 10), (20040, 10))
    """
    windows = max(1, (ephemeral - FIRST) // COUNT)
    return FIRST + job_id % windows * COUNT, COUNT


def read_ephemeral() -> int:
    """Return the first port that the kernel gives to outgoing connections."""
    try:
        return int(EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32768


def pick_port(free: Sequence[int], used: set[int], fixed: int | None = None) -> int:
    """Return a free port that is not used yet, or the one asked for, and note it as used.

    Raises:
        StopIteration: if no port is free.
    """
    port = fixed if fixed is not None else next(port for port in free if port not in used)
    used.add(port)
    return port
