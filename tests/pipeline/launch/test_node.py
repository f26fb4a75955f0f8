"""What runs on a node: its GPUs, its ports, its address, and the sweep that finds all that a job left."""

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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


CONFIG = "SlurmctldHost[0]         = head(10.0.0.1)"


@pytest.mark.parametrize(
    ("shown", "resolved", "route", "address"),
    [
        ("NodeName=n1 NodeAddr=10.0.0.7 State=IDLE", [], "", "10.0.0.7"),
        ("NodeName=n1 NodeAddr=fast-n1 State=IDLE", ["10.1.0.7"], "", "10.1.0.7"),
        ("NodeName=n1 NodeAddr=n1 State=IDLE", ["2001:db8::7"], "", "2001:db8::7"),
        ("NodeName=n1 NodeAddr=n1 State=IDLE", ["2001:db8::7", "10.1.0.7"], "", "10.1.0.7"),
        ("NodeName=n1 NodeAddr=n1 State=IDLE", ["127.0.1.1", "::1"], "10.0.0.9", "10.0.0.9"),
        ("NodeName=n1 NodeAddr=n1 State=IDLE", ["127.0.1.1"], "127.0.0.1", "n1"),
        ("", [], "", "n1"),
    ],
)
def test_an_address_is_slurms_then_the_names_then_that_of_the_way_to_the_controller(
    shown: str, resolved: list[str], route: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(name: str, *_: Any, **__: Any) -> list[Any]:
        assert name in ("n1", "fast-n1")
        kinds = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in resolved]
        return [(kind, socket.SOCK_STREAM, 0, "", (each, 0)) for kind, each in zip(kinds, resolved, strict=True)]

    asked: list[str] = []
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(node, "find_route", lambda peer: asked.append(peer) or route)
    write_program(tmp_path, "scontrol", f"[ $2 = node ] && echo '{shown}' || echo '{CONFIG}'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node.find_address("n1", {"PATH": str(tmp_path), "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.2"}) == address
    peers = ["10.0.0.2", "10.0.0.1"]
    assert asked == (peers if address == "n1" else peers[:1] if address == route else [])


def test_the_way_to_a_peer_is_known_without_sending_anything() -> None:
    assert node.find_route("127.0.0.1") == "127.0.0.1"
    assert node.find_route("nowhere.invalid") == ""


def test_a_port_is_tried_in_the_family_of_the_address() -> None:
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not node.is_free("::1", port)
    assert node.is_free("::1", port)
    assert not node.is_free("nowhere.invalid", port)


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


@pytest.mark.parametrize("ephemeral", [(32768, 60999), (20010, 65535), (10000, 65535), (1024, 50000), (1024, 65535)])
def test_ports_are_outside_the_kernels_where_there_is_room(ephemeral: tuple[int, int]) -> None:
    low, high = ephemeral
    for job in range(3000):
        first, count = choose_window(job, ephemeral)
        assert 1024 <= first < first + count <= 65536
        assert first + count <= low or first > high or ephemeral == (1024, 65535)


def test_the_folder_of_caches_is_the_nodes_own_and_nobody_elses(tmp_path: Path) -> None:
    shared = {"TMPDIR": str(tmp_path)}
    first, second = (node.find_cache("7-0", shared | {"SLURMD_NODENAME": name}) for name in ("n1", "n2"))
    assert first != second
    assert first.parent == second.parent == tmp_path
    assert node.find_cache("7-0", {"TMPDIR": str(tmp_path / "missing")}).parent == Path("/tmp")
    assert stat.S_IMODE(node.make_cache(first).stat().st_mode) == 0o700
    first.chmod(0o755)
    assert stat.S_IMODE(node.make_cache(first).stat().st_mode) == 0o700
    second.symlink_to(first)
    with pytest.raises(ValueError, match=f"Expected a folder of user {os.getuid()}, got {second}"):
        node.make_cache(second)


def test_the_sweep_finds_what_left_its_parent_session_and_group(tmp_path: Path) -> None:
    marker = f"LAUNCH_JOB=test-{os.getpid()}"
    name, value = marker.split("=")
    environment = dict(os.environ) | {name: value}
    subprocess.run(["setsid", "--fork", "sleep", "60"], env=environment, check=True)
    bystander = subprocess.Popen(["sleep", "60"])
    given = dict(os.environ) | {"TMPDIR": str(tmp_path), "SLURMD_NODENAME": "n1"}
    cache = node.make_cache(node.find_cache(value, given))
    try:
        deadline = time.monotonic() + 10
        while not node.find_processes(marker) and time.monotonic() < deadline:
            time.sleep(0.05)
        command = [sys.executable, str(PROGRAM), "sweep", "--marker", marker]
        result = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
        assert result.stdout.startswith(node.SWEEP)
        assert "sleep 60" in result.stdout
        time.sleep(0.2)
        assert node.find_processes(marker) == {}
        assert bystander.poll() is None
        assert not cache.exists()
    finally:
        bystander.kill()
        bystander.wait()


def test_a_command_gets_its_slice_its_address_its_rank_and_its_caches(tmp_path: Path) -> None:
    names = ["CUDA_VISIBLE_DEVICES", "VLLM_HOST_IP", "TRITON_CACHE_DIR", "MPLCONFIGDIR"]
    code = f"import os, sys; print(*map(os.environ.get, {names}), sys.argv[1])"
    command = [sys.executable, str(PROGRAM), "run", "--nodes", "a=10.0.0.1,b=10.0.0.2", "--gpus", "1:3", "--"]
    environment = {name: value for name, value in os.environ.items() if name not in node.CACHES}
    environment |= {"SLURMD_NODENAME": "b", "CUDA_VISIBLE_DEVICES": "5,6,7,2", "MPLCONFIGDIR": "/mine"}
    environment |= {"TMPDIR": str(tmp_path), "LAUNCH_JOB": "7-0"}
    output = subprocess.run(
        [*command, sys.executable, "-c", code, "{rank}"], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout.split() == ["6,7", "10.0.0.2", f"{tmp_path}/maxent-7-0-b/triton", "/mine", "1"]
    assert stat.S_IMODE((tmp_path / "maxent-7-0-b").stat().st_mode) == 0o700
