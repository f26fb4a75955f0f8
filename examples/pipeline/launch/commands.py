"""Command lines as arrays: the server's, the trainer's, Slurm's."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maxent_grpo.pipeline.launch.errors import LaunchError
from maxent_grpo.pipeline.launch.options import Options, split_text
from maxent_grpo.pipeline.launch.request import expect_agreement, read_request
from maxent_grpo.pipeline.launch.settings import Settings, find_start, list_trainer_flags
from maxent_grpo.pipeline.launch.topology import Topology
from maxent_grpo.pipeline.recipes import parse_flags
from maxent_grpo.pipeline.run import Run

SCRIPT = "examples/slurm_train.sh"
NODE_PROGRAM = ("python", "examples/pipeline/launch/node.py")
SERVER_PROGRAM = "python -m vllm.entrypoints.openai.api_server"
TRAINER_PROGRAM = "python -m accelerate.commands.launch"
API_SERVER, CLI = ("vllm.entrypoints.openai.api_server",), ("vllm.entrypoints.cli.main", "serve")
"""Both serve; the second one alone can lend GPUs to the first."""


@dataclass(frozen=True)
class Place:
    """Nodes, their addresses, and the ports that were found free on them.

    Attributes:
        servers: names and addresses of the nodes that serve.
        trainers: names and addresses of the nodes that train.
        server_port, rpc_port: on the first node that serves.
        group_port, main_port: on the first node that trains.
        cpus: of each node.
    """

    servers: dict[str, str]
    trainers: dict[str, str]
    server_port: int
    rpc_port: int
    group_port: int
    main_port: int
    cpus: int

    @property
    def url(self) -> str:
        """Where the server is; empty without one."""
        if not self.servers:
            return ""
        address = next(iter(self.servers.values()))
        return f"http://{f'[{address}]' if ':' in address else address}:{self.server_port}"


def build_server_commands(
    options: Options, run: Run, topology: Topology, place: Place, given: Mapping[str, str]
) -> list[list[str]]:
    """Return the command of each node that serves: the API server's, then those of nodes that only lend GPUs.

    Args:
        options: the flags.
        run: what train.py makes of them.
        topology: who serves.
        place: nodes and ports.
        given: the environment, whose SERVER_PROGRAM may name another vLLM.
    """
    address = next(iter(place.servers.values()))
    start = find_start(run)
    model = "/".join(reversed(start)) if start else str(run.model.model_name_or_path)
    shared = [] if run.model.model_revision in (None, "main") else ["--revision", run.model.model_revision]
    shared += ["--dtype", str(run.model.dtype or "auto")]
    if run.training.vllm_max_model_length is not None:
        shared += ["--max-model-len", str(run.training.vllm_max_model_length)]
    if run.training.trust_remote_code:
        shared += ["--trust-remote-code"]
    shared += ["--tensor-parallel-size", str(topology.tp), "--data-parallel-size", str(topology.dp)]
    local = topology.dp // topology.server_nodes
    if topology.server_nodes > 1:
        shared += ["--data-parallel-size-local", str(local), "--data-parallel-address", address]
        shared += ["--data-parallel-rpc-port", str(place.rpc_port)]
    # What TRL's client needs: log-probabilities as sampled, as many as it asks for, and an engine for its weights.
    shared += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    if "weight_transfer_config" not in {name for name, _ in parse_flags(options.vllm_args)}:
        shared += ["--weight-transfer-config", json.dumps({"backend": "nccl"})]
    shared += options.vllm_args
    head = read_variable(given, "SERVER_PROGRAM", SERVER_PROGRAM)
    commands = [[*head, *_name_model(head, model), "--host", address, "--port", str(place.server_port), *shared]]
    head = [part for word in head for part in (CLI if (word,) == API_SERVER else (word,))]
    for node in range(1, topology.server_nodes):
        headless = ["--headless", "--data-parallel-start-rank", str(node * local)]
        commands.append([*head, *_name_model(head, model), *headless, *shared])
    return commands


def _name_model(program: Sequence[str], model: str) -> list[str]:
    """Return a model as a server's program wants it: `vllm serve` without a flag."""
    return [model] if program[-1] == "serve" else ["--model", model]


def read_variable(given: Mapping[str, str], name: str, default: str = "") -> list[str]:
    """Return the words of a variable that holds a command or a part of one.

    Raises:
        LaunchError: if a quotation does not end, there is a secret, or nothing where a program has to be.
    """
    words = list(split_text(name, given.get(name, default)))
    if default and not words:
        raise LaunchError(f"Expected a program, got {name}={shlex.quote(given[name])}.")
    return words


