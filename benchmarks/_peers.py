"""What is compared with the package: eager torch, torch.compile and other libraries' kernels.

Each library is imported where it is called, because it may be absent.
"""
# ruff: noqa: PLC0415

from collections.abc import Callable

import torch
from torch import Tensor

from maxent_grpo.kernels import linear_sequence_logps, sequence_logps

Step = Callable[[], object]
HeadLogps = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden [N, D], weight [V, D], ids [N]) -> log-probabilities [N]."""

EAGER, COMPILE = "eager", "torch.compile"
TRL, CUT, CUT_FILTERED = "TRL ChunkedLogProbFunction", "cut-cross-entropy", "cut-cross-entropy (filtered)"


def list_head_peers(device: torch.device) -> dict[str, HeadLogps]:
    """Return every peer that gives each row's own log-probability, and so can weight rows."""
    peers = {
        EAGER: lambda h, w, ids: naive_logps(h @ w.t(), ids),
        COMPILE: torch.compile(lambda h, w, ids: naive_logps(h @ w.t(), ids), dynamic=False),
        TRL: score_with_trl,
        "TRL selective_log_softmax": lambda h, w, ids: load_trl_function("selective_log_softmax")(h @ w.t(), ids),
        "Liger fused linear CE, reduction none": lambda h, w, ids: -reduce_with_liger(h, w, ids, "none"),
        "Liger fused linear scaled CE": score_with_scaled_liger,
        "QuACK linear CE, reduction none": score_with_quack,
        CUT: score_with_cut,
    }
    return peers | {CUT_FILTERED: score_with_filtered_cut} if device.type == "cuda" else peers


def list_sequence_peers(ids: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return every way to score whole sequences from logits [B, T, V], ours first."""
    return {
        "maxent_grpo sequence_logps": lambda z: sequence_logps(z, ids),
        EAGER: lambda z: naive_logps(z, ids).sum(-1),
        COMPILE: torch.compile(lambda z: naive_logps(z, ids).sum(-1), dynamic=False),
        "TRL selective_log_softmax": lambda z: load_trl_function("selective_log_softmax")(z, ids).sum(-1),
    }


def list_head_sequence_peers(ids: Tensor) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return every way to score whole sequences through the LM head, ours first."""
    return {
        "maxent_grpo linear_sequence_logps": lambda h, w: linear_sequence_logps(h, w, ids),
        EAGER: lambda h, w: naive_logps(h @ w.t(), ids).sum(-1),
        TRL: lambda h, w: score_with_trl(h.flatten(0, 1), w, ids.flatten()).view(ids.shape).sum(-1),
    }


def naive_logps(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def load_trl_function(name: str) -> Callable[..., Tensor]:
    from trl.trainer import utils

    return getattr(utils, name)


def score_with_trl(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    return ChunkedLogProbFunction.apply(hidden, weight, None, ids, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ())[0]


def sum_with_torch(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    from torch.nn import LinearCrossEntropyOptions
    from torch.nn.functional import linear_cross_entropy

    return linear_cross_entropy(hidden, weight, ids, reduction="sum", options=LinearCrossEntropyOptions())


def reduce_with_liger(hidden: Tensor, weight: Tensor, ids: Tensor, reduction: str) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction=reduction)(weight, hidden, ids)


def score_with_scaled_liger(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Score with Liger's CuTe kernel on Hopper, elsewhere with its own chunked torch."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    return -LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, ids)


def build_liger_grpo(logits: Tensor, ids: Tensor, weights: Tensor) -> Step:
    """Return the training step of Liger's GRPO loss on given logits."""
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    rows = len(ids)
    batched = logits.detach()[None].requires_grad_()  # it expects one more logit than labels
    mask = torch.ones(1, rows - 1, device=ids.device, dtype=torch.int64)
    settings = {"temperature": 1.0, "beta": 0.0, "reduce": True}

    def step() -> object:
        loss = triton_grpo_loss(batched, None, None, ids[None, :-1], weights[:1], mask, **settings)[0]
        return torch.autograd.grad(loss, batched)

    return step


def score_with_quack(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Score in 6F with all logits stored; their gradient is written over them."""
    from quack.linear_cross_entropy import linear_cross_entropy_func

    return -linear_cross_entropy_func(hidden, weight, None, ids, reduction="none", inplace_backward=True)


def sum_with_chunked_quack(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(hidden, weight, ids, reduction="sum", tuned=False)  # tuning takes minutes


def score_with_cut(hidden: Tensor, weight: Tensor, ids: Tensor, filter_eps: str | None = None) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    kind = "cce" if ids.is_cuda else "torch_compile"
    return -linear_cross_entropy(hidden, weight, ids, reduction="none", impl=kind, filter_eps=filter_eps)


def score_with_filtered_cut(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Score with the library's default: no gradient from blocks of small probabilities.

    On random hidden states these are nearly all blocks.
    """
    return score_with_cut(hidden, weight, ids, "high")
