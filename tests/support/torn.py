"""What a kill, a full disk or a mistake leaves of a file."""

from pathlib import Path


def cut_file(file: Path) -> None:
    """Keep the first half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty_file(file: Path) -> None:
    """Keep nothing but the name."""
    file.write_bytes(b"")


TEARS = {"cut": cut_file, "empty": empty_file, "missing": Path.unlink}