def build_trainer_command(
    options: Options, settings: Settings, topology: Topology, place: Place, given: Mapping[str, str]
) -> list[str]:
    """Return the command of every node that trains; `{rank}` stands for the node's place among them."""
    command = read_variable(given, "TRAINER_PROGRAM", TRAINER_PROGRAM)
    command += ["--config_file", str(settings.launch_file.path)]
    command += ["--num_processes", str(topology.ranks), "--num_machines", str(topology.trainer_nodes)]
    command += ["--machine_rank", "{rank}", "--main_process_ip", next(iter(place.trainers.values()))]
    command += ["--main_process_port", str(place.main_port)]
    if topology.trainer_nodes > 1 and settings.launch_file.kind == "DEEPSPEED":
        # Slurm has started a launcher on every node; Accelerate's own way would be ssh and a file of hosts.
        command += ["--deepspeed_multinode_launcher", "standard"]
    command += ["examples/train.py", "--config", str(settings.recipe), *list_trainer_flags(options, settings)]
    names = {name for name, _ in parse_flags(options.args)}
    if settings.mode == "server":
        command += ["--vllm_server_base_url", place.url]
    if settings.mode in ("server", "external") and "vllm_group_port" not in names:
        command += ["--vllm_group_port", str(place.group_port)]
    if int(given.get("SLURM_RESTART_COUNT", "0") or 0) > 0 and "resume_from_checkpoint" not in names:
        command += ["--resume_from_checkpoint", "last"]
    return [*command, *options.args]


def build_step(
    command: Sequence[str],
    nodes: Mapping[str, str],
    gpus: tuple[int, int] | None,
    given: Mapping[str, str],
    *,
    name: str,
    cpus: int,
    log: str | None = None,
) -> list[str]:
    """Return the step that runs a command on some nodes, one task on each.

    Args:
        command: what each node becomes.
        nodes: their names and addresses, in the order of their ranks.
        gpus: first and last + 1 of each node's GPUs, or None on CPUs.
        given: the environment, whose SRUN_FLAGS (pyxis) and COMMAND_PREFIX (apptainer) are the hooks for containers.
        name: of the step.
        cpus: of each task.
        log: where its output is appended; the job's own where it is None.
    """
    step = ["srun", "--overlap", f"--job-name={name}", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}"]
    step += ["--ntasks-per-node=1", f"--nodelist={','.join(nodes)}", f"--cpus-per-task={cpus}", "--mem=0"]
    step += ["--kill-on-bad-exit=1", *list_gpu_flags(given)]
    step += [f"--output={log}", "--open-mode=append"] if log else []
    step += [*read_variable(given, "SRUN_FLAGS"), *NODE_PROGRAM, "run"]
    step += ["--nodes", ",".join(f"{node}={address}" for node, address in nodes.items())]
    step += ["--gpus", f"{gpus[0]}:{gpus[1]}"] if gpus else []
    return [*step, "--", *read_variable(given, "COMMAND_PREFIX"), *command]


def list_gpu_flags(given: Mapping[str, str]) -> list[str]:
    """Return the flags by which a step gets all GPUs of its nodes; none where Slurm does not count them.

    Without them a step asks for what the job asked for: of `--gpus=16` on two nodes, 16 on the one node of a server.
    """
    count = given.get("SLURM_GPUS_ON_NODE")
    return [f"--gres=gpu:{count}"] if count else []


def build_sbatch_command(options: Options, arguments: Sequence[str], *, nodes: int, gpus: int) -> list[str]:
    """Return the command that submits the script with its own flags; what `--sbatch` says comes last and wins.

    Args:
        options: the flags, read.
        arguments: the flags as they were given.
        nodes: of the job.
        gpus: of each node.
    """
    command = ["sbatch", "--parsable", f"--nodes={nodes}", "--ntasks-per-node=1"]
    request = read_request(options.sbatch, nodes)
    expect_agreement(request, nodes=options.nodes, gpus=options.gpus, requeue=options.requeue)
    if not request.names_gres:
        # The header's gres stay in force beside GPUs that another flag names, and both would be given.
        command.append(f"--gres=gpu:{gpus}" if gpus and not request.names_gpus else "--gres=none")
    command.append("--requeue" if options.requeue else "--no-requeue")
    return [*command, *options.sbatch, SCRIPT, *arguments]
