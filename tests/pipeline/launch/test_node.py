"""What runs on a node: its GPUs, its ports, its address, and the sweep that finds all that a job left."""

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maxent_grpo.pipeline.launch import node
from maxent_grpo.pipeline.launch.ports import choose_window, pick_port

PROGRAM = Path(node.__file__)


@pytest.mark.parametrize("text", ["5,6,7,2", "GPU-a,GPU-b,GPU-c,GPU-d"])
def test_a_slice_is_of_the_gpus_given_in_their_order(text: str) -> None:
    devices = node.list_devices({"CUDA_VISIBLE_DEVICES": text})
    assert node.slice_devices(devices, 1, 4) == text.split(",")[1:]
    with pytest.raises(ValueError, match="Expected 5 GPUs on this node, got 4"):
        node.slice_devices(devices, 0, 5)


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,MIG-b"}, "got both: CUDA_VISIBLE_DEVICES=GPU-a,MIG-b"),
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_PER_TASK": "1"}, "SLURM_GPUS_PER_TASK=1"),
    ],
)
def test_gpus_that_cannot_work_together_are_refused(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        node.list_devices(environment)


def write_program(folder: Path, name: str, text: str) -> None:
    """Write a stub of a program that this machine does not have."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_where_nothing_is_visible_the_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(tmp_path, "nvidia-smi", "echo 'GPU 0: X (UUID: GPU-1)'; echo 'GPU 1: X (UUID: GPU-2)'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node.list_devices({}) == ["GPU-1", "GPU-2"]
    assert node.list_devices({"CUDA_VISIBLE_DEVICES": ""}) == []


@pytest.mark.parametrize(
    ("shown", "resolved", "address"),
    [
        ("NodeName=n1 NodeAddr=10.0.0.7 State=IDLE", "", "10.0.0.7"),
        ("NodeName=n1 NodeAddr=fast-n1 State=IDLE", "10.1.0.7 STREAM fast-n1", "10.1.0.7"),
        ("NodeName=n1 NodeAddr=n1 State=IDLE", "127.0.1.1 STREAM n1", "n1"),
        ("", "", "n1"),
    ],
)
def test_an_address_is_slurms_then_getents_then_the_name(
    shown: str, resolved: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(tmp_path, "scontrol", f"echo '{shown}'")
    write_program(tmp_path, "getent", f"echo '{resolved}'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node.find_address("n1", dict(os.environ)) == address


def test_a_taken_port_is_passed_over_and_no_port_is_taken_twice() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        free = node.find_free_ports("127.0.0.1", taken, 3)
    assert taken not in free
    used: set[int] = set()
    picked = [pick_port([1, 2, 3], used) for _ in range(3)]
    assert picked == [1, 2, 3]
    with pytest.raises(StopIteration):
        pick_port([1, 2, 3], used)


def test_jobs_that_run_together_have_ports_of_their_own_below_the_kernels() -> None:
    windows = [choose_window(job) for job in range(1000, 1000 + 1276)]
    assert len(set(windows)) == len(windows)
    assert all(first >= 20000 and first + count <= 32768 for first, count in windows)


def test_the_sweep_finds_what_left_its_parent_session_and_group(tmp_path: Path) -> None:
    marker = f"LAUNCH_JOB=test-{os.getpid()}"
    name, value = marker.split("=")
    environment = dict(os.environ) | {name: value}
    subprocess.run(["setsid", "--fork", "sleep", "60"], env=environment, check=True)
    bystander = subprocess.Popen(["sleep", "60"])
    cache = tmp_path / "cache"
    cache.mkdir()
    try:
        deadline = time.monotonic() + 10
        while not node.find_processes(marker) and time.monotonic() < deadline:
            time.sleep(0.05)
        command = [sys.executable, str(PROGRAM), "sweep", "--marker", marker, "--cache", str(cache)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout.startswith(node.SWEEP)
        assert "sleep 60" in result.stdout
        time.sleep(0.2)
        assert node.find_processes(marker) == {}
        assert bystander.poll() is None
        assert not cache.exists()
    finally:
        bystander.kill()
        bystander.wait()


def test_a_command_gets_its_slice_its_address_and_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['VLLM_HOST_IP'], sys.argv[1])"
    command = [sys.executable, str(PROGRAM), "run", "--nodes", "a=10.0.0.1,b=10.0.0.2", "--gpus", "1:3", "--"]
    environment = dict(os.environ) | {"SLURMD_NODENAME": "b", "CUDA_VISIBLE_DEVICES": "5,6,7,2"}
    output = subprocess.run(
        [*command, sys.executable, "-c", code, "{rank}"], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout.split() == ["6,7", "10.0.0.2", "1"]
