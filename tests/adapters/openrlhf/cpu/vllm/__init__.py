"""Stands in for vLLM where there is no GPU: the names that OpenRLHF imports of it, and an engine that samples slowly.

This is the one part of the end-to-end runs that is not real. The engine samples from the model that it loads at the
start; weights that are sent to it are counted and dropped, so no run with it can show a stale head after an update.
"""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import cuda_on_cpu  # noqa: F401  (before OpenRLHF asks for a device)
import torch

__version__ = "0.29.0"


@dataclass
class SamplingParams:
    """How to sample; what OpenRLHF sets beside these fields is kept and not used."""

    temperature: float = 1.0
    max_tokens: int | None = None
    logprobs: int | None = None
    top_p: float = 1.0
    top_k: int = -1
    min_tokens: int = 1
    skip_special_tokens: bool = False


@dataclass
class AsyncEngineArgs:
    """The model to load; the rest is about GPUs."""

    model: str
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __init__(self, model: str, seed: int = 0, **options: Any) -> None:
        self.model, self.seed, self.options = model, seed, options


class AsyncLLMEngine:
    """Samples a token at a time from a Hugging Face model on the CPU."""

    def __init__(self, args: AsyncEngineArgs) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(args.model)
        self.chance = torch.Generator().manual_seed(args.seed)
        self.calls: Counter[str] = Counter()
        self.output_processor = SimpleNamespace(get_num_unfinished_requests=lambda: 0)

    @classmethod
    def from_engine_args(cls, args: AsyncEngineArgs) -> "AsyncLLMEngine":
        return cls(args)

    @torch.no_grad()
    async def generate(self, prompt: dict[str, Any], params: SamplingParams, request_id: str) -> AsyncIterator[Any]:
        """Yield the finished completion of a prompt."""
        ids, sampled, logprobs = list(prompt["prompt_token_ids"]), [], []
        while len(sampled) < (params.max_tokens or 1):
            logits = self.model(torch.tensor([ids + sampled])).logits[0, -1] / params.temperature
            token = int(torch.multinomial(logits.softmax(-1), 1, generator=self.chance))
            logprobs.append({token: SimpleNamespace(logprob=float(logits.log_softmax(-1)[token]))})
            sampled.append(token)
            if token == self.tokenizer.eos_token_id:
                break
        stopped = sampled[-1] == self.tokenizer.eos_token_id
        completion = SimpleNamespace(
            token_ids=sampled,
            text=self.tokenizer.decode(sampled),
            finish_reason="stop" if stopped else "length",
            logprobs=logprobs if params.logprobs else None,
        )
        yield SimpleNamespace(outputs=[completion])

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> None:
        self.calls[method] += 1

    async def is_sleeping(self) -> bool:
        return False

    async def reset_prefix_cache(self) -> None: ...

    async def pause_generation(self, mode: str) -> None: ...

    async def resume_generation(self) -> None: ...
