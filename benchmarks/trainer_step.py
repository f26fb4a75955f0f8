"""How long an optimiser step of MaxEntGRPOTrainer takes, against TRL's GRPOTrainer with loss_type="dr_grpo".

    python benchmarks/trainer_step.py [--pairs 90] [--out benchmarks/results/trainer_step.json]

Counted: everything TRL does for one optimiser step, from `_prepare_inputs` (which replays fixed completions and calls
the reward function) over loss and backward of every micro-batch to the optimiser's update. Not counted: sampling,
which is the same for both. One process drives all trainers in turn, so that noise of the machine falls on all of
them. A pair is four steps, GRPOTrainer's, ours, ours, GRPOTrainer's, in which a steady drift cancels: its ratio is
that of the sums. Reported are the median of the pairs' ratios and its 95 % interval by a sign test, which assumes
nothing but independent pairs. Variants whose goal is far from their ratio take part in every third round. About nine
minutes on two idle cores; the file is written after every round.

Prompts are no longer than completions: TRL's CPU path takes prompt positions through the LM head too, which the
one-pass head does not, so long prompts would flatter the latter.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import transformers
import trl
from _measure import median_interval
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from maxent_grpo.adapters.trl import MaxEntGRPOConfig, MaxEntGRPOTrainer

VOCABULARY, PROMPT, COMPLETION, GENERATIONS, ROWS, ACCUMULATION = 8192, 32, 64, 8, 8, 2
VARIANTS: dict[str, dict[str, Any]] = {
    "maxent": {},
    "maxent, pruned to half": {"maxent_prune": 0.5},
    "maxent, one-pass head": {"maxent_fused_head": True},
    "maxent, one-pass head, pruned to half": {"maxent_fused_head": True, "maxent_prune": 0.5},
}
GOALS = {"maxent": 1.02, "maxent, pruned to half": 0.7}
EVERY = {"maxent": 1}
"""Rounds between two pairs of a variant, 3 unless told: only the plain one has a goal that noise could decide."""


def policy() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1} | {f"w{number}": number for number in range(2, VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<eos>")), pad_token="<pad>", eos_token="<eos>"
    )


def replay(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Return the same completions of every call: a `rollout_func`."""
    chance = torch.Generator().manual_seed(0)
    lengths = torch.randint(COMPLETION // 2, COMPLETION + 1, (len(prompts),), generator=chance).tolist()
    completions = [torch.randint(2, VOCABULARY, (n,), generator=chance).tolist() for n in lengths]
    prompt_ids = torch.randint(2, VOCABULARY, (len(prompts) // GENERATIONS, PROMPT), generator=chance)
    return {
        "prompt_ids": prompt_ids.repeat_interleave(GENERATIONS, 0).tolist(),
        "completion_ids": completions,
        "logprobs": [[0.0] * len(ids) for ids in completions],
    }


def right_or_wrong(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(ids[0] % 3 == 0) for ids in completion_ids]


def ready(folder: str, kind: type, config: type, **settings: Any) -> Any:
    """Return a trainer that has done its first step."""
    args = config(
        folder,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=ACCUMULATION,
        num_generations=GENERATIONS,
        max_completion_length=COMPLETION,
        max_steps=1,
        learning_rate=1e-6,
        max_grad_norm=0.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    dataset = Dataset.from_dict({"prompt": ["w2"] * 64})
    trainer = kind(policy(), right_or_wrong, args, dataset, processing_class=tokenizer(), rollout_func=replay)
    trainer.train()
    return trainer


def seconds_of_a_step(trainer: Any) -> float:
    rows = [{"prompt": "w2"}] * (ROWS * ACCUMULATION)
    trainer.model.train()
    start = time.perf_counter()
    for _ in range(ACCUMULATION):
        trainer.training_step(trainer.model_wrapped, rows, None)
    trainer.optimizer.step()
    trainer.model_wrapped.zero_grad()
    return time.perf_counter() - start


def pair(baseline: Any, variant: Any) -> tuple[float, float]:
    """Seconds of two steps of each, in the order baseline, variant, variant, baseline."""
    first, *ours, last = [seconds_of_a_step(trainer) for trainer in (baseline, variant, variant, baseline)]
    return first + last, sum(ours)


def measured(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield what is known after every round."""
    with tempfile.TemporaryDirectory() as folder:
        baseline = ready(folder, trl.GRPOTrainer, trl.GRPOConfig, loss_type="dr_grpo", scale_rewards="none")
        variants = {
            name: ready(folder, MaxEntGRPOTrainer, MaxEntGRPOConfig, **settings)
            for name, settings in VARIANTS.items()
        }
        seconds: list[float] = []
        ratios: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(rounds):
            for name, variant in variants.items():
                if number % EVERY.get(name, 3) == 0:
                    theirs, ours = pair(baseline, variant)
                    seconds.append(theirs / 2)
                    ratios[name].append(ours / theirs)
            yield {
                "GRPOTrainer, dr_grpo: seconds a step, median": round(statistics.median(seconds), 4),
                "ratio to GRPOTrainer": {name: summary(values, GOALS.get(name)) for name, values in ratios.items()},
            }


def summary(ratios: list[float], goal: float | None) -> dict[str, Any]:
    """Median of the pairs' ratios, its interval, and whether all of that is within the goal."""
    low, high = median_interval(ratios)
    found = {
        "pairs": len(ratios),
        "median": round(statistics.median(ratios), 4),
        "95 % interval": [round(low, 4), round(high, 4)],
    }
    if goal is None:
        return found
    resolved = len(ratios) >= 6 and (high <= goal or low > goal)  # fewer pairs have no 95 % interval
    verdict = "not resolved" if not resolved else "met" if high <= goal else "missed"
    return {**found, "goal": goal, "verdict": verdict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=90)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/trainer_step.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    setting = {
        "counted": "rollout replayed, rewards, target, loss, backward and optimiser of one step; sampling is not",
        "a pair": "GRPOTrainer, variant, variant, GRPOTrainer; the ratio is that of the sums",
        "shape": {
            "candidates": GENERATIONS,
            "rows a micro-batch": ROWS,
            "micro-batches": ACCUMULATION,
            "prompt tokens": PROMPT,
            "completion tokens": [COMPLETION // 2, COMPLETION],
            "vocabulary": VOCABULARY,
            "parameters": sum(parameter.numel() for parameter in policy().parameters()),
        },
        "environment": {
            "device": "cpu",
            "processor": platform.processor() or platform.machine(),
            "threads": options.threads,
            "load average before": os.getloadavg()[0],
            "torch": torch.__version__,
            "trl": trl.__version__,
            "transformers": transformers.__version__,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for result in measured(options.pairs):
        text = json.dumps({**result, **setting}, indent=2)
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
