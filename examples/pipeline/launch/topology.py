"""Which nodes and GPUs serve, and which train."""

from collections.abc import Sequence
from dataclasses import dataclass

from maxent_grpo.pipeline.launch.errors import LaunchError
from maxent_grpo.pipeline.launch.options import READY_MINUTES, Options, show_flag

GPUS = 8
"""GPUs of a node where nothing says how many: those of the script's header."""


@dataclass(frozen=True)
class Topology:
    """Who does what.

    Attributes:
        mode: server, colocate, off, or external where train.py asks a server that is already there.
        nodes: of the job.
        gpus: of each node; 0 where the model trains on CPUs.
        server_nodes: the first nodes, which serve; the single node of a job serves and trains.
        server_gpus: of each serving node.
        dp, tp: copies of the model that serve, and GPUs that share one.
        trainer_nodes: nodes that train.
        trainer_ranks: processes that train, on each of them.
    """

    mode: str
    nodes: int
    gpus: int
    server_nodes: int
    server_gpus: int
    dp: int
    tp: int
    trainer_nodes: int
    trainer_ranks: int

    @property
    def ranks(self) -> int:
        """Processes that train."""
        return self.trainer_nodes * self.trainer_ranks

    @property
    def server_slice(self) -> tuple[int, int]:
        """First and last + 1 of a serving node's GPUs that serve."""
        return 0, self.server_gpus

    @property
    def trainer_slice(self) -> tuple[int, int]:
        """First and last + 1 of a training node's GPUs that train."""
        first = self.server_gpus if self.mode == "server" and self.nodes == 1 else 0
        return first, self.gpus


def choose_topology(
    options: Options, mode: str, *, nodes: int, gpus: int, source: str = "--gpus", cpu_ranks: int = 0
) -> Topology:
    """Return who serves and who trains.

    Args:
        options: the flags.
        mode: server, colocate, off, or external where train.py asks a server that is already there.
        nodes: of the job.
        gpus: of each node.
        source: what says how many.
        cpu_ranks: processes that train on each node's CPUs, where there are to be no GPUs; else 0.

    Raises:
        LaunchError: naming the flags that leave nobody to train, or that do not multiply.
    """
    _expect_no_gpu_flags(options, cpu_ranks)
    if mode != "server":
        _expect_no_server_flags(options, mode)
        return Topology(mode, nodes, 0 if cpu_ranks else gpus, 0, 0, 0, 0, nodes, cpu_ranks or gpus)
    server_nodes = options.vllm_nodes or 1
    _expect_trainers(options, nodes, server_nodes)
    trainer_nodes = nodes - server_nodes if nodes > 1 else 1
    if cpu_ranks:
        return Topology(mode, nodes, 0, server_nodes, 0, options.dp or 1, options.tp, trainer_nodes, cpu_ranks)
    server_gpus = options.vllm_gpus or (gpus if nodes > 1 else (options.dp or 1) * options.tp)
    if server_gpus > gpus or (nodes == 1 and server_gpus == gpus):
        raise LaunchError(
            f"Expected GPUs that serve and GPUs that train, got {server_gpus} of {gpus} GPUs that serve on "
            f"{nodes} {'node' if nodes == 1 else 'nodes'}, by {source}."
        )
    dp = options.dp or server_nodes * server_gpus // options.tp
    if server_gpus % options.tp or dp * options.tp != server_nodes * server_gpus:
        raise LaunchError(
            f"Expected --dp times --tp to be the GPUs that serve ({server_nodes} × {server_gpus}), and --tp GPUs "
            f"on one node, got --dp {dp} --tp {options.tp}."
        )
    ranks = gpus if nodes > 1 else gpus - server_gpus
    return Topology(mode, nodes, gpus, server_nodes, server_gpus, dp, options.tp, trainer_nodes, ranks)


def expect_whole_gpus(topology: Topology, devices: Sequence[str]) -> None:
    """Refuse parts of GPUs for ranks that train together: NCCL does not connect them.

    Args:
        topology: who trains.
        devices: of a node, as numbers or UUIDs.

    Raises:
        LaunchError: naming a part.
    """
    parts = [device for device in devices if device.startswith("MIG-")]
    if parts and topology.ranks > 1:
        raise LaunchError(
            f"Expected one rank on MIG parts, which NCCL does not connect, or whole GPUs, got {topology.ranks} ranks "
            f"on {parts[0]} and others (--gpus, --vllm)."
        )


def _expect_no_server_flags(options: Options, mode: str) -> None:
    """Refuse flags of a server where none is started: they would have no effect."""
    defaults = {"tp": 1, "ready_minutes": READY_MINUTES, "vllm_args": ()}
    for name in ("vllm_nodes", "vllm_gpus", "dp", "tp", "vllm_port", "vllm_group_port", "vllm_args", "ready_minutes"):
        value = getattr(options, name)
        if value != defaults.get(name):
            raise LaunchError(
                f"Expected {show_flag(name)} with a server of this job alone, got {show_flag(name, value)} "
                f"where vLLM is {mode} (--vllm {options.vllm})."
            )


def _expect_no_gpu_flags(options: Options, cpu_ranks: int) -> None:
    for name in ("gpus", "vllm_gpus") if cpu_ranks else ():
        value = getattr(options, name)
        if value is not None:
            raise LaunchError(
                f"Expected {show_flag(name)} with a launch file for GPUs, got {show_flag(name, value)} with "
                f"{show_flag('accelerator', options.accelerator)}."
            )


def _expect_trainers(options: Options, nodes: int, server_nodes: int) -> None:
    if nodes == 1 and server_nodes > 1:
        raise LaunchError(f"Expected --vllm-nodes 1 on one node, got --vllm-nodes {server_nodes}.")
    if nodes > 1 and server_nodes >= nodes:
        raise LaunchError(f"Expected --vllm-nodes < --nodes, got --vllm-nodes {server_nodes} --nodes {nodes}.")
