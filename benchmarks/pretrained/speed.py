"""What the loop's shortcuts are worth for the pretrained model, on this machine's GPU or on its cores.

python -m benchmarks.pretrained.speed                # benchmarks/pretrained/results/speed-cpu.json or speed-cuda.json
python -m benchmarks.pretrained.speed --rounds 9

Every step is timed once per round, in turns, so that figures are ratios within one process. Every round samples the
same answers. Tokens are those of answers up to their end: what a batch computes after it is not counted.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from benchmarks._measure import describe_machine, format_timings, time_in_turns
from benchmarks.pretrained.arms import ARMS
from benchmarks.pretrained.plan import RESULTS
from benchmarks.pretrained.tasks import DEVICE, QUESTIONS, Sizes, load_start
from maxent_grpo.pipeline.files import write_text
from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict
from maxent_grpo.pipeline.tiny.sampling import Samples, sample
from maxent_grpo.pipeline.tiny.training import LoopSettings, Reinforcement

NAME = "countdown" if DEVICE == "cuda" else "name-one"
ASKED = QUESTIONS[NAME]
LEARNING = {
    "learning": {},
    "learning, prompts read once": {"share_prompts": True},
    "learning, prompts read once, one-pass head": {"share_prompts": True, "one_pass_head": True},
}
"""The settings of the loop whose learning is timed."""


def build_loop(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sizes: Sizes, **settings: bool
) -> Reinforcement:
    """Return a loop of κ = 1 that leaves the model as good as unchanged."""
    loop = LoopSettings(
        learning_rate=1e-12,
        prompts_per_step=sizes.prompts,
        num_samples=sizes.samples,
        max_new_tokens=sizes.max_new_tokens,
        active_only=True,
        **settings,
    )
    return Reinforcement(model, tokenizer, ASKED.task, ARMS["kappa"].build_objective(sizes.max_new_tokens), loop)


def draw_samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sizes: Sizes) -> Samples:
    """Return completions of which every second one is called right, so that all count."""
    loop = build_loop(model, tokenizer, sizes)
    samples = loop.draw(ASKED.list_sides()["train"])
    right = Verdict(correct=True, mode="right")
    samples.verdicts[:] = [right if row % 2 else WRONG for row in range(len(samples.verdicts))]
    return samples


def list_steps(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sizes: Sizes, samples: Samples
) -> tuple[dict[str, Callable[[], int]], dict[str, Callable[[], int]]]:
    """Return what is timed, which returns how many tokens it was: ways to sample a batch, ways to learn from one."""
    problems = ASKED.list_sides()["train"][: sizes.prompts]
    encoded = tokenizer([ASKED.task.prompt(each) for each in problems], return_tensors="pt", padding=True).to(
        model.device
    )
    choice = {"do_sample": True, "top_k": 0, "num_return_sequences": sizes.samples}
    limits = {"max_new_tokens": sizes.max_new_tokens}

    def generate() -> int:
        torch.manual_seed(0)
        ids = model.generate(**encoded, **limits, **choice)[:, encoded["input_ids"].shape[1] :]
        return int((ids != tokenizer.pad_token_id).sum())

    def draw(*, static_cache: bool) -> int:
        torch.manual_seed(0)
        drawn = sample(
            model,
            tokenizer,
            ASKED.task,
            problems,
            num_samples=sizes.samples,
            max_new_tokens=sizes.max_new_tokens,
            static_cache=static_cache,
        )
        return int(drawn.mask.sum())

    def learn(loop: Reinforcement) -> int:
        loop.learn(samples)
        return int(samples.mask.sum())

    sampling = {
        "sampling by generate": generate,
        "sampling, what begins alike computed once": lambda: draw(static_cache=False),
        "sampling, static cache": lambda: draw(static_cache=True),
    }
    loops = {name: build_loop(model, tokenizer, sizes, **settings) for name, settings in LEARNING.items()}
    return sampling, {name: partial(learn, loop) for name, loop in loops.items()}


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sizes: Sizes, rounds: int
) -> dict[str, object]:
    """Return timings of sampling and of learning, each as multiples of its first way."""
    samples = draw_samples(model, tokenizer, sizes)
    result: dict[str, object] = {"machine": describe_machine(model.device.type)}
    for steps in list_steps(model, tokenizer, sizes, samples):
        tokens = {name: step() for name, step in steps.items()}
        timings = time_in_turns(steps, rounds, model.device.type)
        for name, row in format_timings(timings).items():
            pace = round(tokens[name] / timings[name].median_ms * 1e3, 1)
            result[name] = row | {"tokens": tokens[name], "tokens per second": pace}
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--root", type=Path, default=Path("runs/pretrained"), help="where the start goes (%(default)s)"
    )
    options = parser.parse_args(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    result = measure(*load_start(options.root, NAME), ASKED.sizes, options.rounds)
    write_text(RESULTS / f"speed-{DEVICE}.json", json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
