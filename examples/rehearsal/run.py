"""Rehearse training on a cluster: a real Slurm of two nodes here, vLLM, DeepSpeed, and what goes wrong.

python examples/rehearsal/run.py                # all of it; runs/rehearsal/report.json
python examples/rehearsal/run.py --only drills  # a part: training, resume, drills
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster import Cluster, install_slurm, start_cluster
from drills import GPUS, refuse_typo, run_drills
from environment import Environment, make_environment
from jobs import ROOT, JobEnd, Site
from secrecy import CANARIES, ArgumentWatch, check_secrecy, dry_run
from training import RUNS, evaluate_checkpoint, parse_plans, resume_training, train_with_server

PARTS = ("training", "resume", "drills")
KEPT = ("LANG", "LC_ALL", "TZ", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def make_site(cluster: Cluster, environment: Environment, folder: Path) -> Site:
    """Return the cluster with the environment that jobs are submitted with: little more than a login gives."""
    home, temporary = folder / "home", folder / "tmp"
    home.mkdir()
    temporary.mkdir()
    variables = {name: os.environ[name] for name in KEPT if name in os.environ}
    variables |= {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "SLURM_CONF": cluster.environment["SLURM_CONF"],
        "ENV_MODE": "venv",
        "ENV_ACTIVATE": str(environment.activate),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(environment.extensions),
        "VLLM_PLUGINS": "maxent_cpu_sync",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return Site(cluster, variables | CANARIES, folder)


class Rehearsal:
    """Runs the parts and keeps the report.

    Args:
        site: where jobs run.
        environment: of the jobs.
    """

    def __init__(self, site: Site, environment: Environment) -> None:
        self.site, self.environment = site, environment
        self.report: dict[str, Any] = {"minutes": {}, "jobs": {}}
        self.started = time.time()

    def run(self, parts: tuple[str, ...]) -> None:
        """Run the parts.

        Raises:
            AssertionError: on the first thing that is not as it has to be.
        """
        watch = ArgumentWatch(self.site)
        watch.start()
        for part in parts:
            started = time.time()
            getattr(self, f"run_{part}")()
            self.report["minutes"][part] = round((time.time() - started) / 60, 2)
            print(f"{part}: {self.report['minutes'][part]:.1f} minutes", flush=True)
        self.report["secrets"] = check_secrecy(watch, self.started)
        self._expect_nothing_left()

    def run_training(self) -> None:
        """Train with a server, and evaluate."""
        end, proof = train_with_server(self.site)
        self._note("vLLM and ZeRO-3 on two nodes", end)
        self.report["weights"] = proof
        print(f"difference per rollout: {proof['difference_per_rollout']}", flush=True)
        print(f"with the head not repaired: {proof['difference_with_the_head_not_repaired']}", flush=True)
        self._note("evaluation", evaluate_checkpoint(self.site))
        self.report["plans_parsed_by_vllm"] = parse_plans(self.site, self.environment.python)

    def run_resume(self) -> None:
        """Train without a server, stop and go on."""
        whole, stopped, facts = resume_training(self.site)
        self._note("without a stop", whole)
        self._note("with a stop", stopped)
        self.report["resume"] = facts

    def run_drills(self) -> None:
        """Let things go wrong."""
        refuse_typo(self.site)
        dry_run(self.site)
        for name, end in run_drills(self.site).items():
            self._note(name, end)

    def _note(self, name: str, end: JobEnd) -> None:
        fields = asdict(end)
        del fields["log"], fields["left"]
        self.report["jobs"][name] = fields | {"left_behind": len(end.left)}
        print(f"{name}: job {end.job} {end.state}, exit {end.code}, {end.restarts} restarts", flush=True)

    def _expect_nothing_left(self) -> None:
        """Refuse caches of nodes and files in the home folder that outlive the jobs."""
        folder = self.site.folder
        # Libraries leave files of their own in $TMPDIR; the job's folder there and the home folder are ours.
        left = [str(path) for path in [*folder.joinpath("tmp").glob("maxent-*"), *folder.joinpath("home").rglob("*")]]
        assert not left, f"left behind: {left[:20]}"
        self.report["left_in_home_and_caches"] = 0


def main() -> None:
    """Rehearse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one part")
    options = parser.parse_args()
    started = time.time()
    for number in (signal.SIGTERM, signal.SIGINT):  # however it is ended, the daemons end with it
        signal.signal(number, lambda number, frame: sys.exit(f"rehearsal: ended by signal {number}"))
    install_slurm()
    environment = make_environment()
    print(f"environment: {(time.time() - started) / 60:.1f} minutes", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="maxent-slurm-"))
    folder.chmod(0o755)  # munge refuses a socket that some users could not reach
    cluster = start_cluster(folder / "cluster", gpus=GPUS)
    rehearsal = Rehearsal(make_site(cluster, environment, folder), environment)
    rehearsal.report |= {
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip(),
        "slurm": cluster.call("sinfo", "--version"),
        "proctrack": cluster.proctrack,
        "environment_was_there": environment.was_there,
    }
    try:
        rehearsal.run((options.only,) if options.only else PARTS)
    except (AssertionError, TimeoutError, RuntimeError) as error:
        sys.exit(f"rehearsal failed: {error}")
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    rehearsal.report["minutes"]["all"] = round((time.time() - started) / 60, 2)
    RUNS.mkdir(parents=True, exist_ok=True)
    name = f"report-{options.only}.json" if options.only else "report.json"
    (RUNS / name).write_text(json.dumps(rehearsal.report, indent=1) + "\n")
    jobs = len(rehearsal.report["jobs"])
    print(f"rehearsal: {jobs} passed, 0 failed, in {rehearsal.report['minutes']['all']:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
