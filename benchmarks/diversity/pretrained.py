"""The study on a real pretrained model: the TRL trainer and `examples/evaluate.py`, here or as Slurm jobs.

Arms that are settings of the library go through MaxEntGRPOTrainer, the entropy bonus as its `entropy_coef` (there a
mean over an answer's own tokens); GRPO goes through TRL's own trainer. Every job goes on from its last checkpoint
when it is called again.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.diversity.arms import ARMS, Arm
from maxent_grpo import MaxEntConfig, MaxEntObjective

RECIPES = Path("examples/recipes")
FALLBACK = "Qwen2.5-0.5B-Instruct"
TINY = "tiny-countdown"
TEMPERATURES = (0.4, 0.6, 0.8, 1.0, 1.2)
RECORD = "pretrained.json"
SBATCH = """#!/bin/bash
#SBATCH --job-name=modebench
#SBATCH --array=0-{last}
#SBATCH --nodes=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output={output}/%A-%a.log
# One line of commands.txt is one arm with one seed: training, then its evaluations.
set -euo pipefail
cd {root}
bash -c "$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {commands})"
"""


@dataclass(frozen=True)
class PretrainedStudy:
    """A model, its arms and seeds, and what the commands need to know.

    Attributes:
        model: a name on the Hub, a folder, or `tiny-countdown` for a rehearsal.
        arms: of `arms.ARMS`.
        gpus: processes of a training; 0 trains in one process without accelerate.
        extra: flags for `examples/train.py`, for instance `--max_steps 4`.
    """

    model: str
    arms: Sequence[str]
    seeds: Sequence[int]
    output: Path
    samples: int = 64
    prompts: int | None = None
    gpus: int = 8
    extra: Sequence[str] = ()

    def jobs(self) -> list[str]:
        """Return the command line of every arm and seed: training, then an evaluation at each temperature."""
        runs = [(arm, seed) for seed in self.seeds for arm in self.arms]
        return [
            " && ".join(map(shlex.join, (self._note(*run), self._train(*run), *self._evaluations(*run))))
            for run in runs
        ]

    def _folder(self, arm: str, seed: int) -> Path:
        return self.output / f"seed{seed}" / arm

    def _recipe(self, arm: str) -> Path:
        name = "tiny-cpu" if self.model == TINY else Path(self.model).name
        file = Path("grpo" if arm == "grpo" else "maxent") / "config_countdown.yaml"
        own = RECIPES / name / file
        return own if own.is_file() else RECIPES / FALLBACK / file

    def _note(self, arm: str, seed: int) -> list[str]:
        return [sys.executable, "-m", "benchmarks.diversity.machine", str(self._folder(arm, seed))]

    def _train(self, arm: str, seed: int) -> list[str]:
        python = [sys.executable]
        if self.gpus:
            # A module of this Python: the program is not on PATH where no environment is activated. Any free port:
            # two tasks that start on one node at once would both find the default one unused, and both take it.
            python += ["-m", "accelerate.commands.launch", "--config_file", "examples/accelerate/zero2.yaml"]
            python += ["--num_processes", str(self.gpus), "--main_process_port", "0"]
        options = {
            "config": self._recipe(arm),
            "model_name_or_path": self.model,
            "output_dir": self._folder(arm, seed),
            "resume_from_checkpoint": "last",
            "seed": seed,
            "temperature": ARMS[arm].temperature,
            "entropy_coef": ARMS[arm].entropy_bonus,
            **({"num_iterations": ARMS[arm].passes} if ARMS[arm].passes > 1 else {}),
            **({} if arm == "grpo" else maxent_fields(ARMS[arm])),
            **({"key_func": "countdown_mode"} if ARMS[arm].keys == "mode" else {}),
        }
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return [*python, "examples/train.py", *flags, *self.extra]

    def _evaluations(self, arm: str, seed: int) -> list[list[str]]:
        folder = self._folder(arm, seed)
        tiny = self.model == TINY
        prompts = [] if self.prompts is None else ["--prompts", str(self.prompts)]
        return [
            [
                sys.executable, "examples/evaluate.py", str(folder),
                "--task", "countdown-wide" if tiny else "countdown-4",
                "--samples", str(self.samples),
                "--temperature", str(temperature),
                "--max_new_tokens", "8" if tiny else "512",
                "--output", str(folder / f"evaluation-{temperature}"),
                "--greedy", *prompts,
            ]
            for temperature in TEMPERATURES
        ]  # fmt: skip


def expressible(arm: str) -> bool:
    """Return whether flags of `examples/train.py` say all that an arm is, so that its runs would be of that arm.

    Answers are keys there already (`key_func` of the recipes), so the arm of that name is the recipe's.
    """
    settings = ARMS[arm]
    own = settings.make is not MaxEntObjective and arm != "grpo"  # TRL's own trainer is GRPO
    return not (own or settings.correct_reference or settings.keys == "answer" or settings.learning_rate is not None)


def maxent_fields(arm: Arm) -> dict[str, object]:
    """Return all settings of an arm as flags of `examples/train.py`; β is `init_kl_coeff` there.

    All, because a recipe may already set what the arm leaves at its default.
    """
    defaults, found = MaxEntConfig(), {}
    for field in fields(MaxEntConfig):
        value = getattr(arm.config, field.name)
        given = value is not None and field.name not in ("beta", "max_length")
        if given and (value != getattr(defaults, field.name) or field.name in _RECIPE_FIELDS):
            found[f"maxent_{field.name}"] = value
    return found | {"init_kl_coeff": arm.config.beta}


_RECIPE_FIELDS = ("tau", "center", "dedup", "success_power", "skip", "nll_reduction")


def launch(study: PretrainedStudy, launcher: str, *, dry_run: bool, command: str) -> None:
    """Print every job; then run them one after the other, or submit them as one Slurm array.

    Args:
        study: what to run.
        launcher: `local` or `slurm`.
        dry_run: print the jobs and write the script, but start nothing.
        command: that the report says the runs were made by.

    Raises:
        ValueError: if the folder has runs that were made otherwise.
        subprocess.CalledProcessError: if a command fails.
    """
    if launcher == "slurm" or not dry_run:  # a script that was only written may be submitted by hand
        _record(study, command)
    jobs = study.jobs()
    print("\n".join(jobs))
    if launcher == "slurm":
        script = _write_script(study, jobs)
        print(f"sbatch {script}")
        if not dry_run:
            subprocess.run(["sbatch", str(script)], check=True)
    elif not dry_run:
        for job in jobs:
            subprocess.run(["bash", "-c", job], check=True)


def recorded(root: Path) -> dict[str, Any]:
    """Return what was noted of the runs in a folder; nothing where there is no note."""
    file = root / RECORD
    return json.loads(file.read_text()) if file.exists() else {}


def _record(study: PretrainedStudy, command: str) -> None:
    """Note how the runs in the study's folder are made: two ways in one folder could not be compared."""
    made = {name: getattr(study, name) for name in ("model", "samples", "prompts", "gpus")} | {
        "extra": [*study.extra]
    }
    known = recorded(study.output)
    changed = [name for name in made if known and known[name] != made[name]]
    if changed and any(study.output.glob("seed*")):
        old, new = ({name: each[name] for name in changed} for each in (known, made))
        raise ValueError(f"Expected {old}, as the runs in {study.output} have, or other --runs, got {new}.")
    commands = [] if changed else known.get("commands", [])
    commands += [] if command in commands else [command]
    study.output.mkdir(parents=True, exist_ok=True)
    (study.output / RECORD).write_text(json.dumps({**made, "commands": commands}, indent=1) + "\n")


def _write_script(study: PretrainedStudy, jobs: Sequence[str]) -> Path:
    study.output.mkdir(parents=True, exist_ok=True)
    commands, script = study.output / "commands.txt", study.output / "study.sbatch"
    commands.write_text("\n".join(jobs) + "\n")
    script.write_text(
        SBATCH.format(
            last=len(jobs) - 1,
            gpus=study.gpus,
            output=study.output.resolve(),
            root=Path.cwd(),
            commands=commands.resolve(),
        )
    )
    return script
