"""The golden table: one batch of rollouts, and for each setting the oracle's coefficients, loss and gradient.

For the test of an adapter: feed `load_golden()`'s rollouts to the trainer in whatever shape it wants them, and
compare its loss, and the gradient of the loss in `policy_logps`, with those of each `GoldenRow` it supports.
The loss is divided by `num_groups`; a row with `clipped` is that of a later update, where the loss takes
`old_logps`. Everything is float64.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maxent_grpo import MaxEntConfig, MaxEntObjective, flatten_groups, pad_groups
from support.precision import Bounded, evaluate

PATH = Path(__file__).parent / "golden" / "rollouts.json"


@dataclass(frozen=True)
class GoldenRow:
    """What the oracle makes of the rollouts under one setting.

    Attributes:
        config: the setting.
        clipped: whether the loss takes the rollout policy's log-probabilities, eq. (7c).
        coefficients: [N], 0 for candidates that do not count.
        loss: of the whole batch.
        gradient: [N, T] of the loss in `policy_logps`; 0 where masked.
    """

    config: MaxEntConfig
    clipped: bool
    coefficients: Tensor
    loss: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Golden:
    """N candidates of G groups in order, padded on the right to T tokens.

    Attributes:
        prompt_ids: N lists of token ids, alike within a group.
        completion_ids: [N, T], 0 behind the completion.
        mask: [N, T] bool; one completion is empty.
        group_sizes: G sizes.
        rewards: [N, R], NaN where a function had no verdict.
        reward_weights: [R].
        utilities: [N] weighted sum of the rewards; NaN where one is missing.
        keys: [N] int64, equal for completions of the same tokens.
        policy_logps, old_logps, reference_logps: [N, T], 0 behind the completion.
        max_length: T, the generation limit.
        num_groups: G.
        seed: of pruning.
        rows: setting by name.
    """

    prompt_ids: list[list[int]]
    completion_ids: Tensor
    mask: Tensor
    group_sizes: list[int]
    rewards: Tensor
    reward_weights: Tensor
    utilities: Tensor
    keys: Tensor
    policy_logps: Tensor
    old_logps: Tensor
    reference_logps: Tensor
    max_length: int
    num_groups: int
    seed: int
    rows: dict[str, GoldenRow]

    def seed_generator(self) -> torch.Generator:
        """Return what pruning draws from, in place of the generator that a framework seeds by its own settings."""
        return torch.Generator().manual_seed(self.seed)


def load_golden() -> Golden:
    """Return the committed table, made by golden/make_rollouts.py."""
    table = json.loads(PATH.read_text())
    candidates, length = table["rollouts"], table["max_length"]
    texts = [tuple(candidate["completion_ids"]) for candidate in candidates]
    weights = torch.tensor(table["reward_weights"], dtype=torch.float64)
    rewards = torch.tensor(
        [[float("nan") if r is None else r for r in candidate["rewards"]] for candidate in candidates],
        dtype=torch.float64,
    )
    logps = {
        key: _padded([candidate[key] for candidate in candidates], length)
        for key in ("policy_logps", "old_logps", "reference_logps")
    }
    groups = [candidate["group"] for candidate in candidates]
    return Golden(
        prompt_ids=[candidate["prompt_ids"] for candidate in candidates],
        completion_ids=_padded(texts, length).long(),
        mask=torch.tensor([[t < len(text) for t in range(length)] for text in texts]),
        group_sizes=[groups.count(group) for group in range(table["num_groups"])],
        rewards=rewards,
        reward_weights=weights,
        utilities=(rewards * weights).sum(-1),
        keys=torch.tensor([texts.index(text) for text in texts]),
        max_length=length,
        num_groups=table["num_groups"],
        seed=table["seed"],
        rows={name: read_row(entry, length) for name, entry in table["settings"].items()},
        **logps,
    )


def read_row(entry: dict[str, Any], length: int) -> GoldenRow:
    """Return a row from its entry in the file, padded to the generation limit."""
    numbers = {key: torch.tensor(entry[key], dtype=torch.float64) for key in ("coefficients", "loss")}
    gradient = _padded(entry["gradient"], length)
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in entry["config"].items()}
    return GoldenRow(config=MaxEntConfig(**fields), clipped=entry["clipped"], gradient=gradient, **numbers)


def _padded(rows: list[Any], length: int) -> Tensor:
    return torch.tensor([[*row, *[0.0] * (length - len(row))] for row in rows], dtype=torch.float64)


def compute_row(golden: Golden, row: GoldenRow) -> list[Tensor]:
    """Return coefficients, loss and gradient of a row as the objective makes them."""
    sizes, objective = golden.group_sizes, MaxEntObjective(row.config)
    utilities, present = pad_groups(golden.utilities, sizes)
    old = pad_groups(golden.old_logps.sum(-1), sizes)[0]
    target = objective.target(
        utilities,
        mask=present & ~utilities.isnan(),
        lengths=pad_groups(golden.mask.sum(-1), sizes)[0],
        ref_logps=pad_groups(golden.reference_logps.sum(-1), sizes)[0],
        old_logps=old,
        keys=pad_groups(golden.keys, sizes)[0],
    )
    whole = objective.coefficients(target, old_logps=old, generator=golden.seed_generator())
    coefficients = flatten_groups(whole, present)
    logps, before = golden.policy_logps.clone().requires_grad_(), golden.old_logps if row.clipped else None
    loss = objective.loss(logps, coefficients, golden.mask, num_groups=golden.num_groups, old_logps=before)
    return [coefficients, loss, *torch.autograd.grad(loss, logps)]


def bound_row(golden: Golden, row: GoldenRow, dtype: torch.dtype) -> list[Bounded]:
    """Return the oracle's coefficients, loss and gradient of a row, and how far those in `dtype` may be from them."""
    errors = [each.error for each in evaluate(lambda: compute_row(golden, row), dtype)]
    values = (row.coefficients, row.loss, row.gradient)
    return [Bounded(value, error) for value, error in zip(values, errors, strict=True)]
