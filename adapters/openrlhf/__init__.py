"""MaxEnt-GRPO in OpenRLHF: its own command line under another module's name, with options of ours beside its own.

    python -m maxent_grpo.adapters.openrlhf <arguments of openrlhf.cli.train_ppo_ray> --maxent.tau 0.2

OpenRLHF's experience maker sees groups whole: there each candidate gets its coefficient, which travels as the
advantage of its tokens. OpenRLHF then shuffles, balances and splits the candidates, and the actor's loss multiplies.

No file of OpenRLHF is changed and no attribute of its classes replaced. `workers` has subclasses, which Ray
imports there, since they pickle by reference; the driver, `__main__`, gives them the names that OpenRLHF looks up.
"""

from maxent_grpo.adapters._require import require

require("openrlhf", (0, 11), (0, 12), "openrlhf")
