"""Hypothesis strategies of the tests: batches of groups, temperatures with their limits, token batches.

All tensors are float64. Masked entries hold NaN or infinities on purpose: nothing may ever look at them.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

INF = math.inf
LIMITS = [
    (INF, 0.0),
    (INF, 1.0),
    (0.0, INF),
    (1.0, INF),
    (0.0, 0.0),
    (0.0, 0.5),
    (0.5, 0.0),
    (1e-6, 0.0),
    (0.0, 1e-6),
]

_UTILITIES = {
    "binary": st.sampled_from([0.0, 1.0]),
    "graded": st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    "real": st.floats(-5.0, 5.0, allow_subnormal=False),
    "extreme": st.sampled_from([-1e4, -1.0, 0.0, 1.0, 1e4]),
}
_ANCHORS = st.floats(-30.0, 0.0, allow_subnormal=False) | st.sampled_from([0.0, -1.0, -1e3])
_JUNK = st.sampled_from([math.nan, INF, -INF, 0.0])


@dataclass(frozen=True)
class Problem:
    """A batch of groups with the knobs of their target."""

    utilities: Tensor
    anchor_logps: Tensor
    mask: Tensor
    temperature: float
    eps: float
    tau: float
    beta: float

    @property
    def log_q(self) -> Tensor:
        """log q by eq. (1), written out once more, with junk where masked."""
        scores = torch.where(self.mask, self.utilities / self.temperature, -INF)
        K = self.mask.sum(-1, keepdim=True)
        spread = (1 - K * self.eps).clamp(min=0.0).log() + scores.log_softmax(-1)
        floor = torch.tensor(self.eps, dtype=torch.float64).log()
        return torch.where(self.mask, torch.logaddexp(spread, floor), self.utilities)

    @property
    def knobs(self) -> dict[str, float]:
        return {"tau": self.tau, "beta": self.beta}

    def tolerance(self, scale: float = 1e-12) -> float:
        """scale · max(1, range of the exponents of eqs. (1) and (4))."""
        return scale * max(1.0, self.range_of_q, self.range_of_target)

    @property
    def range_of_q(self) -> float:
        return _range(self.utilities, self.mask) / self.temperature

    @property
    def range_of_target(self) -> float:
        heat = self.tau + self.beta
        if heat in (0.0, INF):
            return _range(self.anchor_logps, self.mask) if self.beta == INF else 0.0
        return (_range(self.log_q, self.mask) + self.beta * _range(self.anchor_logps, self.mask)) / heat


def _range(values: Tensor, mask: Tensor) -> float:
    """The largest range of the finite counted values in a group."""
    counted = mask & values.isfinite()
    high, low = values.masked_fill(~counted, -INF).amax(-1), values.masked_fill(~counted, INF).amin(-1)
    return float((high - low).clamp(min=0.0).nan_to_num(posinf=0.0).max())


def finite_temperings(low: float = 1e-3) -> st.SearchStrategy[tuple[float, float]]:
    """(τ, β) with low <= τ+β < ∞, either of them 0 at times."""
    number = st.floats(low, 10.0, allow_subnormal=False)
    return st.tuples(number, number) | st.tuples(number, st.just(0.0)) | st.tuples(st.just(0.0), number)


def temperings() -> st.SearchStrategy[tuple[float, float]]:
    """Any allowed (τ, β), limits included."""
    return st.sampled_from(LIMITS) | finite_temperings()


@st.composite
def masks(draw, groups: int, candidates: int) -> Tensor:
    """[G, K] bool: all counted, or any subset, empty groups included."""
    if draw(st.booleans()):
        return torch.ones(groups, candidates, dtype=torch.bool)
    return torch.from_numpy(draw(hnp.arrays(np.bool_, (groups, candidates))))


@st.composite
def values_of(draw, shape: tuple[int, ...], elements: st.SearchStrategy[float]) -> Tensor:
    """A float64 tensor of this shape."""
    return torch.from_numpy(draw(hnp.arrays(np.float64, shape, elements=elements, fill=st.nothing())))


@st.composite
def problems(
    draw,
    *,
    tempering: st.SearchStrategy[tuple[float, float]] | None = None,
    utilities: tuple[str, ...] = tuple(_UTILITIES),
    temperatures: tuple[float, ...] = (1e-3, 0.3, 1.0, 10.0),
    epsilons: tuple[float, ...] = (0.0, 1e-6, 1e-2, 1 / 8),
    max_groups: int = 3,
    max_candidates: int = 6,
) -> Problem:
    """A batch of groups, masked candidates holding junk, and knobs."""
    shape = (draw(st.integers(1, max_groups)), draw(st.integers(1, max_candidates)))
    mask = draw(masks(*shape))
    junk = draw(_JUNK)
    kind = draw(st.sampled_from(utilities))
    tau, beta = draw(temperings() if tempering is None else tempering)
    return Problem(
        utilities=torch.where(mask, draw(values_of(shape, _UTILITIES[kind])), junk),
        anchor_logps=torch.where(mask, draw(values_of(shape, _ANCHORS)), junk),
        mask=mask,
        temperature=draw(st.sampled_from(temperatures)),
        eps=draw(st.sampled_from(epsilons)),
        tau=tau,
        beta=beta,
    )


def mild_problems(**changes) -> st.SearchStrategy[Problem]:
    """Problems whose optimum has no weight below the smallest float: 0.05 <= τ+β, utilities of order 1."""
    options = {
        "tempering": finite_temperings(0.05),
        "utilities": ("binary", "graded", "real"),
        "temperatures": (0.3, 1.0, 10.0),
        "epsilons": (1e-6, 1e-2),
    }
    return problems(**{**options, **changes}).map(
        lambda problem: replace(problem, anchor_logps=problem.anchor_logps.clamp(min=-30.0))
    )


@st.composite
def policies(draw, mask: Tensor) -> Tensor:
    """log π [G, K] over the counted candidates, −∞ elsewhere: corners, near-corners and inner points."""
    sharpness = draw(st.sampled_from([0.0, 1.0, 10.0, 1e3]))
    scores = draw(values_of(tuple(mask.shape), st.floats(-1.0, 1.0, allow_subnormal=False))) * sharpness
    log_policy = scores.masked_fill(~mask, -INF).log_softmax(-1)
    return log_policy.masked_fill(~mask, -INF)


@dataclass(frozen=True)
class Tokens:
    """A batch of token log-probabilities with everything the losses take beside them."""

    logps: Tensor
    old_logps: Tensor
    mask: Tensor
    weights: Tensor
    token_scale: Tensor | None


@st.composite
def tokens(draw, max_groups: int = 3) -> Tokens:
    """Token log-probabilities [G, K, T] near those of a rollout policy; junk where masked."""
    shape = (draw(st.integers(1, max_groups)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    mask = torch.from_numpy(draw(hnp.arrays(np.bool_, shape)))
    junk = draw(_JUNK)
    old = draw(values_of(shape, st.floats(-5.0, 0.0, allow_subnormal=False)))
    drift = draw(values_of(shape, st.floats(-1.0, 1.0, allow_subnormal=False) | st.just(0.0)))
    signed = st.floats(-1.0, 1.0, allow_subnormal=False) | st.just(0.0)
    return Tokens(
        logps=torch.where(mask, old + drift, junk),
        old_logps=torch.where(mask, old, junk),
        mask=mask,
        weights=draw(values_of(shape[:2], signed)),
        token_scale=draw(st.none() | values_of(shape, st.floats(0.0, 2.0, allow_subnormal=False))),
    )
