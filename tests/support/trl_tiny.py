"""A tiny model, tokenizer and rollouts with which the real TRL trains in a second."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    TrainerCallback,
)

from maxent_grpo.adapters.trl import MaxEntGRPOConfig, MaxEntGRPOTrainer
from support.precision import Bounded, evaluate

LETTERS = "abcdefgh"
PAD, EOS = 0, 1
COMPLETION = 6


def build_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": PAD, "<eos>": EOS, "<unk>": 2} | {letter: 3 + i for i, letter in enumerate(LETTERS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def build_model(seed: int = 0, **settings: Any) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=3 + len(LETTERS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **settings,
    )
    return Qwen2ForCausalLM(config)


def build_mixture_of_experts() -> Qwen2MoeForCausalLM:
    torch.manual_seed(0)
    model = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=11, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=1,
            shared_expert_intermediate_size=8, num_attention_heads=2, num_key_value_heads=1, num_experts=4,
            num_experts_per_tok=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
            initializer_range=0.5,
        )
    )  # fmt: skip
    model.set_experts_implementation("eager")  # others have no float64
    return model


def add_adapter(base: Any) -> PeftModel:
    """Return the model with an adapter that already does something."""
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(base, lora)


def save_model(path: Path, seed: int = 0) -> str:
    """Return a folder that a trainer can load model and tokenizer from."""
    build_model(seed).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return str(path)


def make_prompts(count: int, first: int = 0) -> Dataset:
    words = [LETTERS[i % 8] + LETTERS[(3 * i) % 8] * (1 + i % 3) for i in range(first, first + count)]
    return Dataset.from_dict({"prompt": words})


def make_completion(prompt: str, copy: int) -> list[int]:
    """Return a completion that depends on nothing but its prompt and its number in the group; some are alike."""
    copy = 0 if copy == 3 and len(prompt) == 2 else copy
    chance = torch.Generator().manual_seed(1 + sum(map(ord, prompt)) * 31 + len(prompt) * 7 + copy)
    length = int(torch.randint(1, COMPLETION + 1, (), generator=chance))
    ids = torch.randint(3, 3 + len(LETTERS), (length,), generator=chance).tolist()
    return [*ids[:-1], EOS] if length > 1 and copy % 3 else ids


def replay_completions(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Return fixed completions, whatever the layout: a `rollout_func`."""
    generations = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    first = trainer.accelerator.process_index * len(prompts)
    completions = [make_completion(prompt, (first + row) % generations) for row, prompt in enumerate(prompts)]
    return {
        "prompt_ids": [trainer.processing_class(prompt)["input_ids"] for prompt in prompts],
        "completion_ids": completions,
        "logprobs": [[0.0] * len(ids) for ids in completions],
    }


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [round(sum(ids) % 5 / 4, 2) for ids in completion_ids]


def build_arguments(path: Any, **settings: Any) -> MaxEntGRPOConfig:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": COMPLETION,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "shuffle_dataset": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    return MaxEntGRPOConfig(str(path), **(defaults | settings))


class Gradients(TrainerCallback):
    """Keeps the gradient of every optimiser step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.steps.append(
            {
                name.removeprefix("module."): parameter.grad.detach().clone()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
        )

    def total(self) -> Tensor:
        """Return the gradient of all steps together, flat."""
        return torch.stack([torch.cat([g.flatten() for g in step.values()]) for step in self.steps]).sum(0)


def build_trainer(
    path: Any,
    *,
    rewards: Callable[..., Any] | list[Callable[..., Any]] = reward,
    count: int = 64,
    first: int = 0,
    policy: Any = None,
    rollout: Callable[..., Any] | None = replay_completions,
    callbacks: list[TrainerCallback] | None = None,
    extra: dict[str, Any] | None = None,
    **settings: Any,
) -> MaxEntGRPOTrainer:
    return MaxEntGRPOTrainer(
        build_model() if policy is None else policy,
        rewards,
        build_arguments(path, **settings),
        make_prompts(count, first),
        processing_class=build_tokenizer(),
        rollout_func=rollout,
        callbacks=callbacks,
        **(extra or {}),
    )


def measure_gradient(path: Any, **settings: Any) -> Tensor:
    """Return the gradient of a real training run that leaves the parameters where they are."""
    kept = Gradients()
    build_trainer(path, callbacks=[kept], **settings).train()
    return kept.total()


def evaluate_run(path: Any, *, policy: Any = None, dtype: torch.dtype = torch.float32, **settings: Any) -> Bounded:
    """Return the gradient of such a run in float64, and how far from it one in `dtype` may be."""
    policy = copy.deepcopy(build_model() if policy is None else policy).double()
    (exact,) = evaluate(lambda: [measure_gradient(path, policy=copy.deepcopy(policy), **settings)], dtype)
    return exact
