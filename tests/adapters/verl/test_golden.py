"""The golden table through verl: its reading of a command line, the order of its rows, and its actor's loss."""

import pytest
import torch

from maxent_grpo.adapters._groups import Groups
from support.golden_agreement import keep_agreement
from support.golden_table import load_golden
from support.verl_golden import compare_row

pytestmark = pytest.mark.numerical
GOLDEN = load_golden()


@pytest.fixture(autouse=True)
def one_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning draws what it draws in the table: verl's seed and step have no say."""
    monkeypatch.setattr(Groups, "seed_generator", lambda *_: GOLDEN.seed_generator())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", GOLDEN.rows)
def test_weights_loss_and_gradient_are_those_of_the_golden_table(name: str, dtype: torch.dtype) -> None:
    results, bounds = compare_row(GOLDEN, GOLDEN.rows[name], dtype, micro_batch=5)
    if dtype == torch.float32:
        keep_agreement("verl", name, results, bounds)
    for result, exact in zip(results, bounds, strict=True):
        assert result.dtype == dtype
        exact.assert_near(result)
