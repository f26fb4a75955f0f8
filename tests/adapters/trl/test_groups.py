"""Rows of a rank gathered into whole groups, with a fake accelerator in place of the ranks'."""

from typing import Any

import pytest
import torch
from torch import Tensor

from maxent_grpo.adapters.trl.groups import gather_rows


class GatherWith:
    """A fake accelerator: behind each of its tensors stands what another rank sent."""

    def __init__(self, other: list[Tensor] | None = None) -> None:
        self.other = other
        self.sent: list[Tensor] = []

    def gather(self, mine: Tensor) -> Tensor:
        self.sent.append(mine)
        return mine if self.other is None else torch.cat([mine, self.other[len(self.sent) - 1]])


def rows(**more: Tensor) -> dict[str, Any]:
    ids = torch.arange(8).view(4, 2)
    return {
        "prompt_ids": torch.ones(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]]),
        **more,
    }


def test_every_rank_refuses_images_that_one_has() -> None:
    with_images = GatherWith()
    with pytest.raises(ValueError, match="prompts and tool results of text, got candidates_with_images=4"):
        gather_rows(with_images, rows(pixel_values=torch.zeros(4, 3)), None, generations=4)
    with pytest.raises(ValueError, match="prompts and tool results of text, got candidates_with_images=4"):
        gather_rows(GatherWith(with_images.sent), rows(), None, generations=4)


def test_log_probabilities_are_summed_over_the_tokens_that_the_policy_wrote() -> None:
    logps = -torch.arange(1.0, 9.0).view(4, 2)
    tools = torch.tensor([[1, 1], [1, 1], [0, 1], [1, 1]])
    groups = gather_rows(GatherWith(), rows(tool_mask=tools, ref_per_token_logps=logps), 2 * logps, generations=2)
    assert groups.lengths.tolist() == [[2, 1], [1, 2]]
    assert groups.ref_logps is not None
    assert groups.ref_logps.tolist() == [[-1.0 - 2.0, -3.0], [-6.0, -7.0 - 8.0]]
    assert groups.old_logps is not None
    assert groups.old_logps.tolist() == [[-6.0, -6.0], [-12.0, -30.0]]
