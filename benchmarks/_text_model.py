"""Hidden states of a small language model trained in this run: real ones are peaked and correlated."""

import pkgutil
import re
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn

from maxent_grpo.kernels import linear_weighted_nll


class _WordModel(nn.Module):
    """The next word from the four before it."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.mix = nn.Sequential(nn.Linear(4 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, contexts: Tensor) -> Tensor:
        hidden: Tensor = self.mix(self.embedding(contexts).flatten(-2))
        return hidden


def hash_words(count: int, vocabulary: int) -> Tensor:
    """Hash the first words and signs of the standard library's source into the vocabulary."""
    words: list[int] = []
    for module in sorted(pkgutil.iter_modules(), key=lambda module: module.name):
        path = Path(getattr(module.module_finder, "path", "")) / f"{module.name}.py"
        if "site-packages" in str(path) or not path.is_file():
            continue
        text = path.read_text(errors="ignore")
        words += [zlib.crc32(word.encode()) % vocabulary for word in re.findall(r"\w+|[^\w\s]", text)]
        if len(words) > count:
            break
    return torch.tensor(words[:count])


def train_hidden_states(
    rows: int, width: int, vocabulary: int, steps: int, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Train for `steps`; return hidden [rows, width], weight [vocabulary, width] and next words [rows].

    The text is short on purpose: seen more than once, it is predicted with the confidence of a real model, which
    little training on a long one does not reach.
    """
    torch.manual_seed(0)
    text = hash_words(50_000, vocabulary).to(device)
    model = _WordModel(width, vocabulary).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.08 / width**0.5, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    weights = torch.full((256,), 1 / 256, device=device)

    def draw_batch(size: int) -> tuple[Tensor, Tensor]:
        starts = torch.randint(0, len(text) - 4, (size,), device=device)
        return text[starts[:, None] + torch.arange(4, device=device)], text[starts + 4]

    for _ in range(steps):
        contexts, following = draw_batch(len(weights))
        loss = linear_weighted_nll(model(contexts), model.head.weight, following, weights).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        contexts, following = draw_batch(rows)
        return model(contexts), model.head.weight.detach(), following
