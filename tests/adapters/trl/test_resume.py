"""A resumed run goes on exactly as the run that was not interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from support import trl_tiny

TESTS = Path(__file__).parents[2]
GENERATING = {
    "rollout": None,
    "learning_rate": 1e-3,
    "optim": "adamw_torch",
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "shuffle_dataset": True,
}


def losses(run: Any) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"maxent_keep_fraction": 0.5, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"num_iterations": 2},
        {"per_device_train_batch_size": 4, "steps_per_generation": 2, "maxent_projection": "listwise"},
        {"count": 4},
        {"count": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"count": 4, "maxent_bank_weight": 1.0},
    ],
    ids=[
        "plain",
        "pruned",
        "two updates a rollout",
        "rollout of two updates",
        "over epochs",
        "part of an update left",
        "with a bank over epochs",
    ],
)
def test_a_run_resumed_at_a_checkpoint_goes_on_bit_by_bit(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = trl_tiny.build_trainer(tmp_path / "whole", **GENERATING | settings)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    policy = trl_tiny.build_model(seed=9)
    resumed = trl_tiny.build_trainer(tmp_path / "resumed", policy=policy, **GENERATING | settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed) == losses(whole)
    for mine, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    assert "mid-rollout" not in caplog.text


def test_a_checkpoint_in_mid_rollout_waits_for_its_end(tmp_path: Path) -> None:
    run = trl_tiny.build_trainer(tmp_path, **GENERATING | {"num_iterations": 2, "save_steps": 3, "max_steps": 8})
    run.train()
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-4",
        "checkpoint-6",
        "checkpoint-8",
    ]


def test_a_run_that_ends_in_mid_rollout_says_that_its_last_checkpoint_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trl_tiny.build_trainer(tmp_path, **GENERATING | {"num_iterations": 2, "save_steps": 2, "max_steps": 3}).train()
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert "Training will end in mid-rollout, at step 3" in caplog.text
    assert "checkpoint of step 3 is not saved" in caplog.text


def test_a_checkpoint_in_mid_rollout_is_not_resumed(tmp_path: Path) -> None:
    trl_tiny.build_trainer(tmp_path / "other", **GENERATING | {"save_steps": 3, "max_steps": 3}).train()
    run = trl_tiny.build_trainer(tmp_path, **GENERATING | {"num_iterations": 2})
    message = "a checkpoint between rollouts, of 2 micro-batches each .*, got global_step=3"
    with pytest.raises(ValueError, match=message):
        run.train(resume_from_checkpoint=str(tmp_path / "other" / "checkpoint-3"))


def test_checkpoints_stay_where_they_are_if_updates_end_with_their_rollout(tmp_path: Path) -> None:
    trl_tiny.build_trainer(tmp_path, **GENERATING | {"save_steps": 3}).train()
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]


@pytest.mark.slow
def test_a_killed_run_resumes_on_the_same_loss_curve(tmp_path: Path) -> None:
    script = TESTS / "adapters/trl/scripts/killed.py"
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}

    def train(*arguments: str) -> int:
        return subprocess.run([sys.executable, str(script), *arguments], check=False, env=environment).returncode

    assert train(str(tmp_path / "killed"), "--kill-at", "5") == -signal.SIGKILL
    assert not (tmp_path / "killed" / "losses.pt").exists()
    assert train(str(tmp_path / "killed")) == 0
    assert train(str(tmp_path / "whole")) == 0
    assert torch.load(tmp_path / "killed" / "losses.pt") == torch.load(tmp_path / "whole" / "losses.pt")
