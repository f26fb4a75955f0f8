"""Worker of the layout tests: trains in every layout that it is given, and keeps the gradients.

    torchrun --nproc_per_node 2 layouts.py OUT.pt '[["name", {"gradient_accumulation_steps": 2}], …]'

Without DeepSpeed the gradients of all optimiser steps are summed at a learning rate of 0. DeepSpeed shards them:
there, one step of SGD at a learning rate of 1 moves the parameters by exactly the gradient. Once DeepSpeed is on it
stays on, so layouts with "zero" come last. A layout that is "resumed" gives losses instead, and one whose model caps
its logits what the trainer says to it.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import gather_object
from torch import Tensor

from support.ranks import leave_together, spare_deepspeed_compiling
from support.trl_tiny import Gradients, add_adapter, build_model, build_trainer

torch.set_num_threads(1)
gc.freeze()  # every run of a trainer collects garbage; imports need not be looked through


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


def whole(run: Any, names: list[str]) -> Tensor:
    """Return the parameters of a model that ZeRO may have sharded."""
    state = run.accelerator.get_state_dict(run.model_wrapped)
    if not run.accelerator.is_main_process:
        return torch.zeros(0)
    return torch.cat([state[name].flatten().float().cpu() for name in names])


def record_forwards(run: Any) -> list[int]:
    """Return a list that fills with the number of rows of every training forward."""
    rows: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            rows.append(len(kwargs["input_ids"]))

    run.model.register_forward_pre_hook(note, with_kwargs=True)
    return rows


def measure_layout(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    stage = settings.pop("zero", None)
    kept, tied = Gradients(), settings.pop("tied", False)
    policy = settings.pop("policy", None) or build_model(tie_word_embeddings=tied)
    if "reference" in settings:
        policy.config._name_or_path = settings.pop("reference")
    if settings.pop("adapter", False):
        policy = add_adapter(policy)
    names = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    before = torch.cat([dict(policy.named_parameters())[name].detach().flatten().clone() for name in names])
    if stage is None:
        run = build_trainer(path, policy=policy, callbacks=[kept], **settings)
    else:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        spare_deepspeed_compiling()
        deepspeed = zero(stage, settings.get("gradient_accumulation_steps", 1))
        run = build_trainer(path, policy=policy, deepspeed=deepspeed, learning_rate=1.0, **settings)
    rows = record_forwards(run)
    run.train()
    after = whole(run, names) if stage else before
    gradient = kept.total() if stage is None else before - after if len(after) else after
    return {
        "gradient": gradient,
        "size": float(before.norm()),
        "rows": gather_object([rows]),
        "log": run.state.log_history[0],
    }


def read_complaint(path: str, settings: dict[str, Any]) -> str:
    """Return why a trainer refuses a model that does more to its logits than its head."""
    model = build_model()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits.tanh())
    with pytest.raises(ValueError, match="Expected") as refused:
        measure_layout(path, settings | {"policy": model})
    return str(refused.value)


def list_losses(path: str, settings: dict[str, Any]) -> dict[str, list[float]]:
    """Return the losses of a run that generates, and of one that goes on from the checkpoint in its middle."""
    generating = {"rollout": None, "learning_rate": 1e-3, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    losses = {}
    for name, checkpoint in (("whole", None), ("resumed", f"{path}/whole/checkpoint-2")):
        run = build_trainer(
            f"{path}/{name}", policy=build_model(seed=9 if checkpoint else 0), **generating, **settings
        )
        run.train(resume_from_checkpoint=checkpoint)
        losses[name] = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    return losses


def main() -> None:
    out, layouts = sys.argv[1], json.loads(sys.argv[2])
    path, results = str(Path(out).with_suffix("")), {}
    for name, settings in layouts:
        result = measure_layout
        if settings.pop("resumed", False):
            result = list_losses
        if settings.pop("capped", False):
            result = read_complaint
        results[name] = result(f"{path}/{name}", settings)
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(results, out)
    leave_together()


if __name__ == "__main__":
    main()
