"""The page of agreement: every column of tests/golden side by side.

cd tests && ../.venv/bin/python -m support.agreement_page     # prints the page and writes it
"""

import json
from typing import Any

from maxent_grpo.pipeline.markdown import format_table
from support.golden_agreement import FOLDER, QUANTITIES

PAGE = FOLDER / "agreement.md"
COLUMNS = {
    "numpy": ("NumPy oracle", "core/test_golden.py", "make setup"),
    "torch": ("plain torch", "adapters/test_torch_loop.py", "make setup"),
    "trl": ("TRL", "adapters/trl/test_golden.py", "make setup"),
    "openrlhf": ("OpenRLHF", "adapters/openrlhf/test_golden.py", "make test-openrlhf"),
    "verl": ("verl", "adapters/verl/test_golden.py", "make test-verl"),
}
"""By the name of the file: title, test, and the target that makes the environment."""
PREFACE = """# Agreement of the adapters

One [batch of rollouts](../support/golden/rollouts.json) goes through every implementation: the oracle in NumPy,
`MaxEntLoss`, and each framework's own path from rollout to gradient with its adapter in place. A row is a setting.
A cell says how far **weights / loss / gradient** in the token log-probabilities are from the committed ones of the
oracle, as ‖difference‖/‖oracle‖. *Allowed* is what rounding to float32 may cost, the least of the columns' bounds.
`make agreement` writes this page and the JSON beside it.
"""


def load_columns() -> dict[str, Any]:
    """Return the committed columns by the name of their file."""
    return {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in COLUMNS}


def format_page(columns: dict[str, Any]) -> str:
    """Return the page: where each column comes from, then a line per setting."""
    sources = [
        [title, columns[name]["version"], columns[name]["dtype"], f"`tests/{test}`", f"`{target}`"]
        for name, (title, test, target) in COLUMNS.items()
    ]
    names = [name for name, column in columns.items() if column["dtype"] == "float32"]
    rows = []
    for setting in columns["numpy"]["rows"]:
        cells = {name: column["rows"][setting] for name, column in columns.items()}
        distances = [[cells[name][quantity]["distance"] for quantity in QUANTITIES] for name in columns]
        allowed = [min(cells[name][quantity]["allowed"] for name in names) for quantity in QUANTITIES]
        rows.append([setting, *map(_format_cell, [*distances, allowed])])
    about = ["column", "version", "computed in", "test", "environment"]
    head = ["setting", *(title for title, *_ in COLUMNS.values()), "allowed"]
    tables = [format_table(about, sources, text_columns=range(5)), format_table(head, rows)]
    return "\n".join([PREFACE, "\n\n".join(tables)]) + "\n"


def _format_cell(distances: list[float]) -> str:
    return " / ".join(f"{distance:.0e}".replace("e-0", "e-") if distance else "0" for distance in distances)


if __name__ == "__main__":
    page = format_page(load_columns())
    PAGE.write_text(page)
    print(page)
