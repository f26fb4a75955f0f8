"""The same step by each peer. A peer that cannot run here is named with its reason, never left out in silence.

A peer whose name ends in brackets does less than the case asks: uniform coefficients for every row, or gradients
without the blocks that its threshold filters out. It is shown, and no goal counts it.
"""
# ruff: noqa: PLC0415 - a peer is imported where it runs: it may be absent

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor

from maxent_grpo.kernels import (
    linear_sequence_logps,
    linear_token_logps,
    linear_weighted_nll,
    sequence_logps,
    token_logps,
    weighted_nll,
)

Step = Callable[[], object]
HeadLogps = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden [N, D], weight [V, D], ids [N]) -> log-probabilities [N]."""

EAGER, COMPILE = "eager", "torch.compile"
TRL, CUT, CUT_FILTERED = "TRL ChunkedLogProbFunction", "cut-cross-entropy", "cut-cross-entropy (filtered)"
PATIENCE = 60.0
"""Seconds on a GPU, which is lent by the minute: what took longer to build is not built again for the next cases."""
_slow: dict[str, str] = {}


@dataclass
class Field:
    """The runners of one case, ours first, those absent with their reasons, and what else is to be said of it."""

    steps: dict[str, Step] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        torch._dynamo.reset()  # what was compiled for another case's shapes would make this one's dynamic

    def enter(self, name: str, build: Callable[[], Step]) -> None:
        """Build a step and run it once; whatever stops a peer is why it is absent; what stops ours is a bug."""
        ours, on_gpu = name.startswith("maxent_grpo"), torch.cuda.is_available()
        if name in _slow:
            self.absent[name] = _slow[name]
            return
        start = time.perf_counter()
        try:
            step = build()
            step()
            if on_gpu:
                torch.cuda.synchronize()  # so that an error on the device is charged to who caused it
        except Exception as error:
            if ours:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.absent[name] = re.sub(r" \(/[^)]*\)| at 0x[0-9a-f]+", "", reason)[:150]  # no paths or addresses
        else:
            self.steps[name] = step
        taken = time.perf_counter() - start
        if on_gpu and not ours and taken > PATIENCE:
            _slow[name] = f"building it took {taken:.0f} s for an earlier case"


def naive(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def head_logps(device: torch.device) -> dict[str, HeadLogps]:
    """Return every peer that gives a row's own log-probability, and so can weight rows."""
    peers = {
        EAGER: lambda h, w, ids: naive(h @ w.t(), ids),
        COMPILE: torch.compile(lambda h, w, ids: naive(h @ w.t(), ids), dynamic=False),
        TRL: _trl_head,
        "TRL selective_log_softmax": lambda h, w, ids: _trl("selective_log_softmax")(h @ w.t(), ids),
        "Liger fused linear CE, reduction none": lambda h, w, ids: -_liger(h, w, ids, "none"),
        "Liger fused linear scaled CE": _liger_scaled,
        "QuACK linear CE, reduction none": _quack,
        CUT: _cut,
    }
    return peers | {CUT_FILTERED: _cut_filtered} if device.type == "cuda" else peers


def _scored(score: Callable[[], Tensor]) -> Callable[[], Step]:
    return lambda: torch.no_grad()(score)


def _trained(leaves: tuple[Tensor, ...], loss: Callable[..., Tensor]) -> Callable[[], Step]:
    return lambda: lambda: torch.autograd.grad(loss(*leaves), leaves)


