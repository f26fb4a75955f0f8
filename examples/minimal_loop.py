"""The whole method in one file: a tiny model learns to write digits that add up to a given number.

    python examples/minimal_loop.py             # under a minute on a CPU, no downloads: about four answers per prompt
    python examples/minimal_loop.py --kappa 0   # the method as published: right sooner, with one answer per prompt

Most numbers have many right answers: for 12 they are 57, 93, 444 and so on. At each step the policy samples K
candidates for each of G prompts. Their rewards u become a target distribution π* over the K candidates, and the
policy is fitted to it by weighted maximum likelihood:

    q   = (1 − Kε)·softmax(u / T) + ε             eq. (1)   what the rewards prefer
    π*  ∝ q^{1/(τ+β)} · ρ^{β/(τ+β)}                eq. (4)   tempered, and pulled towards a reference model ρ
    π*  ∝ π* · n^{−κ}                             eq. (4b)  n candidates that are the same answer share its weight
    L   = 1/G Σ_groups Σ_i (π*_i − 1/K)·NLL_i     eq. (7)   NLL_i = −Σ_t log π_θ(token t of candidate i)

Everything a trainer needs besides (groups of unequal size, several updates per rollout, many ranks) is in
`maxent_grpo.adapters`.
"""

import argparse
from copy import deepcopy

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from maxent_grpo import (
    center_weights,
    completion_keys,
    discount_duplicates,
    duplicate_counts,
    effective_sample_size,
    listwise_q,
    maxent_weighted_nll,
    tempered_target,
)

G, K = 32, 16  # prompts per step, candidates per prompt
T, TAU, BETA = 1.0, 0.2, 0.01
EQUALS, END = 10, 11  # tokens 0 to 9 are the digits
LARGEST, LONGEST = 18, 4  # the largest number that is asked for; the tokens of an answer, its end included


def build_model() -> PreTrainedModel:
    """Return a language model of 0.1 million parameters that knows nothing yet."""
    config = Qwen2Config(
        vocab_size=END + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=3 + LONGEST,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
    )
    return Qwen2ForCausalLM(config)


def encode_prompts(numbers: Tensor) -> Tensor:
    """Return the tokens of `07=`, `12=` and so on, [N, 3]."""
    return torch.stack([numbers // 10, numbers % 10, torch.full_like(numbers, EQUALS)], dim=-1)


def sample_completions(model: PreTrainedModel, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Return a completion for each prompt: its tokens [N, L], and a mask that is True up to and with its end."""
    tokens = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, max_new_tokens=LONGEST
    )
    ids = tokens[:, prompts.shape[1] :]
    ends = (ids == END).long()
    return ids, ends.cumsum(-1) - ends == 0


def score_completions(ids: Tensor, mask: Tensor, numbers: Tensor) -> Tensor:
    """Return 1 for digits that end and add up to the number, else 0, [N]. Your own verifier goes here."""
    is_answer = (ids == END).any(-1) & ~(mask & (ids == EQUALS)).any(-1)
    sums = ids.where(mask & (ids < EQUALS), 0).sum(-1)
    return (is_answer & (sums == numbers)).float()


def score_tokens(model: PreTrainedModel, prompts: Tensor, ids: Tensor) -> Tensor:
    """Return the model's log-probability of each token of the completions, [N, L]."""
    logits = model(torch.cat([prompts, ids], dim=1)).logits[:, prompts.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def train(steps: int, kappa: float, seed: int = 0) -> list[float]:
    """Train a model from scratch; return the mean reward of every step."""
    torch.manual_seed(seed)
    policy = build_model()
    reference = deepcopy(policy)  # it stays as it is
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    history = []
    for step in range(1, steps + 1):
        # Sample K candidates for each of G prompts; those of one prompt are a group, in consecutive rows.
        numbers = torch.randint(1, LARGEST + 1, (G,)).repeat_interleave(K)
        prompts = encode_prompts(numbers)
        ids, mask = sample_completions(policy, prompts)
        rewards = score_completions(ids, mask, numbers).view(G, K)

        # What the rewards prefer, eq. (1). From here to the coefficients nothing is differentiated.
        q = listwise_q(rewards, temperature=T)

        # The anchor ρ: the reference model's log-probability of each candidate, per token.
        with torch.no_grad():
            ref_logps = (score_tokens(reference, prompts, ids) * mask).sum(-1) / mask.sum(-1)

        # The target π*, eq. (4).
        target = tempered_target(q, ref_logps.view(G, K), tau=TAU, beta=BETA)

        # An answer that was sampled n times would count n times. To count it once keeps others alive, eq. (4b).
        counts = duplicate_counts(completion_keys(ids, mask).view(G, K))
        target = discount_duplicates(target, counts, strength=kappa)

        # Weights less 1/K have the same expected gradient and less noise; they sum to zero in each group.
        coefficients = center_weights(target)

        # Fit the policy by weighted maximum likelihood, eq. (7).
        logps = score_tokens(policy, prompts, ids)
        loss = maxent_weighted_nll(logps.view(G, K, -1), coefficients, mask.view(G, K, -1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        history.append(rewards.mean().item())
        print_progress(step, rewards, target, ids.view(G, K, -1))
    return history


def print_progress(step: int, rewards: Tensor, target: Tensor, ids: Tensor) -> None:
    """Print now and then how many candidates are right, how many right answers differ, and how even the target is."""
    if step > 1 and step % 20:
        return
    distinct = sum(len(group[right].unique(dim=0)) for group, right in zip(ids, rewards > 0, strict=True)) / G
    print(
        f"step {step:3d}   reward {rewards.mean():.2f}   different right answers per prompt {distinct:.1f}", end="   "
    )
    print(f"effective sample size of the target {effective_sample_size(target).mean():4.1f} of {K}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250, help="updates (%(default)s)")
    parser.add_argument("--kappa", type=float, default=1.0, help="κ, from 0 to 1 (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model is so small that threads would only wait for each other
    train(options.steps, options.kappa)
