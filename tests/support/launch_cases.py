"""The plans that are kept as files, each with its flags and, in an allocation, the environment of the job."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from maxent_grpo.pipeline.launch.__main__ import main
from maxent_grpo.pipeline.launch.node import CACHES

ROOT = Path(__file__).parents[2]
PLANS = ROOT / "tests/pipeline/launch/plans"
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}
UUIDS = ",".join(f"GPU-{letter * 4}" for letter in "abcd")

CASES: dict[str, tuple[str, dict[str, str]]] = {
    "one_node_server": ("", {}),
    "two_nodes": ("--nodes 2 --task maxent", {}),
    "four_nodes": ("--nodes 4 --vllm-nodes 2 --tp 2", {}),
    "one_node_colocate": ("--gpus 4 --vllm colocate", {}),
    "off": ("--vllm off --accelerator ddp", {}),
    "seven_a100": ("--sbatch '--gres=gpu:a100:7'", {}),
    "visible_numbers": ("", JOB | {"CUDA_VISIBLE_DEVICES": "5,6,7,2"}),
    "visible_uuids": ("", JOB | {"CUDA_VISIBLE_DEVICES": UUIDS}),
    "no_gres": ("--gpus 8 --sbatch '--gres=none --exclusive'", {}),
    "own_server": ("--vllm server --args '--vllm_server_base_url http://gpu7:8000'", {}),
    "gpus_per_node": ("--nodes 2 --sbatch '--gpus-per-node=4'", {}),
    "gpus_in_all": ("--nodes 2 --sbatch '--gpus=16'", {}),
    "countdown_arguments": (
        "--task maxent --config countdown --accelerator zero2 --requeue 2 "
        "--sbatch '--account=lab --time=8:00:00' --args \"--run_name 'a demo' --report_to wandb\"",
        {},
    ),
}


def make_plan(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the plan that `--dry-run` prints, where PATH is empty: no Slurm, no driver."""
    flags, environment = CASES[name]
    prepare_environment(monkeypatch, environment)
    assert main([*shlex.split(flags), "--dry-run"]) == 0
    return capsys.readouterr().out


def prepare_environment(monkeypatch: pytest.MonkeyPatch, environment: dict[str, Any]) -> None:
    """Leave nothing of this machine in the environment but the repository as working directory."""
    for variable in ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "HF_HOME", "TMPDIR", *CACHES):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("SRUN_FLAGS", "COMMAND_PREFIX", "NO_PROXY", "no_proxy", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(ROOT)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
