"""The files by which a job and its trainer speak: a progress file that is written, a stop file that is read.

The environment names them (`LAUNCH_PROGRESS_FILE`, `LAUNCH_STOP_FILE`); outside a job there are none.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback, TrainerControl, TrainerState

PROGRESS, STOP = "LAUNCH_PROGRESS_FILE", "LAUNCH_STOP_FILE"


class JobFiles(TrainerCallback):  # type: ignore[misc]
    """Writes how far training is; saves a checkpoint and stops once the stop file is there.

    Rank 0 reads the stop file at the end of a step and all ranks follow it. Training stops between two rollouts,
    where a checkpoint holds all there is to resume from.

    Args:
        trainer: TRL's or ours.
        progress, stop: the files, or None.
    """

    def __init__(self, trainer: Any, progress: Path | None, stop: Path | None) -> None:
        self.trainer, self.progress, self.stop = trainer, progress, stop
        self.is_stopping = False
        self.has_stopped = False

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Write progress; where a stop was asked for and no rollout is half used, save and stop."""
        self._write(state, "step")
        self.is_stopping = self.is_stopping or self._agree_to_stop()
        between_rollouts = self.trainer._step % (args.steps_per_generation * args.num_iterations) == 0
        if self.is_stopping and between_rollouts and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.has_stopped = True
        return control

    def on_prediction_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write that an evaluation goes on."""
        self._write(state, "evaluation")

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write that training begins."""
        self._write(state, "begin")

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write whether training stopped before its end, with its checkpoint saved."""
        self._write(state, "end")

    def _agree_to_stop(self) -> bool:
        if self.stop is None:
            return False
        accelerator = self.trainer.accelerator
        flag = torch.tensor(int(accelerator.is_main_process and self.stop.exists()), device=accelerator.device)
        return bool(broadcast(flag).item()) if accelerator.num_processes > 1 else bool(flag.item())

    def _write(self, state: TrainerState, where: str) -> None:
        if self.progress is None or not state.is_world_process_zero:
            return
        fields = {"step": state.global_step, "where": where, "stopped": self.has_stopped}
        unfinished = self.progress.with_suffix(".new")
        unfinished.write_text(json.dumps(fields))
        unfinished.replace(self.progress)  # whoever reads it meets a whole line


def add_job_files(trainer: Any) -> JobFiles:
    """Let a trainer write and read the files that the environment names; return the callback."""
    paths = {name: Path(os.environ[name]) if os.environ.get(name) else None for name in (PROGRESS, STOP)}
    files = JobFiles(trainer, paths[PROGRESS], paths[STOP])
    trainer.add_callback(files)
    return files
