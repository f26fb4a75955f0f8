"""What the loop's shortcuts are worth for the pretrained model, on this machine's GPU or on its cores.

python -m benchmarks.pretrained.speed                # benchmarks/pretrained/results/speed-cpu.json or speed-cuda.json
python -m benchmarks.pretrained.speed --rounds 9

Every step is timed once per round, in turns, so that figures are ratios within one process. Tokens are those of
answers up to their end: what a batch computes after it is not counted.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

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
) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]]]:
    """Return what is timed: ways to sample a batch, and ways to learn from one."""
    problems = ASKED.list_sides()["train"][: sizes.prompts]
    encoded = tokenizer([ASKED.task.prompt(each) for each in problems], return_tensors="pt", padding=True).to(
        model.device
    )
    choice = {"do_sample": True, "top_k": 0, "num_return_sequences": sizes.samples}
    limits = {"max_new_tokens": sizes.max_new_tokens}

    def draw(*, static_cache: bool) -> Samples:
        return sample(
            model,
            tokenizer,
            ASKED.task,
            problems,
            num_samples=sizes.samples,
            max_new_tokens=sizes.max_new_tokens,
            static_cache=static_cache,
        )

    sampling = {
        "sampling by generate": lambda: model.generate(**encoded, **limits, **choice),
        "sampling, what begins alike computed once": lambda: draw(static_cache=False),
        "sampling, static cache": lambda: draw(static_cache=True),
    }
    loops = {name: build_loop(model, tokenizer, sizes, **settings) for name, settings in LEARNING.items()}
    return sampling, {name: lambda loop=loop: loop.learn(samples) for name, loop in loops.items()}


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sizes: Sizes, rounds: int
) -> dict[str, object]:
    """Return timings of sampling and of learning, each as multiples of its first way."""
    samples = draw_samples(model, tokenizer, sizes)
    tokens = int(samples.mask.sum())
    result: dict[str, object] = {"machine": describe_machine(model.device.type), "tokens of a batch": tokens}
    for steps in list_steps(model, tokenizer, sizes, samples):
        for step in steps.values():
            step()
        timings = time_in_turns(steps, rounds, model.device.type)
        for name, row in format_timings(timings).items():
            result[name] = row | {"tokens per second": round(tokens / timings[name].median_ms * 1e3, 1)}
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
