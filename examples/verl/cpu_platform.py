"""A platform of verl on which FSDP2 trains over gloo on a CPU; verl has none.

verl imports it where VERL_USE_EXTERNAL_MODULES names it, and takes it where VERL_PLATFORM is cpu.
"""

import contextlib
import dataclasses
import os
from types import SimpleNamespace
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def do_nothing(*_: Any, **__: Any) -> int:
    return 0


IDLE = (
    "empty_cache ipc_collect max_memory_allocated max_memory_reserved memory_allocated memory_reserved set_device "
    "reset_peak_memory_stats synchronize get_rng_state set_rng_state"
)
MODULE = SimpleNamespace(
    **dict.fromkeys(IDLE.split(), do_nothing),
    current_device=lambda: "cpu",
    get_device_name=lambda: "cpu",
    is_available=lambda: True,
    mem_get_info=lambda: (0, 0),
)
"""What verl asks of `torch.cuda`; there is no memory to account for."""


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """Answers for a machine without an accelerator."""

    device_name = vendor_name = "cpu"
    device_module = MODULE

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        # verl asks for it beside gloo for the CPU; torch refuses one device named twice, so the group is made here.
        if "RANK" in os.environ and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", init_method=os.environ.get("DIST_INIT_METHOD"))
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> Any:
        return contextlib.nullcontext()

    def ray_resource_name(self) -> str:
        return "GPU"  # verl asks Ray for devices, which `num_gpus` of ray.init makes up

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None

    set_device = synchronize = manual_seed = manual_seed_all = do_nothing
    set_allocator_settings = empty_cache = profiler_start = profiler_stop = do_nothing


# What verl chooses by platform can only be imported now.
from verl.workers.engine.base import EngineRegistry  # noqa: E402
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead  # noqa: E402


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")
class CpuEngine(FSDPEngineWithLMHead):
    """verl's engine, with a reference that is not kept in pinned memory, which needs an accelerator."""

    def _build_fsdp_module(self, module: Any) -> Any:
        config = self.engine_config
        self.engine_config = dataclasses.replace(config, forward_only=False)
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = config
