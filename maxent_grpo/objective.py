"""The one composition of the pure functions: rewards to target, coefficients, loss and statistics.

Adapters call this and do no mathematics of their own. Target and coefficients are computed once per rollout,
where the groups are whole; the loss then only multiplies, whatever micro-batch a sequence lands in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maxent_grpo._checks import expect, expect_candidates, expect_shape
from maxent_grpo._masked import below_peak, center, divide_gap, fill, log_softmax, mean, per_group, upcast
from maxent_grpo._statistics import Statistics, measure_target
from maxent_grpo.config import MaxEntConfig
from maxent_grpo.groups import prune_candidates
from maxent_grpo.loss import clipped_surrogate, maxent_weighted_nll
from maxent_grpo.target import (
    center_weights,
    discount_log_weights,
    duplicate_counts,
    informative_groups,
    listwise_log_q,
    rank_utilities,
    standardize_utilities,
    tau_for_ess,
    tempered_log_target,
)


@dataclass(frozen=True)
class Target:
    """What a rollout's groups are fitted to; everything detached.

    Attributes:
        utilities: [..., K] transformed utilities, 0 where masked.
        log_q: [..., K] log q of the target's potential: with duplicates discounted, that of eq. (4b).
        log_weights: [..., K] log π*; for the surrogate, the logarithm of its candidate weights.
        weights: [..., K] π*, exactly 0 where masked.
        tau: [...] τ of each group.
        mask: [..., K] bool, the candidates that count: given as such, and not empty.
        informative: [...] bool, False where all counted utilities are equal.
        scale: [...] what the group's coefficients are multiplied by; 0 where the group is skipped.
        anchor_logps: [..., K] normalised anchor log-probabilities, or None if the target has none.
        lengths: [..., K] number of tokens of each candidate.
    """

    utilities: Tensor
    log_q: Tensor
    log_weights: Tensor
    weights: Tensor
    tau: Tensor
    mask: Tensor
    informative: Tensor
    scale: Tensor
    anchor_logps: Tensor | None
    lengths: Tensor


class MaxEntObjective:
    """The method of one `MaxEntConfig`: target → coefficients → loss, and statistics beside them.

    Log-probabilities passed in are sums over tokens, [..., K]; the objective normalises them by length where
    the config says so.

    Raises:
        ValueError: if the config divides by `max_length` and has none.

    >>> objective = MaxEntObjective(MaxEntConfig(tau=0.2))
    >>> rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    >>> counted, lengths = torch.ones(1, 4, dtype=torch.bool), torch.full((1, 4), 8)
    >>> target = objective.target(rewards, mask=counted, lengths=lengths)
    >>> objective.coefficients(target)
    tensor([[0.9802, 0.0066, 0.0066, 0.0066]])
    """

    def __init__(self, config: MaxEntConfig) -> None:
        divided = config.nll_reduction == "max_length" or config.projection == "surrogate"
        expect(
            not divided or config.max_length is not None,
            f"max_length, the generation limit in tokens, with nll_reduction={config.nll_reduction!r} "
            f"and projection={config.projection!r}",
            max_length=config.max_length,
        )
        self.config = config
        self._max_length = config.max_length if divided else None

    def expect_utilities(self, utilities: Tensor) -> None:
        """Check what `target` would only show as NaN. Reads the tensor, so for adapters, once per rollout.

        Args:
            utilities: [...]; NaN where there is none.

        Raises:
            ValueError: on a negative utility with success_power > 0, which would turn the coefficients around.
        """
        scale = self.config.success_power
        lowest = float(utilities.nan_to_num(nan=0.0).amin()) if scale > 0 and utilities.numel() else 0.0
        expect(lowest >= 0, f"utilities >= 0 with success_power={scale!r}", lowest_utility=lowest)

    @torch.no_grad()
    def target(
        self,
        utilities: Tensor,
        *,
        mask: Tensor,
        lengths: Tensor,
        ref_logps: Tensor | None = None,
        old_logps: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Target:
        """Return the target of each group.

        Args:
            utilities: [..., K] weighted sums of rewards; anything where masked.
            mask: [..., K] bool, False for padding and for candidates that could not be scored.
            lengths: [..., K] number of tokens; a candidate without tokens does not count.
            ref_logps: [..., K] log-probabilities of the frozen reference, summed over tokens; needed if
                β > 0 and the anchor is the reference.
            old_logps: [..., K] those of the rollout policy; needed if β > 0 and the anchor is "old".
            keys: [..., K] integers, equal for the same answer; needed if dedup > 0.

        Raises:
            ValueError: on unequal shapes, or an input that the config needs and is not there, by its name.
        """
        config = self.config
        self._expect_groups(utilities, mask, lengths)
        counted = mask & (lengths > 0)
        raw = upcast(utilities)
        informative = informative_groups(raw, mask=counted)
        # Utilities -> q, eq. (1).
        values = fill(_TRANSFORMS[config.utility_transform](raw, counted), counted, 0.0)
        log_q = listwise_log_q(values, temperature=config.q_temperature, eps=config.q_eps, mask=counted)
        # q and anchor -> target, eq. (4), or the surrogate's weights of the candidates, eq. (8).
        anchors = self._normalize_anchors(lengths, ref_logps, old_logps)
        tau = self._choose_tau(log_q, anchors, counted, informative)
        if config.projection == "surrogate":
            log_weights = self._weigh_by_return(values, lengths, counted, informative)
        else:
            log_weights = tempered_log_target(log_q, anchors, tau=tau, beta=config.beta, mask=counted)
        # Duplicates discounted, eq. (4b).
        if config.dedup > 0:
            log_weights, log_q = self._discount(log_weights, log_q, tau, self._count_copies(keys, counted), counted)
        return Target(
            utilities=values,
            log_q=log_q,
            log_weights=log_weights,
            weights=log_weights.exp(),
            tau=tau,
            mask=counted,
            informative=informative,
            scale=self._scale_groups(raw, counted, informative),
            anchor_logps=anchors,
            lengths=lengths,
        )

    @torch.no_grad()
    def coefficients(
        self, target: Target, *, old_logps: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the constant c_i of each candidate, [..., K]; skipped groups are zeros and still count in G.

        Args:
            target: of whole groups.
            old_logps: [..., K] log-probabilities of the rollout policy, summed over tokens; needed by the
                `listwise` projection.
            generator: for pruning, seeded by (seed, step); needed if the config prunes.

        Raises:
            ValueError: on an input that the config needs and is not there, by its name.
        """
        coefficients = target.weights
        if self.config.projection == "listwise":
            coefficients = coefficients - self._score_policy(target, "old_logps", old_logps).exp()
        elif self.config.projection == "surrogate":
            coefficients = coefficients * _center_utilities(target.utilities, target.mask, target.informative)
        elif self.config.center:
            coefficients = center_weights(coefficients, mask=target.mask)
            if self.config.dedup == 0 and self.config.beta == 0:  # uniform up to rounding, which is no direction
                coefficients = coefficients.masked_fill(~target.informative.unsqueeze(-1), 0.0)
        scale = target.scale.unsqueeze(-1)
        coefficients = (coefficients * scale).masked_fill(~target.mask | (scale == 0), 0.0)
        if self.config.keep_fraction is None:
            return coefficients
        if generator is None:
            raise ValueError(
                f"Expected a generator with keep_fraction={self.config.keep_fraction!r}, got generator=None."
            )
        return prune_candidates(coefficients, keep=self.config.keep_fraction, generator=generator)

    def loss(
        self,
        logps: Tensor,
        coefficients: Tensor,
        token_mask: Tensor,
        *,
        num_groups: float | Tensor,
        old_logps: Tensor | None = None,
        token_scale: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of any part of a batch; the losses of the parts add up to that of the whole.

        Args:
            logps: [..., T] token log-probabilities of the policy in training.
            coefficients: [...], one per sequence.
            token_mask: [..., T] bool, True where a completion token counts.
            num_groups: G, the prompts of the whole optimiser step over all ranks and micro-batches.
            old_logps: [..., T] those of the rollout policy; clips the update, eq. (7c). Without them the policy is
                taken to be the rollout policy, eq. (7).
            token_scale: [..., T] constants on the token terms.

        Returns:
            scalar in the dtype of `logps`.

        Raises:
            ValueError: on unequal shapes or num_groups <= 0.
        """
        config = self.config
        constants: dict[str, Any] = {
            "length_normalize": config.nll_reduction == "mean",
            "max_length": self._max_length,
            "num_groups": num_groups,
            "token_scale": token_scale,
        }
        if old_logps is None:
            return maxent_weighted_nll(logps, coefficients, token_mask, **constants)
        constants |= {"clip_low": config.clip_low, "clip_high": config.clip_high}
        return clipped_surrogate(logps, old_logps, coefficients, token_mask, **constants)

    def token_coefficients(
        self,
        coefficients: Tensor,
        token_mask: Tensor,
        *,
        num_groups: float | Tensor,
        token_scale: Tensor | None = None,
    ) -> Tensor:
        """Return what each token's NLL is multiplied by in an unclipped `loss`, for kernels that take it so.

        Such a loss is linear in the token log-probabilities, so these are minus its gradient.

        Args, Raises: as `loss`.

        Returns:
            [..., T] in the dtype of the coefficients (halves: float32), detached; 0 where masked.
        """
        with torch.enable_grad():
            logps = torch.zeros_like(token_mask, dtype=upcast(coefficients).dtype).requires_grad_()
            loss = self.loss(logps, coefficients, token_mask, num_groups=num_groups, token_scale=token_scale)
            (gradient,) = torch.autograd.grad(loss, logps)
        return -gradient

    @torch.no_grad()
    def statistics(self, target: Target, *, policy_logps: Tensor | None = None) -> Statistics:
        """Return the logged statistics of a target, and of a policy on its candidates.

        Args:
            target: of whole groups.
            policy_logps: [..., K] log-probabilities of the policy, summed over tokens.
        """
        log_policy = None if policy_logps is None else self._score_policy(target, "policy_logps", policy_logps)
        return measure_target(target, self.config, log_policy)

    def _normalize_anchors(
        self, lengths: Tensor, ref_logps: Tensor | None, old_logps: Tensor | None
    ) -> Tensor | None:
        """Return the anchor's scores, [..., K]; those that the target does not need are optional."""
        config = self.config
        if config.anchor == "none":
            return None
        name, logps = ("ref_logps", ref_logps) if config.anchor == "reference" else ("old_logps", old_logps)
        if logps is None:
            expect(
                config.beta == 0,
                f"{name} with anchor={config.anchor!r} and beta={config.beta!r}",
                **{name: logps},
            )
            return None
        expect_shape(name, logps, lengths.shape)
        if config.anchor == "reference":
            return logps / lengths.clamp(min=1) if config.length_normalize_ref else logps
        return self._normalize_logps(logps, lengths)

    def _normalize_logps(self, logps: Tensor, lengths: Tensor) -> Tensor:
        """Return the candidates' scores under a policy: per token iff the loss is, else summed."""
        return logps / lengths.clamp(min=1) if self.config.nll_reduction == "mean" else logps

    def _score_policy(self, target: Target, name: str, logps: Tensor | None) -> Tensor:
        """Return log p, [..., K], the candidate policy of sequence log-probabilities."""
        if logps is None:
            raise ValueError(f"Expected {name} with projection={self.config.projection!r}, got {name}=None.")
        expect_shape(name, logps, target.mask.shape)
        return log_softmax(self._normalize_logps(upcast(logps), target.lengths), target.mask)

    def _expect_groups(self, utilities: Tensor, mask: Tensor, lengths: Tensor) -> None:
        expect_candidates("utilities", utilities, mask)
        expect_shape("lengths", lengths, utilities.shape)
        candidates, eps = utilities.shape[-1], self.config.q_eps
        expect(candidates * eps <= 1 + 1e-12, f"K*q_eps <= 1 with K={candidates} candidates", q_eps=eps)

    def _discount(
        self, log_weights: Tensor, log_q: Tensor, tau: Tensor, copies: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return log π* with duplicates discounted, and the log q of which it is the target, [..., K] each."""
        log_weights = discount_log_weights(log_weights, copies, strength=self.config.dedup, mask=mask)
        temperature = (tau + self.config.beta).unsqueeze(-1)
        log_copies = copies.clamp(min=1).to(log_q.dtype).log()  # the logarithm of an integer would be float32
        shift = torch.where(temperature.isfinite(), temperature * self.config.dedup, 0.0) * log_copies
        return log_weights, log_q - shift

    def _count_copies(self, keys: Tensor | None, mask: Tensor) -> Tensor:
        """Return how many candidates of the group are the same answer, [..., K]."""
        if keys is None:
            raise ValueError(f"Expected keys with dedup={self.config.dedup!r}, got keys=None.")
        expect_shape("keys", keys, mask.shape)
        return duplicate_counts(keys, mask=mask)

    def _weigh_by_return(self, utilities: Tensor, lengths: Tensor, mask: Tensor, informative: Tensor) -> Tensor:
        """Return log w of eq. (8), [..., K]: U_i = A_i·length/T_max at the rollout policy, where every ratio is 1."""
        returns = _center_utilities(utilities, mask, informative) * lengths / (self._max_length or 1)
        temperature = per_group("surrogate_tau", self.config.surrogate_tau, returns)
        return log_softmax(divide_gap(below_peak(returns, mask), temperature), mask)

    def _choose_tau(self, log_q: Tensor, anchors: Tensor | None, mask: Tensor, informative: Tensor) -> Tensor:
        """Return τ of each group, [...]."""
        config = self.config
        constant = torch.full_like(log_q[..., 0], config.tau)
        if config.target_ess is None:
            return constant
        tau = tau_for_ess(log_q, anchors, ess=config.target_ess, beta=config.beta, mask=mask)
        return torch.where(informative, tau, constant)

    def _scale_groups(self, values: Tensor, mask: Tensor, informative: Tensor) -> Tensor:
        """Return what multiplies each group's coefficients, [...]: p̂^a, or 0 in a skipped group.

        A negative utility under a > 0 makes its group NaN: a negative p̂ would turn every coefficient around.
        """
        config = self.config
        scale = mean(values, mask).squeeze(-1) ** config.success_power
        if config.success_power > 0:
            scale = scale.masked_fill((fill(values, mask, 0.0) < 0).any(-1), math.nan)
        if config.skip == "equal":
            return scale.masked_fill(~informative, 0.0)
        if config.skip == "all_min":
            failed = (fill(values, mask, config.min_utility) <= config.min_utility).all(-1)
            return scale.masked_fill(failed, 0.0)
        return scale


_TRANSFORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "raw": lambda values, mask: values,
    "rank": lambda values, mask: rank_utilities(values, mask=mask),
    "zscore": lambda values, mask: standardize_utilities(values, mask=mask),
}


def _center_utilities(utilities: Tensor, mask: Tensor, informative: Tensor) -> Tensor:
    """Return A of eq. (8), the utilities minus their group's mean, [..., K]; exactly 0 where all are equal."""
    return fill(center(utilities, mask), mask & informative.unsqueeze(-1), 0.0)
