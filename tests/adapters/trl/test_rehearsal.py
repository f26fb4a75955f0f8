"""The bank in a real TRL run: what its term is, what it leaves alone, and what is said of an idle one."""

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

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


@pytest.mark.numerical
@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"maxent_nll_reduction": "sum"},
        {"maxent_nll_reduction": "mean"},
        {"maxent_projection": "surrogate"},
        {"maxent_fused_head": True},
        {"maxent_keep_fraction": 0.5, "maxent_center": True},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"entropy_coef": 0.1},
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
