"""A training job: look at the nodes, serve, train, watch, start again where that was asked for."""

import contextlib
import os
import shlex
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from maxent_grpo.pipeline.checkpoints import expect_no_checkpoints
from maxent_grpo.pipeline.job_files import PROGRESS, STOP
from maxent_grpo.pipeline.launch.allocation import JobRunner, StoppedError
from maxent_grpo.pipeline.launch.commands import Place
from maxent_grpo.pipeline.launch.errors import Exit, LaunchError
from maxent_grpo.pipeline.launch.options import Options
from maxent_grpo.pipeline.launch.plan import LOGS, Job, plan_steps
from maxent_grpo.pipeline.launch.settings import find_start
from maxent_grpo.pipeline.launch.steps import Step, run_step
from maxent_grpo.pipeline.launch.survey import ask_nodes, build_node_step
from maxent_grpo.pipeline.launch.watch import HealthWatch, SilenceWatch, ask_health, ask_token, read_progress

PAUSE = 1.0
MODEL_SECONDS = 1800.0


class TrainingJob(JobRunner):
    """Serves and trains."""

    def __init__(self, options: Options, root: Path, given: Mapping[str, str]) -> None:
        super().__init__(options, root, given)
        self.folder = root / LOGS / f"job-{self.job_id}"
        self.progress = self.folder / f"progress-{self.restarts}.json"
        self.stop = self.folder / f"stop-{self.restarts}"
        self.servers: list[Step] = []
        self.started = time.time()

    def work(self) -> None:
        """Serve and train."""
        self.say(f"job {self.job_id}, restart {self.restarts} of at most {self.options.requeue}")
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
        self._listen_for_stop()
        self._expect_requeue()
        job, place = ask_nodes(self.options, self.root, self.given, self.folder, self.restarts)
        self._expect_no_stop()
        self._expect_no_checkpoints(job)
        self._set_variables(job, place)
        self._make_start(job)
        steps = plan_steps(job, place, self.environment, self.job_id)
        for step in steps:
            self._head_log(step.log)
            self.say(f"{step.name} on {', '.join(step.nodes)}, log {step.log}: {shlex.join(step.command)}")
        for step in steps[:-1]:
            self.servers.append(self.start_step(step.name, step.command))
        if self.servers:
            self._wait_for_server(place.url, steps[0].log)
        self._expect_no_stop()
        self.say("training")
        self._link_latest(steps[-1].log)
        self.started = time.time()
        trainer = self.start_step("train", steps[-1].command)
        self._watch(trainer, place.url, steps[0].log, steps[-1].log)
        if read_progress(self.progress, self.started).stopped:
            raise StoppedError("the trainer saved a checkpoint and stopped, as it was asked to")

    def _set_variables(self, job: Job, place: Place) -> None:
        more = {PROGRESS: str(self.progress), STOP: str(self.stop)}
        if job.topology.mode == "server":
            more["VLLM_SERVER_DEV_MODE"] = "1"  # the endpoints that take weights
        if not job.topology.gpus:
            more["DS_ACCELERATOR"] = self.given.get("DS_ACCELERATOR", "cpu")
        self.set_environment(list(place.servers.values()), more)

    def _make_start(self, job: Job) -> None:
        """Make a model that is made on the spot, which the server needs before the trainer comes."""
        start = find_start(job.run)
        if start is None or job.topology.mode != "server":
            return
        if self.root.joinpath(start[1], start[0], "config.json").exists():
            return
        self.say(f"making the model {start[0]}")
        command = build_node_step(1, "model", ["python", "-m", "maxent_grpo.pipeline.starts", *start])
        code, output = run_step(command, self.environment, MODEL_SECONDS)
        if code:
            raise LaunchError(f"Expected the model {start[0]} to be made, got:\n{output}", Exit.TRAINER_FAILED)

    def _wait_for_server(self, url: str, log: str) -> None:
        """Wait until the server is healthy and has generated a token; a server without a token is not ready."""
        self.say(f"waiting for the server at {url}")
        end = time.time() + 60 * self.options.ready_minutes
        is_healthy = False
        while time.time() < end:
            self._expect_servers(log)
            self._expect_no_stop()
            is_healthy = ask_health(url)
            if is_healthy and ask_token(url, max(1.0, min(60.0, end - time.time()))):
                self.say(f"the server is ready after {time.time() - self.started:.0f} s")
                return
            time.sleep(PAUSE)
        minutes = f"{self.options.ready_minutes:g} minutes (--ready-minutes)"
        if is_healthy:
            raise LaunchError(f"The server answers /health and no request, after {minutes}.", Exit.SERVER_SILENT, log)
        raise LaunchError(f"The server is not healthy after {minutes}.", Exit.SERVER_NOT_READY, log)

    def _watch(self, trainer: Step, url: str, server_log: str, trainer_log: str) -> None:
        """Watch until the trainer ends well.

        Raises:
            LaunchError: on whatever else ends it, with the log that explains it.
        """
        health, silence = HealthWatch(url), SilenceWatch(url)
        limit = 60 * self.options.stall_minutes
        while (code := trainer.poll()) is None:
            self._expect_servers(server_log)
            if self.servers and health.is_dead():
                raise LaunchError("The server does not answer.", Exit.SERVER_DIED, server_log)
            progress = read_progress(self.progress, self.started)
            if self.servers and silence.is_silent(progress.age):
                what = f"The server has fallen silent, {progress.age / 60:.0f} minutes after the trainer's last step."
                raise LaunchError(what, Exit.SERVER_SILENT, server_log)
            if progress.age > limit:
                self._explain_stall(url, server_log, trainer_log, progress.step)
            time.sleep(PAUSE)
        if code == 0:
            return
        # A trainer whose server died fails as well; then the server's log explains it.
        time.sleep(PAUSE)
        self.expect_own_end("train", code)
        self._expect_servers(server_log)
        if self.servers and not (ask_health(url) or ask_token(url)):
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
                self.expect_own_end(step.name, code)
                raise LaunchError(
                    f"The server's step {step.name} ended with exit code {code}.", Exit.SERVER_DIED, log
                )

    def _expect_requeue(self) -> None:
        """Refuse restarts that Slurm would refuse, before hours of training."""
        if self.restarts < self.options.requeue and "Requeue=0" in self.show_job():
            raise LaunchError(
                f"Expected a job that may start again, for --requeue {self.options.requeue}, got Requeue=0: "
                "submit it with sbatch --requeue."
            )

    def _expect_no_checkpoints(self, job: Job) -> None:
        """Refuse a folder with another run's checkpoints, from which a restart would go on."""
        if self.restarts:
            return
        try:
            expect_no_checkpoints(job.run.training)
        except ValueError as error:
            raise LaunchError(str(error)) from error

    def _expect_no_stop(self) -> None:
        if self.stop.exists():
            raise StoppedError("stopped before training, as it was asked to")

    def _listen_for_stop(self) -> None:
        def ask_to_stop(number: int, frame: FrameType | None) -> None:
            self.say("asked to stop (USR1): the trainer will save a checkpoint at the end of a rollout")
            self.folder.mkdir(parents=True, exist_ok=True)
            self.stop.touch()

        signal.signal(signal.SIGUSR1, ask_to_stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])  # the script has blocked it until now

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


def run_job(options: Options, root: Path) -> int:
    """Run the job of this allocation."""
    return TrainingJob(options, root, os.environ).run()
