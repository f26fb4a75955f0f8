"""The same step by each peer. A peer that cannot run here is named with its reason, never left out in silence."""
# ruff: noqa: PLC0415 - a peer is imported where it runs: it may be absent

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maxent_grpo.kernels import (
    linear_token_logps,
    linear_weighted_nll,
    sequence_logps,
    token_logps,
    weighted_nll,
)

Step = Callable[[], object]


@dataclass
class Field:
    """The runners of one case, ours first, and those absent with their reasons."""

    steps: dict[str, Step] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch._dynamo.reset()  # what was compiled for another case's shapes would make this one's dynamic

    def enter(self, name: str, build: Callable[[], Step]) -> None:
        """Build a step and run it once; whatever stops a peer is why it is absent; what stops ours is a bug."""
        try:
            step = build()
            step()
        except Exception as error:
            if name.startswith("maxent_grpo"):
                raise
            self.absent[name] = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error) else ''}"
            )
        else:
            self.steps[name] = step


def naive(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def head_train(hidden: Tensor, weight: Tensor, ids: Tensor, weights: Tensor) -> Field:
    """Loss, dH and dW of −Σ c·log p through the LM head; peers without row weights run with uniform ones."""
    leaves = (hidden, weight)

    def trained(loss: Callable[..., Tensor]) -> Callable[[], Step]:
        return lambda: lambda: torch.autograd.grad(loss(*leaves), leaves)

    field = Field()
    field.enter("maxent_grpo one pass", trained(lambda h, w: linear_weighted_nll(h, w, ids, weights).loss))
    field.enter("eager", trained(lambda h, w: -(weights * naive(h @ w.t(), ids)).sum()))
    compiled = torch.compile(lambda h, w: -(weights * naive(h @ w.t(), ids)).sum(), dynamic=False)
    field.enter("torch.compile", trained(compiled))
    field.enter("TRL ChunkedLogProbFunction", trained(_trl_head(ids, weights)))
    field.enter("torch linear_cross_entropy (uniform)", trained(_torch_linear(ids)))
    field.enter("Liger fused linear CE (uniform)", trained(_liger(ids)))
    field.enter("cut-cross-entropy", trained(_cut(ids, weights)))
    field.enter("maxent_grpo two passes", trained(lambda h, w: -(weights * linear_token_logps(h, w, ids)).sum()))
    return field


def head_pruned(hidden: Tensor, weight: Tensor, ids: Tensor, weights: Tensor) -> Field:
    """Run the same with most coefficients zero: only TRL beside ours, the goal's own comparison."""
    leaves = (hidden, weight)
    trl = _trl_head(ids, weights)
    field = Field()
    field.enter(
        "maxent_grpo one pass",
        lambda: lambda: torch.autograd.grad(linear_weighted_nll(*leaves, ids, weights).loss, leaves),
    )
    field.enter("TRL ChunkedLogProbFunction", lambda: lambda: torch.autograd.grad(trl(*leaves), leaves))
    return field


def head_score(hidden: Tensor, weight: Tensor, ids: Tensor, weights: Tensor) -> Field:
    """Log-probabilities through the LM head without gradients."""
    del weights

    def scored(score: Callable[[], Tensor]) -> Callable[[], Step]:
        return lambda: torch.no_grad()(score)

    field = Field()
    field.enter("maxent_grpo", scored(lambda: linear_token_logps(hidden, weight, ids)))
    field.enter("eager", scored(lambda: naive(hidden @ weight.t(), ids)))
    trl = _trl_head(ids, torch.ones(ids.shape, device=ids.device))
    field.enter("TRL ChunkedLogProbFunction", scored(lambda: trl(hidden, weight)))
    return field


def logits_score(logits: Tensor, ids: Tensor, weights: Tensor) -> Field:
    """Log-probabilities of given logits without gradients."""
    del weights

    def scored(score: Callable[[], Tensor]) -> Callable[[], Step]:
        return lambda: torch.no_grad()(score)

    field = Field()
    field.enter("maxent_grpo", scored(lambda: token_logps(logits, ids)))
    field.enter("eager", scored(lambda: naive(logits, ids)))
    field.enter("torch.compile", scored(torch.compile(lambda: naive(logits, ids), dynamic=False)))
    field.enter("TRL selective_log_softmax", scored(lambda: _trl("selective_log_softmax")(logits, ids)))
    field.enter(
        "TRL selective_log_softmax_and_entropy",
        scored(lambda: _trl("selective_log_softmax_and_entropy")(logits, ids)),
    )
    return field


def logits_train(logits: Tensor, ids: Tensor, weights: Tensor) -> Field:
    """Loss and logit gradient of −Σ c·log p of given logits."""

    def trained(loss: Callable[[Tensor], Tensor]) -> Callable[[], Step]:
        return lambda: lambda: torch.autograd.grad(loss(logits), logits)

    own = logits.detach().clone().requires_grad_()  # written over again and again: the others keep theirs

    def inplace() -> object:
        over = _Renamed.apply(own)  # as the output of an LM head: no leaf
        return torch.autograd.grad(weighted_nll(over, ids, weights, inplace=True).loss, own)

    field = Field()
    field.enter("maxent_grpo one pass", trained(lambda z: weighted_nll(z, ids, weights).loss))
    field.enter("maxent_grpo one pass in place", lambda: inplace)
    field.enter("maxent_grpo token_logps", trained(lambda z: -(weights * token_logps(z, ids)).sum()))
    field.enter("eager", trained(lambda z: -(weights * naive(z, ids)).sum()))
    field.enter("torch.compile", trained(torch.compile(lambda z: -(weights * naive(z, ids)).sum(), dynamic=False)))
    field.enter(
        "TRL selective_log_softmax",
        trained(lambda z: -(weights * _trl("selective_log_softmax")(z, ids)).sum()),
    )
    field.enter(
        "TRL selective_log_softmax_and_entropy",
        trained(lambda z: -(weights * _trl("selective_log_softmax_and_entropy")(z, ids)[0]).sum()),
    )
    field.enter("Liger GRPO loss", lambda: _liger_grpo(logits, ids, weights))
    return field


def sequence_score(logits: Tensor, ids: Tensor, weights: Tensor) -> Field:
    """Sequence log-probabilities without gradients."""
    del weights
    field = Field()
    field.enter("maxent_grpo sequence_logps", lambda: torch.no_grad()(lambda: sequence_logps(logits, ids)))
    field.enter("eager", lambda: torch.no_grad()(lambda: naive(logits, ids).sum(-1)))
    return field


def sequence_train(logits: Tensor, ids: Tensor, weights: Tensor) -> Field:
    """Sequence log-probabilities and their gradient."""
    del weights

    def trained(score: Callable[[Tensor], Tensor]) -> Callable[[], Step]:
        return lambda: lambda: torch.autograd.grad(score(logits).sum(), logits)

    field = Field()
    field.enter("maxent_grpo sequence_logps", trained(lambda z: sequence_logps(z, ids)))
    field.enter("eager", trained(lambda z: naive(z, ids).sum(-1)))
    return field


class _Renamed(torch.autograd.Function):
    """The logits themselves as the output of an operation, without a copy."""

    @staticmethod
    def forward(ctx: object, logits: Tensor) -> Tensor:
        return logits.detach()

    @staticmethod
    def backward(ctx: object, upstream: Tensor) -> Tensor:
        return upstream


def _trl(name: str) -> Callable[..., Tensor]:
    from trl.trainer import utils

    return getattr(utils, name)


def _trl_head(ids: Tensor, weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

        logps = ChunkedLogProbFunction.apply(
            hidden, weight, None, ids, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ()
        )[0]
        return -(weights * logps).sum()

    return loss


def _torch_linear(ids: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        from torch.nn import LinearCrossEntropyOptions
        from torch.nn.functional import linear_cross_entropy

        return linear_cross_entropy(hidden, weight, ids, reduction="sum", options=LinearCrossEntropyOptions())

    return loss


def _liger(ids: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        return LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, hidden, ids)

    return loss


def _liger_grpo(logits: Tensor, ids: Tensor, weights: Tensor) -> Step:
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    rows = len(ids)
    batched = logits.detach()[None].requires_grad_()  # it expects one more logit than labels
    mask = torch.ones(1, rows - 1, device=ids.device, dtype=torch.int64)

    def step() -> object:
        loss = triton_grpo_loss(
            batched,
            None,
            None,
            ids[None, :-1],
            weights[:1],
            mask,
            temperature=1.0,
            beta=0.0,
            reduce=True,
        )[0]
        return torch.autograd.grad(loss, batched)

    return step


def _cut(ids: Tensor, weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy

        kind = "cce" if ids.is_cuda else "torch_compile"
        return (weights * linear_cross_entropy(hidden, weight, ids, reduction="none", impl=kind)).sum()

    return loss
