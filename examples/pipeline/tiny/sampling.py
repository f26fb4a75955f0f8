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


@dataclass(frozen=True)
class _Read:
    """What a model made of prompts, a row each.

    Attributes:
        cache: their keys and values.
        seen: [B, P] integers, 1 where the cache holds a token of the prompt and 0 where it holds padding.
        states: [B, R, D] states before the head, those of the prompts' last tokens last.
    """

    cache: DynamicCache
    seen: Tensor
    states: Tensor


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

    A beginning that prompts or completions share is computed once, and nothing after a completion's end token. With a
    static cache transformers' `generate` does the work, for every row to the end: on a GPU it compiles the step that
    makes a token, which then costs a fraction.
    """
    texts = [task.prompt(problem) for problem in problems]
    encoded = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
    prompts = encoded["input_ids"].repeat_interleave(num_samples, dim=0)
    model.eval()
    if static_cache:
        choice = (
            {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
        )
        generated = model.generate(
            input_ids=prompts,
            attention_mask=encoded["attention_mask"].repeat_interleave(num_samples, dim=0),
            cache_implementation="static",
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            **choice,
        )
        ids = generated[:, prompts.shape[1] :]
    else:
        ids = _complete(
            model,
            _read_prompts(model, encoded["input_ids"]),
            tokenizer,
            num_samples=num_samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )
    mask = ((ids == tokenizer.eos_token_id).cumsum(-1) - (ids == tokenizer.eos_token_id).long()) == 0
    texts = tokenizer.batch_decode(ids.masked_fill(~mask, tokenizer.pad_token_id), skip_special_tokens=True)
    owners = [problem for problem in problems for _ in range(num_samples)]
    verdicts = [task.verify(problem, text) for problem, text in zip(owners, texts, strict=True)]
    return Samples(prompts, ids, mask, texts, verdicts)


def _complete(
    model: PreTrainedModel,
    read: _Read,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_samples: int,
    max_new_tokens: int,
    temperature: float,
) -> Tensor:
    """Return completions [N, T] of prompts that were read; those that are equal so far are computed once.

    `rows` are the completions still open, `branches` for each the row of the cache that holds its text so far.
    """
    logits, seen = model.get_output_embeddings()(read.states[:, -1]), read.seen
    branches = torch.arange(len(seen), device=seen.device).repeat_interleave(num_samples)
    rows = torch.arange(len(branches), device=seen.device)
    ids = rows.new_full((len(rows), max_new_tokens), tokenizer.pad_token_id)
    for place in range(max_new_tokens):
        ids[rows, place] = tokens = _choose(logits.float(), branches, temperature)
        going = tokens != tokenizer.eos_token_id
        if not going.any() or place == max_new_tokens - 1:
            break
        rows = rows[going]
        texts = torch.stack([branches[going], tokens[going]], dim=1)
        longer, branches = torch.unique(texts, dim=0, return_inverse=True)
        if not torch.equal(longer[:, 0], torch.arange(len(seen), device=seen.device)):  # some end, split or move
            read.cache.batch_select_indices(longer[:, 0])
        seen = torch.cat([seen[longer[:, 0]], torch.ones_like(longer[:, 1:])], dim=1)
        positions = seen.sum(-1, keepdim=True) - 1
        output = model(
            input_ids=longer[:, 1:], attention_mask=seen, position_ids=positions, past_key_values=read.cache
        )
        logits = output.logits[:, -1]
    return ids[:, : place + 1]


def _choose(logits: Tensor, branches: Tensor, temperature: float) -> Tensor:
    """Return a token for each completion, [n], from the logits [b, V] of its branch [n]."""
    if temperature == 0:
        return logits.argmax(-1)[branches]
    return torch.multinomial((logits / temperature).softmax(-1)[branches], 1).squeeze(-1)


def _read_prompts(model: PreTrainedModel, prompts: Tensor) -> _Read:
    """Read left-padded prompts [B, P], what all of them begin with only once."""
    shared, rest = _split_prompts(prompts, model.config.pad_token_id)
    cache = DynamicCache(config=model.config)
    if len(shared):
        model.base_model(input_ids=shared.unsqueeze(0), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(rest))
    seen = torch.cat([shared.expand(len(rest), -1), rest], dim=1) != model.config.pad_token_id
    positions = (seen.long().cumsum(-1) - 1).clamp(min=0)[:, len(shared) :]
    output = model.base_model(
        input_ids=rest, attention_mask=seen.long(), position_ids=positions, past_key_values=cache, use_cache=True
    )
    return _Read(cache, seen.long(), output.last_hidden_state)


def _split_prompts(prompts: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Return the tokens [S] that left-padded prompts [B, P] begin with, never a last one, and the rest [B, P − S].

    >>> shared, rest = _split_prompts(torch.tensor([[0, 5, 6, 7], [5, 6, 8, 9]]), pad=0)
    >>> shared.tolist(), rest.tolist()
    ([5, 6], [[0, 7], [8, 9]])
    """
    starts = (prompts == pad).sum(-1, keepdim=True)
    most = prompts.shape[1] - int(starts.max()) - 1
    heads = prompts.gather(1, starts + torch.arange(most, device=prompts.device))
    shared = heads[0, : int((heads == heads[0]).all(0).cumprod(0).sum())]
    rest = prompts[:, len(shared) :]
    return shared, rest.masked_fill(torch.arange(rest.shape[1], device=prompts.device) < starts, pad)


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
    read = _read_prompts(model, prompts)
    first, seen = read.states[:, -1:][owners], read.seen[owners]
    inputs = ids[:, :-1]
    if not inputs.shape[1]:
        return first
    read.cache.batch_select_indices(owners)
    rest = model.base_model(
        input_ids=inputs,
        attention_mask=torch.cat([seen, torch.ones_like(inputs)], dim=1),
        position_ids=seen.sum(-1, keepdim=True) + torch.arange(inputs.shape[1], device=ids.device),
        past_key_values=read.cache,
        use_cache=True,
    )
    return torch.cat([first, rest.last_hidden_state], dim=1)


def shared_prompt_logits(model: PreTrainedModel, prompts: Tensor, ids: Tensor, owners: Tensor) -> Tensor:
    """Return the float logits [N, T, V] of `completion_logits` from `shared_prompt_states`."""
    logits: Tensor = model.get_output_embeddings()(shared_prompt_states(model, prompts, ids, owners))
    return logits.float()
