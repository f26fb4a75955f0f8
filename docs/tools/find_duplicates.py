"""Find code outside the tests that is written more than once; exit with 1 if there is any.

python docs/tools/find_duplicates.py

Two blocks are the same if their tokens are, once every name is replaced by its place in the order of appearance. A
block counts from 70 tokens on, less where it occurs more than twice.
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import lizard

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("maxent_grpo", "adapters", "examples", "benchmarks", "docs", ".ci")
MIN_LINES = 5
"""Shorter blocks are signatures that are alike."""


def find_duplicates(paths: Iterable[Path]) -> list[str]:
    """Return the blocks that are written more than once, each as its places `path:first-last`."""
    extensions = lizard.get_extensions(["duplicate"])
    (finder,) = [extension for extension in extensions if hasattr(extension, "get_duplicates")]
    for _ in lizard.analyze_files([str(path) for path in paths], exts=extensions):
        pass  # the finder sees each file as it passes
    blocks = [block for block in finder.get_duplicates() if block[0].end_line - block[0].start_line >= MIN_LINES - 1]
    return [
        " = ".join(f"{place.file_name}:{place.start_line}-{place.end_line}" for place in block) for block in blocks
    ]


def main() -> None:
    """Print the duplicates in the files that git tracks."""
    command = ["git", "ls-files", "--", *(f"{folder}/*.py" for folder in FOLDERS)]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    if blocks := find_duplicates(ROOT / path for path in tracked.stdout.splitlines()):
        sys.exit("Written more than once:\n  " + "\n  ".join(blocks).replace(f"{ROOT}/", ""))


if __name__ == "__main__":
    main()
