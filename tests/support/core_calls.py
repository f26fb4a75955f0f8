"""One small call of every function of target, loss and potential: what compile, vmap and the sync guard run over."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import maxent_grpo as mg
from maxent_grpo import transforms


@dataclass(frozen=True)
class Call:
    """A function of tensors alone (knobs bound), and tensors [2, K, ...] to call it with."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def _inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    q = draw(2, 3).softmax(-1)
    return {
        "u": draw(2, 3), "q": q, "log_q": q.log(), "anchors": -draw(2, 3), "policy": draw(2, 3).softmax(-1),
        "mask": torch.tensor([[True, True, True], [True, False, True]]), "keys": torch.tensor([[1, 1, 2], [3, 3, 3]]),
        "tau": torch.tensor([0.0, 0.5]), "beta": torch.tensor([0.3, 0.0]), "logps": -draw(2, 3, 4),
        "right": torch.tensor([[True, False, True], [True, False, False]]), "counts": torch.tensor([[2, 2, 1]] * 2),
        "old": -draw(2, 3, 4), "tokens": draw(2, 3, 4) < 0.8, "weights": draw(2, 3),
    }  # fmt: skip


_CLIPS = {"clip_low": 0.2, "clip_high": 0.2, "max_length": 4.0}

_FUNCTIONS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "listwise_q": (lambda u, m: mg.listwise_q(u, temperature=0.5, mask=m), "u mask"),
    "listwise_q of each temperature": (lambda u, t: mg.listwise_q(u, temperature=t + 0.1), "u tau"),
    "listwise_log_q": (lambda u, m: mg.listwise_log_q(u, mask=m), "u mask"),
    "listwise_log_q without a mask": (mg.listwise_log_q, "u"),
    "tempered_target": (lambda q, a, m: mg.tempered_target(q, a, tau=0.2, beta=0.1, mask=m), "q anchors mask"),
    "tempered_target of each tau": (
        lambda q, a, t, b: mg.tempered_target(q, a, tau=t, beta=b), "q anchors tau beta"
    ),
    "tempered_log_target at tau 0": (lambda q, a: mg.tempered_log_target(q, a, tau=0.0, beta=0.0), "log_q anchors"),
    "tempered_log_target at tau inf": (lambda q: mg.tempered_log_target(q, tau=float("inf")), "log_q"),
    "tempered_log_target at beta inf": (
        lambda q, a: mg.tempered_log_target(q, a, tau=0.0, beta=float("inf")), "log_q anchors"
    ),
    "center_weights": (lambda w, m: mg.center_weights(w, mask=m), "weights mask"),
    "duplicate_counts": (lambda k, m: mg.duplicate_counts(k, mask=m), "keys mask"),
    "discount_duplicates": (lambda w, k, m: mg.discount_duplicates(w, k, strength=0.5, mask=m), "q keys mask"),
    "discount_log_weights": (lambda w, k: mg.discount_log_weights(w, k, strength=0.5), "log_q keys"),
    "discount_likely": (
        lambda w, p, r, m: mg.discount_likely(w, p, r, strength=0.5, mask=m), "log_q anchors right mask"
    ),
    "count_answers": (mg.count_answers, "counts right"),
    "power_weights": (
        lambda u, n, m: mg.power_weights(
            u, success_power=1, failure_power=-1, distinct_power=2, answers=n + 1, mask=m
        ), "u tau mask",
    ),
    "pass_at_k_weights": (lambda u, r, m: mg.pass_at_k_weights(u, r, k=2, mask=m), "u right mask"),
    "pass_at_k_weights normalized": (lambda u, r: mg.pass_at_k_weights(u, r, k=2, normalize=True), "u right"),
    "keep_utilities": (transforms.keep_utilities, "u"),
    "divide_by_counts": (lambda u, m, n: transforms.divide_by_counts(u, mask=m, counts=n), "u mask counts"),
    "reward_rare": (
        lambda u, m, r, n: transforms.reward_rare(u, mask=m, right=r, counts=n), "u mask right counts"
    ),
    "reward_rare of a known number": (
        lambda u, m, r, n: transforms.reward_rare(u, mask=m, right=r, counts=n, valid_answers=5),
        "u mask right counts",
    ),
    "scale_by_distance": (
        lambda u, m, r, n: transforms.scale_by_distance(u, mask=m, right=r, counts=n), "u mask right counts"
    ),
    "reward_unlikely": (
        lambda u, m, r, p: transforms.reward_unlikely(u, mask=m, right=r, old_logps=p), "u mask right anchors"
    ),
    "share_by_unlikeliness": (
        lambda u, m, r, p: transforms.share_by_unlikeliness(u, mask=m, right=r, old_logps=p), "u mask right anchors"
    ),
    "informative_groups": (lambda u, m: mg.informative_groups(u, mask=m), "u mask"),
    "rank_utilities": (lambda u, m: mg.rank_utilities(u, mask=m), "u mask"),
    "standardize_utilities": (lambda u, m: mg.standardize_utilities(u, mask=m), "u mask"),
    "tau_for_ess": (lambda q, a, m: mg.tau_for_ess(q, a, ess=1.5, beta=0.1, mask=m), "log_q anchors mask"),
    "tau_for_ess of each size": (lambda q, t: mg.tau_for_ess(q, ess=t + 1), "log_q tau"),
    "regularized_potential": (
        lambda p, q, a, m: mg.regularized_potential(p, q, a, tau=0.2, beta=0.1, mask=m), "policy log_q anchors mask"
    ),
    "optimal_potential": (
        lambda q, a, m: mg.optimal_potential(q, a, tau=0.2, beta=0.1, mask=m), "log_q anchors mask"
    ),
    "improvement_gap": (
        lambda p, q, a, m: mg.improvement_gap(p, q, a, tau=0.2, beta=0.1, mask=m), "log_q log_q anchors mask"
    ),
    "forward_kl": (lambda p, q, m: mg.forward_kl(p, q, mask=m), "log_q log_q mask"),
    "effective_sample_size": (mg.effective_sample_size, "weights"),
    "maxent_weighted_nll": (mg.maxent_weighted_nll, "logps weights tokens"),
    "maxent_weighted_nll by length": (
        lambda l, w, m: mg.maxent_weighted_nll(l, w, m, length_normalize=True, num_groups=3, token_scale=l),
        "logps weights tokens",
    ),
    "listwise_cross_entropy": (lambda s, w, m: mg.listwise_cross_entropy(s, w, mask=m), "anchors weights mask"),
    "clipped_surrogate": (
        lambda l, o, w, m: mg.clipped_surrogate(l, o, w, m, **_CLIPS), "logps old weights tokens"
    ),
}  # fmt: skip

CALLS = {
    name: Call(function, tuple(_inputs()[key] for key in keys.split()))
    for name, (function, keys) in _FUNCTIONS.items()
}
OF_TARGET = list(CALLS)[: list(CALLS).index("regularized_potential")]
OF_LOSS = list(CALLS)[list(CALLS).index("maxent_weighted_nll") :]
