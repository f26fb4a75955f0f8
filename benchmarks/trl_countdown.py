"""Show whether MaxEntGRPOTrainer raises the reward: Countdown with the demo's model, on a CPU, 2 minutes per run.

    python benchmarks/trl_countdown.py [--seconds 75] [--out benchmarks/results/trl_countdown.json]

The demo's model is warmed up by supervised learning; from that checkpoint every run trains with real TRL: sampling,
rewards, updates. The result holds each run's reward (the share of right answers among its sampled completions) over
its first and last ten updates. Time is processor time of one core, so that other load does not count. Runs: each
way of fitting the target in one process, and the published settings in two with DDP and with DeepSpeed ZeRO-3.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from maxent_grpo.adapters.trl import MaxEntGRPOConfig, MaxEntGRPOTrainer
from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tasks.splits import split
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.storage import save_checkpoint
from maxent_grpo.pipeline.tiny.warm_start import build_skewed_sampler, warm_start
from maxent_grpo.pipeline.tiny.wide_countdown import MAX_NEW_TOKENS, TASK, TOKENIZER

PROMPTS, GENERATIONS, WARM_STEPS = 32, 8, 300
ARMS: dict[str, dict[str, Any]] = {
    "published": {"maxent_preset": "published"},
    "diverse": {"maxent_preset": "diverse"},
    # Mean scores per token: with summed ones p is nearly a point, and at this learning rate the reward was lost.
    "listwise": {"maxent_projection": "listwise", "maxent_nll_reduction": "mean", "maxent_skip": "equal"},
    "surrogate": {"maxent_projection": "surrogate", "maxent_surrogate_tau": 0.1},
}
ZERO_3 = {
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": 1,
    "zero_allow_untested_optimizer": True,
    "gradient_clipping": 0.0,
}
RUNS = [(arm, "one process") for arm in ARMS] + [
    ("published", "DDP, 2 processes"),
    ("published", "ZeRO-3, 2 processes"),
]
PROBLEMS = split(countdown.problems(countdown.WIDE), held_out=512, seed=0).train
BY_PROMPT = {countdown.prompt(problem): problem for problem in PROBLEMS}


class StopAfter(TrainerCallback):
    """Ends training after so many seconds of processor time, on all ranks at the same step."""

    def __init__(self, seconds: float) -> None:
        self.end = time.process_time() + seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        late = torch.tensor(float(time.process_time() > self.end))
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(late)
        control.should_training_stop = bool(late > 0)


def reward_answers(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [countdown.reward(BY_PROMPT[prompt], text) for prompt, text in zip(prompts, completions, strict=True)]


def warm_up(folder: Path) -> None:
    model = build_model(TOKENIZER)
    for _ in warm_start(model, TOKENIZER, build_skewed_sampler(TASK, PROBLEMS), steps=WARM_STEPS):
        pass
    save_checkpoint(model, TOKENIZER, folder)


def train(arm: str, layout: str, warm: Path, seconds: float, out: Path) -> None:
    """Train one run; the main process writes the reward of every update."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    args = MaxEntGRPOConfig(
        str(out.with_suffix("")),
        per_device_train_batch_size=PROMPTS * GENERATIONS // ranks,
        num_generations=GENERATIONS,
        max_completion_length=MAX_NEW_TOKENS,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        max_steps=100_000,
        max_grad_norm=0.0,
        logging_steps=1,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        deepspeed=ZERO_3 if layout.startswith("ZeRO") else None,
        **ARMS[arm],
    )
    trainer = MaxEntGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(warm),
        reward_answers,
        args,
        Dataset.from_dict({"prompt": list(BY_PROMPT)}),
        processing_class=AutoTokenizer.from_pretrained(warm, padding_side="left"),
        callbacks=[StopAfter(seconds)],
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        logs = [entry for entry in trainer.state.log_history if "reward" in entry]
        out.write_text(json.dumps([entry["reward"] for entry in logs]))


def launch_run(arm: str, layout: str, warm: Path, seconds: float) -> dict[str, Any]:
    """Return the summary of a run in processes of its own."""
    ranks = 1 if layout == "one process" else 2
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rewards.json"
        options = {"arm": arm, "layout": layout, "warm": warm, "seconds": seconds, "out": out}
        command += [__file__, *(f"--{name}={value}" for name, value in options.items())]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rewards = json.loads(out.read_text())
    first, last = rewards[:10], rewards[-10:]
    return {
        "settings": arm,
        "layout": layout,
        "updates": len(rewards),
        "reward, first 10 updates": round(sum(first) / len(first), 4),
        "reward, last 10 updates": round(sum(last) / len(last), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=75.0, help="of processor time")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/trl_countdown.json"))
    parser.add_argument("--warm", type=Path, help="a warm checkpoint to start from")
    parser.add_argument("--arm", choices=list(ARMS), help="train this run alone")
    parser.add_argument("--layout", default="one process")
    parser.add_argument("--only", choices=list(ARMS), help="run these settings again, keep the other results")
    options = parser.parse_args()
    if options.arm:
        train(options.arm, options.layout, options.warm, options.seconds, options.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        warm = options.warm or Path(folder)
        if not (warm / "config.json").exists():
            warm_up(warm)
        kept = json.loads(options.out.read_text())["runs"] if options.only else []
        runs = [run for run in kept if run["settings"] != options.only]
        for arm, layout in RUNS:
            if options.only in (None, arm):
                runs.append(launch_run(arm, layout, warm, options.seconds))
                print(runs[-1], flush=True)
    result = {
        "task": "3-number Countdown, 2..20, prompts never held out",
        "seconds of processor time a process": options.seconds,
        "threads a process": 1,
        "prompts an update": PROMPTS,
        "completions a prompt": GENERATIONS,
        "torch": torch.__version__,
        "runs": runs,
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
