"""A small language model and a batch of groups for the tests of the plain torch adapter."""

import math

import torch
from torch import Tensor, nn

GROUPS, K, T, VOCABULARY = 4, 3, 6, 11


class Bigram(nn.Module):
    """The smallest causal language model: logits of the next token from the present one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Linear(VOCABULARY, VOCABULARY, dtype=torch.float64)

    def forward(self, ids: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], dim=1)
        return self.table(nn.functional.one_hot(before, VOCABULARY).to(torch.float64))


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Return ids [N, T], mask and rewards of four groups of three: one unscorable, one empty, two duplicates."""
    torch.manual_seed(1)
    ids = torch.randint(VOCABULARY, (GROUPS * K, T))
    ids[1] = ids[0]
    lengths = torch.randint(1, T + 1, (GROUPS * K,))
    lengths[1], lengths[5] = lengths[0], 0
    rewards = torch.randint(2, (GROUPS * K,)).to(torch.float64)
    rewards[:3] = torch.tensor([1.0, 1.0, 0.0])
    rewards[7] = math.nan
    return ids, torch.arange(T) < lengths.unsqueeze(-1), rewards


def log_probs(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
