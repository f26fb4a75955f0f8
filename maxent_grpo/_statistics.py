"""What is logged of a rollout's targets, and of a policy on their candidates."""

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maxent_grpo._masked import expectation, log_softmax
from maxent_grpo.config import MaxEntConfig
from maxent_grpo.potential import effective_sample_size, forward_kl, improvement_gap, optimal_potential

if TYPE_CHECKING:
    from maxent_grpo.objective import Target


@dataclass(frozen=True)
class Statistics:
    """Means over the groups with a candidate: scalars (shape []), detached; None where an input is missing.

    Attributes:
        ess: effective sample size of the target.
        weight_entropy: entropy of the target, in nats.
        max_weight: largest weight of the group.
        frac_uninformative_groups: share of groups in which all utilities are equal.
        num_groups: the number of groups with a candidate, to weigh means of several ranks by.
        kl_target_anchor: KL(π*‖ρ); needs anchors.
        potential: J(π) of the policy on the candidates; needs its log-probabilities, a finite τ, and a projection
            other than the surrogate, whose weights maximise no such potential.
        improvement_gap: J* − J(π) = (τ+β)·KL(π‖π*); likewise.
        forward_kl: KL(π*‖π), which weighted maximum likelihood lowers; needs the policy's log-probabilities.
        frac_distinct_right: share of different answers among the right ones, M/n₊, over groups with a right one. It
            needs to know which answers are the same, and is 1 where none repeats: there κ does nothing.
        frac_unscored: share of all candidates that have no verdict; adapters fill it in, who see the rewards.
    """

    ess: Tensor
    weight_entropy: Tensor
    max_weight: Tensor
    frac_uninformative_groups: Tensor
    num_groups: Tensor
    kl_target_anchor: Tensor | None = None
    potential: Tensor | None = None
    improvement_gap: Tensor | None = None
    forward_kl: Tensor | None = None
    frac_distinct_right: Tensor | None = None
    frac_unscored: Tensor | None = None

    def as_dict(self, prefix: str = "maxent/") -> dict[str, Tensor]:
        """Return the entries that are there under their logged names, `maxent/ess` and so on."""
        entries = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "num_groups"
        }
        return {prefix + name: value for name, value in entries.items() if value is not None}


@torch.no_grad()
def measure_target(target: "Target", config: MaxEntConfig, log_policy: Tensor | None) -> Statistics:
    """Return the statistics of a target and, given its log-probabilities [..., K], of a policy on the candidates."""
    beta, anchors, mask = config.beta, target.anchor_logps, target.mask
    present = mask.any(-1)
    optional: dict[str, Tensor] = {}
    if anchors is not None:
        divergence = forward_kl(target.log_weights, log_softmax(anchors, mask), mask=mask)
        optional["kl_target_anchor"] = _average(divergence, present)
    if log_policy is not None:
        optional["forward_kl"] = _average(forward_kl(target.log_weights, log_policy, mask=mask), present)
    if log_policy is not None and config.projection != "surrogate" and config.tau < math.inf and beta < math.inf:
        gap = improvement_gap(log_policy, target.log_q, anchors, tau=target.tau, beta=beta, mask=mask)
        best = optimal_potential(target.log_q, anchors, tau=target.tau, beta=beta, mask=mask)
        bounded = present & ~target.tau.isinf()  # τ by ESS can be infinite in single groups
        optional["improvement_gap"] = _average(gap, bounded)
        optional["potential"] = _average(best - gap, bounded)
    successes = target.right.sum(-1)
    if target.answers is not None:
        optional["frac_distinct_right"] = _average(target.answers / successes.clamp(min=1), successes > 0)
    return Statistics(
        ess=_average(effective_sample_size(target.weights), present),
        weight_entropy=_average(-expectation(target.weights, target.log_weights), present),
        max_weight=_average(target.weights.amax(-1), present),
        frac_uninformative_groups=_average((~target.informative).to(target.weights.dtype), present),
        num_groups=present.sum(),
        **optional,
    )


def _average(values: Tensor, present: Tensor) -> Tensor:
    """Return the mean of [...] over the groups that are present; 0 if none is."""
    return values.masked_fill(~present, 0.0).sum() / present.sum().clamp(min=1)