def _weighted(logps: HeadLogps, ids: Tensor, weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda hidden, weight: -(weights * logps(hidden, weight, ids)).sum()


def _weighted_field(inputs: tuple[Tensor, Tensor, Tensor, Tensor], names: Iterable[str] | None = None) -> Field:
    """Return the field of −Σ c·log p through the LM head with the peers named, or all."""
    hidden, weight, ids, weights = inputs
    peers = head_logps(hidden.device)
    field = Field()
    field.enter(
        "maxent_grpo one pass",
        _trained((hidden, weight), lambda h, w: linear_weighted_nll(h, w, ids, weights).loss),
    )
    for name in peers if names is None else [name for name in names if name in peers]:
        field.enter(name, _trained((hidden, weight), _weighted(peers[name], ids, weights)))
    return field


def head_train(*inputs: Tensor) -> Field:
    """Loss, dH and dW of −Σ c·log p through the LM head; peers without row weights run with uniform ones."""
    hidden, weight, ids, weights = inputs
    leaves = hidden, weight
    field = _weighted_field((hidden, weight, ids, weights))
    field.enter("torch linear_cross_entropy (uniform)", _trained(leaves, lambda h, w: _torch_linear(h, w, ids)))
    field.enter("Liger fused linear CE (uniform)", _trained(leaves, lambda h, w: _liger(h, w, ids, "sum")))
    field.enter("QuACK chunked linear CE (uniform)", _trained(leaves, lambda h, w: _quack_chunked(h, w, ids)))
    field.enter("maxent_grpo two passes", _trained(leaves, _weighted(linear_token_logps, ids, weights)))
    return field


def head_pruned(*inputs: Tensor) -> Field:
    """Run the same with most coefficients zero; the last two leave the zero rows out as a careful user would."""
    hidden, weight, ids, weights = inputs
    leaves = hidden, weight
    field = _weighted_field((hidden, weight, ids, weights), (EAGER, COMPILE, TRL, CUT))

    def kept(h: Tensor, w: Tensor) -> Tensor:
        rows = weights.nonzero()[:, 0]
        return -(weights[rows] * naive(h[rows] @ w.t(), ids[rows])).sum()

    field.enter("eager, zero rows left out", _trained(leaves, kept))
    ignored = torch.where(weights == 0, -100, ids)
    field.enter("cut-cross-entropy, zero rows as −100", _trained(leaves, _weighted(_cut, ignored, weights)))
    return field


def head_learned(*inputs: Tensor) -> Field:
    """Run the same on hidden states of a trained model, where a threshold on the probabilities means something."""
    hidden, weight, ids, weights = inputs
    field = _weighted_field((hidden, weight, ids, weights), (EAGER, COMPILE, TRL, CUT, CUT_FILTERED))
    with torch.no_grad():
        field.note = f"trained here to {-linear_token_logps(hidden, weight, ids).mean().item():.2f} nats a word"
    return field


def head_score(*inputs: Tensor) -> Field:
    """Log-probabilities through the LM head without gradients."""
    hidden, weight, ids = (value.detach() for value in inputs[:3])
    field = Field()
    field.enter("maxent_grpo", _scored(lambda: linear_token_logps(hidden, weight, ids)))
    for name, logps in head_logps(hidden.device).items():
        if name != CUT_FILTERED:  # the filter is the backward's
            field.enter(name, _scored(lambda logps=logps: logps(hidden, weight, ids)))
    return field


def logits_score(logits: Tensor, ids: Tensor, weights: Tensor) -> Field:
    """Log-probabilities of given logits without gradients."""
    del weights
    field = Field()
    field.enter("maxent_grpo", _scored(lambda: token_logps(logits, ids)))
    field.enter(EAGER, _scored(lambda: naive(logits, ids)))
    field.enter(COMPILE, _scored(torch.compile(lambda: naive(logits, ids), dynamic=False)))
    for name in ("selective_log_softmax", "selective_log_softmax_and_entropy"):
        field.enter(f"TRL {name}", _scored(lambda name=name: _trl(name)(logits, ids)))
    return field


def logits_train(logits: Tensor, ids: Tensor, weights: Tensor) -> Field:
    """Loss and logit gradient of −Σ c·log p of given logits."""

    def trained(logps: Callable[[Tensor], Tensor]) -> Callable[[], Step]:
        return _trained((logits,), lambda z: -(weights * logps(z)).sum())

    inplace = _in_place(logits.detach().clone(), ids, weights)  # the others keep theirs
    field = Field()
    field.enter("maxent_grpo one pass", _trained((logits,), lambda z: weighted_nll(z, ids, weights).loss))
    field.enter("maxent_grpo one pass in place", lambda: inplace)
    field.enter("maxent_grpo token_logps", trained(lambda z: token_logps(z, ids)))
    field.enter(EAGER, trained(lambda z: naive(z, ids)))
    field.enter(COMPILE, trained(torch.compile(lambda z: naive(z, ids), dynamic=False)))
    field.enter("TRL selective_log_softmax", trained(lambda z: _trl("selective_log_softmax")(z, ids)))
    field.enter(
        "TRL selective_log_softmax_and_entropy",
        trained(lambda z: _trl("selective_log_softmax_and_entropy")(z, ids)[0]),
    )
    field.enter("Liger GRPO loss", lambda: _liger_grpo(logits, ids, weights))
    return field


LAUNCHES = [(2048, 4), (4096, 8), (4096, 16), (8192, 8), (8192, 32), (16384, 16), (16384, 32)]
"""Elements and warps of a program, beside the package's own choice."""


def score_launches(logits: Tensor, ids: Tensor, weights: Tensor) -> Field:
    """Log-probabilities of given logits by other launches."""
    del weights
    return _launches(torch.no_grad()(lambda: token_logps(logits, ids)))


def inplace_launches(logits: Tensor, ids: Tensor, weights: Tensor) -> Field:
    """Loss and logit gradient written over the logits by other launches."""
    return _launches(_in_place(logits.detach(), ids, weights))


def _in_place(logits: Tensor, ids: Tensor, weights: Tensor) -> Step:
    """Return the step whose gradient is written over these logits, again and again."""
    own = logits.requires_grad_()

    def step() -> object:
        over = _Renamed.apply(own)  # as the output of an LM head: no leaf
        return torch.autograd.grad(weighted_nll(over, ids, weights, inplace=True).loss, own)

    return step


def _launches(step: Step) -> Field:
    from maxent_grpo.kernels import _triton_rows as triton_rows

    field = Field()
    field.enter("maxent_grpo", lambda: step)
    for block, warps in LAUNCHES:
        chosen = mock.patch.object(triton_rows, "choose_launch", lambda _, at=(block, warps): triton_rows.Launch(*at))
        field.enter(f"{block} elements, {warps} warps", lambda chosen=chosen: chosen(step))
    return field


def _sequence_logps(ids: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "maxent_grpo sequence_logps": lambda z: sequence_logps(z, ids),
        EAGER: lambda z: naive(z, ids).sum(-1),
        COMPILE: torch.compile(lambda z: naive(z, ids).sum(-1), dynamic=False),
        "TRL selective_log_softmax": lambda z: _trl("selective_log_softmax")(z, ids).sum(-1),
    }


def sequence_score(logits: Tensor, ids: Tensor) -> Field:
    """Sequence log-probabilities without gradients."""
    field = Field()
    for name, score in _sequence_logps(ids).items():
        field.enter(name, _scored(lambda score=score: score(logits)))
    return field


def sequence_train(logits: Tensor, ids: Tensor) -> Field:
    """Sequence log-probabilities and their gradient."""
    field = Field()
    for name, score in _sequence_logps(ids).items():
        field.enter(name, _trained((logits,), lambda z, score=score: score(z).sum()))
    return field


def _head_sequence_logps(ids: Tensor) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    return {
        "maxent_grpo linear_sequence_logps": lambda h, w: linear_sequence_logps(h, w, ids),
        EAGER: lambda h, w: naive(h @ w.t(), ids).sum(-1),
        TRL: lambda h, w: _trl_head(h.flatten(0, 1), w, ids.flatten()).view(ids.shape).sum(-1),
    }


def head_sequence_score(hidden: Tensor, weight: Tensor, ids: Tensor) -> Field:
    """Sequence log-probabilities through the LM head without gradients."""
    hidden, weight = hidden.detach(), weight.detach()
    field = Field()
    for name, score in _head_sequence_logps(ids).items():
        field.enter(name, _scored(lambda score=score: score(hidden, weight)))
    return field


def head_sequence_train(hidden: Tensor, weight: Tensor, ids: Tensor) -> Field:
    """Sequence log-probabilities through the LM head, dH and dW."""
    field = Field()
    for name, score in _head_sequence_logps(ids).items():
        field.enter(name, _trained((hidden, weight), lambda h, w, score=score: score(h, w).sum()))
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


def _trl_head(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    return ChunkedLogProbFunction.apply(hidden, weight, None, ids, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ())[0]


def _torch_linear(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    from torch.nn import LinearCrossEntropyOptions
    from torch.nn.functional import linear_cross_entropy

    return linear_cross_entropy(hidden, weight, ids, reduction="sum", options=LinearCrossEntropyOptions())


def _liger(hidden: Tensor, weight: Tensor, ids: Tensor, reduction: str) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction=reduction)(weight, hidden, ids)


def _liger_scaled(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Liger's CuTe kernel on Hopper; elsewhere its own chunked torch."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    return -LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, ids)


def _liger_grpo(logits: Tensor, ids: Tensor, weights: Tensor) -> Step:
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    rows = len(ids)
    batched = logits.detach()[None].requires_grad_()  # it expects one more logit than labels
    mask = torch.ones(1, rows - 1, device=ids.device, dtype=torch.int64)
    settings = {"temperature": 1.0, "beta": 0.0, "reduce": True}

    def step() -> object:
        loss = triton_grpo_loss(batched, None, None, ids[None, :-1], weights[:1], mask, **settings)[0]
        return torch.autograd.grad(loss, batched)

    return step


def _quack(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """6F with all logits stored, whose gradient is written over them."""
    from quack.linear_cross_entropy import linear_cross_entropy_func

    return -linear_cross_entropy_func(hidden, weight, None, ids, reduction="none", inplace_backward=True)


def _quack_chunked(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(hidden, weight, ids, reduction="sum", tuned=False)  # tuning takes minutes


def _cut(hidden: Tensor, weight: Tensor, ids: Tensor, filter_eps: str | None = None) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    kind = "cce" if ids.is_cuda else "torch_compile"
    return -linear_cross_entropy(hidden, weight, ids, reduction="none", impl=kind, filter_eps=filter_eps)


def _cut_filtered(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Its default: no gradient from blocks of small probabilities, which on random hidden states are nearly all."""
    return _cut(hidden, weight, ids, "high")
