"""The command line of `evaluate.py`."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from maxent_grpo._secrets import DiscreetParser
from maxent_grpo.pipeline.arguments import read_max_prompt_chars
from maxent_grpo.pipeline.evaluation.generation import BATCH_TOKENS
from maxent_grpo.pipeline.evaluation.lighteval import expect_tasks
from maxent_grpo.pipeline.tasks.catalog import TASKS

LARGEST_K = 64


def parse_options(arguments: Sequence[str] | None, description: str | None = None) -> argparse.Namespace:
    """Return the options of the command line; end with a message that names an option where they do not fit."""
    parser = DiscreetParser(
        "evaluate.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help="checkpoints: folders, names on the Hub, or, without --lighteval, models made on the spot: smollm2-135m",
    )
    add("--revision", help="of the models on the Hub")
    add("--dtype", default="auto", help="of the weights (%(default)s)")
    add("--output", type=Path, default=Path("runs/evaluation"), help="where results go (%(default)s)")
    _add_questions(parser)
    _add_sampling(parser)
    _add_lighteval(parser)
    options = parser.parse_args(arguments)
    _expect_options(parser, options)
    if not options.lighteval:
        options.temperature = 1.0 if options.temperature is None else options.temperature
        options.max_new_tokens = options.max_new_tokens or 1024
    return options


def _add_questions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is asked").add_argument
    add("--task", choices=TASKS, help="a task of the pipeline, on problems never trained on")
    add("--dataset", help="instead: a Hub dataset, a local file or folder")
    add("--dataset_config", help="its configuration")
    add("--split", help="its split (test; a single file has but train)")
    add("--prompt_column", default="prompt", help="(%(default)s)")
    add("--solution_column", help="the column that the reward sees as `solution`")
    add("--reward", default="math_verify", help="a registered reward or dotted path (%(default)s)")
    add("--right", type=float, default=1.0, help="reward from which an answer is right (%(default)s)")
    add(
        "--key_func",
        help="which right answers are the same: a registered key function or dotted path; then distinct@k",
    )
    add("--prompts", type=int, help="ask the first so many only")
    add("--max_prompt_chars", type=int, default=read_max_prompt_chars(), help="longer prompts are cut (%(default)s)")
    add("--system_prompt", help="system message before every chat")
    add("--prompt_format", choices=("auto", "chat", "text"), default="auto", help="(%(default)s)")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how answers are drawn").add_argument
    add("--engine", choices=("auto", "transformers", "vllm"), default="auto", help="(%(default)s)")
    add("--samples", type=int, default=LARGEST_K, help="completions per prompt, n (%(default)s)")
    add("--temperature", type=float, help="(1.0; LightEval 0.6)")
    add("--max_new_tokens", type=int, help="(1024; LightEval 32768)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--batch_prompts", type=int, help=f"of a batch, with transformers (as make {BATCH_TOKENS} tokens)")
    add("--greedy", action="store_true", help="also the accuracy of greedy decoding")


def _add_lighteval(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("LightEval instead").add_argument
    add("--lighteval", type=_split_benchmarks, help="benchmarks with commas between: math_500,aime24,gpqa:diamond")
    add("--backend", choices=("vllm", "accelerate"), default="vllm", help="(%(default)s)")
    add("--custom_tasks", type=Path, help="a file with LightEval tasks of your own")
    add("--dry-run", action="store_true", help="print the commands, run nothing")
    add("--submit", action="store_true", help="send a Slurm job for each benchmark")
    add("--sbatch", default="", help='options for sbatch, in one string: --sbatch="--gres=gpu:1"')


def _split_benchmarks(text: str) -> list[str]:
    benchmarks = [name.strip() for name in text.split(",") if name.strip()]
    if not benchmarks:
        raise argparse.ArgumentTypeError(f"Expected benchmarks in --lighteval, got {text!r}.")
    return benchmarks


def _expect_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    for name in ("samples", "max_new_tokens", "prompts", "batch_prompts", "max_prompt_chars"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"Expected --{name} >= 1, got {getattr(options, name)}.")
    if options.temperature is not None and not 0 <= options.temperature < math.inf:
        parser.error(f"Expected --temperature >= 0 and finite, got {options.temperature}.")
    if not math.isfinite(options.right):
        parser.error(f"Expected --right to be finite, got {options.right}.")
    if not 0 <= options.seed < 2**63:
        parser.error(f"Expected --seed >= 0, got {options.seed}.")
    if sum(choice is not None for choice in (options.task, options.dataset, options.lighteval)) != 1:
        parser.error("Expected one of --task, --dataset and --lighteval.")
    if options.key_func and not options.dataset:
        parser.error(
            f"Expected --dataset with --key_func, got --key_func {options.key_func}: a task names its modes."
        )
    if options.lighteval and options.custom_tasks is None:
        try:
            expect_tasks(options.lighteval)
        except ValueError as error:
            parser.error(str(error))
    if options.lighteval is None and (options.dry_run or options.submit):
        parser.error("Expected --lighteval with --dry-run and --submit, got none.")
    if options.dtype != "auto" and not isinstance(getattr(torch, options.dtype, None), torch.dtype):
        parser.error(f"Expected --dtype auto or a dtype of torch, got {options.dtype!r}.")
