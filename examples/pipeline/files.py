"""Files that survive a kill, a full disk and a second run: written whole, in locked folders."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


def write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file beside its place, bring it to the disk, and put it there in one step."""
    unfinished = file.with_name(f".{file.name}.new")
    write(unfinished)
    _bring_to_disk(unfinished)
    unfinished.replace(file)
    _bring_to_disk(file.parent)


def write_text(file: Path, text: str) -> None:
    """Write a text file whole."""
    write_whole(file, lambda place: place.write_text(text, encoding="utf-8"))


def write_folder(folder: Path, write: Callable[[Path], Any], *, marker: str) -> None:
    """Let `write` fill a folder, of which `marker` is the last file to come: where it is, all the others are.

    Other files of the folder stay.
    """
    unfinished = folder / ".new"
    shutil.rmtree(unfinished, ignore_errors=True)
    write(unfinished)
    (folder / marker).unlink(missing_ok=True)
    for file in sorted(unfinished.iterdir(), key=lambda file: file.name == marker):
        _bring_to_disk(file)
        file.replace(folder / file.name)
    _bring_to_disk(folder)
    unfinished.rmdir()


def _bring_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that grows line by line: a last line that a kill has cut is none.

    Raises:
        ValueError: naming the line, if another one is damaged.
    """
    rows = []
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"Expected a JSON object in line {number} of {file}; delete the file or the line."
            ) from error
    return rows


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder against other runs; the lock ends with the process, however that ends.

    Raises:
        ValueError: if another run has it, or nothing can be written there.
    """
    expect_writable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)  # the lock lies beside the folder
    with _open_lock(folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"Expected a folder that no other run writes to, got {folder}/ with one at work."
            ) from None
        yield


def _open_lock(folder: Path) -> TextIO:
    return folder.parent.joinpath(f".{folder.name}.lock").open("w")


def expect_writable(folder: Path) -> None:
    """Check that files can be written into a folder, which may not be there yet.

    Raises:
        ValueError: naming the folder and the reason.
    """
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        probe = there / f".probe-{os.getpid()}"
        probe.write_text("x")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"Expected a folder that can be written to, got {folder}: {error.strerror}.") from error


def describe_full_disk(error: BaseException) -> str | None:
    """Return a line for an error that says that nothing more can be written, None for others.

    torch and safetensors have exceptions of their own for it.
    """
    text = str(error)
    if not any(
        sign in text for sign in ("No space left", "Disk quota exceeded", "failed writing file", "Read-only file")
    ):
        return None
    return f"Expected room on the disk, got: {text.splitlines()[0][:200]}"
