"""The plan of a job: its steps, node by node, as text that can be read before anything starts."""

import contextlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from maxent_grpo.pipeline.launch.commands import (
    Place,
    build_server_commands,
    build_step,
    build_trainer_command,
)
from maxent_grpo.pipeline.launch.errors import LaunchError
from maxent_grpo.pipeline.launch.node import slice_devices
from maxent_grpo.pipeline.launch.options import Options
from maxent_grpo.pipeline.launch.ports import choose_window, pick_port
from maxent_grpo.pipeline.launch.request import Request, expect_agreement, expect_tasks, read_request
from maxent_grpo.pipeline.launch.settings import Settings, check_run, find_start, read_settings
from maxent_grpo.pipeline.launch.topology import GPUS, Topology, choose_topology, expect_whole_gpus
from maxent_grpo.pipeline.memory import find_shape
from maxent_grpo.pipeline.run import Run

LOGS = Path("logs")


@dataclass(frozen=True)
class Job:
    """A job whose flags, recipe and topology fit together.

    Attributes:
        run: as train.py will parse it.
    """

    options: Options
    settings: Settings
    topology: Topology
    run: Run


@dataclass(frozen=True)
class PlannedStep:
    """A step of the job.

    Attributes:
        name: of the step.
        nodes: that it runs on.
        log: where its output goes.
        command: srun's, as an array.
    """

    name: str
    nodes: tuple[str, ...]
    log: str
    command: list[str]


def plan_job(options: Options, root: Path, given: Mapping[str, str], devices: int | None = None) -> Job:
    """Return what a job will do, checked.

    Args:
        options: the flags.
        root: the repository.
        given: the environment, which says what was allocated where there is an allocation.
        devices: GPUs that a node of the allocation has, where that is known.

    Raises:
        LaunchError: naming the flag or the field that is wrong.
    """
    settings = read_settings(options, root)
    allocated = int(given["SLURM_JOB_NUM_NODES"]) if "SLURM_JOB_NUM_NODES" in given else None
    if allocated is not None and options.nodes not in (None, allocated):
        raise LaunchError(f"Expected --nodes as allocated ({allocated}), got --nodes {options.nodes}.")
    request = read_request(options.sbatch, allocated or options.nodes)
    expect_agreement(request, nodes=options.nodes, gpus=options.gpus, requeue=options.requeue)
    nodes = allocated or options.nodes or request.nodes or 1
    expect_tasks(request, nodes)
    gpus, source = _count_gpus(options, request, given, devices)
    topology = choose_topology(
        options, settings.mode, nodes=nodes, gpus=gpus, source=source, cpu_ranks=settings.launch_file.cpu_ranks
    )
    run = check_run(options, settings, topology, root)
    _expect_heads(run, topology)
    return Job(options, settings, topology, run)


def _expect_heads(run: Run, topology: Topology) -> None:
    """Refuse a model whose heads the GPUs of a copy cannot share, where its shape is known without a download."""
    shape = None
    with contextlib.suppress(ValueError):  # a model that this transformers does not know
        shape = find_shape(run) if topology.tp > 1 else None
    heads = getattr(shape[0].get_text_config(), "num_attention_heads", 0) if shape else 0
    if heads % max(1, topology.tp):
        raise LaunchError(
            f"Expected --tp to divide the {heads} attention heads of {run.model.model_name_or_path}, got "
            f"--tp {topology.tp}."
        )


def _count_gpus(options: Options, request: Request, given: Mapping[str, str], devices: int | None) -> tuple[int, str]:
    """Return the GPUs of each node, and what says so."""
    said = (
        (options.gpus, f"--gpus {options.gpus}"),
        (devices, "those of this allocation"),
        (request.gpus, f"--sbatch {request.gpus_flag}"),
        (int(given.get("SLURM_GPUS_ON_NODE") or 0), "SLURM_GPUS_ON_NODE"),
    )
    return next(((gpus, source) for gpus, source in said if gpus), (GPUS, "the header of the script"))


def assume_place(job: Job) -> Place:
    """Return the nodes and ports of a job that has none yet: placeholders, and the ports of job 0."""
    first, count = choose_window(0)
    return choose_place(
        job,
        {f"node{index}": f"node{index}" for index in range(job.topology.nodes)},
        {f"node{index}": list(range(first, first + count)) for index in range(job.topology.nodes)},
        cpus=32,
    )


def choose_place(job: Job, addresses: Mapping[str, str], ports: Mapping[str, list[int]], cpus: int) -> Place:
    """Return which nodes serve and train, and on which ports.

    Args:
        job: what is to run.
        addresses: of the nodes by name, in Slurm's order.
        ports: that are free on each of them.
        cpus: of each node.
    """
    topology, names = job.topology, list(addresses)
    servers = names[: topology.server_nodes] if topology.mode == "server" else []
    trainers = names[-topology.trainer_nodes :]
    # What was asked for, or train.py was told, is no port to pick for something else.
    asked = (job.options.vllm_port, job.options.vllm_group_port, job.run.training.vllm_group_port)
    used = {port for port in asked if port is not None}
    server, trainer = ports[servers[0] if servers else trainers[0]], ports[trainers[0]]
    return Place(
        {name: addresses[name] for name in servers},
        {name: addresses[name] for name in trainers},
        server_port=pick_port(server, used, job.options.vllm_port),
        rpc_port=pick_port(server, used),
        group_port=pick_port(trainer, used, job.options.vllm_group_port),
        main_port=pick_port(trainer, used),
        cpus=cpus,
    )


