"""Warm start by supervised learning, and reinforcement learning from there: the loops a user would write."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo import MaxEntConfig, Statistics
from maxent_grpo.adapters.torch_loop import MaxEntLoss
from tiny.sampling import Samples, Task, sample, token_logps


def warm_start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Callable[[random.Random], tuple[str, str]],
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Iterator[float]:
    """Train on (prompt, answer) pairs drawn by `pairs`; yield the loss of every step."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), 1 - step / steps)
    )
    model.train()
    for _ in range(steps):
        prompts, answers = zip(*(pairs(rng) for _ in range(batch_size)), strict=True)
        asked = tokenizer(list(prompts), return_tensors="pt", padding=True)["input_ids"]
        texts = [answer + tokenizer.eos_token for answer in answers]
        told = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        inputs = torch.cat([asked, told["input_ids"]], dim=1)
        seen = torch.cat([asked != tokenizer.pad_token_id, told["attention_mask"].bool()], dim=1)
        positions = (seen.long().cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=inputs, attention_mask=seen.long(), position_ids=positions).logits
        targets = told["input_ids"].masked_fill(told["attention_mask"] == 0, -100)
        loss = cross_entropy(logits[:, asked.shape[1] - 1 : -1].flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.item()


class Reinforcement:
    """One run of reinforcement learning: on-policy batches, one update each, resumable between updates."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        config: MaxEntConfig,
        *,
        reference: PreTrainedModel | None = None,
        learning_rate: float,
        prompts_per_step: int,
        num_samples: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.model, self.tokenizer, self.task = model, tokenizer, task
        self.loss_fn = MaxEntLoss(config)
        self.reference = reference if config.needs_reference else None
        self.optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        self.prompts_per_step, self.num_samples = prompts_per_step, num_samples
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.seed, self.step = seed, 0

    def update(self, problems: Sequence[Any]) -> tuple[Samples, Statistics]:
        """Sample completions of a batch of `problems`, take one optimiser step, and return what was seen.

        The batch and the samples depend on the seed and the step alone, so that all methods see the same
        prompts and a resumed run continues as if nothing had happened.
        """
        batch = random.Random(f"{self.seed}/{self.step}").sample(list(problems), self.prompts_per_step)
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        samples = sample(
            self.model,
            self.tokenizer,
            self.task,
            batch,
            num_samples=self.num_samples,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
        )
        ref_logps = None
        if self.reference is not None:
            with torch.no_grad():
                ref_logps = token_logps(self.reference, samples.prompts, samples.ids)
        self.model.train()
        logps = token_logps(self.model, samples.prompts, samples.ids)
        loss, statistics = self.loss_fn(
            logps,
            samples.rewards,
            samples.mask,
            group_sizes=self.num_samples,
            ref_logps=ref_logps,
            ids=samples.ids,
            generator=torch.Generator().manual_seed(self.seed * 1_000_003 + self.step),
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return samples, statistics

    def state_dict(self) -> dict[str, Any]:
        """Return what a later `load_state_dict` needs to go on."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
