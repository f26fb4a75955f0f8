"""The golden table: the objective agrees with the oracle row by row, and the script still makes the file."""

import json

import pytest
import torch

from support.agreement_page import COLUMNS, PAGE, format_page, load_columns
from support.golden import make_rollouts
from support.golden_agreement import QUANTITIES, keep_agreement
from support.golden_table import bound_row, compute_row, load_golden, read_row

pytestmark = pytest.mark.numerical
GOLDEN = load_golden()


@pytest.mark.parametrize("name", GOLDEN.rows)
def test_objective_agrees_with_the_oracle(name):
    row = GOLDEN.rows[name]
    for found, exact in zip(compute_row(GOLDEN, row), bound_row(GOLDEN, row, torch.float64), strict=True):
        assert found.dtype == torch.float64
        exact.assert_near(found)


@pytest.mark.parametrize("name", GOLDEN.rows)
def test_the_oracle_still_makes_the_row(name):
    """To the last digits of exp and log, which may differ between machines."""
    row = GOLDEN.rows[name]
    entry = make_rollouts.make_row(row.config, make_rollouts.rollouts(), clipped=row.clipped)
    made = read_row({"config": {}} | entry, GOLDEN.max_length)
    results, bounds = (made.coefficients, made.loss, made.gradient), bound_row(GOLDEN, row, torch.float64)
    keep_agreement("numpy", name, results, bounds)
    for result, exact in zip(results, bounds, strict=True):
        exact.assert_near(result)


def test_every_cell_of_the_committed_page_is_filled_and_within_what_is_allowed():
    columns = load_columns()
    assert columns.keys() == COLUMNS.keys()
    for column in columns.values():
        assert list(column["rows"]) == list(GOLDEN.rows)  # `make agreement` measures a new row everywhere
        for cells in column["rows"].values():
            assert tuple(cells) == QUANTITIES
            assert all(cell["distance"] <= cell["allowed"] < 1e-3 for cell in cells.values())
    assert format_page(columns) == PAGE.read_text()


def test_rows_differ_from_one_another():
    """A row that repeats another one's gradient tests nothing of its own."""
    gradients = [row.gradient for row in GOLDEN.rows.values()]
    for i, one in enumerate(gradients):
        assert all((one - other).abs().max() > 1e-6 for other in gradients[:i])


def test_batch_holds_what_adapters_stumble_over():
    assert GOLDEN.rewards.isnan().any(-1).sum() > GOLDEN.rewards.isnan().all(-1).sum() == 1
    assert (GOLDEN.mask.sum(-1) == 0).sum() == 1
    assert len(set(GOLDEN.group_sizes)) > 1
    assert len(GOLDEN.keys) - len(set(GOLDEN.keys.tolist())) >= 3
    ratios = (GOLDEN.policy_logps - GOLDEN.old_logps).exp()[GOLDEN.mask]
    assert ((ratios < 0.8) | (ratios > 1.2)).any()
    assert ((ratios > 0.8) & (ratios < 1.2)).any()


def test_the_script_still_makes_this_file():
    """Equal in every entry, floats to 1e-13: exp and log may differ in the last digit between machines."""

    def compare(made, stored, where=""):
        assert type(made) is type(stored), where
        if isinstance(made, dict):
            assert made.keys() == stored.keys(), where
            for key, value in made.items():
                compare(value, stored[key], f"{where}/{key}")
        elif isinstance(made, list):
            assert len(made) == len(stored), where
            for index, pair in enumerate(zip(made, stored, strict=True)):
                compare(*pair, f"{where}/{index}")
        else:
            assert made == (pytest.approx(stored, rel=1e-13, abs=1e-13) if isinstance(made, float) else stored), where

    compare(json.loads(json.dumps(make_rollouts.contents())), json.loads(make_rollouts.PATH.read_text()))
