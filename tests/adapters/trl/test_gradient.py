"""The gradient of real TRL runs against the formulas, for every setting that has a say in it."""

import copy
import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters.trl.head import _logit_settings
from support import trl_tiny
from support.precision import evaluate
from support.trl_formulas import (
    DEFAULT,
    build_policy_and_reference,
    compute_gradient,
    compute_utilities,
    evaluate_formula,
    list_groups,
    make_fields,
)

pytestmark = pytest.mark.numerical

SETTINGS = {
    "default": DEFAULT,
    "published": MaxEntConfig(),
    "anchored at the reference": MaxEntConfig(beta=0.5, q_temperature=0.5),
    "anchored at the rollout policy": MaxEntConfig(beta=0.5, anchor="old", nll_reduction="mean"),
    "diverse": MaxEntConfig.diverse(max_length=trl_tiny.COMPLETION),
    "listwise": MaxEntConfig(projection="listwise", tau=0.0, beta=1.0, anchor="old"),
    "surrogate": MaxEntConfig(projection="surrogate", surrogate_tau=0.1, max_length=trl_tiny.COMPLETION),
    "Dr.GRPO": MaxEntConfig(projection="surrogate", surrogate_tau=math.inf, max_length=trl_tiny.COMPLETION),
}


def second_reward(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    return [None if len(ids) == 3 else len(ids) / 6 for ids in completion_ids]


def no_reward_for_six_tokens(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    return [None if len(ids) == 6 else trl_tiny.reward([ids])[0] for ids in completion_ids]


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_the_gradient_is_that_of_the_formula_with_either_head(config: MaxEntConfig, tmp_path: Any) -> None:
    policy, frozen = build_policy_and_reference(tmp_path)
    exact = evaluate_formula(policy, frozen, config, compute_utilities())
    for fused in (False, True):
        settings = {"maxent_fused_head": fused, **make_fields(config)}
        exact.assert_near(trl_tiny.measure_gradient(tmp_path, policy=policy, **settings))


def test_groups_hold_duplicates_for_the_discount_to_find() -> None:
    assert any(len({tuple(completion) for _, completion in group}) < len(group) for group in list_groups())


def length_of_even_completions(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    return [None if len(ids) % 2 else float(len(ids)) for ids in completion_ids]


def nothing_finite(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [(math.inf, -math.inf, math.nan)[len(ids) % 3] for ids in completion_ids]


def test_rewards_are_weighted_and_a_missing_one_masks_its_candidate(tmp_path: Any) -> None:
    """A function of weight 0 is a metric: neither its values nor their absence move anything."""

    def weighted(ids: list[int]) -> float:
        (first,), (second,) = no_reward_for_six_tokens([ids]), second_reward([ids])
        return math.nan if first is None or second is None else 2.0 * first + 0.5 * second

    policy = trl_tiny.build_model()
    rewards = compute_utilities(weighted)
    assert 0 < np.isnan(rewards).sum() < rewards.size
    exact = evaluate_formula(policy, policy, DEFAULT, rewards)
    functions = [no_reward_for_six_tokens, second_reward, length_of_even_completions, nothing_finite]
    kept = trl_tiny.Gradients()
    run = trl_tiny.build_trainer(
        tmp_path, policy=policy, rewards=functions, reward_weights=[2.0, 0.5, 0.0, 0.0], callbacks=[kept]
    )
    run.train()
    exact.assert_near(kept.total())
    assert run.state.log_history[0]["maxent/frac_unscored"] == pytest.approx(np.isnan(rewards).mean())


def test_an_infinite_reward_is_refused_by_its_functions_name(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"None without a verdict, got nothing_finite=-?inf"):
        trl_tiny.build_trainer(tmp_path, rewards=[trl_tiny.reward, nothing_finite]).train()


def test_a_candidate_that_no_function_scores_has_no_weight(tmp_path: Any) -> None:
    policy = trl_tiny.build_model()
    rewards = compute_utilities(lambda ids: np.nan if len(ids) == 6 else trl_tiny.reward([ids])[0])
    assert np.isnan(rewards).any()
    exact = evaluate_formula(policy, policy, DEFAULT, rewards)
    exact.assert_near(trl_tiny.measure_gradient(tmp_path, policy=policy, rewards=no_reward_for_six_tokens))


def test_a_skipped_group_moves_nothing_and_still_counts(tmp_path: Any) -> None:
    def first_group_fails(completion_ids: list[list[int]], prompts: list[str], **_: Any) -> list[float]:
        pairs = zip(prompts, completion_ids, strict=True)
        return [0.0 if prompt == "aa" else float(len(ids) > 3) for prompt, ids in pairs]

    policy, config = trl_tiny.build_model(), MaxEntConfig(skip="all_min")
    rewards = compute_utilities(lambda ids: float(len(ids) > 3)) * np.array([[0.0], [1.0]])
    exact, settings = evaluate_formula(policy, policy, config, rewards), make_fields(config)
    exact.assert_near(trl_tiny.measure_gradient(tmp_path, policy=policy, rewards=first_group_fails, **settings))


def test_log_probabilities_are_those_of_the_sampling_temperature(tmp_path: Any) -> None:
    policy, config = trl_tiny.build_model(), MaxEntConfig(projection="listwise")
    exact = evaluate_formula(policy, policy, config, compute_utilities(), temperature=0.7)
    exact.assert_near(trl_tiny.measure_gradient(tmp_path, policy=policy, temperature=0.7, **make_fields(config)))


def test_truncated_completions_leave_their_group_when_they_are_masked(tmp_path: Any) -> None:
    policy, config = trl_tiny.build_model(), MaxEntConfig(center=True)
    rewards = compute_utilities(lambda ids: trl_tiny.reward([ids])[0] if ids[-1] == trl_tiny.EOS else np.nan)
    assert np.isnan(rewards).any()
    exact = evaluate_formula(policy, policy, config, rewards)
    for fused in (False, True):
        settings = {"mask_truncated_completions": True, "maxent_fused_head": fused, **make_fields(config)}
        exact.assert_near(trl_tiny.measure_gradient(tmp_path, policy=policy, **settings))


@pytest.mark.parametrize("config", [MaxEntConfig(nll_reduction="mean"), MaxEntConfig(projection="listwise")])
def test_tokens_of_tools_are_neither_scored_nor_trained_on(config: MaxEntConfig, tmp_path: Any) -> None:
    def written_by_policy(ids: list[int]) -> list[bool]:
        return [place != 1 for place in range(len(ids))]

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        output = trl_tiny.replay_completions(prompts, trainer)
        return output | {
            "env_mask": [[int(kept) for kept in written_by_policy(ids)] for ids in output["completion_ids"]]
        }

    policy = trl_tiny.build_model()
    exact = evaluate_formula(policy, policy, config, compute_utilities(), counted=written_by_policy)
    exact.assert_near(trl_tiny.measure_gradient(tmp_path, policy=policy, rollout=rollout, **make_fields(config)))


@pytest.mark.parametrize(
    "config", [MaxEntConfig(clip_low=0.1, clip_high=0.1), SETTINGS["listwise"], SETTINGS["surrogate"]]
)
def test_the_second_update_on_a_rollout_is_clipped(config: MaxEntConfig, tmp_path: Any) -> None:
    before, rate = trl_tiny.build_model(), 0.01

    def update_twice() -> list[torch.Tensor]:
        after, first = copy.deepcopy(before).double(), compute_gradient(before, before, config, compute_utilities())
        start = torch.nn.utils.parameters_to_vector(after.parameters()).detach()
        torch.nn.utils.vector_to_parameters(start - rate * first, after.parameters())
        clipped = compute_gradient(after, after, config, compute_utilities(), rollout_policy=before)
        return [clipped, compute_gradient(after, after, config, compute_utilities())]

    clipped, unclipped = evaluate(update_twice)
    kept = trl_tiny.Gradients()
    settings = {"num_iterations": 2, "max_steps": 2, "learning_rate": rate, **make_fields(config)}
    trl_tiny.build_trainer(tmp_path, policy=before, callbacks=[kept], **settings).train()
    got = torch.cat([gradient.flatten() for gradient in kept.steps[1].values()])
    clipped.assert_near(got)
    assert unclipped.distance(got) > 100 * unclipped.error


REDUCTIONS = {
    "max_length": lambda tokens: tokens.sum() / trl_tiny.COMPLETION,
    "sum": lambda tokens: tokens.sum(),
    "mean": lambda tokens: tokens.mean(),
}


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_kl_term_is_divided_like_the_nll_and_the_entropy_bonus_is_a_mean_over_tokens(
    reduction: Any, corrected: bool, tmp_path: Any
) -> None:
    policy, frozen = build_policy_and_reference(tmp_path)
    config = MaxEntConfig(nll_reduction=reduction, max_length=trl_tiny.COMPLETION)

    def add_terms() -> list[torch.Tensor]:
        trained, candidates = copy.deepcopy(policy).double(), list(itertools.chain(*list_groups()))
        kl, entropies = torch.zeros((), dtype=torch.float64), []
        for prompt, completion in candidates:
            ids, chosen = torch.tensor([prompt + completion]), torch.tensor(completion).unsqueeze(-1)
            logps = trained(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            refs = frozen(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1).detach()
            gap, own = (refs - logps).gather(-1, chosen), logps.gather(-1, chosen)
            ratio = (own - own.detach()).exp() if corrected else 1.0
            kl = kl + REDUCTIONS[reduction]((gap.exp() - gap - 1) * ratio) / len(candidates)
            entropies.append(-(logps.exp() * logps).sum(-1))
        (0.3 * kl - 0.2 * torch.cat(entropies).mean()).backward()
        terms = torch.cat([parameter.grad.flatten() for parameter in trained.parameters()])
        return [compute_gradient(policy, frozen, config, compute_utilities()) + terms]

    (exact,) = evaluate(add_terms)
    kept = trl_tiny.Gradients()
    settings = {"beta": 0.3, "entropy_coef": 0.2, "use_bias_correction_kl": corrected, **make_fields(config)}
    run = trl_tiny.build_trainer(tmp_path, policy=policy, callbacks=[kept], **settings)
    run.train()
    exact.assert_near(kept.total())
    assert run.state.log_history[0]["entropy_coef"] == 0.2


def test_the_targets_reference_adds_no_kl_term(tmp_path: Any) -> None:
    """TRL's own beta is not 0 then, so that it scores the reference; the loss multiplies by that of the arguments."""
    policy, frozen = build_policy_and_reference(tmp_path)
    config = MaxEntConfig(beta=0.5)
    exact, kept = evaluate_formula(policy, frozen, config, compute_utilities()), trl_tiny.Gradients()
    run = trl_tiny.build_trainer(tmp_path, policy=policy, callbacks=[kept], **make_fields(config))
    run.train()
    assert (run.beta, run.args.beta) == (0.5, 0.0)
    exact.assert_near(kept.total())


SMALL: dict[str, Any] = {
    "vocab_size": 11, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
    "initializer_range": 0.5,
}  # fmt: skip
LOGIT_SETTINGS = {
    "capped": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 8, "final_logit_softcapping": 3.0}),
    "divided": (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 4.0}),
    "multiplied": (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}),
}


@pytest.mark.parametrize(("configured", "made", "settings"), LOGIT_SETTINGS.values(), ids=LOGIT_SETTINGS)
def test_the_one_pass_head_makes_logits_as_the_model_does(
    configured: Any, made: Any, settings: dict[str, Any], tmp_path: Any
) -> None:
    torch.manual_seed(0)
    policy = made(configured(**SMALL, **settings)).float()
    exact = trl_tiny.evaluate_run(tmp_path, policy=policy)
    for fused in (False, True):
        exact.assert_near(trl_tiny.measure_gradient(tmp_path, policy=policy, maxent_fused_head=fused))


def test_a_scale_of_the_logits_comes_before_a_divisor() -> None:
    config = SimpleNamespace(logit_scale=0.5, logits_scaling=4.0, model_type="any")
    assert _logit_settings(config) == (0.5, None)
    assert _logit_settings(SimpleNamespace(logits_scaling=4.0, model_type="hyperclovax")) == (4.0, None)
