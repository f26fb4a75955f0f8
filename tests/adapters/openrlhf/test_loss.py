"""The actor's loss beside OpenRLHF's own, and its gradient through a real model."""

import copy
from typing import Any

import pytest
import torch
from openrlhf.models import Actor, PolicyLoss
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from maxent_grpo import MaxEntConfig
from maxent_grpo.adapters.openrlhf.workers import MaxEntPolicyLoss
from maxent_grpo.adapters.torch_loop import MaxEntLoss, Rollout
from support.openrlhf_tiny import build_maker, make_sample, read_command, train_actor
from support.precision import Bounded, evaluate

pytestmark = pytest.mark.numerical
K = 4
SIZES = ("--rollout.n_samples_per_prompt", K, "--rollout.batch_size", 2, "--train.batch_size", 2 * K)
REWARDS = [1.0, 0.0, 0.5, 0.0, 0.0, 1.0, 1.0, 0.25]
COMPLETIONS = [[3, 4], [5], [6, 7, 8], [3, 4], [5, 6], [7], [7], [8, 9, 10, 9]]
PROMPTS = [[1, 2]] * K + [[2, 5, 1]] * K
CORRECTIONS = {
    "none": (),
    "token, masked": ("token", "mask", "ratio", 0.8, 1.3),
    "token, clipped": ("token", "clip", "ratio", 0.8, 1.3),
    "sequence": ("seq", "mask", "ratio", 0.9, 1.2),
    "divergence": ("token", "mask", "binary_kl", 0.02),
}


@pytest.mark.parametrize("correction", CORRECTIONS.values(), ids=CORRECTIONS)
def test_a_clipped_loss_is_openrlhfs_own_over_groups_instead_of_tokens(correction: tuple[Any, ...]) -> None:
    """Σ over tokens is the same, the engine's correction included; only what it is divided by differs."""
    names = ("is_correction_level", "is_correction_mode", "is_correction_gating", "is_correction_threshold")
    settings: dict[str, Any] = dict(zip(names, correction, strict=False))
    if correction:
        settings["is_correction_threshold"] = [0.0, *correction[3:]][-2:]
    args = read_command(
        *SIZES, "--train.max_epochs", 2, "--maxent.nll_reduction", "sum", "--train.micro_batch_size", K
    )

    def differentiate() -> list[Tensor]:
        chance = torch.Generator().manual_seed(0)
        old, moved, engine = (torch.rand(K, 5, generator=chance, dtype=torch.float64) for _ in range(3))
        mask = torch.arange(5) < torch.tensor([[5], [2], [3], [0]])
        advantages = torch.tensor([0.7, -0.3, 0.0, 0.5], dtype=torch.float64).unsqueeze(-1).expand(K, 5)
        logps = (-1 - old + moved / 2).requires_grad_()
        rows = (-1 - old, advantages, mask.long(), -1 - old + engine / 2)
        ours = MaxEntPolicyLoss(PolicyLoss(**settings), args)(logps, *rows)[0]
        stock = PolicyLoss(**settings)(logps, *rows, batch_num_tokens=1.0)[0]
        return [*torch.autograd.grad(ours - stock, logps), ours - stock]

    for difference in evaluate(differentiate, torch.float64):
        difference.assert_near(torch.zeros_like(difference.value))


def build_model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 12}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, attn_implementation="eager"))


def evaluate_plain_torch(model: Qwen2ForCausalLM, config: MaxEntConfig) -> Bounded:
    """Return the gradient of the plain torch adapter, candidate by candidate, and what float32 may lose of it."""
    model = copy.deepcopy(model).double()

    def differentiate() -> list[Tensor]:
        width = max(map(len, COMPLETIONS))
        logps = torch.stack(
            [score_candidate(model, prompt, ids, width) for prompt, ids in zip(PROMPTS, COMPLETIONS, strict=True)]
        )
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in COMPLETIONS])
        mask = torch.arange(width) < torch.tensor([[len(ids)] for ids in COMPLETIONS])
        rollout = Rollout(torch.tensor(REWARDS, dtype=torch.float64), mask, group_sizes=K, ids=ids)
        loss, _ = MaxEntLoss(config)(logps, rollout)
        return [torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(model.parameters()))])]

    (exact,) = evaluate(differentiate, torch.float32)
    return exact


def score_candidate(model: Qwen2ForCausalLM, prompt: list[int], ids: list[int], width: int) -> Tensor:
    logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    logps = logits.log_softmax(-1).gather(-1, torch.tensor(ids).unsqueeze(-1)).squeeze(-1)
    return torch.cat([logps, logps.new_zeros(width - len(ids))])


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("settings", [{}, {"projection": "listwise"}, {"center": True, "dedup": 1.0}], ids=str)
def test_the_gradient_of_a_real_model_is_the_plain_torch_adapters(size: int, settings: dict[str, Any]) -> None:
    """OpenRLHF's model wrapper, left out of DeepSpeed; its loader shuffles the candidates over the micro-batches."""
    options = [part for name, value in settings.items() for part in (f"--maxent.{name}", value)]
    args = read_command(*SIZES, "--train.micro_batch_size", size, "--rollout.max_new_tokens", 4, *options)
    model = build_model()
    actor = Actor(model)
    actor.packing_samples = False

    def score(**columns: Any) -> Tensor:
        with torch.no_grad():
            return actor(**columns)

    candidates = zip(PROMPTS, COMPLETIONS, REWARDS, strict=True)
    experiences = build_maker(args, score, score).make_experience_batch([make_sample(*row) for row in candidates])
    train_actor(args, actor, experiences)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    evaluate_plain_torch(model, args.maxent.config).assert_near(gradient)


@pytest.mark.parametrize("dynamic", [False, True], ids=["micro-batches of one size", "dynamic batches"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_parts_of_an_update_add_up_to_it_on_any_number_of_ranks(ranks: int, dynamic: bool) -> None:
    """DeepSpeed averages over ranks, and over micro-batches of one size; dynamic ones OpenRLHF lets it add up."""
    size = 1 if ranks == 4 else 2
    flags = ("--train.micro_batch_size", size, *(["--train.dynamic_batch_enable"] if dynamic else []))
    args = read_command(*SIZES, "--maxent.nll_reduction", "sum", "--actor.num_gpus_per_node", ranks, *flags)
    loss = MaxEntPolicyLoss(PolicyLoss(), args)
    chance = torch.Generator().manual_seed(0)
    logps, coefficients = (torch.rand(2 * K, 5, generator=chance, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(2 * K, 5, dtype=torch.bool)
    shares = torch.arange(2 * K).view(ranks, -1)
    parts = [part.split(3 if dynamic else size) for part in shares]
    by_rank = [
        [loss(logps[rows], logps[rows], coefficients[rows, :1], mask[rows], dp_size=ranks)[0] for rows in rank]
        for rank in parts
    ]
    summed = [sum(losses) if dynamic else sum(losses) / len(losses) for losses in by_rank]
    whole = loss.objective.loss(logps, coefficients[:, 0], mask, num_groups=2)
    torch.testing.assert_close(sum(summed) / ranks, whole)
