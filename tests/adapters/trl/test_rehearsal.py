"""The bank in a real TRL run: what its term is, what it leaves alone, and what is said of an idle one."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from maxent_grpo.adapters.trl.rehearsal import BankRehearsal
from support import trl_tiny
from support.precision import evaluate
from support.trl_formulas import K, compute_token_logps, list_groups

LAMBDA = 2.0
BANK = {"maxent_bank_weight": LAMBDA}


def add_rehearsal(path: Any, policy: Any, prompts: int, **settings: Any) -> Tensor:
    """Return the gradient of a run without a bank, and of eq. (9) over what the replayed rollout finds."""
    gradient = trl_tiny.measure_gradient(path, policy=copy.deepcopy(policy), **settings)
    policy = copy.deepcopy(policy)
    term = torch.zeros((), dtype=torch.float64)
    for group in list_groups()[:prompts]:
        answers = {tuple(ids): prompt for prompt, ids in group if trl_tiny.reward([ids])[0] > 0}
        nlls = [-compute_token_logps(policy, prompt, list(ids)).mean() for ids, prompt in answers.items()]
        term = term + sum(nlls) / len(nlls) / prompts
    (LAMBDA * (K - 1) / K**2 * term).backward()
    return gradient + torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


@pytest.mark.slow
@pytest.mark.numerical
@pytest.mark.parametrize(
    ("prompts", "settings"),
    [
        (1, {}),
        (2, {"maxent_nll_reduction": "sum", "entropy_coef": 0.1}),
        (2, {"maxent_nll_reduction": "mean", "maxent_keep_fraction": 0.5}),
        (2, {"maxent_projection": "surrogate"}),
        (2, {"maxent_fused_head": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
    ],
    ids=str,
)
def test_the_gradient_has_the_published_term_more(prompts: int, settings: dict[str, Any], tmp_path: Any) -> None:
    """Answers of right candidates alone, each once; the first prompts that were banked are the first in line."""
    policy = trl_tiny.build_model()
    banked = BANK | {"maxent_bank_prompts": prompts}
    (exact,) = evaluate(lambda: [add_rehearsal(tmp_path, copy.deepcopy(policy).double(), prompts, **settings)])
    found = trl_tiny.measure_gradient(tmp_path, policy=copy.deepcopy(policy), **banked, **settings)
    exact.assert_near(found)
    assert exact.distance(trl_tiny.measure_gradient(tmp_path, policy=policy, **settings)) > exact.error


def test_a_weight_of_zero_draws_the_rows_and_leaves_the_update_alone(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    attach = BankRehearsal.attach

    def count_rows(self: BankRehearsal, batches: list[Any], accumulation: int) -> None:
        attach(self, batches, accumulation)
        drawn.extend(len(batch["maxent_rehearsal"]) for batch in batches)

    monkeypatch.setattr(BankRehearsal, "attach", count_rows)
    exact = trl_tiny.evaluate_run(tmp_path)
    exact.assert_near(trl_tiny.measure_gradient(tmp_path, maxent_bank_weight=0.0))
    assert sum(drawn) > 0


@pytest.mark.parametrize(("count", "idle"), [(64, True), (2, False)])
def test_a_run_that_never_repeats_a_prompt_says_that_the_bank_is_idle(
    count: int, idle: bool, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trl_tiny.build_trainer(tmp_path, count=count, max_steps=2, **BANK).train()
    assert ("the bank would be idle" in caplog.text) == idle  # before training
    assert ("The bank was idle" in caplog.text) == idle  # after it


def test_a_checkpoint_without_a_bank_is_not_resumed_with_one(tmp_path: Any) -> None:
    saved = {"save_strategy": "steps", "save_steps": 1}
    trl_tiny.build_trainer(tmp_path, **saved).train()
    with pytest.raises(
        ValueError, match=r"a checkpoint with its rehearsal_bank\.pt to go on with maxent_bank_weight"
    ):
        trl_tiny.build_trainer(tmp_path, **BANK, max_steps=2).train(str(tmp_path / "checkpoint-1"))


def test_a_router_is_refused_beside_a_bank(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="router_aux_loss_coef=0 with maxent_bank_weight"):
        trl_tiny.build_trainer(tmp_path, policy=trl_tiny.build_mixture_of_experts(), router_aux_loss_coef=0.1, **BANK)
