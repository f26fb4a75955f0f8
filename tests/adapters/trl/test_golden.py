"""The golden table through TRL's own path: rollout, scoring, split, loss and backward of a real training step."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from maxent_grpo.adapters._groups import Groups
from maxent_grpo.adapters.trl import MaxEntGRPOTrainer
from support import trl_tiny
from support.golden_agreement import keep_agreement
from support.golden_table import GoldenRow, bound_row, load_golden
from support.trl_formulas import make_fields

pytestmark = pytest.mark.numerical
GOLDEN = load_golden()
K = max(GOLDEN.group_sizes)
FILLER = -1  # TRL's groups are of one size: shorter ones are filled up with candidates that nothing scores


def places() -> list[int]:
    """Return the golden row of each of the G·K candidates."""
    starts = [sum(GOLDEN.group_sizes[:group]) for group in range(GOLDEN.num_groups)]
    return [
        start + copy if copy < size else FILLER
        for start, size in zip(starts, GOLDEN.group_sizes, strict=True)
        for copy in range(K)
    ]


PLACES = places()


def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Return the golden completions; an empty one, which TRL cannot take, as a token of a tool."""
    ids, masks = [], []
    for place in PLACES:
        completion = [] if place == FILLER else GOLDEN.completion_ids[place][GOLDEN.mask[place]].tolist()
        ids.append(completion or [9])
        masks.append([1] * len(completion) or [0])
    return {
        "prompt_ids": [GOLDEN.prompt_ids[PLACES[row - row % K]] for row in range(len(PLACES))],
        "completion_ids": ids,
        "logprobs": [[0.0] * len(completion) for completion in ids],
        "env_mask": masks,
        "place": PLACES,
    }


def make_reward(function: int) -> Any:
    def reward(place: list[int], **_: Any) -> list[float]:
        return [math.nan if row == FILLER else GOLDEN.rewards[row, function].item() for row in place]

    reward.__name__ = f"function_{function}"
    return reward


@pytest.fixture(autouse=True)
def one_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning draws what it draws in the table: TRL's seed, step and fillers have no say."""
    monkeypatch.setattr(Groups, "seed_generator", lambda *_: GOLDEN.seed_generator())


@pytest.fixture(autouse=True)
def no_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's log-probabilities are no model's, so no model's logits give them."""
    monkeypatch.setattr("maxent_grpo.adapters.trl.trainer.expect_own_logits", lambda *_: None)


class Tabled(MaxEntGRPOTrainer):
    """The trainer with log-probabilities of the table in place of a model's."""

    policy: Tensor
    losses: list[Tensor]
    order: Tensor | None = None

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        return super()._generate_and_score_completions(inputs) | {"order": torch.arange(len(PLACES))}

    def _pick_training_rows(self, rows: Any) -> Any:
        rows = super()._pick_training_rows(rows)
        self.order = rows["order"]
        return rows

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        self.losses.append(super()._compute_loss(model, inputs))
        return self.losses[-1]

    def _get_per_token_logps_and_entropies(self, model: Any, *_: Any, logits_to_keep: int = 0, **__: Any) -> Any:
        if torch.is_grad_enabled():
            logps = self.policy[self.order]
        else:
            logps = place_rows(GOLDEN.reference_logps if model is self.ref_model else GOLDEN.old_logps)
        return logps, torch.zeros_like(logps), None


def place_rows(table: Tensor) -> Tensor:
    rows = table.float()[torch.tensor(PLACES)]
    return rows.masked_fill((torch.tensor(PLACES) == FILLER).unsqueeze(-1), 0.0)


@pytest.mark.parametrize("name", GOLDEN.rows)
def test_weights_loss_and_gradient_are_those_of_the_golden_table(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row: GoldenRow = GOLDEN.rows[name]
    policy = trl_tiny.build_model()
    if row.config.needs_reference:
        policy.config._name_or_path = trl_tiny.save_model(tmp_path / "reference")
    monkeypatch.setattr(trl_tiny, "MaxEntGRPOTrainer", Tabled)
    run = trl_tiny.build_trainer(
        tmp_path,
        policy=policy,
        rewards=[make_reward(0), make_reward(1)],
        reward_weights=GOLDEN.reward_weights.tolist(),
        rollout=rollout,
        per_device_train_batch_size=len(PLACES),
        num_generations=K,
        max_completion_length=GOLDEN.max_length,
        num_iterations=2 if row.clipped else 1,
        **make_fields(row.config),
    )
    run.policy, run.losses = place_rows(GOLDEN.policy_logps).requires_grad_(), []
    run.train()
    kept = torch.tensor(PLACES) != FILLER
    assert run.policy.grad is not None
    coefficients = torch.tensor(list(run._logs["extra"]["coefficient"]))[kept]
    results, bounds = (coefficients, run.losses[0], run.policy.grad[kept]), bound_row(GOLDEN, row, torch.float32)
    keep_agreement("trl", name, results, bounds)
    for result, exact in zip(results, bounds, strict=True):
        exact.assert_near(result)
