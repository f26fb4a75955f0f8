"""The golden table through verl: its reading of a command line, the order of its rows, and its actor's loss."""

import json
from importlib.metadata import version

import pytest
import torch

from support.golden_table import load_golden
from support.verl_golden import compare_row
from support.verl_table import PATH

GOLDEN = load_golden()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", GOLDEN.rows)
def test_weights_loss_and_gradient_are_those_of_the_golden_table(name: str, dtype: torch.dtype) -> None:
    for bound, found in compare_row(GOLDEN, GOLDEN.rows[name], dtype, micro_batch=5).values():
        assert found.dtype == dtype
        bound.assert_near(found)


def test_the_committed_table_has_every_row_and_no_cell_beyond_what_is_allowed() -> None:
    table = json.loads(PATH.read_text())
    assert table["version"] == version("verl")
    assert table["rows"].keys() == GOLDEN.rows.keys()
    for row in table["rows"].values():
        assert row.keys() == {"weights", "loss", "gradient"}
        assert all(cell["distance"] <= cell["allowed"] for cell in row.values())
