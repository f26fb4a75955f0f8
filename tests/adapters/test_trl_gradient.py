"""The gradient of a real TRL run against the formulas, written out with the NumPy oracle in float64."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import trl_tiny
from maxent_grpo import MaxEntConfig, reference

K, PROMPTS = 4, 2


def second_reward(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    """Score some candidates only."""
    return [None if len(ids) == 4 else len(ids) / 6 for ids in completion_ids]


def no_reward_for_six_tokens(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    return [None if len(ids) == 6 else trl_tiny.reward([ids])[0] for ids in completion_ids]


def groups() -> list[list[tuple[list[int], list[int]]]]:
    """Return the (prompt, completion) ids of the replayed groups of one optimiser step."""
    words = trl_tiny.tokenizer()
    return [
        [(words(prompt)["input_ids"], trl_tiny.completion_of(prompt, copy)) for copy in range(K)]
        for prompt in trl_tiny.prompts(PROMPTS)["prompt"]
    ]


def token_logps(model: Any, prompt: list[int], completion: list[int], temperature: float = 1.0) -> Tensor:
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1)


def expected_gradient(
    policy: Any, frozen: Any, config: MaxEntConfig, utilities: np.ndarray, *, temperature: float = 1.0
) -> Tensor:
    """Return the gradient of eq. (7) or (8), summed candidate by candidate."""
    policy = copy.deepcopy(policy).double()
    frozen = copy.deepcopy(frozen).double()
    counted = ~np.isnan(utilities)
    rewards = np.nan_to_num(utilities)
    loss = torch.zeros((), dtype=torch.float64)
    for group, u, mask in zip(groups(), rewards, counted, strict=True):
        logps = [token_logps(policy, *pair, temperature) for pair in group]
        lengths = np.array([len(completion) for _, completion in group])
        sums = np.array([float(one.detach().sum()) for one in logps])
        scores = sums / lengths if config.nll_reduction == "mean" else sums
        anchors = {
            "reference": np.array([token_logps(frozen, *pair, temperature).sum().item() for pair in group]) / lengths,
            "old": scores,
        }.get(config.anchor)
        log_q = reference.listwise_log_q(u, temperature=config.q_temperature, eps=config.q_eps, mask=mask)
        weights = np.exp(reference.tempered_log_target(log_q, anchors, tau=config.tau, beta=config.beta, mask=mask))
        advantages = (u - u[mask].mean()) * mask
        if config.projection == "surrogate":
            exponents = np.exp(advantages * lengths / config.max_length / config.surrogate_tau) * mask
            weights = exponents / exponents.sum()
        if config.dedup > 0:
            counts = reference.duplicate_counts([hash(tuple(completion)) for _, completion in group], mask=mask)
            weights = reference.discount_duplicates(weights, counts, strength=config.dedup, mask=mask)
        if config.center:
            weights = reference.center_weights(weights, mask=mask)
        if config.projection == "listwise":
            weights = weights - np.where(mask, np.exp(scores), 0) / np.exp(scores)[mask].sum()
        weights = weights * u[mask].mean() ** config.group_scale
        for one, weight, advantage, length in zip(logps, weights, advantages, lengths, strict=True):
            divisor = {"sum": 1, "mean": length, "max_length": config.max_length}[config.nll_reduction]
            if config.projection == "surrogate":
                loss = loss - weight * advantage / config.max_length * (one - one.detach()).exp().sum()
            else:
                loss = loss - weight * one.sum() / divisor
    (loss / PROMPTS).backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


SETTINGS = {
    "published": MaxEntConfig(),
    "anchored at the reference": MaxEntConfig(beta=0.5, q_temperature=0.5),
    "anchored at the rollout policy": MaxEntConfig(beta=0.5, anchor="old", nll_reduction="mean"),
    "diverse": MaxEntConfig.diverse(max_length=trl_tiny.COMPLETION),
    "listwise": MaxEntConfig(projection="listwise", tau=0.0, beta=1.0, anchor="old"),
    "surrogate": MaxEntConfig(projection="surrogate", surrogate_tau=0.1, max_length=trl_tiny.COMPLETION),
    "Dr.GRPO": MaxEntConfig(projection="surrogate", surrogate_tau=math.inf, max_length=trl_tiny.COMPLETION),
}


def fields(config: MaxEntConfig) -> dict[str, Any]:
    """Return the trainer's arguments for these settings."""
    settings = {f"maxent_{name}": value for name, value in vars(config).items() if name != "beta"}
    return {**settings, "init_kl_coeff": config.beta}


def policy_and_reference(tmp_path: Any) -> tuple[Any, Any]:
    """Return a policy whose reference, which TRL loads by name, is another model."""
    policy = trl_tiny.model(0)
    policy.config._name_or_path = trl_tiny.saved(tmp_path / "reference", seed=1)
    return policy, trl_tiny.model(1)


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("fused", [False, True], ids=["TRL's head", "one-pass head"])
def test_the_gradient_is_that_of_the_formula(config: MaxEntConfig, fused: bool, tmp_path: Any) -> None:
    policy, frozen = policy_and_reference(tmp_path)
    rewards = np.array([[trl_tiny.reward([completion])[0] for _, completion in group] for group in groups()])
    expected = expected_gradient(policy, frozen, config, rewards)
    got = trl_tiny.gradient(tmp_path, policy=policy, maxent_fused_head=fused, **fields(config))
    assert relative_error(got, expected) < 1e-5


def test_rewards_are_weighted_and_missing_ones_are_left_out_of_the_sum(tmp_path: Any) -> None:
    policy = trl_tiny.model(0)
    rewards = np.array(
        [
            [
                np.nansum(
                    [2.0 * value if value is not None else np.nan for value in no_reward_for_six_tokens([ids])]
                    + [0.5 * value if value is not None else np.nan for value in second_reward([ids])]
                )
                for _, ids in group
            ]
            for group in groups()
        ]
    )
    expected = expected_gradient(policy, policy, MaxEntConfig(), rewards)
    functions = [no_reward_for_six_tokens, second_reward]
    got = trl_tiny.gradient(tmp_path, policy=policy, rewards=functions, reward_weights=[2.0, 0.5])
    assert relative_error(got, expected) < 1e-5


def test_a_candidate_that_no_function_scores_has_no_weight(tmp_path: Any) -> None:
    policy = trl_tiny.model(0)
    rewards = np.array(
        [[np.nan if len(ids) == 6 else trl_tiny.reward([ids])[0] for _, ids in group] for group in groups()]
    )
    assert np.isnan(rewards).any()
    expected = expected_gradient(policy, policy, MaxEntConfig(), rewards)
    got = trl_tiny.gradient(tmp_path, policy=policy, rewards=no_reward_for_six_tokens)
    assert relative_error(got, expected) < 1e-5


def test_log_probabilities_are_those_of_the_sampling_temperature(tmp_path: Any) -> None:
    policy = trl_tiny.model(0)
    config = MaxEntConfig(projection="listwise")
    rewards = np.array([[trl_tiny.reward([completion])[0] for _, completion in group] for group in groups()])
    expected = expected_gradient(policy, policy, config, rewards, temperature=0.7)
    got = trl_tiny.gradient(tmp_path, policy=policy, temperature=0.7, **fields(config))
    assert relative_error(got, expected) < 1e-5
