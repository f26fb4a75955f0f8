"""Groups gathered over ranks, with a fake accelerator in place of theirs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from maxent_grpo import MaxEntConfig, MaxEntObjective
from maxent_grpo.adapters.trl.groups import Groups, gathered_groups


class GatheredWith:
    """A fake accelerator: after each of its tensors stands what another rank sent."""

    def __init__(self, other: list[Tensor] | None = None) -> None:
        self.other = other
        self.sent: list[Tensor] = []

    def gather(self, mine: Tensor) -> Tensor:
        self.sent.append(mine)
        return mine if self.other is None else torch.cat([mine, self.other[len(self.sent) - 1]])


def rows(**more: Tensor) -> dict[str, Any]:
    ids, mask = torch.arange(8).view(4, 2), torch.ones(4, 2, dtype=torch.long)
    return {
        "prompt_ids": torch.ones(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": mask,
        **more,
    }


def test_every_rank_refuses_images_that_one_has() -> None:
    with_images = GatheredWith()
    with pytest.raises(ValueError, match="prompts and tool results of text, got candidates_with_images=4"):
        gathered_groups(with_images, rows(pixel_values=torch.zeros(4, 3)), None, generations=4)
    with pytest.raises(ValueError, match="prompts and tool results of text, got candidates_with_images=4"):
        gathered_groups(GatheredWith(with_images.sent), rows(), None, generations=4)


def test_negative_rewards_are_refused_where_a_group_scale_would_turn_them_around() -> None:
    groups = gathered_groups(GatheredWith(), rows(), None, generations=4)
    rewards, weights = torch.tensor([[1.0], [-1.0], [0.0], [0.0]]), torch.ones(1)
    with pytest.raises(ValueError, match=r"utilities >= 0 with success_power=1\.0, got lowest_utility=-1\.0"):
        groups.target(MaxEntObjective(MaxEntConfig(success_power=1.0)), rewards, weights)
    assert groups.target(MaxEntObjective(MaxEntConfig()), rewards, weights).weights.isfinite().all()


def draws(groups: Groups, seed: int, step: int) -> list[float]:
    return torch.rand(4, generator=groups.generator(seed, step)).tolist()


def test_chance_differs_between_seeds_steps_and_rollouts_and_is_the_same_when_repeated() -> None:
    groups = gathered_groups(GatheredWith(), rows(), None, generations=4)
    others = gathered_groups(GatheredWith(), rows(completion_ids=torch.ones(4, 2).long()), None, generations=4)
    drawn = [draws(groups, 0, 0), draws(groups, 1, 0), draws(groups, 0, 1), draws(others, 0, 0)]
    assert len({tuple(one) for one in drawn}) == 4
    assert draws(groups, 0, 0) == drawn[0]
