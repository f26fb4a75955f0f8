"""Checks on two processes of one gloo group, and an end to such processes that cannot abort."""

import importlib
import os
import socket
import sys
from collections.abc import Callable

import torch
import torch.multiprocessing as mp

RANKS = 2


def on_ranks(check: Callable[..., None], *arguments: object, ranks: int = RANKS) -> None:
    """Run `check(rank, *arguments)` on every rank; the first failure is raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_ranked, (port, ranks, check, *arguments), nprocs=ranks)


def _ranked(rank: int, port: int, ranks: int, check: Callable[..., None], *arguments: object) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks)
    )
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    check(rank, *arguments)
    leave_together()


def spare_deepspeed_compiling() -> None:
    """Take DeepSpeed's all-reduce through shared memory away, which it would compile for minutes."""
    module = importlib.import_module("deepspeed.comm.torch")  # an import statement finds what it calls torch: torch
    module.build_shm_op = lambda: None  # type: ignore[attr-defined]


def leave_together() -> None:
    """End this process once all ranks are here, without Python's shutdown.

    gloo's threads take the GIL to drop the tensors of the last collective, and abort a process that is shutting down.
    Meshes, wrapped models and DeepSpeed hold on to the groups, so that destroying them joins no thread.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # a rank that leaves early takes its connections away from the others
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
