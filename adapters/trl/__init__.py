"""MaxEnt-GRPO in TRL: another trainer and its arguments, everything else as it was.

    from maxent_grpo.adapters.trl import MaxEntGRPOConfig, MaxEntGRPOTrainer

    trainer = MaxEntGRPOTrainer("Qwen/Qwen2.5-0.5B-Instruct", reward, MaxEntGRPOConfig("runs/one"), dataset)
    trainer.train()

Targets and coefficients are computed once per rollout, where the groups are whole; TRL then shuffles and splits
the candidates, each carrying its coefficient, and the loss only multiplies. Nothing of TRL is patched or copied.

One minor version of TRL is supported. TRL 1.15 has the same seam, but loads the reference of a policy that is passed
as an instance without the policy's dtype and attention implementation, so its anchors are other numbers.
"""

from maxent_grpo.adapters._require import require

require("trl", (1, 16), (1, 17), "trl")

from maxent_grpo.adapters.trl.config import MaxEntGRPOConfig  # noqa: E402  (TRL has to be there)
from maxent_grpo.adapters.trl.trainer import MaxEntGRPOTrainer  # noqa: E402

__all__ = ["MaxEntGRPOConfig", "MaxEntGRPOTrainer"]
