"""A gloo group of the trainer (rank 0) and the server's workers, beside torch's default group."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(seconds=60)


def join_group(address: str, port: int, rank: int, size: int) -> tuple[Any, Any]:
    """Return the group and its store, once all its members are there."""
    store = dist.TCPStore(address, port, size, is_master=rank == 0, timeout=PATIENCE)
    return dist.ProcessGroupGloo(dist.PrefixStore("weights", store), rank, size, PATIENCE), store


def broadcast_weight(group: Any, weight: torch.Tensor) -> None:
    """Send a weight from rank 0, or receive it in place."""
    options = dist.BroadcastOptions()
    options.rootRank = 0
    group.broadcast([weight], options).wait()
