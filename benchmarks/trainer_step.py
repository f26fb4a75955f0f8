"""Time an optimizer step of MaxEntGRPOTrainer against one of TRL's GRPOTrainer with loss_type="dr_grpo".

    python benchmarks/trainer_step.py [--preset cpu] [--pairs 90] [--out benchmarks/results/trainer_step.json]

Counted: everything TRL does for one optimiser step, from `_prepare_inputs` (which replays fixed completions and calls
the reward function) over loss and backward of every micro-batch to the optimiser's update. Not counted: sampling,
which is the same for both. One process drives all trainers in turn, so that noise of the machine falls on all of
them. A pair is four steps, GRPOTrainer's, ours, ours, GRPOTrainer's, in which a steady drift cancels: its ratio is
that of the sums. Reported are the median of the pairs' ratios and its 95 % interval by a sign test, which assumes
nothing but independent pairs. Variants whose goal is far from their ratio take part in every third round, or
with the preset `gpu` every second. `cpu` takes about nine minutes on two idle cores. `gpu` has the sizes of
Qwen2.5-0.5B with a head of its own, 0.63 billion parameters, in bfloat16. The file is written after every round.

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # five trainers share a GPU's memory

import torch
import transformers
import trl
from _measure import median_interval
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from maxent_grpo.adapters.trl import MaxEntGRPOConfig, MaxEntGRPOTrainer

ACCUMULATION = 2


@dataclass(frozen=True)
class Preset:
    """Sizes of the model and of what is replayed, a group to a micro-batch, and where they run.

    `every` is the number of rounds between two pairs of a variant whose goal noise could not decide.
    """

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    candidates: int
    prompt: int
    completion: int
    device: str
    pairs: int
    every: int


PRESETS = {
    "cpu": Preset(8192, 192, 512, 3, 3, 3, candidates=8, prompt=32, completion=64, device="cpu", pairs=90, every=3),
    "gpu": Preset(
        151936, 896, 4864, 24, 14, 2, candidates=16, prompt=128, completion=768, device="cuda", pairs=12, every=2
    ),
}
RESULTS = Path(__file__).parent / "results"
VARIANTS: dict[str, dict[str, Any]] = {
    "maxent": {},
    "maxent, pruned to half": {"maxent_keep_fraction": 0.5},
    "maxent, one-pass head": {"maxent_fused_head": True},
    "maxent, one-pass head, pruned to half": {"maxent_fused_head": True, "maxent_keep_fraction": 0.5},
}
GOALS = {"maxent": 1.02, "maxent, pruned to half": 0.7}
OFTEN = "maxent"
"""Takes part in every round: the only one whose goal noise could decide."""


def build_policy(preset: Preset) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=preset.vocabulary,
            hidden_size=preset.hidden,
            intermediate_size=preset.intermediate,
            num_hidden_layers=preset.layers,
            num_attention_heads=preset.heads,
            num_key_value_heads=preset.key_value_heads,
            max_position_embeddings=preset.prompt + preset.completion,
            bos_token_id=1,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def build_tokenizer(preset: Preset) -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1} | {f"w{number}": number for number in range(2, preset.vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<eos>")), pad_token="<pad>", eos_token="<eos>"
    )


def replay_rollout(preset: Preset, prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Return the same prompts and completions at every call: a `rollout_func` of a preset."""
    generator, longest = torch.Generator().manual_seed(0), preset.completion
    lengths = torch.randint(longest // 2, longest + 1, (len(prompts),), generator=generator).tolist()
    completions = [torch.randint(2, preset.vocabulary, (n,), generator=generator).tolist() for n in lengths]
    prompt_shape = (len(prompts) // preset.candidates, preset.prompt)
    prompt_ids = torch.randint(2, preset.vocabulary, prompt_shape, generator=generator)
    return {
        "prompt_ids": prompt_ids.repeat_interleave(preset.candidates, 0).tolist(),
        "completion_ids": completions,
        "logprobs": [[0.0] * len(ids) for ids in completions],
    }


def reward_completions(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(ids[0] % 3 == 0) for ids in completion_ids]


def build_trainer(preset: Preset, folder: str, trainer_class: type, config_class: type, **settings: Any) -> Any:
    """Return a trainer of this class that has done its first step."""
    args = config_class(
        folder,
        per_device_train_batch_size=preset.candidates,
        gradient_accumulation_steps=ACCUMULATION,
        num_generations=preset.candidates,
        max_completion_length=preset.completion,
        max_steps=1,
        learning_rate=1e-6,
        max_grad_norm=0.0,
        gradient_checkpointing=False,
        bf16=preset.device == "cuda",
        use_cpu=preset.device == "cpu",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    trainer = trainer_class(
        build_policy(preset),
        reward_completions,
        args,
        Dataset.from_dict({"prompt": ["w2"] * 64}),
        processing_class=build_tokenizer(preset),
        rollout_func=partial(replay_rollout, preset),
    )
    trainer.train()
    return trainer


def time_step(trainer: Any) -> float:
    """Return the seconds of one optimizer step."""
    rows = [{"prompt": "w2"}] * (trainer.args.per_device_train_batch_size * ACCUMULATION)
    trainer.model.train()
    _wait_for_device(trainer)
    start = time.perf_counter()
    for _ in range(ACCUMULATION):
        trainer.training_step(trainer.model_wrapped, rows, None)
    trainer.optimizer.step()
    trainer.model_wrapped.zero_grad()
    _wait_for_device(trainer)
    return time.perf_counter() - start


def _wait_for_device(trainer: Any) -> None:
    if trainer.args.device.type == "cuda":
        torch.cuda.synchronize()


def time_pair(baseline: Any, variant: Any) -> tuple[float, float]:
    """Return the seconds of two steps of each, in the order baseline, variant, variant, baseline."""
    first, second, third, fourth = [time_step(trainer) for trainer in (baseline, variant, variant, baseline)]
    return first + fourth, second + third


def measure_rounds(preset: Preset, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield what is known after every round."""
    with tempfile.TemporaryDirectory() as folder:
        baseline = build_trainer(
            preset, folder, trl.GRPOTrainer, trl.GRPOConfig, loss_type="dr_grpo", scale_rewards="none"
        )
        variants = {
            name: build_trainer(preset, folder, MaxEntGRPOTrainer, MaxEntGRPOConfig, **settings)
            for name, settings in VARIANTS.items()
        }
        seconds: list[float] = []
        ratios: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(rounds):
            for name, variant in variants.items():
                if name == OFTEN or number % preset.every == 0:
                    baseline_seconds, variant_seconds = time_pair(baseline, variant)
                    seconds.append(baseline_seconds / 2)
                    ratios[name].append(variant_seconds / baseline_seconds)
            yield {
                "GRPOTrainer, dr_grpo: seconds a step, median": round(statistics.median(seconds), 4),
                "ratio to GRPOTrainer": {
                    name: summarize_ratios(values, GOALS.get(name)) for name, values in ratios.items()
                },
            }


def summarize_ratios(ratios: list[float], goal: float | None) -> dict[str, Any]:
    """Return the median of the pairs' ratios, its interval, and whether the interval is within the goal."""
    low, high = median_interval(ratios)
    summary = {
        "pairs": len(ratios),
        "median": round(statistics.median(ratios), 4),
        "95 % interval": [round(low, 4), round(high, 4)],
    }
    if goal is None:
        return summary
    resolved = len(ratios) >= 6 and (high <= goal or low > goal)  # fewer pairs have no 95 % interval
    verdict = "not resolved" if not resolved else "met" if high <= goal else "missed"
    return {**summary, "goal": goal, "verdict": verdict}


def _name_processor(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--pairs", type=int, help="by default the preset's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="benchmarks/results/trainer_step.json, or trainer_step-gpu.json")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    out = options.out or RESULTS / ("trainer_step.json" if preset.device == "cpu" else "trainer_step-gpu.json")
    torch.set_num_threads(options.threads)
    setting = {
        "counted": "rollout replayed, rewards, target, loss, backward and optimiser of one step; sampling is not",
        "a pair": "GRPOTrainer, variant, variant, GRPOTrainer; the ratio is that of the sums",
        "shape": {
            "candidates": preset.candidates,
            "rows a micro-batch": preset.candidates,
            "micro-batches": ACCUMULATION,
            "prompt tokens": preset.prompt,
            "completion tokens": [preset.completion // 2, preset.completion],
            "vocabulary": preset.vocabulary,
            "parameters": sum(parameter.numel() for parameter in build_policy(preset).parameters()),
        },
        "environment": {
            "device": preset.device,
            "processor": _name_processor(preset.device),
            "threads": options.threads,
            "load average before": os.getloadavg()[0],
            "torch": torch.__version__,
            "trl": trl.__version__,
            "transformers": transformers.__version__,
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    for result in measure_rounds(preset, options.pairs or preset.pairs):
        text = json.dumps({**result, **setting}, indent=2)
        out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
