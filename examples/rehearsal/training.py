"""The rehearsal's real jobs: vLLM and DeepSpeed on two nodes, and a run that is stopped and goes on."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from cluster import wait_for
from drills import expect_end
from jobs import ENDED, ROOT, TINY, JobEnd, Site, read_logs, wait_for_end

RUNS = ROOT / "runs/rehearsal"
MOST = 1e-4
"""Bound on the difference between the server's log-probabilities and the trainer's: float32 on both sides, sums in
another order over at most 128 numbers; a stale head is a thousand times as far."""
SERVED = ["--nodes", "2", "--vllm-args", "--enforce-eager --max-num-seqs 64"]
SERVED[-1] += """ --weight-transfer-config '{"backend": "gloo"}'"""
SERVED_RUN = RUNS / "served"
WANDB = ["--args", "--report_to wandb --output_dir runs/rehearsal/served"]
SIZE = ["--per_device_train_batch_size", "16", "--max_steps", "8", "--save_steps", "1000", "--do_eval", "false"]
DIFFERENCE = "sampling/sampling_logp_difference/max"


def train_with_server(site: Site) -> tuple[JobEnd, dict[str, Any]]:
    """Submit the script as a user does: vLLM on one node, ZeRO-3 on two ranks of the other.

    Raises:
        AssertionError: if the server's weights are not the trainer's, or a refresh without repair is not noticed.
    """
    shutil.rmtree(SERVED_RUN, ignore_errors=True)
    started = time.time()
    result = subprocess.run(
        ["bash", "examples/slurm_train.sh", *TINY, *SERVED, *WANDB, "--sbatch", "--cpus-per-task=2 --time=30"],
        env=site.environment | {"REHEARSE_STALE_HEAD": "1", "WANDB_MODE": "offline"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    job = result.stdout.strip().splitlines()[-1]
    end = wait_for_end(site, job, 1500, started)
    expect_end(end, 0, "COMPLETED", ("the server is ready",))
    written = [file for file in ROOT.glob("var/wandb/**/*.wandb") if file.stat().st_mtime >= started]
    assert written, "W&B wrote no run, in which secrets could be looked for"
    return end, read_proof(SERVED_RUN)


def read_proof(folder: Path) -> dict[str, Any]:
    """Return the differences of each rollout, and that after a refresh which leaves the tied head as it was."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    rollouts = [entry[DIFFERENCE] for entry in log if DIFFERENCE in entry]
    stale = [entry[f"eval_{DIFFERENCE}"] for entry in log if "eval_stale_head_loss" in entry]
    repaired = [entry[f"eval_{DIFFERENCE}"] for entry in log if "eval_loss" in entry]
    assert (len(rollouts) >= 3, len(stale), len(repaired)) == (True, 1, 1), log
    assert all(0 < each < MOST for each in [*rollouts[1:], *repaired]), (rollouts, repaired)
    assert stale[0] > MOST, stale
    assert any(entry.get("grad_norm", 0) > 0 for entry in log), "no rollout had a gradient"
    assert (folder / "model.safetensors").exists(), list(folder.iterdir())
    assert list(folder.glob("checkpoint-*")), list(folder.iterdir())
    return {
        "difference_per_rollout": rollouts,
        "difference_after_the_last_refresh": repaired[0],
        "difference_with_the_head_not_repaired": stale[0],
        "bound": MOST,
        "reward_per_rollout": [entry["reward"] for entry in log if DIFFERENCE in entry],
    }


def evaluate_checkpoint(site: Site) -> JobEnd:
    """Evaluate what was trained, with a table and a picture, in a job of its own."""
    started = time.time()
    command = "python examples/evaluate.py runs/rehearsal/served --task countdown-wide --samples 8 --prompts 32"
    command += " --max_new_tokens 8 --engine transformers --output runs/rehearsal/evaluation"
    end = wait_for_end(site, site.submit(["--command", command]), 300, started)
    expect_end(end, 0, "COMPLETED", ())
    files = {file.name for file in (RUNS / "evaluation").iterdir()}
    assert {"evaluation.json", "evaluation.md", "evaluation.png"} <= files, files
    return end


