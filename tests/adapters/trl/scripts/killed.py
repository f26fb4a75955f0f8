"""Trains six steps with a checkpoint every second one, from the last checkpoint if there is one.

killed.py FOLDER [--kill-at STEP]
"""

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from support.trl_tiny import build_trainer


class Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill-at", type=int, default=0)
    options = parser.parse_args()
    settings = {"learning_rate": 1e-3, "optim": "adamw_torch", "max_steps": 6}
    checkpoints = {"save_strategy": "steps", "save_steps": 2}
    callbacks = [Kill(options.kill_at)] if options.kill_at else []
    run = build_trainer(options.folder, rollout=None, callbacks=callbacks, **settings, **checkpoints)
    last = get_last_checkpoint(str(options.folder)) if options.folder.exists() else None
    run.train(resume_from_checkpoint=last)
    torch.save([entry["loss"] for entry in run.state.log_history if "loss" in entry], options.folder / "losses.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
