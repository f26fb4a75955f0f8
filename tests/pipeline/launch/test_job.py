"""The life of a job on a stub of Slurm: how it ends when a part of it fails, and that nothing is left."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from maxent_grpo.pipeline.launch import allocation, job, node
from maxent_grpo.pipeline.launch.__main__ import main
from maxent_grpo.pipeline.launch.watch import Progress
from support.launch_cases import ROOT
from support.stub_slurm import write_stubs

STUBS = "examples/rehearsal/stubs"
TINY = ["--model", "tiny-served", "--task", "maxent", "--config", "rehearsal", "--accelerator", "cpu_zero3"]
JOB = str(100_000 + os.getpid())
Patch = pytest.MonkeyPatch


@pytest.fixture
def root(tmp_path: Path, monkeypatch: Patch) -> Iterator[Path]:
    """A repository with the examples of this one and logs of its own, in the allocation of a job."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    start = tmp_path / "runs/rehearsal/tiny-served"
    start.mkdir(parents=True)
    (start / "config.json").write_text("{}")
    python = Path(sys.executable).parent
    environment = write_stubs(tmp_path) | {
        "SLURM_JOB_ID": JOB,
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_CPUS_PER_NODE": "2",
        "TMPDIR": str(tmp_path),
        "HF_TOKEN": "hf_canary_of_a_test",
        "SERVER_PROGRAM": f"python {STUBS}/stub_server.py",
        "TRAINER_PROGRAM": f"python {STUBS}/stub_trainer.py",
        "STUB_STEP_SECONDS": "0.1",
    }
    environment["PATH"] = f"{python}:{environment['PATH']}"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(job, "PAUSE", 0.05)
    monkeypatch.setattr(allocation, "REQUEUE_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for number, handler in kept.items():
        signal.signal(number, handler)
    assert node.find_processes(f"LAUNCH_JOB={JOB}-0") == {}
    assert not list(tmp_path.glob("maxent-*"))


def test_a_job_serves_trains_and_leaves_its_logs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TINY) == 0
    output = capsys.readouterr().out
    assert "the server is ready" in output
    assert "hf_canary" not in output
    log = root / "logs/latest"
    assert log.resolve().name == f"train_{JOB}.log"
    assert "stub trainer done" in log.read_text()
    assert "restart 0" in (root / f"logs/vllm-{JOB}.out").read_text()


@pytest.mark.parametrize(
    ("variables", "flags", "code", "text"),
    [
        ({"STUB_SERVER": "unhealthy"}, ["--ready-minutes", "0.02"], 11, "not healthy after 0.02 minutes"),
        ({"STUB_SERVER": "dies", "STUB_SECONDS": "2", "STUB_STEPS": "300"}, [], 10, "died, as it was told to"),
        ({"STUB_TRAINER": "fails"}, [], 1, "failed, as it was told to"),
        ({"SLURM_RESTART_COUNT": "1"}, [], 14, "at most --requeue 0 restarts, got 1"),
        ({"SLURM_GPUS_PER_TASK": "1"}, [], 2, "got SLURM_GPUS_PER_TASK=1"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,MIG-b"}, [], 2, "n1: Expected whole GPUs or MIG parts"),
        (
            {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"},
            ["--accelerator", "zero3", "--vllm", "off"],
            2,
            "got 2 ranks on MIG-a",
        ),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, ["--accelerator", "zero3", "--gpus", "8"], 15, "Expected 8 GPUs"),
        ({"SLURM_JOB_NUM_NODES": "2"}, [], 15, "Expected 2 nodes to answer, got 1"),
        ({"TRAINER_PROGRAM": "python nowhere.py", "STUB_STATE": "CANCELLED"}, [], 143, "canceled"),
    ],
)
def test_each_failure_has_its_code_and_the_words_that_explain_it(
    variables: dict[str, str],
    flags: list[str],
    code: int,
    text: str,
    root: Path,
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main([*TINY, *flags]) == code
    output = capsys.readouterr()
    assert text in output.out + output.err
    assert f"ended with exit code {code}" in output.out


@pytest.mark.parametrize(
    ("answers", "flags", "code", "text"),
    [
        # Limits that no load of the machine can stretch: what is watched is given, not timed.
        (False, ["--ready-minutes", "0.02"], 12, "answers /health and no request"),
        (True, ["--stall-minutes", "1"], 13, "for 1 minutes (--stall-minutes) after step 2; the server answers"),
    ],
)
def test_a_server_without_a_token_and_a_trainer_without_a_step_are_told_apart(
    answers: bool,
    flags: list[str],
    code: int,
    text: str,
    root: Path,
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(job, "ask_health", lambda url: True)
    monkeypatch.setattr(job, "ask_token", lambda url, seconds=1.0: answers)
    monkeypatch.setattr(job, "read_progress", lambda file, since: Progress(2, 1e6, stopped=False))
    monkeypatch.setenv("STUB_STEPS", "300")
    assert main([*TINY, *flags]) == code
    assert text in capsys.readouterr().err


def test_a_start_again_ends_what_a_failed_node_left(root: Path, monkeypatch: Patch) -> None:
    cache = root / f"maxent-{JOB}-0-n1"
    cache.mkdir()
    left = subprocess.Popen(["sleep", "600"], env=os.environ | {"LAUNCH_JOB": f"{JOB}-0"})
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main([*TINY, "--requeue", "1"]) == 0
    assert not cache.exists()
    assert left.wait(10) == -signal.SIGKILL


def test_a_taken_port_that_was_asked_for_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert main([*TINY, "--vllm-port", str(port)]) == 15
    assert f"got --vllm-port {port}, which is taken on n1" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "requeues"), [(["--requeue", "1"], True), ([], False)])
def test_asked_to_stop_it_waits_for_the_trainers_checkpoint(
    flags: list[str], requeues: bool, root: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUB_STEPS", "300")
    progress = root / f"logs/job-{JOB}/progress-0.json"

    def interrupt() -> None:
        end = time.monotonic() + 60
        while not progress.exists() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main([*TINY, *flags]) == 0
    thread.join()
    assert "saved a checkpoint and stopped" in capsys.readouterr().out
    assert Path(f"{os.environ['STUB_SLURM']}.requeued").exists() == requeues


def test_whatever_breaks_in_between_the_steps_are_ended(root: Path, monkeypatch: Patch) -> None:
    def break_down(*arguments: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(job, "read_progress", break_down)
    assert main(TINY) == 1


SEE = """python -c 'import os, sys
print(os.environ["HF_HOME"], os.environ["VLLM_HOST_IP"])
sys.exit(int(sys.argv[1]))'"""


@pytest.mark.parametrize(
    ("code", "text"), [(0, "/var/huggingface 127.0.0.1"), (1, "The command failed with exit code 1")]
)
def test_a_command_of_ones_own_runs_in_the_same_environment(
    code: int, text: str, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--command", f"{SEE} {code}"]) == code
    output = capfd.readouterr()
    assert text in output.out + output.err
    assert "hf_canary" not in output.out + output.err


def test_a_command_takes_one_node(root: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    assert main(["--command", "true"]) == 2
    assert "Expected one node for --command, got n[1-2]" in capsys.readouterr().err
