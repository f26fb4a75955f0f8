"""The life of a job on a stub of Slurm: how it ends when a part of it fails, and that nothing is left."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from maxent_grpo.pipeline.launch import allocation, job, node, watch
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
        "STUB_JOB": str(os.getpid()),
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
        ({"STUB_FIELDS": "Requeue=0"}, ["--requeue", "2"], 2, "submit it with sbatch --requeue"),
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


def test_a_server_that_falls_silent_ends_the_job(
    root: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "SilenceWatch", lambda url: watch.SilenceWatch(url, every=0.0))
    monkeypatch.setattr(job, "read_progress", lambda file, since: Progress(2, 2 * watch.QUIET, stopped=False))
    monkeypatch.setattr(watch, "ask_token", lambda url: False)
    monkeypatch.setenv("STUB_STEPS", "300")
    assert main(TINY) == 12
    assert "has fallen silent, 10 minutes after the trainer's last step" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("flags", "answer", "code", "text"),
    [
        (["--requeue", "1"], "", 17, "asking Slurm to start the job again"),
        ([], "", 17, "restart 0 of at most --requeue 0"),
        (["--requeue", "1"], "fails", 18, "scontrol requeue: Requested operation is presently disabled"),
        (["--requeue", "1"], "ignored", 18, "still here after"),
    ],
)
def test_asked_to_stop_it_waits_for_the_trainers_checkpoint(
    flags: list[str],
    answer: str,
    code: int,
    text: str,
    root: Path,
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STUB_STEPS", "300")
    monkeypatch.setenv("STUB_REQUEUE", answer)
    monkeypatch.setattr(allocation, "REQUEUE_SECONDS", 0.5 if answer else 60.0)
    progress = root / f"logs/job-{JOB}/progress-0.json"

    def interrupt() -> None:
        end = time.monotonic() + 60
        while not progress.exists() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main([*TINY, *flags]) == code
    thread.join()
    output = capsys.readouterr()
    assert "saved a checkpoint and stopped" in output.out
    assert text in output.out + output.err
    assert Path(f"{os.environ['STUB_SLURM']}.requeued").exists() == (bool(flags) and answer != "fails")


def test_each_step_asks_for_its_own_gpus_whatever_the_job_asked_for(root: Path, monkeypatch: Patch) -> None:
    given = {"SLURM_GPUS": "16", "SLURM_GPUS_PER_NODE": "8", "SLURM_EXPORT_ENV": "NONE", "SLURM_CPUS_PER_TASK": "2"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    assert main(TINY) == 0
    steps = {"survey": "gpu:8", "serve": "gpu:8", "train": "gpu:8", "sweep": "none"}
    for name, gpus in steps.items():
        assert f"--gres={gpus}" in Path(f"{os.environ['STUB_SLURM']}.flags-{name}").read_text().split()
        lines = Path(f"{os.environ['STUB_SLURM']}.environment-{name}").read_text().splitlines()
        assert not set(given) & {line.partition("=")[0] for line in lines}
        assert "SLURM_GPUS_ON_NODE=8" in lines


@pytest.mark.parametrize(("program", "state"), [("exit 143", ""), ("exit 0", "PreemptTime=2026-01-01T00:00:00")])
def test_a_step_that_slurm_ends_in_a_job_that_runs_is_a_preemption(
    program: str, state: str, root: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERVER_PROGRAM", f"bash -c '{program}'")
    monkeypatch.setenv("STUB_FIELDS", state)
    assert main([*TINY, "--requeue", "1"]) == 17
    assert "preempted: Slurm ended the step serve" in capsys.readouterr().out
    assert Path(f"{os.environ['STUB_SLURM']}.requeued").exists()


def test_a_folder_with_another_runs_checkpoints_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "runs/rehearsal/maxent/checkpoint-7").mkdir(parents=True)
    assert main(TINY) == 2
    assert "got runs/rehearsal/maxent/checkpoint-7: go on with --resume" in capsys.readouterr().err
    assert main([*TINY, "--args", "--resume_from_checkpoint last"]) == 0


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"SLURM_ARRAY_TASK_ID": "3"}, "got SLURM_ARRAY_TASK_ID=3 of a job array"),
        ({"STUB_FIELDS": "Command=/home/me/jupyter.sh"}, "got SLURM_JOB_ID={job}, in which the script runs"),
    ],
)
def test_a_job_of_something_else_is_refused(
    variables: dict[str, str], text: str, root: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main([*TINY, "--sbatch", "--time=5"]) == 2
    assert text.format(job=JOB) in capsys.readouterr().err  # workers of the tests have different ids


def test_a_job_that_the_script_submitted_has_its_flags_of_sbatch(root: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("STUB_FIELDS", f"Command={ROOT}/examples/slurm_train.sh")
    assert main([*TINY, "--sbatch", "--time=5"]) == 0


def catches_stop(pid: int) -> bool:
    """Tell whether a process has a trap for USR1."""
    (mask,) = re.findall(r"SigCgt:\s(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(mask, 16) >> (signal.SIGUSR1 - 1) & 1)


def test_a_stop_that_comes_before_the_launcher_listens_is_kept(root: Path) -> None:
    command = ["bash", "examples/slurm_train.sh", *TINY]
    environment = os.environ | {"ENV_MODE": "none"}
    script = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    while not catches_stop(script.pid):
        assert script.poll() is None
    script.send_signal(signal.SIGUSR1)
    output, _ = script.communicate()
    assert "stopped before training, as it was asked to" in output
    assert script.returncode == 17


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
