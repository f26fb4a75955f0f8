"""Write tests/golden/verl.json: how near verl comes to every row of the golden table, in float32 as it trains.

    cd tests && ../build/verl/bin/python -m support.verl_table

A cell holds the relative distance from the oracle in the Euclidean norm, and the one that float32 allows for.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from support.golden_table import load_golden
from support.verl_golden import compare_row

PATH = Path(__file__).parents[1] / "golden" / "verl.json"


def measure_rows() -> dict[str, Any]:
    """Return the cells by row and quantity, to two digits: the rest belongs to the processor."""
    golden, rows = load_golden(), {}
    for name, row in golden.rows.items():
        rows[name] = {
            quantity: {
                "distance": float(f"{bound.distance(found) / float(bound.value.norm()):.1e}"),
                "allowed": float(f"{bound.error / float(bound.value.norm()):.1e}"),
            }
            for quantity, (bound, found) in compare_row(golden, row, torch.float32, micro_batch=5).items()
        }
    return {"framework": "verl", "version": version("verl"), "dtype": "float32", "rows": rows}


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps(measure_rows(), indent=1) + "\n")
