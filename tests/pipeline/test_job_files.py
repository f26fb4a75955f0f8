"""The trainer's side of a job: progress is written at every step, and a stop waits for the end of a rollout."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from maxent_grpo.pipeline import train
from maxent_grpo.pipeline.job_files import JobFiles
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.storage import save_checkpoint
from maxent_grpo.pipeline.tiny.wide_countdown import TOKENIZER
from support.recipes import write_recipe

ARGS = SimpleNamespace(steps_per_generation=2, num_iterations=1)


def make_files(folder: Path, step: int = 0) -> tuple[JobFiles, Any]:
    accelerator = SimpleNamespace(is_main_process=True, num_processes=1, device="cpu")
    trainer = SimpleNamespace(_step=step, accelerator=accelerator)
    return JobFiles(trainer, folder / "progress.json", folder / "stop"), trainer


def test_a_stop_waits_for_the_end_of_a_rollout_and_saves(tmp_path: Path) -> None:
    files, trainer = make_files(tmp_path)
    state = TrainerState(global_step=1, max_steps=10, is_world_process_zero=True)
    trainer._step = 2
    control = files.on_step_end(ARGS, state, TrainerControl())
    assert (control.should_save, control.should_training_stop) == (False, False)
    (tmp_path / "stop").touch()
    trainer._step, state.global_step = 3, 2
    control = files.on_step_end(ARGS, state, TrainerControl())
    assert (control.should_save, control.should_training_stop) == (False, False)
    (tmp_path / "stop").unlink()  # once read, it is not forgotten
    trainer._step, state.global_step = 4, 3
    control = files.on_step_end(ARGS, state, TrainerControl())
    assert (control.should_save, control.should_training_stop) == (True, True)
    files.on_train_end(ARGS, state, control)
    assert json.loads((tmp_path / "progress.json").read_text()) == {"step": 3, "where": "end", "stopped": True}


def test_a_stop_at_the_last_step_is_the_end_as_it_would_have_been(tmp_path: Path) -> None:
    files, _ = make_files(tmp_path, step=4)
    (tmp_path / "stop").touch()
    state = TrainerState(global_step=10, max_steps=10, is_world_process_zero=True)
    control = files.on_step_end(ARGS, state, TrainerControl())
    assert not control.should_training_stop
    assert not files.has_stopped


@pytest.mark.parametrize("task", ["maxent", "grpo"])
def test_a_run_that_was_asked_to_stop_leaves_a_checkpoint_and_no_final_model(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(build_model(TOKENIZER), TOKENIZER, tmp_path / "tiny-countdown")
    recipe = write_recipe(tmp_path, max_steps=6, save_steps=100, per_device_train_batch_size=16, eval_limit=4)
    monkeypatch.setenv("LAUNCH_PROGRESS_FILE", str(tmp_path / "progress.json"))
    monkeypatch.setenv("LAUNCH_STOP_FILE", str(tmp_path / "stop"))
    (tmp_path / "stop").touch()
    train.main(["--config", str(recipe), "--task", task])
    assert json.loads((tmp_path / "progress.json").read_text()) == {"step": 1, "where": "end", "stopped": True}
    assert (tmp_path / "run/checkpoint-1/trainer_state.json").exists()
    assert not (tmp_path / "run/model.safetensors").exists()
    # Without a stop it goes on from there to its end.
    (tmp_path / "stop").unlink()
    train.main(["--config", str(recipe), "--task", task, "--resume_from_checkpoint", "last"])
    assert (tmp_path / "run/model.safetensors").exists()
    assert json.loads((tmp_path / "progress.json").read_text())["step"] == 6
