"""The life of a job: look at the nodes, serve, train, watch, end everything, start again where that was asked for."""

import contextlib
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TextIO

from maxent_grpo._secrets import hide_secrets, is_secret
from maxent_grpo.pipeline.job_files import PROGRESS, STOP
from maxent_grpo.pipeline.launch.commands import NODE_PROGRAM, Place
from maxent_grpo.pipeline.launch.environment import MARKER, MASK, build_environment
from maxent_grpo.pipeline.launch.errors import Exit, LaunchError
from maxent_grpo.pipeline.launch.node import SWEEP
from maxent_grpo.pipeline.launch.options import Options
from maxent_grpo.pipeline.launch.plan import LOGS, Job, plan_steps
from maxent_grpo.pipeline.launch.settings import find_start
from maxent_grpo.pipeline.launch.steps import Step, call_slurm, run_step
from maxent_grpo.pipeline.launch.survey import ask_nodes, build_node_step, read_lines
from maxent_grpo.pipeline.launch.watch import HealthWatch, ask_health, ask_token, read_progress

TAIL = 15
PAUSE = 1.0
MODEL_SECONDS = 1800.0
REQUEUE_SECONDS = 30.0


class CanceledError(Exception):
    """The job was asked to end."""


class JobRunner:
    """Runs a job in its allocation.

    Args:
        options: the flags.
        root: the repository, which is the working directory.
        given: the environment of the script.
    """

    def __init__(self, options: Options, root: Path, given: Mapping[str, str]) -> None:
        self.options, self.root, self.given = options, root, dict(given)
        self.job_id = given["SLURM_JOB_ID"]
        self.restarts = int(given.get("SLURM_RESTART_COUNT", "0") or 0)
        self.folder = root / LOGS / f"job-{self.job_id}"
        self.progress = self.folder / f"progress-{self.restarts}.json"
        self.stop = self.folder / f"stop-{self.restarts}"
        self.environment: dict[str, str] = {}
        self.servers: list[Step] = []
        self.trainer: Step | None = None
        self.started = time.time()

    def run(self) -> int:
        """Run the job to its end; return its exit code, having said why where it is not 0."""
        self._install_handlers()
        wants_requeue, code = False, Exit.DONE
        try:
            wants_requeue = self._work()
        except LaunchError as error:
            code = error.code
            self._explain(error)
        except CanceledError:
            code = Exit.CANCELED
            self._say("canceled")
        except Exception:  # whatever it is, the job's processes are ended below
            code = Exit.TRAINER_FAILED
            traceback.print_exc()
        # Slurm may send TERM again while the end is made.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        left = self._end_all()
        if left and code == Exit.DONE:
            code = Exit.LEFTOVERS
        if wants_requeue and code == Exit.DONE:
            self._requeue()
        self._say(f"ended with exit code {int(code)}")
        return int(code)

    def _work(self) -> bool:
        """Serve and train; return whether the job is to start again."""
        self._say(f"job {self.job_id}, restart {self.restarts} of at most {self.options.requeue}")
        if self.given.get("SLURM_GPUS_PER_TASK"):
            raise LaunchError(f"Expected GPUs per node, got SLURM_GPUS_PER_TASK={self.given['SLURM_GPUS_PER_TASK']}.")
        if self.restarts > self.options.requeue:
            raise LaunchError(
                f"Expected at most --requeue {self.options.requeue} restarts, got {self.restarts}.",
                Exit.TOO_MANY_RESTARTS,
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in (self.stop, self.progress):
            file.unlink(missing_ok=True)  # of another job that had this id
        job, place = ask_nodes(self.options, self.root, self.given, self.folder, self.restarts)
        self._set_environment(job, place)
        self._make_start(job)
        steps = plan_steps(job, place, self.environment, self.job_id)
        for step in steps:
            self._head_log(step.log)
            self._say(f"{step.name} on {', '.join(step.nodes)}, log {step.log}: {shlex.join(step.command)}")
        for step in steps[:-1]:
            self.servers.append(Step(step.name, step.command, self.environment))
        if self.servers:
            self._wait_for_server(place.url, steps[0].log)
        if self.stop.exists():
            return self._is_requeue_left()
        self._say("training")
        self._link_latest(steps[-1].log)
        self.started = time.time()
        self.trainer = Step("train", steps[-1].command, self.environment)
        self._watch(place.url, steps[0].log, steps[-1].log)
        if read_progress(self.progress, self.started).stopped:
            self._say("the trainer saved a checkpoint and stopped, as it was asked to")
            return self._is_requeue_left()
        return False

    def _set_environment(self, job: Job, place: Place) -> None:
        marker = f"{self.job_id}-{self.restarts}"
        extra = build_environment(self.given, root=self.root, job=marker, addresses=list(place.servers.values()))
        self.environment = self.given | extra | {PROGRESS: str(self.progress), STOP: str(self.stop)}
        if job.topology.mode == "server":
            self.environment["VLLM_SERVER_DEV_MODE"] = "1"  # the endpoints that take weights
        if not job.topology.gpus:
            self.environment.setdefault("DS_ACCELERATOR", "cpu")
        # A step asks for its own GPUs and tasks; what the job asked for would contradict it.
        for name in ("SLURM_CPUS_PER_TASK", "SLURM_NTASKS_PER_NODE", "SLURM_TRES_PER_TASK"):
            self.environment.pop(name, None)

    def _make_start(self, job: Job) -> None:
        """Make a model that is made on the spot, which the server needs before the trainer comes."""
        start = find_start(job.run)
        if start is None or job.topology.mode != "server":
            return
        if self.root.joinpath(start[1], start[0], "config.json").exists():
            return
        self._say(f"making the model {start[0]}")
        command = build_node_step(1, "model", ["python", "-m", "maxent_grpo.pipeline.starts", *start])
        code, output = run_step(command, self.environment, MODEL_SECONDS)
        if code:
            raise LaunchError(f"Expected the model {start[0]} to be made, got:\n{output}", Exit.TRAINER_FAILED)

    def _wait_for_server(self, url: str, log: str) -> None:
        """Wait until the server is healthy and has generated a token; a server without a token is not ready."""
        self._say(f"waiting for the server at {url}")
        end = time.time() + 60 * self.options.ready_minutes
        is_healthy = False
        while time.time() < end:
            self._expect_servers(log)
            if self.stop.exists():
                return
            is_healthy = ask_health(url)
            if is_healthy and ask_token(url, max(1.0, min(60.0, end - time.time()))):
                self._say(f"the server is ready after {time.time() - self.started:.0f} s")
                return
            time.sleep(PAUSE)
        minutes = f"{self.options.ready_minutes:g} minutes (--ready-minutes)"
        if is_healthy:
            raise LaunchError(f"The server answers /health and no request, after {minutes}.", Exit.SERVER_SILENT, log)
        raise LaunchError(f"The server is not healthy after {minutes}.", Exit.SERVER_NOT_READY, log)

    def _watch(self, url: str, server_log: str, trainer_log: str) -> None:
        """Watch until the trainer ends well.

        Raises:
            LaunchError: on whatever else ends it, with the log that explains it.
        """
        health = HealthWatch(url)
        limit = 60 * self.options.stall_minutes
        assert self.trainer is not None
        while (code := self.trainer.poll()) is None:
            self._expect_servers(server_log)
            if self.servers and health.is_dead():
                raise LaunchError("The server does not answer /health.", Exit.SERVER_DIED, server_log)
            progress = read_progress(self.progress, self.started)
            if progress.age > limit:
                self._explain_stall(url, server_log, trainer_log, progress.step)
            time.sleep(PAUSE)
        if code == 0:
            return
        # A trainer whose server died fails as well; then the server's log explains it.
        time.sleep(PAUSE)
        self._expect_not_canceled()
        self._expect_servers(server_log)
        if self.servers and not ask_health(url):
            raise LaunchError("The server died.", Exit.SERVER_DIED, server_log)
        raise LaunchError(f"The trainer failed with exit code {code}.", Exit.TRAINER_FAILED, trainer_log)

    def _explain_stall(self, url: str, server_log: str, trainer_log: str, step: int) -> None:
        where = f"after step {step}" if step >= 0 else "before its first step"
        what = f"for {self.options.stall_minutes:g} minutes (--stall-minutes) {where}"
        if self.servers and not ask_token(url):
            raise LaunchError(f"No progress {what}; the server answers no request.", Exit.SERVER_SILENT, server_log)
        raise LaunchError(f"No progress {what}; the server answers.", Exit.TRAINER_STALLED, trainer_log)

    def _expect_servers(self, log: str) -> None:
        for step in self.servers:
            code = step.poll()
            if code is not None:
                self._expect_not_canceled()
                raise LaunchError(
                    f"The server's step {step.name} ended with exit code {code}.", Exit.SERVER_DIED, log
                )

    def _expect_not_canceled(self) -> None:
        """Take the end of a step for what it is where Slurm ends the whole job."""
        state = call_slurm(["scontrol", "show", "job", self.job_id, "--oneliner"])
        if any(f"JobState={name}" in state for name in ("CANCELLED", "COMPLETING", "TIMEOUT", "PREEMPTED")):
            raise CanceledError

    def _is_requeue_left(self) -> bool:
        if self.restarts < self.options.requeue:
            return True
        self._say(
            f"not started again: restart {self.restarts} of at most --requeue {self.options.requeue}. To go on: the "
            'same command with --args "--resume_from_checkpoint last"'
        )
        return False

    def _requeue(self) -> None:
        self._say("asking Slurm to start the job again")
        call_slurm(["scontrol", "requeue", self.job_id])
        time.sleep(REQUEUE_SECONDS)  # Slurm ends this script; without the pause it would have ended by itself

    def _end_all(self) -> dict[str, str]:
        """End all steps; return what was still there of the job, which is then ended too."""
        for step in [self.trainer, *self.servers]:
            if step is not None:
                step.end()
        if not self.environment:
            return {}
        cache = self.environment["LAUNCH_NODE_CACHE"]
        nodes = int(self.given.get("SLURM_JOB_NUM_NODES", "1"))
        marker = f"{MARKER}={self.environment[MARKER]}"
        command = ["sweep", "--marker", marker, "--grace", "1", "--cache", cache]
        # The sweep's own step must not carry the marker, or it would find itself.
        sweep = [*NODE_PROGRAM, *command]
        _, output = run_step(build_node_step(nodes, "sweep", sweep), self.given, 120)
        if SWEEP not in output:  # Slurm starts no step in a job that it is ending
            _, output = run_step(sweep, self.given, 120)
        left = {
            f"{line['name']}:{pid}": text for line in read_lines(output, SWEEP) for pid, text in line["left"].items()
        }
        for place, text in left.items():
            self._say(f"left behind and ended: {place} {self._mask(text)[:200]}")
        return left

    def _install_handlers(self) -> None:
        def cancel(number: int, frame: FrameType | None) -> None:
            raise CanceledError

        def ask_to_stop(number: int, frame: FrameType | None) -> None:
            self._say("asked to stop (USR1): the trainer will save a checkpoint at the end of a rollout")
            self.folder.mkdir(parents=True, exist_ok=True)
            self.stop.touch()

        signal.signal(signal.SIGTERM, cancel)
        signal.signal(signal.SIGINT, cancel)
        signal.signal(signal.SIGUSR1, ask_to_stop)

    def _head_log(self, log: str) -> None:
        with (self.root / log).open("a") as file:
            file.write(f"=== job {self.job_id}, restart {self.restarts}, {time.strftime('%F %T')}\n")

    def _link_latest(self, log: str) -> None:
        link = self.root / LOGS / "latest"
        unfinished = link.with_name(f"latest.{self.job_id}")
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
            unfinished.symlink_to(Path(log).name)
            unfinished.replace(link)

    def _explain(self, error: LaunchError) -> None:
        self._say(f"error: {self._mask(str(error))}", file=sys.stderr)
        if error.log is None:
            return
        with contextlib.suppress(OSError):
            lines = (self.root / error.log).read_text(errors="replace").splitlines()[-TAIL:]
            text = "\n".join(f"  {line}" for line in lines)
            self._say(f"the last lines of {error.log}:\n{self._mask(text)}", file=sys.stderr)

    def _mask(self, text: str) -> str:
        for name, value in self.given.items():
            if is_secret(name, value) and len(value) > 4:
                text = text.replace(value, MASK)
        return hide_secrets(text)

    def _say(self, text: str, file: TextIO | None = None) -> None:
        print(f"[{time.strftime('%T')}] {text}", file=file or sys.stdout, flush=True)


def run_job(options: Options, root: Path) -> int:
    """Run the job of this allocation."""
    return JobRunner(options, root, os.environ).run()
