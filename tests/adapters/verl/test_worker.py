"""verl's own training worker under FSDP2: the gradient of the plain loop, however the rows are split."""

from pathlib import Path

import pytest
import torch

from support import verl_worker
from support.golden_table import load_golden
from support.ranks import on_ranks
from support.verl_golden import PADDING_ROWS

GOLDEN = load_golden()
SPLITS = {"fixed": verl_worker.FIXED, "dynamic": verl_worker.DYNAMIC}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("processes", [1, 2])
def test_the_worker_steps_with_the_gradient_of_the_plain_loop(
    processes: int, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in verl_worker.CPU_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    model = verl_worker.save_model(tmp_path / "model")
    arguments = (model, "diverse", SPLITS[split], processes, str(tmp_path))
    on_ranks(verl_worker.train_on_rank, *arguments, ranks=processes)
    rows = len(GOLDEN.utilities) + PADDING_ROWS
    exact = verl_worker.evaluate_gradient(GOLDEN, GOLDEN.rows["diverse"], rows)
    exact.assert_near(torch.load(tmp_path / "gradient.pt"))
