"""The golden rollouts as a batch of verl, in another order and with rows of padding, and the loss of verl's actor.

The command line of a row of the table goes through the adapter's own reading of it, the actor's settings and the loss
function are verl's, and so is every line between the log-probabilities and the loss.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters.verl.__main__ import load_config
from maxent_grpo.adapters.verl.sessions import sort_sessions
from maxent_grpo.adapters.verl.trainers import MaxEntSync
from support.golden_table import Golden, GoldenRow, bound_row
from support.precision import Bounded

PADDING_ROWS = 2
PLAIN_GRPO = [
    "algorithm.adv_estimator=grpo",
    "actor_rollout_ref.model.path=unused",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.actor.ppo_mini_batch_size=5",
    "actor_rollout_ref.rollout.n=6",
    "data.train_batch_size=5",
    "data.max_response_length=5",
    "trainer.n_gpus_per_node=1",
]
ONE_CHANGE = [*PLAIN_GRPO, "trainer.v1.trainer_mode=maxent_sync"]


@dataclass(frozen=True)
class Batch:
    """N + `PADDING_ROWS` rows as verl has them.

    Attributes:
        places: the golden candidate of each row; -1 in rows of padding.
        keys, tags: verl's.
        rows: the fields of each row, tensors of its own length.
    """

    places: list[int]
    keys: list[str]
    tags: list[dict[str, Any]]
    rows: list[dict[str, Any]]

    def pick(self, values: Tensor) -> Tensor:
        """Return golden values [N, …] of this batch's rows; 0 in padding."""
        picked = values[torch.tensor(self.places)]
        return torch.where(torch.tensor(self.places).view(-1, *[1] * (values.ndim - 1)) >= 0, picked, 0.0)

    def restore(self, values: Tensor) -> Tensor:
        """Return values of this batch's rows in the golden order, without padding."""
        order = sorted((place, row) for row, place in enumerate(self.places) if place >= 0)
        return values[[row for _, row in order]]


def write_override(value: Any) -> str:
    """Return a value as Hydra's command line has it."""
    return f"[{','.join(value)}]" if isinstance(value, tuple) else str(value)


def list_overrides(config: MaxEntConfig, *, clipped: bool) -> list[str]:
    """Return the command line of a setting: a plain GRPO one, the trainer's mode, and the method's fields."""
    default = MaxEntConfig()
    changed = {
        field.name for field in fields(MaxEntConfig) if getattr(config, field.name) != getattr(default, field.name)
    }
    method = [
        f"+algorithm.maxent.{name}={write_override(getattr(config, name))}"
        for name in sorted(changed | {"nll_reduction"})
    ]
    return [*ONE_CHANGE, *method, *(["actor_rollout_ref.actor.ppo_epochs=2"] if clipped else [])]


def build_trainer(overrides: list[str]) -> Any:
    """Return the adapter's trainer for a command line, with nothing started."""
    trainer = MaxEntSync(load_config(overrides, None, "ppo_trainer"))
    trainer.global_steps = 1
    return trainer


def build_batch(golden: Golden, dtype: torch.dtype = torch.float32, *, shuffled: bool = True) -> Batch:
    """Return the golden candidates in a random order; an empty one, which verl cannot have, as a token of a tool."""
    rows = len(golden.utilities) + PADDING_ROWS
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(3)) if shuffled else torch.arange(rows)
    places = [place if place < len(golden.utilities) else -1 for place in order.tolist()]
    groups = [group for group, size in enumerate(golden.group_sizes) for _ in range(size)]
    keys = [f"prompt-{groups[place]}_{place}_0" if place >= 0 else f"pad_{row}_0" for row, place in enumerate(places)]
    return Batch(
        places=places,
        keys=keys,
        tags=[{"is_padding": True} if place < 0 else {} for place in places],
        rows=[_build_row(golden, place, key.split("_")[0], dtype) for place, key in zip(places, keys, strict=True)],
    )


