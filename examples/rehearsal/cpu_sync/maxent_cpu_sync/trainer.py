"""The trainer's side: TRL's client and generation with gloo where TRL has NCCL; nothing of TRL is patched."""

import atexit
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from vllm.utils.network_utils import get_ip

from maxent_cpu_sync.group import broadcast_weight, join_group


class GlooClient(VLLMClient):
    """TRL's client, whose weights go over gloo."""

    repairs_head = True

    def init_communicator(self, device: Any = 0) -> None:
        """Make a group with the server's workers."""
        del device
        size = self.get_world_size() + 1
        place = {"master_address": get_ip(), "master_port": self.group_port, "rank_offset": 1, "world_size": size}
        with ThreadPoolExecutor(1) as executor:
            answer = executor.submit(
                self._post, f"{self.base_url}/init_weight_transfer_engine", json={"init_info": place}
            )
            self.communicator, self.store = join_group(place["master_address"], self.group_port, 0, size)
            answer.result()
        atexit.register(self.close_communicator)

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, torch.Tensor]]
    ) -> None:
        """Announce weights, then send them in the same order."""
        names, dtypes, shapes = (list(column) for column in zip(*metadata, strict=True))
        update = {"names": names, "dtype_names": dtypes, "shapes": shapes, "repairs_head": self.repairs_head}
        is_alone = not self._updating_weights
        if is_alone:
            self._start_weight_update()
        with ThreadPoolExecutor(1) as executor:
            answer = executor.submit(self._post, f"{self.base_url}/update_weights", json={"update_info": update})
            for _, weight in named_params:
                broadcast_weight(self.communicator, weight.detach().contiguous().cpu())
            answer.result()
        if is_alone:
            self._finish_weight_update()

    def close_communicator(self) -> None:
        """Leave the group."""
        self.communicator = self.store = None


class GlooGeneration(VLLMGeneration):
    """TRL's generation with a server, through that client."""

    def _init_vllm(self) -> None:
        if self.accelerator.is_main_process:
            self.vllm_client = GlooClient(
                base_url=self.server_base_url,
                group_port=self.group_port,
                connection_timeout=self.server_timeout,
            )
            self.vllm_client.init_communicator()
        self.accelerator.wait_for_everyone()


class GlooServer:
    """A mixin of TRL's trainers: they generate through a vLLM server on a CPU.

    TRL makes its generation by class name and wants CUDA for it. So it is told that there is no vLLM while it is
    made, and gets this generation afterwards.
    """

    def __init__(self, model: Any, reward_funcs: Any, args: Any, *rest: Any, **kwargs: Any) -> None:
        args.use_vllm = False
        super().__init__(model, reward_funcs, args, *rest, **kwargs)  # type: ignore[call-arg]
        args.use_vllm = self.use_vllm = True
        names = ("repetition_penalty", "temperature", "top_p", "top_k", "min_p", "max_completion_length")
        self.vllm_generation = GlooGeneration(
            model=self.model,  # type: ignore[attr-defined]
            accelerator=self.accelerator,  # type: ignore[attr-defined]
            processing_class=self.processing_class,  # type: ignore[attr-defined]
            mode="server",
            server_base_url=args.vllm_server_base_url,
            server_timeout=args.vllm_server_timeout,
            group_port=args.vllm_group_port,
            logprobs=0,
            generation_kwargs=args.generation_kwargs,
            **{name: getattr(self, name) for name in names},
        )
        self._last_loaded_step = -1

    def evaluate(self, *arguments: Any, **kwargs: Any) -> Any:
        """Evaluate; with REHEARSE_STALE_HEAD set, first after a refresh that leaves a tied head as it was."""
        if os.environ.get("REHEARSE_STALE_HEAD") and self._last_loaded_step != self.state.global_step:  # type: ignore[attr-defined]
            self._set_repair(False)
            super().evaluate(*arguments, **(kwargs | {"metric_key_prefix": "eval_stale_head"}))  # type: ignore[misc]
            self._set_repair(True)
            self._last_loaded_step = -1
        return super().evaluate(*arguments, **kwargs)  # type: ignore[misc]

    def _set_repair(self, is_on: bool) -> None:
        if self.accelerator.is_main_process:  # type: ignore[attr-defined]
            self.vllm_generation.vllm_client.repairs_head = is_on
