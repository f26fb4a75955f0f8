"""The checkpoint that a run goes on from: the newest one that was written whole."""

import json
import logging
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from maxent_grpo.pipeline.files import write_text

logger = logging.getLogger(__name__)


def find_checkpoint(args: Any) -> str | None:
    """Return the checkpoint to go on from: with `last`, the newest whole one if there is any.

    Raises:
        ValueError: if it is not there, or is not whole.
    """
    name = args.resume_from_checkpoint
    if name in (None, "false", "False"):
        return None
    if name not in ("last", "true", "True"):
        damage = find_damaged_file(Path(name))
        if damage is not None:
            advice = "; delete the folder, or name another" if _NAME.fullmatch(Path(name).name) else ""
            raise ValueError(
                f"Expected a whole checkpoint, or last, got resume_from_checkpoint={name!r} without a readable "
                f"{damage}{advice}."
            )
        return str(name)
    for checkpoint in _list_checkpoints(Path(args.output_dir)):
        damage = find_damaged_file(checkpoint)
        if damage is None:
            return str(checkpoint)
        if args.process_index == 0:
            logger.warning("%s was not written whole, it has no readable %s: skipped.", checkpoint, damage)
    if args.process_index == 0:
        logger.warning("No whole checkpoint in %s: training starts at step 0.", args.output_dir)
    return None


def expect_no_checkpoints(args: Any) -> None:
    """Refuse to start a run in the folder of another, of which it would delete checkpoints, or later go on from one.

    Raises:
        ValueError: if there is a checkpoint and none was asked for.
    """
    if args.resume_from_checkpoint not in (None, "false", "False"):
        return
    if found := _list_checkpoints(Path(args.output_dir)):
        raise ValueError(
            f"Expected an output_dir without checkpoints, got {found[0]}: go on with --resume_from_checkpoint last, "
            "name another --output_dir, or delete it."
        )


def list_changes(args: Any, checkpoint: str) -> list[str]:
    """Return `name=value here, value there` for each setting of the method that the checkpoint's run had otherwise.

    A run that goes on with others is another one, which may be meant.
    """
    file = Path(checkpoint) / SETTINGS
    if not file.is_file():
        return []
    before, now = json.loads(file.read_text()), describe_settings(args)
    return [f"{name}={now.get(name)} (it was {value})" for name, value in before.items() if now.get(name) != value]


def describe_settings(args: Any) -> dict[str, Any]:
    """Return the settings that say what a run learns; where it runs, logs and saves to is no part of it."""
    return {name: value for name, value in sorted(args.to_dict().items()) if _LEARNS.match(name)}


_NAME = re.compile(r"checkpoint-(\d+)")
SETTINGS = "maxent_settings.json"
FILES = "maxent_files.json"
_LEARNS = re.compile(
    "(maxent_|num_generations$|num_iterations$|init_kl_coeff$|beta$|epsilon|reward_weights$|temperature$|top_[pk]$|seed$"
    "|learning_rate$|lr_scheduler_type$|loss_type$|scale_rewards$|max_completion_length$|per_device_train_batch_size$"
    "|gradient_accumulation_steps$|steps_per_generation$|generation_batch_size$|weight_decay$|max_grad_norm$|optim$)"
)


class KeepSettings(TrainerCallback):  # type: ignore[misc]
    """Puts settings and a list of files into every checkpoint, for the run that goes on from it."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write both, the list last."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            write_text(folder / SETTINGS, json.dumps(describe_settings(args), indent=2, default=str) + "\n")
            write_text(folder / FILES, json.dumps(_measure_files(folder), indent=2) + "\n")


class EndWhereItIsOver(TrainerCallback):  # type: ignore[misc]
    """Takes no step from a checkpoint that has them all; transformers looks for the end after a step alone.

    Such a checkpoint is that of a run that was killed after its last step, or that is started once more.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the trainer find no batches and stop."""
        if state.global_step >= state.max_steps:
            control.should_training_stop = True
            self.trainer.get_batch_samples = lambda *batches: ([], None)


def _measure_files(checkpoint: Path) -> dict[str, int]:
    """Return the size of each file but those that other ranks may still be writing."""
    files = (file for file in sorted(checkpoint.rglob("*")) if file.is_file())
    return {
        str(file.relative_to(checkpoint)): file.stat().st_size
        for file in files
        if not file.name.startswith("rng_state_") and file.name != FILES
    }


def find_damaged_file(checkpoint: Path) -> str | None:
    """Return the name of a file that is missing from a checkpoint or cut off; None if it is whole.

    The trainer writes trainer_state.json last, and after it comes the list of files. A kill between the two leaves a
    whole checkpoint without a list.
    """
    if not (checkpoint / "trainer_state.json").is_file():
        return "trainer_state.json"
    files = (file for file in sorted(checkpoint.rglob("*")) if file.is_file())
    unreadable = (str(file.relative_to(checkpoint)) for file in files if not _is_readable(file))
    return next(unreadable, None) or next(_list_changed(checkpoint), None)


def _list_changed(checkpoint: Path) -> Iterator[str]:
    """Yield the files that are missing, or of another size than when they were written."""
    sizes = json.loads((checkpoint / FILES).read_text()) if (checkpoint / FILES).is_file() else {}
    for name, size in sizes.items():
        if not (checkpoint / name).is_file() or (checkpoint / name).stat().st_size != size:
            yield name


def _list_checkpoints(folder: Path) -> list[Path]:
    matches = {path: _NAME.fullmatch(path.name) for path in folder.glob("checkpoint-*")}
    steps = {path: int(match[1]) for path, match in matches.items() if match and path.is_dir()}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def _is_readable(file: Path) -> bool:
    """Return whether a file ends as its format demands; of other formats nothing is known."""
    if file.suffix in (".pt", ".pth", ".bin"):
        return zipfile.is_zipfile(file)
    try:
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
    except (ValueError, OSError, SafetensorError):
        return False
    return True