def _build_row(golden: Golden, place: int, uid: str, dtype: torch.dtype) -> dict[str, Any]:
    mask = golden.mask[place] if place >= 0 else torch.zeros(golden.max_length, dtype=torch.bool)
    length = max(int(mask.sum()), 1)
    scores = torch.zeros(length, dtype=dtype)
    scores[-1] = golden.utilities[place] if place >= 0 else 0.0
    prompt = torch.tensor(golden.prompt_ids[place])
    logps = {
        "old_log_probs": golden.old_logps,
        "rollout_log_probs": golden.old_logps,
        "ref_log_prob": golden.reference_logps,
    }
    return {
        "uid": uid,
        "prompts": prompt,
        "responses": golden.completion_ids[place][:length],
        "input_ids": torch.cat([prompt, golden.completion_ids[place][:length]]),
        "response_mask": mask[:length].long(),
        "rm_scores": scores,
        **{name: torch.where(mask, values[place], 0.0)[:length].to(dtype) for name, values in logps.items()},
    }


def weigh_batch(trainer: Any, batch: Batch) -> Tensor:
    """Return the coefficients of a batch's rows as the trainer hands them to verl, [R, T]."""
    data = tu.list_of_dict_to_tensordict(batch.rows).to_padded_tensor()
    return trainer.weigh_rows(data, sort_sessions(batch.keys, batch.tags), None)


def nest(rows: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def compute_loss(trainer: Any, batch: Batch, advantages: Tensor, logps: Tensor, rows: slice = slice(None)) -> Tensor:
    """Return verl's own loss of some rows, given the policy's log-probabilities [R, T] of all."""
    actor = omega_conf_to_dataclass(trainer.config.actor_rollout_ref.actor)
    lengths = [len(row["responses"]) for row in batch.rows]
    ragged = {"advantages": advantages.unbind(), "logps": logps.unbind()}
    parts = {
        name: [row[:length] for row, length in zip(values, lengths, strict=True)] for name, values in ragged.items()
    }
    # verl's models give one log-probability per position, of the token that comes next.
    shifted = [
        torch.cat([part.new_zeros(len(row["prompts"]) - 1), part, part.new_zeros(1)])
        for part, row in zip(parts["logps"], batch.rows, strict=True)
    ]
    names = ("prompts", "responses", "response_mask", "old_log_probs", "ref_log_prob")
    columns = {name: nest([row[name] for row in batch.rows[rows]]) for name in names}
    data = TensorDict({**columns, "advantages": nest(parts["advantages"][rows])}, batch_size=len(shifted[rows]))
    tokens = sum(int(row["response_mask"].sum()) for row in batch.rows)
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=tokens, global_batch_size=len(batch.rows))
    loss, _ = ppo_loss(actor, {"log_probs": nest(shifted[rows])}, data)
    return loss


def compare_row(
    golden: Golden, row: GoldenRow, dtype: torch.dtype, micro_batch: int
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Bounded]]:
    """Return weights, loss and gradient of a row as they come out of verl, and the oracle's."""
    trainer = build_trainer(list_overrides(row.config, clipped=row.clipped))
    # Pruning walks along the candidates, so whom it drops depends on their order.
    batch = build_batch(golden, dtype, shuffled=row.config.keep_fraction is None)
    advantages = weigh_batch(trainer, batch)
    logps = batch.pick(golden.policy_logps).to(dtype).requires_grad_()
    losses = [
        compute_loss(trainer, batch, advantages, logps, slice(start, start + micro_batch))
        for start in range(0, len(batch.rows), micro_batch)
    ]
    loss = torch.stack(losses).sum()
    (gradient,) = torch.autograd.grad(loss, logps)
    ratio = len(batch.rows) / golden.num_groups
    # The ratio of rows to prompts, its product with a weight, and verl's quotient round once more each.
    bounds = [each.round_to(dtype).round_to(dtype).round_to(dtype) for each in bound_row(golden, row, dtype)]
    return (batch.restore(advantages[:, 0] / ratio), loss, batch.restore(gradient)), bounds
