"""OpenRLHF's maker of experiences and actor's trainer as they are, with something small in place of their models."""

import runpy
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import openrlhf.utils.config
import pytest
import ray
import torch
import torch.distributed as dist
from openrlhf.trainer.ppo_utils.experience import Experience, balance_experiences
from openrlhf.trainer.ppo_utils.kl_controller import FixedKLController
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer
from openrlhf.utils.deepspeed import DeepspeedStrategy
from torch import Tensor, nn

from maxent_grpo.adapters.openrlhf import __main__ as driver
from maxent_grpo.adapters.openrlhf.options import STOCK_PROGRAM, hierarchize
from maxent_grpo.adapters.openrlhf.rollout import MaxEntExperienceMaker
from maxent_grpo.adapters.openrlhf.workers import MaxEntPolicyLoss

GRPO = (
    *(
        "--actor.model_name_or_path",
        "tiny",
        "--actor.num_gpus_per_node",
        "1",
        "--data.prompt_dataset",
        "prompts.jsonl",
    ),
    *("--reward.remote_url", "reward.py", "--vllm.num_engines", "1", "--algo.advantage.estimator", "group_norm"),
    *("--algo.kl.init_coef", "0"),
)
"""A plain GRPO command line, but for its sizes."""


class StartedRay(BaseException):
    """OpenRLHF's command line is about to start Ray."""


def read_command(*options: Any) -> SimpleNamespace:
    """Return the arguments with which a plain GRPO command line and these options start to train with ours."""
    return read_whole_command([*GRPO, *map(str, options)])


def read_whole_command(arguments: list[str]) -> SimpleNamespace:
    """Return the arguments with which our command line starts to train; SystemExit where it refuses."""
    kept: list[SimpleNamespace] = []

    def keep(ours: Namespace, flat: Namespace) -> SimpleNamespace:
        kept.append(read_arguments(ours, flat))
        return kept[-1]

    read_arguments = driver.read_arguments
    with stop_before_ray([STOCK_PROGRAM]) as patch:
        patch.setattr(driver, "read_arguments", keep)
        driver.main(arguments)
    return kept[0]


def read_stock_command(arguments: list[str]) -> SimpleNamespace:
    """Return the arguments with which OpenRLHF's own command line starts to train; SystemExit where it refuses."""
    kept: list[SimpleNamespace] = []

    def keep(flat: Namespace) -> SimpleNamespace:
        kept.append(hierarchize(flat))
        return kept[-1]

    with stop_before_ray([STOCK_PROGRAM, *arguments]) as patch:
        patch.setattr(openrlhf.utils.config, "hierarchize", keep)
        runpy.run_module(STOCK_PROGRAM, run_name="__main__", alter_sys=True)
    return kept[0]


@contextmanager
def stop_before_ray(arguments: list[str]) -> Iterator[pytest.MonkeyPatch]:
    """Run a command line until it would start Ray."""

    def stop() -> bool:
        raise StartedRay

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        patch.setattr(ray, "is_initialized", stop)
        with pytest.raises(StartedRay):
            yield patch


@contextmanager
def join_alone() -> Iterator[None]:
    """Be the only rank of a process group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Strategy(DeepspeedStrategy):
    """OpenRLHF's strategy without an engine: like DeepSpeed, it divides losses by the number of micro-batches."""

    def __init__(self, args: Any) -> None:
        super().__init__(
            micro_train_batch_size=args.train.micro_batch_size,
            train_batch_size=args.train.batch_size,
            zero_stage=0,
            args=args,
        )
        self.ds_device_mesh = {"dp": SimpleNamespace(get_group=lambda: dist.group.WORLD)}
        self.world_size = 1
        self.accumulated_gradient = args.train.batch_size // args.train.micro_batch_size
        self.losses: list[Tensor] = []

    def backward(self, loss: Tensor, model: nn.Module, _optimizer: Any, **_: Any) -> None:
        share = 1 if self.args.train.dynamic_batch_enable else self.accumulated_gradient
        (loss / share).backward()
        self.losses.append(loss.detach() / share)

    def optimizer_step(self, *_: Any, **__: Any) -> None: ...

    def get_grad_norm(self, model: nn.Module) -> float:
        return 0.0


class Models:
    """A group of Ray actors of one rank that scores rows where it is asked."""

    def __init__(self, score: Callable[..., Tensor]) -> None:
        self.score = score

    def async_run_method_batch(self, method_name: str, **batches: list[Any]) -> list[Any]:
        assert method_name == "forward"
        rows = [dict(zip(batches, values, strict=True)) for values in zip(*batches.values(), strict=True)]
        return [ray.put([self.score(**columns) for columns in rows])]


class Tokenizer:
    """As much of one as the maker asks for."""

    pad_token_id = 0

    def decode(self, ids: Tensor, skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids.tolist()))


def make_sample(prompt: list[int], completion: list[int], reward: float | None, **columns: Any) -> Experience:
    """Return a candidate as OpenRLHF's generator hands it on."""
    ids = torch.tensor([prompt + completion])
    length = torch.tensor([len(completion)])
    return Experience(
        sequences=ids,
        attention_mask=torch.ones_like(ids),
        action_mask=torch.tensor([[0] * (len(prompt) - 1) + [1] * len(completion)]),
        prompts=[str(columns.pop("text", prompt))],
        labels=[columns.pop("label", "")],
        images=[None],
        mm_train_inputs=[None],
        rewards=None if reward is None else torch.tensor([reward]),
        scores=None if reward is None else torch.tensor([reward]),
        response_length=length,
        truncated=torch.tensor([False]),
        total_length=torch.tensor([float(ids.shape[1])]),
        info={} if reward is None else {"reward": torch.tensor([reward])},
        **columns,
    )


def build_maker(args: Any, policy: Callable[..., Tensor], reference: Callable[..., Tensor]) -> MaxEntExperienceMaker:
    """Return the maker with these scorers of rows; the reference only where OpenRLHF starts one."""
    frozen = Models(reference) if args.algo.kl.init_coef > 0 else None
    return MaxEntExperienceMaker(
        Models(policy), None, None, frozen, FixedKLController(0.0), Strategy(args), Tokenizer()
    )


def train_actor(args: Any, actor: nn.Module, experiences: list[Experience]) -> tuple[list[Tensor], dict[str, Any]]:
    """Return the losses of the micro-batches, as they are added up, and the status of a step of the real trainer."""
    strategy = Strategy(args)
    trainer = ActorPPOTrainer(
        strategy,
        actor,
        None,
        None,
        SimpleNamespace(get_last_lr=lambda: [0.0]),
        micro_train_batch_size=args.train.micro_batch_size,
        dataloader_pin_memory=False,
    )
    trainer.actor_loss_fn = MaxEntPolicyLoss(trainer.actor_loss_fn, args)
    trainer.max_epochs = 1  # of several, whose updates are clipped, the first
    for batch in balance_experiences(experiences, args) if args.train.dynamic_batch_enable else experiences:
        trainer.replay_buffer.append(batch)
    return strategy.losses, trainer.ppo_train(kl_ctl=args.maxent.kl_coef)
