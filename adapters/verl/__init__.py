"""MaxEnt-GRPO in verl: another trainer mode, everything else as it was.

    python -m verl.trainer.main_ppo ... trainer.v1.trainer_mode=maxent_sync +algorithm.maxent.tau=0.2

verl imports this package in all of its processes by the entry point `verl.plugins`, which registers the trainers
`maxent_sync`, `maxent_colocate_async` and `maxent_separate_async` and the advantage estimator `maxent`. verl keeps
quiet about a plugin that fails, so before a job

    python -m maxent_grpo.adapters.verl --check ... (the same overrides)

says whether it is registered and what it makes of the overrides. Fields of `MaxEntConfig` and `preset` stand under
`algorithm.maxent`; `algorithm.maxent.key_func.path` and `.name` name a key function as verl names a reward function.

Coefficients are computed once per rollout, where the groups are whole, and travel as verl's advantages. verl's loss
`gpg` multiplies them with log-probabilities, and `vanilla` where a rollout feeds several updates, which it clips.
"""

import logging

from maxent_grpo.adapters._require import require

try:
    require("verl", (0, 9), (0, 10), "verl")
    from maxent_grpo.adapters.verl import trainers
except ImportError as error:
    logging.getLogger(__name__).error("maxent_grpo is not registered with verl: %s", error)  # verl would not say so
    raise

trainers.register()
