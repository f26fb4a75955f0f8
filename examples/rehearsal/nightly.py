"""Drills that take long: every one there is, vLLM's API server killed in mid-run, and jobs under random kills.

python examples/rehearsal/nightly.py --part drills --output build/nightly/drills.json
python examples/rehearsal/nightly.py --part chaos --output build/nightly/chaos.json
python examples/rehearsal/nightly.py --part vllm --output build/nightly/vllm.json
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cluster import install_slurm, start_cluster, wait_for
from drills import GPUS, STUB_PROGRAMS, expect_end, run_drills
from environment import make_environment
from jobs import ENDED, ROOT, TINY, Site, find_marked, read_logs, wait_for_end, wait_for_log
from run import make_site
from training import SERVED

JOBS = 20
LEAST_HIT = 15
"""Of them: a kill that comes too late hits nothing and shows nothing."""
CODES = {"server": {0, 10}, "trainer": {0, 1}, "node": {0, 1, 10}}
"""Exit codes that are right after a kill: 0 where the job was done before it or started again after it."""


def kill_randomly(site: Site, victim: str, chance: random.Random) -> dict[str, Any]:
    """Run a job and kill one of its parts at a random time; it must end in a known state and leave nothing.

    Raises:
        AssertionError: with the job's log, if it does not.
    """
    started = time.time()
    variables = STUB_PROGRAMS | {"STUB_STEPS": "60"}
    job = site.submit([*TINY, "--requeue", "1"], sbatch=["--requeue"], variables=variables)
    wait_for_log(site, job, "waiting for the server", 300)
    program = "server" if victim == "node" else victim
    wait_for(lambda: find_stub(job, program) or site.show(job).get("JobState") in ENDED, 300)
    time.sleep(chance.uniform(0, 20))
    hit = find_stub(job, program)
    if victim == "node":
        node = site.show(job).get("NodeList", "n1")
        site.cluster.kill_node(node)
        site.cluster.call("scontrol", "update", f"nodename={node}", "state=down", "reason=killed", check=False)
        site.cluster.start_node(node)
        site.cluster.call("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    else:
        for pid in hit:
            os.kill(pid, 9)
    end = wait_for_end(site, job, 300, started)
    assert end.code in CODES[victim], f"job {job}, {victim} killed: exit {end.code}\n{end.log[-4000:]}"
    assert not end.left, f"job {job}, {victim} killed: left {end.left}"
    outcome = {"state": end.state, "code": end.code, "restarts": end.restarts}
    return {"job": job, "killed": victim, "hit": bool(hit), **outcome}


def find_stub(job: str, program: str) -> list[int]:
    """Return the processes of a job's stub of the server or the trainer."""
    return [
        pid
        for pid, command in find_marked(job).items()
        if f"stub_{program}.py" in command and command.startswith("python") and "node.py" not in command
    ]


def run_chaos(site: Site) -> dict[str, Any]:
    """Run the jobs under random kills, one after the other."""
    chance = random.Random(0)
    jobs = []
    for number in range(JOBS):
        victim = ("server", "trainer", "node")[number % 3]
        jobs.append(kill_randomly(site, victim, chance))
        print(jobs[-1], flush=True)
    states = Counter(f"{job['killed']}: {job['state']} {job['code']}" for job in jobs)
    left = [str(path) for path in site.folder.joinpath("tmp").glob("maxent-*")]
    assert not left, left
    hit = sum(job["hit"] for job in jobs)
    assert hit >= LEAST_HIT, f"{hit} of {JOBS} kills hit a process"
    return {"jobs": jobs, "states": dict(states), "hit": hit, "left_behind": 0}


def run_vllm(site: Site) -> dict[str, Any]:
    """Kill the real API server while the real trainer runs, then resume with a server that dies again."""
    outcomes = {}
    shutil.rmtree(ROOT / "runs/rehearsal/nightly", ignore_errors=True)
    for name, extra in (("killed in mid-run", []), ("killed in a resume", ["--resume_from_checkpoint", "last"])):
        started = time.time()
        args = ["--max_steps", "200", "--save_steps", "1", "--output_dir", "runs/rehearsal/nightly", *extra]
        flags = [*TINY, *SERVED, "--args", " ".join(args)]
        job = site.submit(flags, sbatch=["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2"])
        progress = ROOT / f"logs/job-{job}/progress-0.json"

        def has_come_far(job: str = job, progress: Path = progress) -> bool:
            ended = site.show(job).get("JobState") in ENDED
            return ended or (progress.exists() and json.loads(progress.read_text())["step"] >= 3)

        assert wait_for(has_come_far, 900), read_logs(job)[-4000:]
        marked = find_marked(job)
        (server,) = [
            pid for pid, command in marked.items() if "openai.api_server" in command and "node.py" not in command
        ]
        os.kill(server, 9)
        killed = time.time()
        end = wait_for_end(site, job, 300, started)
        expect_end(end, 10, "FAILED", ("The server's step serve ended with exit code 137",))
        outcomes[name] = {"job": job, "code": end.code, "seconds_to_the_end": round(time.time() - killed, 1)}
    return outcomes


def run_every_drill(site: Site) -> dict[str, Any]:
    """Run all drills, those of `make rehearse` among them, and return how each one's job ended."""
    ends = run_drills(site, nightly=True)
    return {
        name: {"job": end.job, "state": end.state, "code": end.code, "restarts": end.restarts}
        for name, end in ends.items()
    }


PARTS = {"drills": run_every_drill, "chaos": run_chaos, "vllm": run_vllm}


def main() -> None:
    """Run a part and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    started = time.time()
    for number in (signal.SIGTERM, signal.SIGINT):  # however it is ended, the daemons end with it
        signal.signal(number, lambda number, frame: sys.exit(f"rehearsal: ended by signal {number}"))
    install_slurm()
    environment = make_environment()
    folder = Path(tempfile.mkdtemp(prefix="maxent-slurm-"))
    folder.chmod(0o755)
    cluster = start_cluster(folder / "cluster", gpus=GPUS)
    try:
        report = PARTS[options.part](make_site(cluster, environment, folder))
    except (AssertionError, TimeoutError, RuntimeError) as error:
        sys.exit(f"nightly drill failed: {error}")
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    name = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(name, cwd=ROOT, capture_output=True, text=True, check=False)
    report |= {"commit": commit.stdout.strip(), "minutes": round((time.time() - started) / 60, 1)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
