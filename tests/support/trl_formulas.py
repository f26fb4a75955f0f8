"""The gradient of eqs. (7) and (8) on the replayed groups, summed candidate by candidate in float64."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maxent_grpo import MaxEntConfig, reference
from support import trl_tiny
from support.precision import Bounded, evaluate, store

K, PROMPTS = 4, 2
DEFAULT = MaxEntConfig(nll_reduction="max_length", max_length=trl_tiny.COMPLETION)
"""What a trainer's arguments amount to where none of the method's is set: as published, on the scale of GRPO."""
Completion = list[int]


def list_groups() -> list[list[tuple[list[int], Completion]]]:
    """Return the (prompt, completion) ids of the replayed groups of one optimiser step."""
    words = trl_tiny.build_tokenizer()
    return [
        [(words(prompt)["input_ids"], trl_tiny.make_completion(prompt, number)) for number in range(K)]
        for prompt in trl_tiny.make_prompts(PROMPTS)["prompt"]
    ]


def compute_utilities(score: Callable[[Completion], float] | None = None) -> np.ndarray:
    """Return each candidate's utility, [PROMPTS, K]."""
    score = score or (lambda ids: trl_tiny.reward([ids])[0])
    return np.array([[score(completion) for _, completion in group] for group in list_groups()])


def compute_token_logps(model: Any, prompt: list[int], completion: Completion, temperature: float = 1.0) -> Tensor:
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1)


def compute_coefficients(config: MaxEntConfig, u: np.ndarray, sums: np.ndarray, refs: np.ndarray, lengths: np.ndarray,
                 names: list[int]) -> np.ndarray:  # fmt: skip
    """Return a group's coefficients [K] with the oracle; a NaN utility leaves the group."""
    mask = ~np.isnan(u) & (lengths > 0)
    u = np.where(mask, u, 0.0)
    scores = sums / np.maximum(lengths, 1) if config.nll_reduction == "mean" else sums
    anchors = {"reference": refs / np.maximum(lengths, 1), "old": scores}.get(config.anchor)
    log_q = store(reference.listwise_log_q(u, temperature=config.q_temperature, eps=config.q_eps, mask=mask))
    log_target = reference.tempered_log_target(log_q, anchors, tau=config.tau, beta=config.beta, mask=mask)
    weights, advantages = np.exp(store(log_target)), (u - u[mask].mean()) * mask
    if config.projection == "surrogate":
        powers = np.exp(store(advantages * lengths / config.max_length / config.surrogate_tau)) * mask
        weights = powers / powers.sum()
    if config.dedup > 0:
        counts = reference.duplicate_counts(names, mask=mask)
        weights = reference.discount_duplicates(weights, counts, strength=config.dedup, mask=mask)
    if config.center:
        weights = reference.center_weights(weights, mask=mask)
    if config.projection == "surrogate":
        weights = weights * advantages
    if config.projection == "listwise":
        weights = weights - np.where(mask, np.exp(scores), 0) / np.exp(scores)[mask].sum()
    if config.skip == "all_min" and (u[mask] <= config.min_utility).all():
        weights = 0 * weights
    return store(weights * u[mask].mean() ** config.success_power)


def compute_gradient(
    policy: Any,
    frozen: Any,
    config: MaxEntConfig,
    rewards: np.ndarray,
    *,
    temperature: float = 1.0,
    counted: Callable[[Completion], list[bool]] = lambda ids: [True] * len(ids),
    token_scale: Callable[[Completion], Tensor] = lambda ids: torch.ones(len(ids)),
    rollout_policy: Any = None,
) -> Tensor:
    """Return the gradient of the loss in the policy's parameters.

    Args:
        policy: in training.
        frozen: the reference.
        config: the method.
        rewards: [PROMPTS, K], NaN where a candidate has none.
        temperature: of sampling.
        counted: which tokens of a completion are the policy's and count.
        token_scale: a correction of each token.
        rollout_policy: clips the update if given.
    """
    policy, frozen = copy.deepcopy(policy).double(), copy.deepcopy(frozen).double()
    sampled_by = None if rollout_policy is None else copy.deepcopy(rollout_policy).double()
    loss = torch.zeros((), dtype=torch.float64)
    for group, u in zip(list_groups(), rewards, strict=True):
        kept = [torch.tensor(counted(completion)) for _, completion in group]

        def logps(model: Any, group: Any = group, kept: Any = kept) -> list[Tensor]:
            return [
                compute_token_logps(model, *pair, temperature)[mask] for pair, mask in zip(group, kept, strict=True)
            ]

        current = logps(policy)
        old = [one.detach() for one in (current if sampled_by is None else logps(sampled_by))]
        refs = [one.detach() for one in logps(frozen)] if config.needs_reference else old
        c = compute_coefficients(
            config,
            u,
            np.array([one.sum().item() for one in old]),
            np.array([one.sum().item() for one in refs]),
            np.array([len(one) for one in old]),
            [hash(tuple(completion)) for _, completion in group],
        )
        for i, now in enumerate(current):
            scale = token_scale(group[i][1])[kept[i]]
            reduction = "max_length" if config.projection == "surrogate" else config.nll_reduction
            divisor = {"sum": 1, "mean": max(len(now), 1), "max_length": config.max_length}[reduction]
            terms = now * c[i]
            if rollout_policy is not None:
                ratio = (now - old[i]).exp()
                terms = torch.minimum(ratio * c[i], ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * c[i])
            loss = loss - (scale * terms).sum() / divisor
    (loss / PROMPTS).backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def evaluate_formula(*arguments: Any, **options: Any) -> Bounded:
    """Return `compute_gradient` of the same arguments, and how far a trainer in float32 may be from it."""
    (exact,) = evaluate(lambda: [compute_gradient(*arguments, **options)])
    return exact


def make_fields(config: MaxEntConfig) -> dict[str, Any]:
    """Return the trainer's arguments for these settings."""
    banked = [] if config.bank_weight else ["bank_weight"]  # a weight of 0 that is set draws rows
    settings = {f"maxent_{name}": value for name, value in vars(config).items() if name not in ("beta", *banked)}
    return {**settings, "init_kl_coeff": config.beta}


def build_policy_and_reference(tmp_path: Any) -> tuple[Any, Any]:
    """Return a policy whose reference, which TRL loads by name, is another model."""
    policy = trl_tiny.build_model(0)
    policy.config._name_or_path = trl_tiny.save_model(tmp_path / "reference", seed=1)
    return policy, trl_tiny.build_model(1)
