"""The warm start: supervised learning on answers of which some are far more frequent than others."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tiny.sampling import Task

PairSampler = Callable[[random.Random], tuple[str, str]]


def build_skewed_sampler(
    task: Task,
    problems: Sequence[Any],
    list_solutions: Callable[[Any], Mapping[str, Sequence[str]]] = countdown.solutions,
    *,
    complete: Callable[[str, random.Random], str] = lambda text, rng: text,
) -> PairSampler:
    """Return a sampler of (prompt, answer) that prefers some right answers, as text that people write does.

    Each mode of a problem is half as likely as the one before it, and is written in any of its ways.

    Args:
        task: how a problem becomes a prompt.
        problems: drawn uniformly.
        list_solutions: returns the texts of each mode of a problem.
        complete: makes a whole answer of such a text.
    """
    solutions = [list_solutions(problem) for problem in problems]

    def draw_pair(rng: random.Random) -> tuple[str, str]:
        which = rng.randrange(len(problems))
        modes = sorted(solutions[which])
        rank = next((rank for rank in range(len(modes) - 1) if rng.random() < 0.5), len(modes) - 1)
        answer = complete(rng.choice(solutions[which][modes[rank]]), rng)
        return task.prompt(problems[which]), answer

    return draw_pair


def warm_start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    draw_pair: PairSampler,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Iterator[float]:
    """Train on pairs of prompt and answer; yield the loss of every step."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), 1 - step / steps)
    )
    model.train()
    for _ in range(steps):
        prompts, answers = zip(*(draw_pair(rng) for _ in range(batch_size)), strict=True)
        # Prompts are padded on the left and answers on the right, so that all answers begin in one column.
        prompt_ids = tokenizer(list(prompts), return_tensors="pt", padding=True)["input_ids"].to(model.device)
        texts = [answer + tokenizer.eos_token for answer in answers]
        encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right").to(model.device)
        answer_ids, answer_mask = encoded["input_ids"], encoded["attention_mask"].bool()
        inputs = torch.cat([prompt_ids, answer_ids], dim=1)
        attention = torch.cat([prompt_ids != tokenizer.pad_token_id, answer_mask], dim=1).long()
        positions = (attention.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=inputs, attention_mask=attention, position_ids=positions).logits
        targets = answer_ids.masked_fill(~answer_mask, -100)
        loss = cross_entropy(logits[:, prompt_ids.shape[1] - 1 : -1].flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        yield loss.item()
