"""The steps that a case times: ours and every peer's.

A peer that cannot run here is named with its reason, never left out in silence. A peer whose name ends in brackets
does less than the case asks: uniform coefficients for every row, or gradients without the blocks that its threshold
filters out. It is shown, and no goal counts it.
"""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from unittest import mock

import _peers
import torch
from _peers import COMPILE, CUT, CUT_FILTERED, EAGER, TRL, HeadLogps, Step, naive_logps
from torch import Tensor

from maxent_grpo.kernels import linear_token_logps, linear_weighted_nll, token_logps, weighted_nll

PATIENCE = 60.0
"""Seconds on a GPU, which is lent by the minute: what took longer to build is not built again for the next cases."""
LAUNCHES = [(2048, 4), (4096, 8), (4096, 16), (8192, 8), (8192, 32), (16384, 16), (16384, 32)]
"""Elements and warps of a program, beside the package's own choice."""
_slow: dict[str, str] = {}


@dataclass
class Runners:
    """The steps of one case by name, ours first; the absent ones with their reasons; and a note on the case."""

    steps: dict[str, Step] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        torch._dynamo.reset()  # what was compiled for another case's shapes would make this one's dynamic

    def add(self, name: str, build: Callable[[], Step]) -> None:
        """Build a step and run it once. An error makes a peer absent with that reason; an error of ours is raised."""
        ours, on_gpu = name.startswith("maxent_grpo"), torch.cuda.is_available()
        if name in _slow:
            self.absent[name] = _slow[name]
            return
        start = time.perf_counter()
        try:
            step = build()
            step()
            if on_gpu:
                torch.cuda.synchronize()  # so that an error on the device is charged to the step that caused it
        except Exception as error:
            if ours:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.absent[name] = re.sub(r" \(/[^)]*\)| at 0x[0-9a-f]+", "", reason)[:150]  # no paths or addresses
        else:
            self.steps[name] = step
        seconds = time.perf_counter() - start
        if on_gpu and not ours and seconds > PATIENCE:
            _slow[name] = f"building it took {seconds:.0f} s for an earlier case"


def build_head_training(hidden: Tensor, weight: Tensor, ids: Tensor, weights: Tensor) -> Runners:
    """Loss, dH and dW of −Σ c·log p through the LM head; peers without row weights run with uniform ones."""
    leaves = hidden, weight
    runners = _build_weighted_training(leaves, ids, weights)
    with torch.no_grad():
        runners.note = f"trained here to {-linear_token_logps(hidden, weight, ids).mean().item():.2f} nats per word"
    for name, loss in (
        ("torch linear_cross_entropy (uniform)", lambda h, w: _peers.sum_with_torch(h, w, ids)),
        ("Liger fused linear CE (uniform)", lambda h, w: _peers.reduce_with_liger(h, w, ids, "sum")),
        ("QuACK chunked linear CE (uniform)", lambda h, w: _peers.sum_with_chunked_quack(h, w, ids)),
        ("maxent_grpo two passes", _build_loss(linear_token_logps, ids, weights)),
    ):
        runners.add(name, _build_training(leaves, loss))
    return runners


def build_sparse_head_training(hidden: Tensor, weight: Tensor, ids: Tensor, weights: Tensor) -> Runners:
    """Train the head with most coefficients zero; the last two leave the zero rows out as a careful user would."""
    leaves = hidden, weight
    runners = _build_weighted_training(leaves, ids, weights, (EAGER, COMPILE, TRL, CUT, CUT_FILTERED))

    def drop_zero_rows(h: Tensor, w: Tensor) -> Tensor:
        rows = weights.nonzero()[:, 0]
        return -(weights[rows] * naive_logps(h[rows] @ w.t(), ids[rows])).sum()

    runners.add("eager, zero rows left out", _build_training(leaves, drop_zero_rows))
    labels = torch.where(weights == 0, -100, ids)
    loss = _build_loss(_peers.score_with_cut, labels, weights)
    runners.add("cut-cross-entropy, zero rows as −100", _build_training(leaves, loss))
    return runners


def build_head_scoring(*inputs: Tensor) -> Runners:
    """Log-probabilities through the LM head without gradients."""
    hidden, weight, ids = (value.detach() for value in inputs[:3])
    runners = Runners()
    runners.add("maxent_grpo", _build_scoring(lambda: linear_token_logps(hidden, weight, ids)))
    for name, logps in _peers.list_head_peers(hidden.device).items():
        if name != CUT_FILTERED:  # the filter is the backward's
            runners.add(name, _build_scoring(lambda logps=logps: logps(hidden, weight, ids)))
    return runners


def build_logits_scoring(logits: Tensor, ids: Tensor, _: Tensor) -> Runners:
    """Log-probabilities of given logits without gradients."""
    runners = Runners()
    runners.add("maxent_grpo", _build_scoring(lambda: token_logps(logits, ids)))
    runners.add(EAGER, _build_scoring(lambda: naive_logps(logits, ids)))
    runners.add(COMPILE, _build_scoring(torch.compile(lambda: naive_logps(logits, ids), dynamic=False)))
    for name in ("selective_log_softmax", "selective_log_softmax_and_entropy"):
        runners.add(f"TRL {name}", _build_scoring(lambda name=name: _peers.load_trl_function(name)(logits, ids)))
    return runners


