"""Ray's processes: each run's carry a mark in their environment, by which those that are left over are found."""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "TESTED_RAY_RUN"
SECONDS = 60.0


def list_processes(mark: str) -> list[str]:
    """Return the command lines of all other processes that were started under this mark."""
    entry, commands = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # gone, or another user's
            continue
        if entry in environment and command and int(folder.name) != os.getpid():
            commands.append(command)
    return commands


@contextmanager
def wait_for_end() -> Iterator[str]:
    """Yield a folder for a Ray that is started within; afterwards wait until no process of it is left.

    Raises:
        AssertionError: if a raylet, a gcs server or a worker lives on for a minute.
    """
    folder, before = tempfile.mkdtemp(prefix="ray-"), os.environ.get(MARK)
    os.environ[MARK] = mark = uuid.uuid4().hex
    try:
        yield folder
        end = time.monotonic() + SECONDS
        while (left := list_processes(mark)) and time.monotonic() < end:
            time.sleep(0.2)
        assert not left, f"left over: {left}"
    finally:
        os.environ.pop(MARK) if before is None else os.environ.__setitem__(MARK, before)
        shutil.rmtree(folder, ignore_errors=True)
