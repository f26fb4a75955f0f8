"""How near an implementation comes to the rows of the golden table, kept as a column of tests/golden/agreement.md.

    make agreement      # measures in all environments and writes the page

With KEEP_AGREEMENT=1 the golden test of an implementation keeps its column, tests/golden/COLUMN.json.
"""

import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from support.precision import Bounded

FOLDER = Path(__file__).parents[1] / "golden"
QUANTITIES = ("weights", "loss", "gradient")


def keep_agreement(column: str, row: str, results: Sequence[Tensor], bounds: Sequence[Bounded]) -> None:
    """Keep the weights, loss and gradient that a column has in a row, if the run is to keep them.

    Args:
        column: name of the package whose version counts.
        row: name of the setting.
        results: what the implementation makes of it.
        bounds: the oracle's, and how far the results may be from them.
    """
    if not os.environ.get("KEEP_AGREEMENT"):
        return
    path = FOLDER / f"{column}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    cells = [measure_cell(result, exact) for result, exact in zip(results, bounds, strict=True)]
    rows[row] = dict(zip(QUANTITIES, cells, strict=True))
    dtype = str(results[-1].dtype).removeprefix("torch.")
    table = {"version": f"{column} {version(column)}", "dtype": dtype, "rows": rows}
    path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")


def measure_cell(result: Tensor, exact: Bounded) -> dict[str, float]:
    """Return a relative distance and the one that is allowed, to two digits: the rest belongs to the processor."""
    size = float(exact.value.norm())
    distances = {"distance": exact.distance(result), "allowed": exact.error}
    return {name: float(f"{distance / size:.1e}") for name, distance in distances.items()}