def plan_steps(job: Job, place: Place, given: Mapping[str, str], job_id: str) -> list[PlannedStep]:
    """Return the long steps of a job: those that serve, then the one that trains."""
    topology, steps = job.topology, []
    if topology.mode == "server":
        commands = build_server_commands(job.options, job.run, topology, place, given)
        gpus = topology.server_slice if topology.gpus else None
        for index, (command, node) in enumerate(zip(commands, place.servers, strict=True)):
            log = str(LOGS / f"vllm-{job_id}{f'-{index}' if index else ''}.out")
            name = f"serve{index or ''}"
            # A node that serves knows itself alone: its rank is in its flags.
            step = build_step(command, {node: place.servers[node]}, gpus, given, name=name, log=log, cpus=place.cpus)
            steps.append(PlannedStep(name, (node,), log, step))
    log = str(LOGS / f"train_{job_id}.log")
    command = build_trainer_command(job.options, job.settings, topology, place, given)
    gpus = topology.trainer_slice if topology.gpus else None
    step = build_step(command, place.trainers, gpus, given, name="train", log=log, cpus=place.cpus)
    return [*steps, PlannedStep("train", tuple(place.trainers), log, step)]


def describe_job(job: Job, devices: list[str] | None = None) -> list[str]:
    """Return who does what on how many GPUs, and the arithmetic of a rollout.

    Args:
        job: what is to run.
        devices: a node's GPUs where they are known, as numbers or UUIDs.
    """
    topology, args = job.topology, job.run.training
    what = f"{topology.gpus} GPUs" if topology.gpus else "CPUs"
    lines = [
        f"recipe: {job.settings.recipe}, task {job.options.task}, model {job.run.model.model_name_or_path}",
        f"launch file: {job.settings.launch_file.path} ({job.settings.launch_file.kind})",
        f"nodes: {topology.nodes} of {what}; vLLM: {topology.mode}",
    ]
    if topology.mode == "server":
        where = "on its CPUs"
        if topology.gpus:
            where = f"on {_show_slice(topology.server_slice, devices)} of {_show_nodes(0, topology.server_nodes)}"
        lines.append(f"serve: {topology.dp} copies, {topology.tp} GPU(s) each, {where}")
    first = topology.nodes - topology.trainer_nodes
    where = f"on {_show_slice(topology.trainer_slice, devices)} of " if topology.gpus else "on the CPUs of "
    lines.append(f"train: {topology.ranks} ranks, {where}{_show_nodes(first, topology.nodes)}")
    steps = args.steps_per_generation or args.gradient_accumulation_steps
    size = args.per_device_train_batch_size * topology.ranks * steps
    lines.append(
        f"rollout: {args.per_device_train_batch_size} × {steps} × {topology.ranks} ranks = {size} completions, "
        f"{size // args.num_generations} prompts of {args.num_generations}"
    )
    lines += [f"left out: {change}" for change in job.run.changed]
    return lines


def render_plan(job: Job, sbatch: list[str] | None, lines: list[str], given: Mapping[str, str], root: Path) -> str:
    """Return a plan as text: who does what, every command line, the environment without its secrets.

    Args:
        job: what is to run.
        sbatch: the command that submits it, or None in an allocation.
        lines: of the environment that the job adds.
        given: the environment.
        root: the repository.
    """
    devices = None
    if sbatch is None and given.get("CUDA_VISIBLE_DEVICES"):
        devices = given["CUDA_VISIBLE_DEVICES"].split(",")
    expect_whole_gpus(job.topology, devices or ())
    text = describe_job(job, devices)
    if sbatch is not None:
        text += ["", *show_submission(sbatch)]
    start = find_start(job.run)
    if start is not None:
        text += ["", f"before anything else: the model {start[0]} is made in {start[1]}"]
    for step in plan_steps(job, assume_place(job), given, "0"):
        text += ["", f"{step.name} on {', '.join(step.nodes)}, log {step.log}:", f"  {shlex.join(step.command)}"]
    text += ["", "environment of every step:", *(f"  {line}" for line in lines)]
    return "\n".join(["plan (ports are those of job 0; a job derives its own)", *text]).replace(f"{root}/", "")


def show_submission(command: list[str]) -> list[str]:
    """Return the lines of a plan that say how the job is submitted."""
    return ["submit:", f"  {shlex.join(command)}"]


def _show_slice(part: tuple[int, int], devices: list[str] | None) -> str:
    first, last = part
    if devices is not None:
        return f"GPUs {','.join(slice_devices(devices, first, last))}"
    return f"GPUs {first} to {last - 1} of those given" if last - first > 1 else f"GPU {first} of those given"


def _show_nodes(first: int, last: int) -> str:
    return ", ".join(f"node{index}" for index in range(first, last))
