"""Values of TRL's options that its GRPO takes and that would change the method."""

from typing import Any

OTHER_VALUES: dict[str, Any] = {
    "loss_type": "dapo",
    "scale_rewards": "group",
    "multi_objective_aggregation": "normalize_then_sum",
    "importance_sampling_level": "sequence",
    "delta": 2.0,
    "off_policy_mask_threshold": 0.5,
    "top_entropy_quantile": 0.2,
    "use_adaptive_entropy": True,
    "use_liger_kernel": True,
    "sapo_temperature_neg": 2.0,
    "sapo_temperature_pos": 2.0,
    "vespo_k_pos": 1.0,
    "vespo_lambda_pos": 1.0,
    "vespo_k_neg": 1.0,
    "vespo_lambda_neg": 1.0,
}
