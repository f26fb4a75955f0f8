"""The one composition of the pure functions: rewards to target, coefficients, loss and statistics.

Adapters call this and do no mathematics of their own. Target and coefficients are computed once per rollout,
where the groups are whole; the loss then only multiplies, whatever micro-batch a sequence lands in.
"""

from typing import Any

import torch
from torch import Tensor

from maxent_grpo._checks import expect, expect_candidates, expect_mask, expect_shape
from maxent_grpo._masked import center, count, log_softmax, upcast
from maxent_grpo._statistics import Statistics, measure_target
from maxent_grpo._target_steps import (
    Target,
    choose_tau,
    count_equal,
    discount_sampling,
    measure_advantages,
    normalize_anchors,
    normalize_logps,
    weigh_by_return,
    weigh_groups,
)
from maxent_grpo.config import MaxEntConfig
from maxent_grpo.duplicates import count_answers
from maxent_grpo.group_weights import is_rate
from maxent_grpo.groups import prune_candidates
from maxent_grpo.loss import clipped_surrogate, maxent_weighted_nll
from maxent_grpo.target import center_weights, informative_groups, listwise_log_q, tempered_log_target
from maxent_grpo.transforms import transform_utilities

__all__ = ["MaxEntObjective", "Target"]


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
            ValueError: on utilities outside [0, 1] with a group weight by p̂, their mean, which is then no rate.
        """
        config = self.config
        by_rate = {name: getattr(config, name) for name in ("success_power", "failure_power", "pass_k")}
        by_rate = {name: value for name, value in by_rate.items() if value}
        outside = utilities[~is_rate(upcast(utilities)) & ~utilities.isnan()] if by_rate else utilities[:0]
        settings = " and ".join(f"{name}={value!r}" for name, value in by_rate.items())
        expect(outside.numel() == 0, f"utilities in [0, 1] with {settings}", utilities=outside[:3].tolist())

    @torch.no_grad()
    def target(
        self,
        utilities: Tensor,
        *,
        mask: Tensor,
        lengths: Tensor,
        right: Tensor | None = None,
        ref_logps: Tensor | None = None,
        old_logps: Tensor | None = None,
        keys: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> Target:
        """Return the target of each group.

        Args:
            utilities: [..., K] weighted sums of rewards; anything where masked.
            mask: [..., K] bool, False for padding and for candidates that could not be scored.
            lengths: [..., K] number of tokens; a candidate without tokens does not count.
            right: [..., K] bool, the verifier's verdict; by default the utilities above `min_utility`.
            ref_logps: [..., K] log-probabilities of the frozen reference, summed over tokens; needed if
                β > 0 and the anchor is the reference.
            old_logps: [..., K] those of the rollout policy; needed if β > 0 and the anchor is "old", by soft_dedup
                and by some transforms.
            keys: [..., K] integers, equal for the same answer; these or counts are needed by dedup, distinct_power
                and some transforms.
            counts: [..., K] >= 1, in place of how often each key occurs: Σ_j S_ij for a similarity with S_ii = 1.

        Raises:
            ValueError: on unequal shapes, or an input that the config needs and is not there, by its name.
        """
        config = self.config
        self._expect_groups(utilities, mask, lengths)
        counted = mask & (lengths > 0)
        raw = upcast(utilities)
        informative = informative_groups(raw, mask=counted)
        # Who is right, and who says the same.
        if right is not None:
            expect_mask("right", right, mask.shape)
        right = counted & (raw > config.min_utility if right is None else right)
        counts = count_equal(config, keys, counts, counted)
        answers = None if counts is None else count_answers(counts.to(raw.dtype), right)
        scores = None
        if old_logps is not None:
            expect_shape("old_logps", old_logps, mask.shape)
            scores = normalize_logps(config, old_logps, lengths)
        # Utilities -> q, eq. (1).
        values = transform_utilities(
            config.transforms, raw, mask=counted, right=right, counts=counts, old_logps=scores
        )
        log_q = listwise_log_q(values, temperature=config.q_temperature, eps=config.q_eps, mask=counted)
        # q and anchor -> target, eq. (4), or the surrogate's weights of the candidates, eq. (8).
        anchors = normalize_anchors(config, lengths, ref_logps, old_logps)
        tau = choose_tau(config, log_q, anchors, counted)
        if config.projection == "surrogate":
            advantages = measure_advantages(config, values, counted)
            log_weights = weigh_by_return(config, advantages, lengths, counted)
        else:
            log_weights = tempered_log_target(log_q, anchors, tau=tau, beta=config.beta, mask=counted)
        # What sampling has counted twice is taken back, eqs. (4b) and (4c).
        temperature = tau + config.beta
        discounted = discount_sampling(
            config, log_weights, log_q, temperature, mask=counted, right=right, counts=counts, scores=scores
        )
        return Target(
            utilities=values,
            log_q=discounted.log_q,
            log_weights=discounted.log_weights,
            weights=discounted.log_weights.exp(),
            tau=tau,
            mask=counted,
            informative=informative,
            scale=weigh_groups(config, raw, mask=counted, informative=informative, right=right, answers=answers),
            right=right,
            counts=counts,
            answers=answers,
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
                `listwise` and the `regression` projection.
            generator: for pruning, seeded by (seed, step); needed if the config prunes.

        Raises:
            ValueError: on an input that the config needs and is not there, by its name.
        """
        coefficients = target.weights
        if self.config.projection == "listwise":
            coefficients = coefficients - self._score_policy(target, "old_logps", old_logps).exp()
        elif self.config.projection == "regression":
            residuals = target.log_weights - self._score_policy(target, "old_logps", old_logps)
            coefficients = center(residuals, target.mask) / count(residuals, target.mask).clamp(min=1)
        elif self.config.projection == "surrogate":
            coefficients = coefficients * measure_advantages(self.config, target.utilities, target.mask)
        elif self.config.center:
            coefficients = center_weights(coefficients, mask=target.mask)
            if not self.config.moves_equal_groups:  # uniform up to rounding, which is no direction
                informative = informative_groups(target.utilities, mask=target.mask)
                coefficients = coefficients.masked_fill(~informative.unsqueeze(-1), 0.0)
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

    def rehearsal_coefficients(
        self, shares: Tensor, lengths: Tensor, *, group_size: int, num_groups: float
    ) -> Tensor:
        """Return the coefficients of banked answers in a `loss` that is not clipped, [n], eq. (9).

        c_b = G·λ·(K−1)/(K²·R·|B|·len_b) for an NLL that is summed, times T_max for one divided by it; len_b is left
        out where each NLL is divided by its own length. The answers belong to no group, so nothing else changes.

        Args:
            shares: [n], 1/(R·|B|) of each answer, as `ExemplarBank.draw` gives them.
            lengths: [n] tokens of each.
            group_size: K.
            num_groups: G, as of the loss.
        """
        expect_shape("lengths", lengths, shares.shape)
        factor = num_groups * self.config.bank_weight * (group_size - 1) / group_size**2
        if self.config.nll_reduction == "mean":
            return factor * shares
        return factor * shares * (self._max_length or 1) / lengths.clamp(min=1)

    @torch.no_grad()
    def statistics(self, target: Target, *, policy_logps: Tensor | None = None) -> Statistics:
        """Return the logged statistics of a target, and of a policy on its candidates.

        Args:
            target: of whole groups.
            policy_logps: [..., K] log-probabilities of the policy, summed over tokens.
        """
        log_policy = None if policy_logps is None else self._score_policy(target, "policy_logps", policy_logps)
        return measure_target(target, self.config, log_policy)

    def _score_policy(self, target: Target, name: str, logps: Tensor | None) -> Tensor:
        """Return log p, [..., K], the candidate policy of sequence log-probabilities."""
        if logps is None:
            raise ValueError(f"Expected {name} with projection={self.config.projection!r}, got {name}=None.")
        expect_shape(name, logps, target.mask.shape)
        return log_softmax(normalize_logps(self.config, upcast(logps), target.lengths), target.mask)

    def _expect_groups(self, utilities: Tensor, mask: Tensor, lengths: Tensor) -> None:
        expect_candidates("utilities", utilities, mask)
        expect_shape("lengths", lengths, utilities.shape)
        candidates, eps = utilities.shape[-1], self.config.q_eps
        expect(candidates * eps <= 1 + 1e-12, f"K*q_eps <= 1 with K={candidates} candidates", q_eps=eps)
