"""Drawing completions from a model, scoring them, and their token log-probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.pipeline.tasks.answers import Verdict


@dataclass(frozen=True)
class Task:
    """How problems become prompts and answers become verdicts: a task as the training code sees it."""

    prompt: Callable[[Any], str]
    verify: Callable[[Any, str], Verdict]


@dataclass(frozen=True)
class Samples:
    """Completions of a batch of problems, K for each, a row each; groups are consecutive rows.

    Attributes:
        prompts: [N, P] left-padded prompt tokens.
        ids: [N, T] completion tokens, padded on the right after the end token.
        mask: [N, T] bool, True up to and with the end token.
        texts: N completions as text.
        verdicts: N verdicts of the task.
    """

    prompts: Tensor
    ids: Tensor
    mask: Tensor
    texts: list[str]
    verdicts: list[Verdict]

    @property
    def rewards(self) -> Tensor:
        """Return 1 for right answers and 0 for wrong ones, [N]."""
        return torch.tensor([float(verdict.correct) for verdict in self.verdicts])


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Any],
    *,
    num_samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    static_cache: bool = False,
) -> Samples:
    """Return `num_samples` completions of each problem; temperature 0 is greedy.

    A prompt is read once for all of its completions, and one that has ended is not computed any further. With a
    static cache both are done by transformers' `generate`, for every row to the end: on a GPU it compiles the step
    that makes a token, which then costs a fraction.
    """
    texts = [task.prompt(problem) for problem in problems]
    encoded = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
    prompts = encoded["input_ids"].repeat_interleave(num_samples, dim=0)
    seen = encoded["attention_mask"].repeat_interleave(num_samples, dim=0)
    model.eval()
    if static_cache:
        choice = (
            {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
        )
        generated = model.generate(
            input_ids=prompts,
            attention_mask=seen,
            cache_implementation="static",
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            **choice,
        )
        ids = generated[:, prompts.shape[1] :]
    else:
        cache = _read_prompts(model, encoded["input_ids"], encoded["attention_mask"], copies=num_samples)
        ids = _complete(
            model, prompts[:, -1:], seen, cache, tokenizer, max_new_tokens=max_new_tokens, temperature=temperature
        )
    mask = ((ids == tokenizer.eos_token_id).cumsum(-1) - (ids == tokenizer.eos_token_id).long()) == 0
    texts = tokenizer.batch_decode(ids.masked_fill(~mask, tokenizer.pad_token_id), skip_special_tokens=True)
    owners = [problem for problem in problems for _ in range(num_samples)]
    verdicts = [task.verify(problem, text) for problem, text in zip(owners, texts, strict=True)]
    return Samples(prompts, ids, mask, texts, verdicts)


def _complete(
    model: PreTrainedModel,
    tokens: Tensor,
    seen: Tensor,
    cache: DynamicCache,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    temperature: float,
) -> Tensor:
    """Return completions [N, T] of prompts whose last tokens [N, 1] the cache lacks; rows that end drop out."""
    ids = tokens.new_full((len(tokens), max_new_tokens), tokenizer.pad_token_id)
    rows = torch.arange(len(tokens), device=tokens.device)
    for place in range(max_new_tokens):
        positions = seen.sum(-1, keepdim=True) - 1
        output = model(
            input_ids=tokens, attention_mask=seen, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        tokens = _choose(output.logits[:, -1].float(), temperature)
        ids[rows, place] = tokens.squeeze(-1)
        going = (tokens != tokenizer.eos_token_id).squeeze(-1).nonzero().squeeze(-1)
        if len(going) == 0:
            return ids[:, : place + 1]
        if len(going) < len(rows):
            rows, tokens, seen = rows[going], tokens[going], seen[going]
            cache.batch_select_indices(going)
        seen = torch.cat([seen, torch.ones_like(tokens)], dim=1)
    return ids


def _choose(logits: Tensor, temperature: float) -> Tensor:
    """Return a token for each row of logits [n, V], [n, 1]."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits / temperature).softmax(-1), 1)


def _read_prompts(model: PreTrainedModel, prompts: Tensor, seen: Tensor, *, copies: int) -> DynamicCache:
    """Return keys and values of left-padded prompts [B, P] but their last token, `copies` rows for each."""
    cache = DynamicCache(config=model.config)
    if prompts.shape[1] < 2:
        return cache
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    model(
        input_ids=prompts[:, :-1],
        attention_mask=seen[:, :-1],
        position_ids=positions[:, :-1],
        past_key_values=cache,
        logits_to_keep=1,
    )
    cache.batch_repeat_interleave(copies)
    return cache


def token_logps(model: PreTrainedModel, prompts: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probabilities [N, T] of completion tokens after left-padded prompts."""
    return completion_logits(model, prompts, ids).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def completion_logits(model: PreTrainedModel, prompts: Tensor, ids: Tensor) -> Tensor:
    """Return the float logits [N, T, V] that predict completion tokens after left-padded prompts."""
    pad = model.config.pad_token_id
    inputs = torch.cat([prompts, ids], dim=1)
    attention = torch.cat([prompts != pad, torch.ones_like(ids, dtype=torch.bool)], dim=1).long()
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    output = model(
        input_ids=inputs, attention_mask=attention, position_ids=positions, logits_to_keep=ids.shape[1] + 1
    )
    logits: Tensor = output.logits[:, :-1].float()
    return logits


def shared_prompt_states(model: PreTrainedModel, prompts: Tensor, ids: Tensor, owners: Tensor) -> Tensor:
    """Return the states [N, T, D] before the head that predict completion tokens, from one pass over each prompt.

    Completions of a prompt differ from its end on. Reading it once saves what long prompts and short answers waste.
    The gradient goes through the keys and values of the prompts.

    Args:
        model: whose attention only looks back.
        prompts: [B, P] left-padded prompt tokens.
        ids: [N, T] completion tokens.
        owners: [N] the prompt of each completion.
    """
    seen = prompts != model.config.pad_token_id
    positions = (seen.long().cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    read = model.base_model(
        input_ids=prompts, attention_mask=seen.long(), position_ids=positions, past_key_values=cache, use_cache=True
    )
    first: Tensor = read.last_hidden_state[:, -1:][owners]
    inputs = ids[:, :-1]
    if not inputs.shape[1]:
        return first
    cache.batch_select_indices(owners)
    rest = model.base_model(
        input_ids=inputs,
        attention_mask=torch.cat([seen[owners], torch.ones_like(inputs, dtype=torch.bool)], dim=1).long(),
        position_ids=positions[owners, -1:] + 1 + torch.arange(inputs.shape[1], device=ids.device),
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([first, rest.last_hidden_state], dim=1)


def shared_prompt_logits(model: PreTrainedModel, prompts: Tensor, ids: Tensor, owners: Tensor) -> Tensor:
    """Return the float logits [N, T, V] of `completion_logits` from `shared_prompt_states`."""
    logits: Tensor = model.get_output_embeddings()(shared_prompt_states(model, prompts, ids, owners))
    return logits.float()
