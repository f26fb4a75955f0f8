"""Token log-probabilities and the weighted NLL, fused: the fast path of eq. (7).

Six functions, each with a torch and a Triton backend (`backend="auto" | "torch" | "triton"`):

| from logits `[..., V]`   | from hidden states `[..., D]` and the LM head `[V, D]` |
|--------------------------|---------------------------------------------------------|
| `token_logps`            | `linear_token_logps`                                    |
| `sequence_logps`         | `linear_sequence_logps`                                 |
| `weighted_nll`           | `linear_weighted_nll`                                   |

The coefficients of eq. (7) are constants known before the policy's forward, so the two `*weighted_nll` functions
compute loss and gradient in the forward. Rows whose mask is False, whose label is −100, or whose weight is zero are
never read: their log-probability is returned as 0 and their gradient is 0.

An id outside `[0, V)` raises `ValueError` when the ids are on the CPU. On a GPU the check may not wait for the
device, so such a row's log-probability, and with it the loss and its gradient, is NaN.
"""

from maxent_grpo.kernels._linear import linear_sequence_logps, linear_token_logps, linear_weighted_nll
from maxent_grpo.kernels._logits import sequence_logps, token_logps, weighted_nll
from maxent_grpo.kernels._rows import WeightedNLL

__all__ = [
    "WeightedNLL",
    "linear_sequence_logps",
    "linear_token_logps",
    "linear_weighted_nll",
    "sequence_logps",
    "token_logps",
    "weighted_nll",
]
