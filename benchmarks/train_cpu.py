"""Run `examples/train.py` on a CPU without any network: the tiny recipes in every layout, killed and resumed.

    python benchmarks/train_cpu.py [--out benchmarks/results/train_cpu.json]

Every run is the command that a user would type. Reward is the share of right answers among sampled completions, over
the first and the last ten updates. The run that is killed gets SIGKILL after its first checkpoint and goes on with
`--resume_from_checkpoint last`; its log is compared with that of the run that was left alone.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import accelerate
import deepspeed
import torch
import transformers
import trl

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
RECIPES = "examples/recipes/tiny-cpu"
HALVES = ["--per_device_train_batch_size", "128", "--per_device_eval_batch_size", "128"]
PUBLISHED = ["--maxent_preset", "published"]
RUNS: dict[str, tuple[list[str], str, list[str]]] = {
    "maxent": (["python"], "maxent", PUBLISHED),
    "grpo": (["python"], "grpo", []),
    "maxent, diverse": (["python"], "maxent", ["--maxent_preset", "diverse"]),
    "maxent, DDP, 2 processes": (["accelerate", "launch", "--config_file", "cpu_ddp"], "maxent", PUBLISHED + HALVES),
    "maxent, ZeRO-3, 2 processes": (
        ["accelerate", "launch", "--config_file", "cpu_zero3"],
        "maxent",
        PUBLISHED + HALVES,
    ),
}
LOGGED = ("reward", "loss", "grad_norm", "entropy", "maxent/ess")


def build_command(name: str, output: Path, *flags: str) -> list[str]:
    """Return a run's command line, relative to the root of the repository."""
    launcher, task, settings = RUNS[name]
    program = [f"examples/accelerate/{part}.yaml" if part.startswith("cpu_") else part for part in launcher]
    recipe = f"{RECIPES}/{task}/config_countdown.yaml"
    return [*program, "examples/train.py", "--config", recipe, *settings, "--output_dir", str(output), *flags]


def start_run(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with log.open("ab") as file:
        return subprocess.Popen(
            [str(BIN / command[0]), *command[1:]], cwd=ROOT, env=environment, stdout=file, stderr=file
        )


def read_log(output: Path) -> list[dict[str, Any]]:
    """Return what a run logged."""
    entries: list[dict[str, Any]] = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return entries


def finish_run(name: str, folder: Path) -> dict[str, Any]:
    """Run to the end and return a summary."""
    output = folder / name.replace(" ", "").replace(",", "-")
    command = build_command(name, output)
    start = time.monotonic()
    code = start_run(command, folder / "log.txt").wait()
    seconds = time.monotonic() - start
    if code != 0:
        raise RuntimeError((folder / "log.txt").read_text()[-4000:])
    entries = read_log(output)
    rewards = [entry["reward"] for entry in entries if "reward" in entry]
    held_out = [entry["eval_reward"] for entry in entries if "eval_reward" in entry]
    return {
        "run": name,
        "command": shlex.join(build_command(name, Path("OUTPUT"))),
        "updates": len(rewards),
        "wall seconds": round(seconds, 1),
        "reward, first 10 updates": round(sum(rewards[:10]) / 10, 4),
        "reward, last 10 updates": round(sum(rewards[-10:]) / 10, 4),
        "reward on held-out prompts, at the end": round(held_out[-1], 4),
    }


def kill_and_resume(folder: Path, whole: Path) -> dict[str, Any]:
    """Kill the first run with SIGKILL after a checkpoint, resume it, and compare it with the one left alone."""
    output = folder / "killed"
    process = start_run(build_command("maxent", output), folder / "log.txt")
    while not list(output.glob("checkpoint-*/trainer_state.json")):
        if process.poll() is not None:
            raise RuntimeError((folder / "log.txt").read_text()[-4000:])
        time.sleep(0.2)
    time.sleep(5)  # for a few updates after the checkpoint, which will be lost
    process.send_signal(signal.SIGKILL)
    process.wait()
    checkpoint = max(int(path.name.split("-")[1]) for path in output.glob("checkpoint-*"))
    code = start_run(build_command("maxent", output, "--resume_from_checkpoint", "last"), folder / "log.txt").wait()
    if code != 0:
        raise RuntimeError((folder / "log.txt").read_text()[-4000:])
    expected, resumed = (
        [{key: entry.get(key) for key in LOGGED} for entry in read_log(path) if "reward" in entry]
        for path in (whole, output)
    )
    same = [a == b for a, b in zip(expected, resumed, strict=True)]
    models = [transformers.AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (whole, output)]
    return {
        "killed with": f"signal {signal.SIGKILL.value}",
        "resumed from update": checkpoint,
        "updates in all": len(resumed),
        "updates of the run left alone": len(expected),
        "updates logged alike": sum(same),
        "weights at the end equal bit by bit": all(torch.equal(v, models[1][k]) for k, v in models[0].items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/train_cpu.json")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/train_cpu", help="where the runs go")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    runs = []
    for name in RUNS:
        runs.append(finish_run(name, options.folder))
        print(runs[-1], flush=True)
    result = {
        "task": "3-number Countdown, 2..20; evaluated on 128 prompts that are never trained on",
        "threads per process": 1,
        "cores": os.cpu_count(),
        "seed": 0,
        "versions": {each.__name__: each.__version__ for each in (torch, transformers, trl, accelerate, deepspeed)},
        "made by": "python benchmarks/train_cpu.py",
        "runs": runs,
        "killed and resumed": kill_and_resume(options.folder, options.folder / "maxent"),
    }
    print(result["killed and resumed"])
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
