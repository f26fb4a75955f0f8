"""How far every peer's gradients are from those of the same numbers in a wider format."""

from collections.abc import Mapping

import torch
from torch import Tensor

Gradients = tuple[Tensor, Tensor]
ROWS = 1024
"""Rows of logits held at once in the wider format."""


def compute_exact_gradients(hidden: Tensor, weight: Tensor, ids: Tensor, weights: Tensor) -> Gradients:
    """Return dH and dW of −Σ c·log p in float32, or in float64 where the inputs are float32."""
    wider = torch.float64 if weight.dtype == torch.float32 else torch.float32
    head = weight.detach().to(wider)
    for_hidden, for_weight = torch.zeros_like(hidden, dtype=wider), torch.zeros_like(head)
    for first in range(0, len(hidden), ROWS):
        span = slice(first, first + ROWS)
        states = hidden[span].detach().to(wider)
        gradient = (states @ head.t()).softmax(-1)
        gradient[torch.arange(len(states)), ids[span]] -= 1
        gradient *= weights[span, None].to(wider)
        for_hidden[span] = gradient @ head
        for_weight.addmm_(gradient.t(), states)
    return for_hidden, for_weight


def compare_gradients(found: Gradients, exact: Gradients) -> Mapping[str, float]:
    """Return ‖found − exact‖/‖exact‖ of dH and dW."""
    return {
        name: float((one.to(other.dtype) - other).norm() / other.norm())
        for name, one, other in zip(("hidden", "weight"), found, exact, strict=True)
    }
