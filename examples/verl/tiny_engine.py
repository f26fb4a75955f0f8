"""A rollout engine for a CPU: transformers generate, weights come through Ray. Stands in where verl has vLLM.

It shows that verl's trainer, queue, workers and losses run with ours. It cannot show what a real engine gets wrong,
such as a head that stays behind after its weights were updated.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import cpu_platform  # noqa: F401  (registers the CPU with verl)
import ray
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from verl.checkpoint_engine import CheckpointEngine, CheckpointEngineRegistry
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput
from verl.workers.rollout.utils import ensure_async_iterator

NAME = "tiny_server_{}"


class TinyServer:
    """Samples from a model of its own."""

    def __init__(self, path: str, response_length: int) -> None:
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
        self.response_length, self.version = response_length, 0

    async def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        missing = self.model.load_state_dict(weights, strict=False).missing_keys
        tied = ["lm_head.weight"] if self.model.config.tie_word_embeddings else []
        assert set(missing) <= set(tied), missing
        self.version = version

    async def generate(self, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> TokenOutput:
        """Return one completion and the log-probabilities that it was drawn with."""
        ids, logps = list(prompt_ids), []
        for _step in range(self.response_length):
            with torch.no_grad():
                distribution = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            token = int(torch.multinomial(distribution.exp(), 1))
            ids.append(token)
            logps.append(float(distribution[token]))
            if token == self.model.config.eos_token_id:
                break
        return TokenOutput(
            token_ids=ids[len(prompt_ids) :],
            log_probs=logps if sampling_params.get("logprobs") else None,
            stop_reason="completed",
            extra_fields={"global_steps": self.version},
        )

    async def do_nothing(self, **_: Any) -> None:
        """There is no memory to give back, and no request to wait for."""

    wake_up = sleep = abort_all_requests = resume_generation = clear_kv_cache = do_nothing
    release_kv_cache = resume_kv_cache = start_profile = stop_profile = do_nothing


class TinyReplica(RolloutReplica):
    """Starts a server, beside the workers that train or apart from them."""

    async def launch_servers(self) -> None:
        name = NAME.format(self.replica_rank)
        server = ray.remote(TinyServer).options(name=name, num_cpus=0, max_concurrency=64)
        self._server_handle = server.remote(self.model_config.path, self.config.response_length)
        self._server_address = name
        self.servers.append(self._server_handle)


class TinyRollout(base.BaseRollout):
    """Hands weights to the server of a replica: the first one's trains, others say which they are."""

    def __init__(self, *settings: Any, replica_rank: int = 0, **options: Any) -> None:
        super().__init__(*settings, **options)
        self.server = NAME.format(replica_rank)

    async def resume(self, tags: list[str]) -> None:
        """Do nothing: nothing was put to sleep."""

    async def release(self) -> None:
        """Do nothing."""

    async def update_weights(self, weights: Any, global_steps: int | None = None, **_: Any) -> None:
        state = await collect_weights(weights)  # every rank gathers
        if torch.distributed.get_rank() == 0:
            await ray.get_actor(self.server).load_weights.remote(state, global_steps or 0)


async def collect_weights(weights: Any) -> dict[str, Tensor]:
    return {name: weight.detach().cpu().clone() async for name, weight in ensure_async_iterator(weights)}


class Mailbox:
    """Holds the weights of one update until servers apart from the trainer have taken them."""

    def __init__(self) -> None:
        self.filled, self.weights = asyncio.Event(), dict[str, Tensor]()

    async def put(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.filled.set()

    async def take(self) -> dict[str, Tensor]:
        await self.filled.wait()
        return self.weights


@CheckpointEngineRegistry.register("tiny")
class TinyTransfer(CheckpointEngine):
    """Sends weights to those servers through Ray, where verl has NCCL."""

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        self.mailbox: Any = None

    def prepare(self) -> dict[str, Any]:
        return {}

    @classmethod
    def build_topology(cls, actors: int, servers: int, metadata: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        mailbox = ray.remote(Mailbox).options(num_cpus=0).remote()
        return {"mailbox": [mailbox] * actors}, {"mailbox": [mailbox] * servers}

    def init_process_group(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    async def send_weights(self, weights: Iterator[tuple[str, Tensor]], global_steps: int | None = None) -> None:
        state = await collect_weights(weights)
        if torch.distributed.get_rank() == 0:
            await self.mailbox.put.remote(state)

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, Tensor]]:
        for name, weight in (await self.mailbox.take.remote()).items():
            yield name, weight

    def finalize(self) -> None:
        self.mailbox = None


base._ROLLOUT_REGISTRY["tiny", "async"] = f"{__name__}.TinyRollout"
RolloutReplicaRegistry.register("tiny", lambda: TinyReplica)
