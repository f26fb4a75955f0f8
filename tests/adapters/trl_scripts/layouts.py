"""Worker of the layout tests: trains in every layout that it is given, and keeps the gradients.

    torchrun --nproc_per_node 2 layouts.py OUT.pt '[["name", {"gradient_accumulation_steps": 2}], …]'

Without DeepSpeed the gradients of all optimiser steps are summed at a learning rate of 0. DeepSpeed shards them:
there, one step of SGD at a learning rate of 1 moves the parameters by exactly the gradient. Once DeepSpeed is on it
stays on, so layouts with "zero" come last.
"""

import json
import os
import sys
import tempfile
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import gather_object
from torch import Tensor

from trl_tiny import Gradients, model, trainer

torch.set_num_threads(1)


def zero(stage: int, accumulation: int) -> dict[str, Any]:
    return {
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": accumulation,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "fp32": {"enabled": True},
    }


def parameters(policy: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in policy.parameters()])


def whole(run: Any, names: list[str]) -> Tensor:
    """Return the parameters of a model that ZeRO may have sharded."""
    state = run.accelerator.get_state_dict(run.model_wrapped)
    if not run.accelerator.is_main_process:
        return torch.zeros(0)
    return torch.cat([state[name].flatten().float().cpu() for name in names])


def forwarded_rows(run: Any) -> list[int]:
    """Return a list that fills with the number of rows of every training forward."""
    rows: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            rows.append(len(kwargs["input_ids"]))

    run.model.register_forward_pre_hook(note, with_kwargs=True)
    return rows


def result_of(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    stage = settings.pop("zero", None)
    kept, policy = Gradients(), model(tie_word_embeddings=settings.pop("tied", False))
    if "reference" in settings:
        policy.config._name_or_path = settings.pop("reference")
    before, names = parameters(policy), [name for name, _ in policy.named_parameters()]
    if stage is None:
        run = trainer(path, policy=policy, callbacks=[kept], **settings)
    else:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        deepspeed = zero(stage, settings.get("gradient_accumulation_steps", 1))
        run = trainer(path, policy=policy, deepspeed=deepspeed, learning_rate=1.0, **settings)
    rows = forwarded_rows(run)
    run.train()
    after = whole(run, names) if stage else before
    gradient = kept.total() if stage is None else before - after if len(after) else after
    return {"gradient": gradient, "rows": gather_object([rows]), "log": run.state.log_history[0]}


def main() -> None:
    out, layouts = sys.argv[1], json.loads(sys.argv[2])
    results = {}
    with tempfile.TemporaryDirectory() as path:
        for name, settings in layouts:
            results[name] = result_of(path, settings)
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(results, out)


if __name__ == "__main__":
    main()
