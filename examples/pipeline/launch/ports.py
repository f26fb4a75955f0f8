"""Ports of a job: derived from its id, below the range from which the kernel takes ports of its own."""

from collections.abc import Sequence
from pathlib import Path

FIRST, COUNT = 20000, 10
"""The lowest port, and how many each job may choose from."""
LEAST, WINDOWS = 1024, 100
"""The lowest port that needs no root, and how many jobs an area of ports is to have room for."""
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def choose_window(job_id: int, ephemeral: tuple[int, int] = (32768, 60999)) -> tuple[int, int]:
    """Return the first port of a job and how many it has; jobs that run at the same time have others.

    >>> choose_window(3), choose_window(4), choose_window(3, (10000, 65535)), choose_window(3, (1024, 60999))
    ((20030, 10), (20040, 10), (1054, 10), (61030, 10))

    Args:
        job_id: of the job.
        ephemeral: first and last port that the kernel gives to outgoing connections.
    """
    low, high = ephemeral
    # Where the kernel's range leaves nothing, ports in it are tried all the same: each node looks which are free.
    areas = ((FIRST, low), (LEAST, low), (high + 1, 65536), (FIRST, 32768))
    first, end = next((first, end) for first, end in areas if end - first >= WINDOWS * COUNT)
    return first + job_id % ((end - first) // COUNT) * COUNT, COUNT


def read_ephemeral() -> tuple[int, int]:
    """Return the first and the last port that the kernel gives to outgoing connections."""
    try:
        low, high = map(int, EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        return 32768, 60999
    return low, high


def pick_port(free: Sequence[int], used: set[int], fixed: int | None = None) -> int:
    """Return a free port that is not used yet, or the one asked for, and note it as used.

    Raises:
        StopIteration: if no port is free.
    """
    port = fixed if fixed is not None else next(port for port in free if port not in used)
    used.add(port)
    return port
