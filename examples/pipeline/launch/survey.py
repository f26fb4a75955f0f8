"""The look at a job's nodes before anything starts: addresses, GPUs, free ports, the shared disk."""

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maxent_grpo.pipeline.launch.commands import NODE_PROGRAM, Place, list_gpu_flags
from maxent_grpo.pipeline.launch.errors import Exit, LaunchError
from maxent_grpo.pipeline.launch.node import SURVEY
from maxent_grpo.pipeline.launch.options import Options
from maxent_grpo.pipeline.launch.plan import Job, choose_place, describe_job, plan_job
from maxent_grpo.pipeline.launch.ports import choose_window, read_ephemeral
from maxent_grpo.pipeline.launch.steps import run_step
from maxent_grpo.pipeline.launch.topology import expect_whole_gpus

SURVEY_SECONDS = 300.0


def ask_nodes(
    options: Options, root: Path, given: Mapping[str, str], folder: Path, restarts: int
) -> tuple[Job, Place]:
    """Return the job as it fits the nodes, and the places of its parts.

    Args:
        options: the flags.
        root: the repository.
        given: the environment of the script.
        folder: of the job, on the disk that all nodes are to share.
        restarts: how often the job was started again.

    Raises:
        LaunchError: naming the node that does not see the disk, lacks GPUs, or has no free port.
    """
    canary = folder / f"canary-{restarts}"
    word = secrets.token_hex(8)
    canary.write_text(word)
    count = int(given.get("SLURM_JOB_NUM_NODES", "1"))
    window = choose_window(int(given["SLURM_JOB_ID"]), read_ephemeral())
    command = [*NODE_PROGRAM, "survey", "--canary", str(canary), "--ports", *map(str, window), "--fixed"]
    command += [str(port) for port in (options.vllm_port, options.vllm_group_port) if port is not None]
    step = build_node_step(count, "survey", command, list_gpu_flags(given))
    code, output = run_step(step, given, SURVEY_SECONDS)
    facts = sorted(read_lines(output, SURVEY), key=lambda line: str(line["name"]))
    if code or len(facts) != count:
        raise LaunchError(f"Expected {count} nodes to answer, got {len(facts)}:\n{output}", Exit.NODES_UNFIT)
    facts = _sort_nodes(facts, given)
    _expect_fit(facts, word)
    devices = min(len(each["devices"]) for each in facts)
    job = plan_job(options, root, given, devices or None)
    _expect_devices(job, facts)
    print("\n".join(describe_job(job, facts[0]["devices"] or None)), flush=True)
    return job, _find_place(job, facts, read_cpus(given))


def build_node_step(
    count: int, name: str, command: Sequence[str], gpus: Sequence[str] = ("--gres=none",)
) -> list[str]:
    """Return the short step that runs a command once on each node, without GPUs unless flags ask for them."""
    step = ["srun", "--overlap", f"--job-name={name}", f"--nodes={count}", f"--ntasks={count}"]
    return [*step, "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=0", *gpus, *command]


def read_lines(output: str, prefix: str) -> list[dict[str, Any]]:
    """Return what nodes printed as JSON after a prefix."""
    return [json.loads(line[len(prefix) :]) for line in output.splitlines() if line.startswith(prefix)]


def _sort_nodes(facts: list[dict[str, Any]], given: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the nodes with the one where this script runs first: Slurm puts it on the first node."""
    first = given.get("SLURMD_NODENAME")
    return sorted(facts, key=lambda each: (each["name"] != first, _split_number(each["name"])))


def _split_number(name: str) -> tuple[str, int]:
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or 0)


def _expect_fit(facts: list[dict[str, Any]], word: str) -> None:
    for each in facts:
        if "problem" in each:
            raise LaunchError(f"{each['name']}: {each['problem']}")
        if each["canary"] != word:
            raise LaunchError(
                f"{each['name']}: Expected logs/ to be on a disk that all nodes share, got {each['canary']}.",
                Exit.NODES_UNFIT,
            )


def _expect_devices(job: Job, facts: list[dict[str, Any]]) -> None:
    for each in facts:
        expect_whole_gpus(job.topology, each["devices"])
        if len(each["devices"]) < job.topology.gpus:
            raise LaunchError(
                f"{each['name']}: Expected {job.topology.gpus} GPUs (--gpus), got {len(each['devices'])}.",
                Exit.NODES_UNFIT,
            )


def read_cpus(given: Mapping[str, str]) -> int:
    """Return the CPUs that the job has on each node, where they differ the least.

    >>> read_cpus({"SLURM_JOB_CPUS_PER_NODE": "72(x2),36"})
    36
    """
    counts = given.get("SLURM_JOB_CPUS_PER_NODE") or given.get("SLURM_CPUS_ON_NODE") or "1"
    return min(int(part.partition("(")[0]) for part in counts.split(","))


def _find_place(job: Job, facts: list[dict[str, Any]], cpus: int) -> Place:
    addresses = {str(each["name"]): str(each["address"]) for each in facts}
    ports = {str(each["name"]): list(each["ports"]) for each in facts}
    try:
        place = choose_place(job, addresses, ports, cpus)
    except StopIteration:
        raise LaunchError(f"Expected free ports, got {ports}.", Exit.NODES_UNFIT) from None
    if job.topology.mode != "server":
        return place
    taken = {str(each["name"]): set(each["taken"]) for each in facts}
    for flag, port, node in (
        ("--vllm-port", place.server_port, next(iter(place.servers))),
        ("--vllm-group-port", place.group_port, next(iter(place.trainers))),
    ):
        if port in taken[node]:
            raise LaunchError(f"Expected a free port, got {flag} {port}, which is taken on {node}.", Exit.NODES_UNFIT)
    return place
