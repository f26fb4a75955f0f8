"""The oracle: the library's functions once more, in NumPy float64, one group at a time.

Nothing here is shared with the torch functions. Of every group the counted candidates are taken out of their
padding, a plain function of them alone is applied, and its result is put back, so padding cannot matter.
Arguments mean what they mean in the function of the same name; equation numbers are those of the method.
A NaN in a counted candidate, an impossible entry in an array of temperatures, or a q of zeros alone makes its
whole group NaN.
"""

from maxent_grpo.reference.coefficients import group_coefficients
from maxent_grpo.reference.groups import prune_candidates
from maxent_grpo.reference.loss import clipped_surrogate, listwise_cross_entropy, maxent_weighted_nll
from maxent_grpo.reference.potential import (
    effective_sample_size,
    forward_kl,
    improvement_gap,
    optimal_potential,
    regularized_potential,
)
from maxent_grpo.reference.target import (
    center_weights,
    discount_duplicates,
    duplicate_counts,
    informative_groups,
    listwise_log_q,
    listwise_q,
    rank_utilities,
    tau_for_ess,
    tempered_log_target,
    tempered_target,
)

__all__ = [
    "center_weights",
    "clipped_surrogate",
    "discount_duplicates",
    "duplicate_counts",
    "effective_sample_size",
    "forward_kl",
    "group_coefficients",
    "improvement_gap",
    "informative_groups",
    "listwise_cross_entropy",
    "listwise_log_q",
    "listwise_q",
    "maxent_weighted_nll",
    "optimal_potential",
    "prune_candidates",
    "rank_utilities",
    "regularized_potential",
    "tau_for_ess",
    "tempered_log_target",
    "tempered_target",
]
