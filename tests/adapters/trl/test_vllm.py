"""TRL's correction for rollouts of vLLM, computed by TRL itself around a fake engine."""

from typing import Any

import pytest
import torch
from torch import Tensor
from trl.trainer import grpo_trainer

from maxent_grpo import MaxEntConfig
from support import trl_tiny
from support.trl_formulas import (
    DEFAULT,
    compute_token_logps,
    compute_utilities,
    evaluate_formula,
    make_fields,
)

pytestmark = pytest.mark.numerical

SURROGATE = MaxEntConfig(projection="surrogate", surrogate_tau=0.1, max_length=trl_tiny.COMPLETION)
LOW, HIGH = 0.56, 1.5


class FakeEngine:
    """Stands for vLLM, which a `rollout_func` leaves nothing to do but take weights."""

    def __init__(self, **_: Any) -> None: ...

    def sync_weights(self) -> None: ...


def surplus(ids: list[int]) -> Tensor:
    """Return log π − log π_engine of each token: some ratios of tokens and sequences are beyond either bound."""
    return torch.tensor([(0.9, -0.3, -0.9)[place % 3] for place in range(len(ids))])


def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
    output, policy = trl_tiny.replay_completions(prompts, trainer), trl_tiny.build_model()
    pairs = zip(output["prompt_ids"], output["completion_ids"], strict=True)
    return output | {"logprobs": [(compute_token_logps(policy, *pair) - surplus(pair[1])).tolist() for pair in pairs]}


def factors(mode: str, ids: list[int]) -> Tensor:
    """Return what each token of a completion is multiplied by."""
    gap = surplus(ids)
    ratio = (gap.sum() if mode.startswith("sequence") else gap).exp().expand(len(ids))
    return ratio * ((ratio >= LOW) & (ratio <= HIGH)) if mode.endswith("mask") else ratio.clamp(LOW, HIGH)


@pytest.mark.parametrize("config", [MaxEntConfig(), SURROGATE], ids=["mle", "surrogate"])
@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_vllms_correction_scales_tokens_after_the_coefficients(
    mode: str, config: MaxEntConfig, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", FakeEngine)
    policy = trl_tiny.build_model()
    exact = evaluate_formula(
        policy, policy, config, compute_utilities(), token_scale=lambda ids: factors(mode, ids).double()
    )
    settings = {
        "use_vllm": True,
        "vllm_importance_sampling_mode": mode,
        "vllm_importance_sampling_clip_min": LOW,
        "vllm_importance_sampling_clip_max": HIGH,
        **make_fields(config),
    }
    for fused in (False, True):
        run = {"rollout": rollout, "maxent_fused_head": fused, **settings}
        exact.assert_near(trl_tiny.measure_gradient(tmp_path, policy=policy, **run))


def test_the_correction_can_be_switched_off(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", FakeEngine)
    policy = trl_tiny.build_model()
    exact = evaluate_formula(policy, policy, DEFAULT, compute_utilities())
    settings = {"use_vllm": True, "vllm_importance_sampling_correction": False}
    exact.assert_near(trl_tiny.measure_gradient(tmp_path, policy=policy, rollout=rollout, **settings))
