"""How far a framework's own loss code is from the golden table, kept as a file that others' join by its rows.

KEEP_AGREEMENT=1 make test-openrlhf      # writes tests/golden/openrlhf.json
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from support.precision import Bounded

FOLDER = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Agreement:
    """Relative differences ‖framework − oracle‖/‖oracle‖ of a row, and those that rounding to float32 may cause.

    Attributes:
        weights, loss, gradient: the differences.
        weights_bound, loss_bound, gradient_bound: what is allowed for; 0 of 0 is 0.
    """

    weights: float
    loss: float
    gradient: float
    weights_bound: float
    loss_bound: float
    gradient_bound: float

    @classmethod
    def measure(cls, results: Sequence[Tensor], bounds: Sequence[Bounded]) -> "Agreement":
        """Return the agreement of coefficients, loss and gradient with the table's."""
        sizes = [max(float(exact.value.norm()), 1e-300) for exact in bounds]
        distances = [exact.distance(result) for exact, result in zip(bounds, results, strict=True)]
        shares = [distance / size for distance, size in zip(distances, sizes, strict=True)]
        return cls(*shares, *(exact.error / size for exact, size in zip(bounds, sizes, strict=True)))


def keep_agreement(framework: str, row: str, agreement: Agreement) -> None:
    """Write a row of a framework's file, if the run is to keep it."""
    if not os.environ.get("KEEP_AGREEMENT"):
        return
    path = FOLDER / f"{framework}.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    table[row] = {name: float(f"{value:.2g}") for name, value in asdict(agreement).items()}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
