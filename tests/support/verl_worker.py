"""The gradient that verl's own worker trains on: a tiny model under FSDP2 on gloo ranks, micro-batches of any kind.

The trainer's part is the adapter's; from the rows with their coefficients on, everything is verl's `TrainingWorker`.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from maxent_grpo.adapters.torch_loop import MaxEntLoss, Rollout
from support.golden_table import Golden, GoldenRow, load_golden
from support.precision import Bounded, evaluate

CPU_ENVIRONMENT = {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "examples.verl.cpu_platform"}
VOCABULARY = 16
WORKER = [
    "actor_rollout_ref.actor.strategy=fsdp2",
    "actor_rollout_ref.actor.fsdp_config.model_dtype=fp32",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.reduce_dtype=fp32",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.buffer_dtype=fp32",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
    "actor_rollout_ref.actor.optim.clip_grad=1e9",
    "actor_rollout_ref.model.use_remove_padding=False",
    "actor_rollout_ref.model.enable_gradient_checkpointing=False",
    "+actor_rollout_ref.model.load_tokenizer=False",
    "+actor_rollout_ref.model.override_config.attn_implementation=eager",
]
FIXED = ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=3"]
DYNAMIC = ["actor_rollout_ref.actor.use_dynamic_bsz=True", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=24"]


def build_model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.5, bos_token_id=1, eos_token_id=1,
        pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def score(model: nn.Module, golden: Golden) -> Tensor:
    """Return the model's token log-probabilities of the golden completions, [N, T]."""
    rows = []
    for prompt, completion, mask in zip(golden.prompt_ids, golden.completion_ids, golden.mask, strict=True):
        ids = torch.tensor([[*prompt, *completion[mask].tolist()]])
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:].unsqueeze(-1)).squeeze(-1)
        padding = logps.new_zeros(golden.max_length - int(mask.sum()))
        rows.append(torch.cat([logps[len(prompt) - 1 :], padding]))
    return torch.stack(rows)


def flatten_gradient(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def evaluate_gradient(golden: Golden, row: GoldenRow, rows: int) -> Bounded:
    """Return the gradient in the model's weights by the plain loop, and how far float32 may be off."""
    model = build_model().double()  # of the same weights
    names, leaves = zip(*model.named_parameters(), strict=True)

    def differentiate() -> list[Tensor]:
        rollout = Rollout(
            golden.utilities,
            golden.mask,
            group_sizes=golden.group_sizes,
            ids=golden.completion_ids,
            ref_logps=golden.reference_logps,
            old_logps=golden.old_logps if row.clipped else None,
        )
        constants = MaxEntLoss(row.config).prepare(rollout, policy_logps=golden.old_logps)
        # As verl rounds: weights take rows per prompt, and the loss is divided by rows.
        weights = constants.coefficients * (rows / constants.num_groups)
        constants = replace(constants, coefficients=weights, num_groups=rows)
        gradients = torch.autograd.grad(constants.loss(score(model, golden)), leaves)
        return [flatten_gradient(dict(zip(names, gradients, strict=True)))]

    return evaluate(differentiate, torch.float32)[0]


def save_model(folder: Path) -> str:
    build_model().save_pretrained(folder)
    return str(folder)


def train_on_rank(rank: int, model: str, row_name: str, overrides: list[str], ranks: int, folder: str) -> None:
    """Let verl's worker train on this rank's share of the golden batch; rank 0 saves the gradient it stepped with."""
    # Not at the top: verl chooses its platform when it is first imported, and only here is it the CPU's.
    from verl.utils import tensordict_utils as tu

    from support import verl_golden

    golden = load_golden()
    row = golden.rows[row_name]
    listed = [
        each for each in verl_golden.list_overrides(row.config, clipped=row.clipped) if "model.path" not in each
    ]
    trainer = verl_golden.build_trainer([*listed, *WORKER, *overrides, f"actor_rollout_ref.model.path={model}"])
    batch = verl_golden.build_batch(golden)
    advantages = verl_golden.weigh_batch(trainer, batch)
    worker = start_worker(trainer.config.actor_rollout_ref)
    steps: list[dict[str, Tensor]] = []
    worker.engine.optimizer.register_step_pre_hook(lambda *_: steps.append(gather_gradient(worker.engine.module)))
    share = slice(rank * len(batch.rows) // ranks, (rank + 1) * len(batch.rows) // ranks)
    data = build_worker_batch(batch.rows[share], advantages[share])
    extra = {
        "mini_batch_size": len(batch.rows),
        "global_batch_size": len(batch.rows),
        "temperature": 1.0,
        "epochs": 1,
    }
    tu.assign_non_tensor(data, **extra, seed=1, dataloader_kwargs={"shuffle": True}, calculate_entropy=False)
    worker.train_mini_batch(data)
    assert len(steps) == 1
    if rank == 0:
        torch.save(flatten_gradient(steps[0]), f"{folder}/gradient.pt")


def start_worker(config: Any) -> Any:
    """Return verl's worker as its `ActorRolloutRefWorker` sets it up."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import TrainingWorkerConfig
    from verl.workers.engine_workers import TrainingWorker
    from verl.workers.utils.losses import ppo_loss

    actor = omega_conf_to_dataclass(config.actor)
    actor.engine.use_dynamic_bsz = actor.use_dynamic_bsz
    actor.engine.max_token_len_per_gpu = actor.ppo_max_token_len_per_gpu
    actor.engine.micro_batch_size_per_gpu = actor.ppo_micro_batch_size_per_gpu
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=omega_conf_to_dataclass(config.model),
            engine_config=actor.engine,
            optimizer_config=actor.optim,
            checkpoint_config=actor.checkpoint,
        )
    )
    worker.reset()
    worker.set_loss_fn(partial(ppo_loss, config=actor))
    return worker


def gather_gradient(module: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of a sharded module, whole, on every rank."""
    return {
        name: leaf.grad.full_tensor().clone() for name, leaf in module.named_parameters() if leaf.grad is not None
    }


def build_worker_batch(rows: list[dict[str, Any]], advantages: Tensor) -> TensorDict:
    """Return rows as verl's trainer sends them to its workers."""
    from verl.utils import tensordict_utils as tu

    return tu.list_of_dict_to_tensordict(
        [
            {
                **{
                    name: row[name]
                    for name in ("prompts", "responses", "input_ids", "response_mask", "old_log_probs")
                },
                "position_ids": torch.arange(len(row["input_ids"])),
                "loss_mask": row["response_mask"],
                "advantages": weights[: len(row["responses"])],
            }
            for row, weights in zip(rows, advantages, strict=True)
        ]
    )
