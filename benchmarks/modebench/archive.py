"""Pack a study's finished runs, without weights, for the repository: reports can be made from them.

PYTHONPATH=examples python -m benchmarks.modebench.archive cpu
"""

import argparse
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.modebench.provenance import RECORD
from benchmarks.modebench.study import RATES, RESULTS

KEPT = ("evaluations.jsonl", "metrics.jsonl", "outcomes.npz")
ENDING = ".tar.gz"


def parts(archive: Path) -> list[Path]:
    """Return an archive and its later parts: of `cpu.tar.gz`, `cpu.2.tar.gz` and so on."""
    found, number = [archive], 2
    while (part := archive.with_name(f"{archive.name.removesuffix(ENDING)}.{number}{ENDING}")).exists():
        found.append(part)
        number += 1
    return found


@contextmanager
def unpacked(runs: Path) -> Iterator[Path]:
    """Give the folder of some runs, which may be an archive with its later parts."""
    if not runs.is_file():
        yield runs
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in parts(runs):
            with tarfile.open(part) as archive:
                archive.extractall(folder, filter="data")
        yield Path(folder)


def pack(root: Path, archive: Path) -> Path | None:
    """Write the finished runs that no part has yet into an archive, or its next part; None if there are none.

    Each part has the learning rates and the record of all runs up to then.
    """
    packed: set[str] = set()
    place = archive
    if archive.exists():
        known = parts(archive)
        place = archive.with_name(f"{archive.name.removesuffix(ENDING)}.{len(known) + 1}{ENDING}")
        for part in known:
            with tarfile.open(part) as file:
                packed |= {str(Path(name)) for name in file.getnames()}
    finished = [folder for folder in sorted(root.glob("seed*/*")) if (folder / "outcomes.npz").exists()]
    new = [folder for folder in finished if str((folder / "outcomes.npz").relative_to(root)) not in packed]
    if not new:
        return None
    files = [root / RATES, root / RECORD, *(folder / name for folder in new for name in KEPT)]
    with tarfile.open(place, "w:gz") as file:
        for each in files:
            if each.exists():
                file.add(each, each.relative_to(root))
    return place


def main(argv: list[str] | None = None) -> None:
    """Pack the runs of a preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--runs", type=Path, help="(runs/modebench/PRESET)")
    options = parser.parse_args(argv)
    root = options.runs or Path("runs/modebench") / options.preset
    print(pack(root, RESULTS / f"{options.preset}{ENDING}") or f"Nothing in {root} that is not packed.")


if __name__ == "__main__":
    main()