def resume_training(site: Site) -> tuple[JobEnd, JobEnd, dict[str, Any]]:
    """Train twice without vLLM, once with a stop in mid-run: both see the same losses.

    The stop is Slurm's USR1, as before a preemption: a checkpoint, a requeue, a resume.
    """
    started = time.time()
    shared = ["--vllm", "off", "--requeue", "1", "--args"]
    flags = ["--model", "tiny-cpu", "--config", "countdown", "--task", "maxent", "--accelerator", "cpu_zero3"]
    jobs = {}
    for name, node in (("whole", "n1"), ("stopped", "n2")):
        shutil.rmtree(RUNS / name, ignore_errors=True)
        args = [*SIZE, "--output_dir", f"runs/rehearsal/{name}", "--model_name_or_path", "runs/rehearsal/tiny-served"]
        sbatch = ["--requeue", f"--nodelist={node}", "--cpus-per-task=2"]
        jobs[name] = site.submit([*flags, *shared, " ".join(args)], sbatch=sbatch)
    progress = ROOT / f"logs/job-{jobs['stopped']}/progress-0.json"

    def has_come_far() -> bool:
        ended = site.show(jobs["stopped"]).get("JobState") in ENDED
        return ended or (progress.exists() and json.loads(progress.read_text())["step"] >= 2)

    assert wait_for(has_come_far, 400, 0.1), read_logs(jobs["stopped"])[-4000:]
    site.cluster.call("scancel", "--batch", "--signal=USR1", jobs["stopped"])
    ends = {name: wait_for_end(site, job, 500, started) for name, job in jobs.items()}
    for end in ends.values():
        expect_end(end, 0, "COMPLETED", ())
    assert ends["stopped"].restarts == 1, ends["stopped"]
    losses = {name: read_losses(RUNS / name) for name in jobs}
    stopped_at = json.loads(progress.read_text())
    assert stopped_at["stopped"], stopped_at
    assert 2 <= stopped_at["step"] < 8, stopped_at
    assert losses["whole"] == losses["stopped"], losses
    return ends["whole"], ends["stopped"], {"stopped_at_step": stopped_at["step"], "losses": losses["stopped"]}


def read_losses(folder: Path) -> list[float]:
    """Return the loss of each step."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
    assert sorted(losses) == list(range(1, 9)), losses
    return [losses[step] for step in sorted(losses)]


PARSER = """
import shlex, sys
from vllm.entrypoints.cli.serve import cmd_init
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
server, cli = make_arg_parser(FlexibleArgumentParser()), FlexibleArgumentParser()
commands = cli.add_subparsers(dest="subparser")
(serve,) = cmd_init()
serve.subparser_init(commands)
for line in sys.stdin.read().splitlines():
    words = shlex.split(line)
    if words[0] == "serve":
        args = cli.parse_args(words)
        serve.validate(args)
        assert args.headless and args.model_tag, args
    else:
        args = server.parse_args(words[1:])
    assert args.logprobs_mode == "processed_logprobs", args
"""
"""Reads `vllm serve` as vLLM's command line does, and the API server's flags as that program does."""


def parse_plans(site: Site, python: Path) -> int:
    """Let vLLM's own parsers read the server's commands of every plan that is kept; return how many."""
    plans = sorted(ROOT.glob("tests/pipeline/launch/plans/*.txt"))
    lines = [line for plan in plans for line in plan.read_text().splitlines()]
    found = [re.search(r"(?:openai\.(?=api_server )|cli\.main (?=serve ))(.*)", line) for line in lines]
    commands = [match[1] for match in found if match]
    result = subprocess.run(
        [str(python), "-c", PARSER],
        input="\n".join(commands),
        env=site.environment | {"PATH": os.environ["PATH"]},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return len(commands)
