"""The study on a real pretrained model: the TRL trainer and `examples/evaluate.py`, here or as Slurm jobs.

Arms that are settings of the library go through MaxEntGRPOTrainer, the entropy bonus as its `entropy_coef` (there a
mean over an answer's own tokens); GRPO goes through TRL's own trainer. Every job goes on from its last checkpoint
when it is called again.
"""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.modebench.arms import ARMS, Arm
from maxent_grpo import MaxEntConfig

RECIPES = Path("examples/recipes")
FALLBACK = "Qwen2.5-0.5B-Instruct"
TINY = "tiny-countdown"
TEMPERATURES = (0.4, 0.6, 0.8, 1.0, 1.2)
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
        return [
            " && ".join(shlex.join(command) for command in (self._train(arm, seed), *self._evaluations(arm, seed)))
            for seed in self.seeds
            for arm in self.arms
        ]

    def _folder(self, arm: str, seed: int) -> Path:
        return self.output / f"seed{seed}" / arm

    def _recipe(self, arm: str) -> Path:
        name = "tiny-cpu" if self.model == TINY else Path(self.model).name
        folder = RECIPES / name if (RECIPES / name).is_dir() else RECIPES / FALLBACK
        return folder / ("grpo" if arm == "grpo" else "maxent") / "config_countdown.yaml"

    def _train(self, arm: str, seed: int) -> list[str]:
        python = [sys.executable]
        if self.gpus:
            python = ["accelerate", "launch", "--config_file", "examples/accelerate/zero2.yaml"]
            python += ["--num_processes", str(self.gpus)]
        options = {
            "config": self._recipe(arm),
            "model_name_or_path": self.model,
            "output_dir": self._folder(arm, seed),
            "resume_from_checkpoint": "last",
            "seed": seed,
            "temperature": ARMS[arm].temperature,
            "entropy_coef": ARMS[arm].entropy_bonus,
            **({} if arm == "grpo" else maxent_fields(ARMS[arm])),
            **({"answer_keys": "countdown_mode"} if ARMS[arm].keys == "mode" else {}),
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


_RECIPE_FIELDS = ("tau", "center", "dedup", "group_scale", "skip", "nll_reduction")


def launch(study: PretrainedStudy, launcher: str, *, dry_run: bool) -> None:
    """Print every job; then run them one after the other, or submit them as one Slurm array.

    Raises:
        subprocess.CalledProcessError: if a command fails.
    """
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
