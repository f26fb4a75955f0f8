"""The scaling row: the same comparison at several model sizes, from the JSON of their studies.

PYTHONPATH=examples python -m benchmarks.modebench.scaling --page benchmarks/modebench/RESULTS.md
"""

import argparse
import json
from pathlib import Path

from benchmarks.modebench.arms import RECIPE
from benchmarks.modebench.report import replace_section, scaling_table

HERE = Path(__file__).parent
SIZES = ("small", "cpu", "large")
ARMS = ("grpo", "dr_grpo", "entropy_high", "raft", "xdr", RECIPE)


def main(argv: list[str] | None = None) -> None:
    """Print the table, and put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the JSON (%(default)s)")
    parser.add_argument("--page", type=Path, help="a page whose section `scaling` gets the table")
    options = parser.parse_args(argv)
    files = [options.results / f"{size}.json" for size in SIZES]
    table = scaling_table([json.loads(file.read_text()) for file in files if file.exists()], ARMS)
    print(table)
    if options.page is not None:
        options.page.write_text(replace_section(options.page.read_text(), "scaling", table))


if __name__ == "__main__":
    main()