def build_logits_training(logits: Tensor, ids: Tensor, weights: Tensor) -> Runners:
    """Loss and logit gradient of −Σ c·log p of given logits."""

    def build_training(logps: Callable[[Tensor], Tensor]) -> Callable[[], Step]:
        return _build_training((logits,), lambda z: -(weights * logps(z)).sum())

    inplace = _build_inplace_step(logits.detach().clone(), ids, weights)  # the others keep theirs
    runners = Runners()
    runners.add("maxent_grpo one pass", _build_training((logits,), lambda z: weighted_nll(z, ids, weights).loss))
    runners.add("maxent_grpo one pass in place", lambda: inplace)
    runners.add("maxent_grpo token_logps", build_training(lambda z: token_logps(z, ids)))
    runners.add(EAGER, build_training(lambda z: naive_logps(z, ids)))
    runners.add(COMPILE, build_training(torch.compile(lambda z: naive_logps(z, ids), dynamic=False)))
    score, score_with_entropy = "selective_log_softmax", "selective_log_softmax_and_entropy"
    runners.add(f"TRL {score}", build_training(lambda z: _peers.load_trl_function(score)(z, ids)))
    with_entropy = build_training(lambda z: _peers.load_trl_function(score_with_entropy)(z, ids)[0])
    runners.add(f"TRL {score_with_entropy}", with_entropy)
    runners.add("Liger GRPO loss", lambda: _peers.build_liger_grpo(logits, ids, weights))
    return runners


def build_scoring_launches(logits: Tensor, ids: Tensor, _: Tensor) -> Runners:
    """Log-probabilities of given logits by other launches."""
    return _build_launches(torch.no_grad()(lambda: token_logps(logits, ids)))


def build_inplace_launches(logits: Tensor, ids: Tensor, weights: Tensor) -> Runners:
    """Loss and logit gradient written over the logits by other launches."""
    return _build_launches(_build_inplace_step(logits.detach(), ids, weights))


def build_sequence_scoring(logits: Tensor, ids: Tensor) -> Runners:
    """Sequence log-probabilities without gradients."""
    runners = Runners()
    for name, score in _peers.list_sequence_peers(ids).items():
        runners.add(name, _build_scoring(lambda score=score: score(logits)))
    return runners


def build_sequence_training(logits: Tensor, ids: Tensor) -> Runners:
    """Sequence log-probabilities and their gradient."""
    runners = Runners()
    for name, score in _peers.list_sequence_peers(ids).items():
        runners.add(name, _build_training((logits,), lambda z, score=score: score(z).sum()))
    return runners


def build_head_sequence_scoring(hidden: Tensor, weight: Tensor, ids: Tensor) -> Runners:
    """Sequence log-probabilities through the LM head without gradients."""
    hidden, weight = hidden.detach(), weight.detach()
    runners = Runners()
    for name, score in _peers.list_head_sequence_peers(ids).items():
        runners.add(name, _build_scoring(lambda score=score: score(hidden, weight)))
    return runners


def build_head_sequence_training(hidden: Tensor, weight: Tensor, ids: Tensor) -> Runners:
    """Sequence log-probabilities through the LM head, dH and dW."""
    runners = Runners()
    for name, score in _peers.list_head_sequence_peers(ids).items():
        runners.add(name, _build_training((hidden, weight), lambda h, w, score=score: score(h, w).sum()))
    return runners


def _build_weighted_training(
    leaves: tuple[Tensor, Tensor], ids: Tensor, weights: Tensor, names: Iterable[str] | None = None
) -> Runners:
    """Return the steps of −Σ c·log p through the LM head: ours and those of the peers named, or of all."""
    peers = _peers.list_head_peers(ids.device)
    runners = Runners()
    count = int((weights != 0).sum())  # which the trainer knows before the model's forward
    for name, told in (("maxent_grpo one pass", count), ("maxent_grpo one pass, rows not told", None)):

        def loss(h: Tensor, w: Tensor, told: int | None = told) -> Tensor:
            return linear_weighted_nll(h, w, ids, weights, row_count=told).loss

        runners.add(name, _build_training(leaves, loss))
    for name in peers if names is None else [name for name in names if name in peers]:
        runners.add(name, _build_training(leaves, _build_loss(peers[name], ids, weights)))
    return runners


def _build_scoring(score: Callable[[], Tensor]) -> Callable[[], Step]:
    return lambda: torch.no_grad()(score)


def _build_training(leaves: tuple[Tensor, ...], loss: Callable[..., Tensor]) -> Callable[[], Step]:
    return lambda: lambda: torch.autograd.grad(loss(*leaves), leaves)


def _build_loss(logps: HeadLogps, ids: Tensor, weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda hidden, weight: -(weights * logps(hidden, weight, ids)).sum()


def _build_inplace_step(logits: Tensor, ids: Tensor, weights: Tensor) -> Step:
    """Return the step whose gradient is written over these logits, again and again."""
    leaf = logits.requires_grad_()

    def step() -> object:
        output = _Alias.apply(leaf)  # no leaf, as the output of an LM head is none
        return torch.autograd.grad(weighted_nll(output, ids, weights, inplace=True).loss, leaf)

    return step


def _build_launches(step: Step) -> Runners:
    """Return the step with the package's own launch and with the others."""
    from maxent_grpo.kernels import _triton_rows  # noqa: PLC0415 - needs Triton

    runners = Runners()
    runners.add("maxent_grpo", lambda: step)
    for block, warps in LAUNCHES:
        launch = _triton_rows.Launch(block, warps)
        patch = mock.patch.object(_triton_rows, "choose_launch", lambda _, launch=launch: launch)
        runners.add(f"{block} elements, {warps} warps", lambda patch=patch: patch(step))
    return runners


class _Alias(torch.autograd.Function):
    """The logits themselves as the output of an operation, without a copy."""

    @staticmethod
    def forward(ctx: object, logits: Tensor) -> Tensor:
        return logits.detach()

    @staticmethod
    def backward(ctx: object, upstream: Tensor) -> Tensor:
        return upstream
