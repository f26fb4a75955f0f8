"""A Ray cluster of one's own, on loopback and in a folder of its own, with verl's TransferQueue on it."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import psutil
import ray
import torch
import transfer_queue as tq
from torch import Tensor
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.utils import tensordict_utils as tu

from support.verl_golden import Batch

EOS = 1


@contextlib.contextmanager
def start_ray(processes: list[psutil.Process]) -> Iterator[None]:
    """Run Ray and the queue; note every process of theirs, so that what outlives them can be told."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: a socket's path has at most 107 bytes
    # The queue's actors ask for CPUs by the dozen, and wait for ever where there are fewer.
    where = {"_temp_dir": folder, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(num_cpus=32, num_gpus=0, include_dashboard=False, log_to_driver=False, **where)
        tq.init({"backend": {"SimpleStorage": {"num_data_storage_units": 2, "total_storage_size": 1000}}})
        yield
    finally:
        processes.extend(psutil.Process().children(recursive=True))
        tq.close()
        ray.shutdown()
        psutil.wait_procs(processes, timeout=30)  # they still write there
        shutil.rmtree(folder, ignore_errors=True)


def put_batch(batch: Batch, multiple: int, order: torch.Generator) -> Any:
    """Put the rows into the queue, let verl pad them to a multiple, and shuffle them as its balancing does."""
    tags = [{"prompt_len": 1, "response_len": 1, "seq_len": 2} for _ in batch.keys]
    rows = [row | {"position_ids": torch.arange(len(row["input_ids"]))} for row in batch.rows]
    tq.kv_batch_put(keys=batch.keys, partition_id="train", fields=tu.list_of_dict_to_tensordict(rows), tags=tags)
    meta = tq.KVBatchMeta(keys=list(batch.keys), tags=tags, partition_id="train")
    meta = upsample_batch_to_divisible_size(meta, multiple, EOS)
    meta.reorder(torch.randperm(len(meta), generator=order).tolist())
    return meta


def get_advantages(meta: Any, batch: Batch) -> list[Tensor]:
    """Return what the queue holds for the actor's loss, a tensor per row of the batch."""
    stored = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["advantages"])
    rows = list(stored["advantages"].unbind())
    tq.kv_clear(keys=meta.keys, partition_id="train")
    return rows


def find_survivors(processes: list[psutil.Process], seconds: float = 60.0) -> list[str]:
    """Return the names of the processes that are still there after a while; a zombie is none."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [process.name() for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
