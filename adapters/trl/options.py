"""The options of TRL that would change the method, and what is lost without them."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Refusal:
    """Why an option of TRL has one value here.

    Attributes:
        value: the one that leaves the method alone.
        lost: what another value would have done, and what does it here.
    """

    value: Any
    lost: str


_LOSS_TYPE = "it belongs to another loss_type of TRL"
REFUSED: dict[str, Refusal] = {
    "loss_type": Refusal("maxent", "maxent_projection and maxent_nll_reduction choose the loss"),
    "scale_rewards": Refusal(
        "none", "rewards are not divided by their deviation; maxent_utility_transform='zscore' does that per group"
    ),
    "multi_objective_aggregation": Refusal(
        "sum_then_normalize", "rewards of several functions are not standardized one by one, but summed by weight"
    ),
    "importance_sampling_level": Refusal(
        "token", "a clipped update compares policies token by token, not sequence by sequence"
    ),
    "delta": Refusal(None, "large ratios have no cap of their own; the clip is epsilon and epsilon_high"),
    "off_policy_mask_threshold": Refusal(
        None, "sequences that are far off-policy are not left out; the clip bounds their update"
    ),
    "top_entropy_quantile": Refusal(1.0, "tokens of low entropy are trained on like all others of their candidate"),
    "use_adaptive_entropy": Refusal(
        False, "entropy_coef stays what it is; the target's maxent_tau and maxent_dedup hold up entropy"
    ),
    "use_liger_kernel": Refusal(
        False, "TRL deprecates Liger's layers; model_init_kwargs={'use_kernels': True} takes those of the Hub"
    ),
    "sapo_temperature_neg": Refusal(1.05, _LOSS_TYPE),
    "sapo_temperature_pos": Refusal(1.0, _LOSS_TYPE),
    "vespo_k_pos": Refusal(2.0, _LOSS_TYPE),
    "vespo_lambda_pos": Refusal(3.0, _LOSS_TYPE),
    "vespo_k_neg": Refusal(3.0, _LOSS_TYPE),
    "vespo_lambda_neg": Refusal(2.0, _LOSS_TYPE),
}
"""Refused in Python, where the value was meant; left out with a line of what is lost where a GRPO recipe is read."""
