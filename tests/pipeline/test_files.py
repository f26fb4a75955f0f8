"""What is on the disk after a kill, a full disk or a second run: it is whole, or one line says what to delete."""

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maxent_grpo.pipeline import evaluate, files
from maxent_grpo.pipeline import train as trainer
from maxent_grpo.pipeline.tiny import demo
from maxent_grpo.pipeline.tiny.jobs import run_jobs
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.options import parse_options
from maxent_grpo.pipeline.tiny.runs import Job, train, warm_up
from maxent_grpo.pipeline.tiny.storage import Log, load_checkpoint, load_state, save_checkpoint, save_state
from maxent_grpo.pipeline.tiny.wide_countdown import TOKENIZER
from support.torn import TEARS

SMALL = ["--steps", "4", "--warm-steps", "3", "--eval-prompts", "8", "--eval-samples", "8", "--eval-every", "2"]
SMALL += ["--prompts", "4", "--samples", "4", "--arms", "maxent"]
KILLS = 20 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 4
ROOT = Path(__file__).parents[2]


def ignore(*entry: object) -> None:
    del entry


def never() -> bool:
    return False


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_write_that_is_killed_leaves_the_former_file(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    save_state({"step": 1}, file)

    def write_half(place: Path) -> None:
        place.write_bytes(b"half")
        raise Killed

    with pytest.raises(Killed):
        files.write_whole(file, write_half)
    assert load_state(file) == {"step": 1}


def test_a_folder_without_its_marker_is_not_whole_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, moves = build_model(TOKENIZER), []
    save_checkpoint(model, TOKENIZER, tmp_path)
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        assert not (tmp_path / "config.json").exists()
        moves.append(self.name)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    save_checkpoint(model, TOKENIZER, tmp_path)
    assert moves[-1] == "config.json"
    assert "model.safetensors" in moves
    load_checkpoint(tmp_path)


def test_a_line_that_a_kill_has_cut_is_no_row_and_another_is_named(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    log.append({"step": 2, "text": "a\u2028b"})
    with log.file.open("a") as file:
        file.write('{"step": 3')
    assert [row["step"] for row in log.rows()] == [1, 2]
    log.file.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"line 1 of .*metrics\.jsonl; delete the file or the line\.$"):
        log.rows()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one method, finished."""
    folder = tmp_path_factory.mktemp("run")
    for work, arm in ((warm_up, "warm_start"), (train, "maxent")):
        work(build_job(folder, arm), ignore, never)
    return folder


def build_job(folder: Path, arm: str) -> Job:
    return Job(parse_options([*SMALL, "--output", str(folder)], None), arm, seed=0)


@pytest.mark.parametrize("tear", TEARS)
def test_any_torn_file_is_made_again_or_named_with_what_to_delete(
    tear: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maxent_grpo.pipeline.tiny.runs._evaluate_finally", ignore)
    monkeypatch.setattr("maxent_grpo.pipeline.tiny.runs._log_groups", ignore)
    before = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    assert len(before) >= 10
    for file in before:
        TEARS[tear](file)
        complaint = resume(finished)
        if complaint is None:
            job = build_job(finished, "maxent")
            assert [row["step"] for row in job.log.rows() if "step" in row] == [1, 2, 3, 4], file
            load_checkpoint(job.folder)
        else:
            assert "\n" not in complaint, file
            assert "delete" in complaint, file
            assert str(file.parent) in complaint, file
        for each, content in before.items():
            each.write_bytes(content)


def resume(folder: Path) -> str | None:
    """Go on with both jobs; return the line that says why that cannot be."""
    try:
        warm_up(build_job(folder, "warm_start"), ignore, never)
        train(build_job(folder, "maxent"), ignore, never)
    except ValueError as error:
        return str(error)
    return None


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with (
        files.lock_folder(tmp_path / "run"),
        pytest.raises(
            SystemExit, match=r"^quickstart\.py: Expected a folder that no other run writes to, got .*run/"
        ),
    ):
        demo.main([*SMALL, "--output", str(tmp_path / "run")])
    with files.lock_folder(tmp_path / "run"):
        pass  # the lock went with its holder


def test_a_folder_is_held_before_the_one_around_it_is_there(tmp_path: Path) -> None:
    with files.lock_folder(tmp_path / "runs" / "demo"):
        assert (tmp_path / "runs").is_dir()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"^Expected a folder that can be written to, got .*file/run: Not a directory\.$"
    ):
        files.expect_writable(tmp_path / "file" / "run")
    with pytest.raises(ValueError, match=r"got .*: File name too long\.$"):
        files.expect_writable(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors"),
        RuntimeError(
            "[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0\nframe"
        ),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    ],
)
def test_a_full_disk_is_one_line(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise error

    line = files.describe_full_disk(error)
    assert line is not None
    assert "\n" not in line
    monkeypatch.setattr(demo, "run_demo", fail)
    if isinstance(error, OSError):
        with pytest.raises(SystemExit, match=r"^quickstart\.py: Expected room on the disk, got: "):
            demo.main([*SMALL, "--output", str(tmp_path / "run")])
    assert files.describe_full_disk(RuntimeError("shapes do not match")) is None


@pytest.mark.parametrize("name", ["parse_run", "build_trainer", "run_training"])
def test_ctrl_c_ends_training_with_a_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Run:
        """One whose trainer is interrupted."""

        args, where = SimpleNamespace(process_index=0), "recipe.yaml"
        script = SimpleNamespace(preflight_only=False)
        training = SimpleNamespace(output_dir=".", resume_from_checkpoint=None)
        add_callback = staticmethod(ignore)

        def train(self, **_: object) -> None:
            raise KeyboardInterrupt

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "add_job_files", ignore)
    for each in ("parse_run", "build_trainer"):
        monkeypatch.setattr(trainer, each, interrupt if each == name else lambda *_: Run())
    with pytest.raises(SystemExit, match=r"^train\.py: interrupted[^\n]*\.$"):
        trainer.main(["--config", "recipe.yaml"])


def test_ctrl_c_ends_an_evaluation_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "run_evaluation", interrupt)
    with pytest.raises(SystemExit, match=r"^evaluate\.py: interrupted[^\n]*\.$"):
        evaluate.main(["model", "--task", "countdown"])


def complain(job: str, report: Any, stopped: Any) -> None:
    raise ValueError(f"Expected better of {job}.")


def test_what_a_job_says_is_wrong_comes_without_a_traceback() -> None:
    with pytest.raises(ValueError, match=r"^Expected better of it\.$"):
        run_jobs(complain, ["it"], on_news=ignore, workers=1)


def wait_forever(job: str, report: Any, stopped: Any) -> None:
    report(multiprocessing.current_process().pid)
    time.sleep(600)


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from pipeline import test_files
from maxent_grpo.pipeline.tiny.jobs import run_jobs
if __name__ == "__main__":
    run_jobs(test_files.wait_forever, ["it"], on_news=lambda pid: print(pid, flush=True), workers=1)
"""


@pytest.mark.slow
def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(ROOT / "tests")))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and b"\0" in Path(f"/proc/{worker}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run_both(folder: Path) -> None:
    torch.set_num_threads(1)
    warm_up(build_job(folder, "warm_start"), ignore, never)
    train(build_job(folder, "maxent"), ignore, never)


@pytest.mark.slow
def test_a_demo_that_is_killed_at_any_time_goes_on(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Every process is killed at another moment of its work; what is left then goes on to the end, with every row."""
    context, chance = multiprocessing.get_context("forkserver"), random.Random(0)
    context.set_forkserver_preload(["maxent_grpo.pipeline.tiny.runs"])  # imports once, not for every process
    killed = demos = 0
    while killed < KILLS:
        folder = tmp_path / str(demos)
        process = context.Process(target=run_both, args=(folder,))
        process.start()
        process.join(chance.uniform(0.5, 4.0))
        was_alive = process.is_alive()
        process.kill()
        process.join()
        killed += was_alive
        if was_alive and killed < KILLS:
            continue
        # The demo has ended, or the last kill is done: the rest runs undisturbed.
        assert resume(folder) is None
        job = build_job(folder, "maxent")
        assert [row["step"] for row in job.log.rows() if "step" in row] == [1, 2, 3, 4]
        load_checkpoint(job.folder)
        demos += 1
    record_property("cases", killed)
