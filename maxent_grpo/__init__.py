"""MaxEnt-GRPO: closed-form maximum-entropy targets over sampled candidates, and the losses that fit them.

`listwise_q` → `tempered_target` → `maxent_weighted_nll` are the method; `MaxEntObjective` composes them from a
`MaxEntConfig`. Adapters for trainers are in `maxent_grpo.adapters`, fused kernels in `maxent_grpo.kernels`.
"""

from maxent_grpo._statistics import Statistics
from maxent_grpo.config import MaxEntConfig
from maxent_grpo.duplicates import (
    count_answers,
    discount_duplicates,
    discount_likely,
    discount_log_weights,
    duplicate_counts,
)
from maxent_grpo.group_weights import pass_at_k_weights, power_weights
from maxent_grpo.groups import answer_keys, completion_keys, flatten_groups, pad_groups, prune_candidates
from maxent_grpo.loss import clipped_surrogate, listwise_cross_entropy, maxent_weighted_nll
from maxent_grpo.objective import MaxEntObjective, Target
from maxent_grpo.potential import (
    effective_sample_size,
    forward_kl,
    improvement_gap,
    optimal_potential,
    regularized_potential,
)
from maxent_grpo.target import (
    center_weights,
    informative_groups,
    listwise_log_q,
    listwise_q,
    tau_for_ess,
    tempered_log_target,
    tempered_target,
)
from maxent_grpo.transforms import TRANSFORMS, rank_utilities, standardize_utilities

__version__ = "0.1.0"

__all__ = [
    "TRANSFORMS",
    "MaxEntConfig",
    "MaxEntObjective",
    "Statistics",
    "Target",
    "answer_keys",
    "center_weights",
    "clipped_surrogate",
    "completion_keys",
    "count_answers",
    "discount_duplicates",
    "discount_likely",
    "discount_log_weights",
    "duplicate_counts",
    "effective_sample_size",
    "flatten_groups",
    "forward_kl",
    "improvement_gap",
    "informative_groups",
    "listwise_cross_entropy",
    "listwise_log_q",
    "listwise_q",
    "maxent_weighted_nll",
    "optimal_potential",
    "pad_groups",
    "pass_at_k_weights",
    "power_weights",
    "prune_candidates",
    "rank_utilities",
    "regularized_potential",
    "standardize_utilities",
    "tau_for_ess",
    "tempered_log_target",
    "tempered_target",
]
