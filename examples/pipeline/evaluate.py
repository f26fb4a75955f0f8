"""Measure how accurate and how varied checkpoints are: pass@k, mean@k, distinct@k and coverage@k, with intervals.

    python examples/evaluate.py runs/demo/seed0/maxent --task countdown-wide --samples 64 --max_new_tokens 8
    python examples/evaluate.py Qwen/Qwen2.5-1.5B-Instruct --dataset HuggingFaceH4/MATH-500 --split test \
        --prompt_column problem --solution_column answer --reward math_verify --samples 16
    python examples/evaluate.py runs/one --lighteval math_500,aime24,gpqa:diamond --submit --sbatch="--gres=gpu:1"

Several checkpoints share one table and one picture. Results go to evaluation.json, .md and .png in --output.
With transformers the same seed on the same machine gives the same samples: for the demo's checkpoints, its figures.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from rich.console import Console

from maxent_grpo.pipeline.arguments import GRPOScriptArguments, read_max_prompt_chars
from maxent_grpo.pipeline.data.prompts import load_rows
from maxent_grpo.pipeline.data.sources import has_one_split
from maxent_grpo.pipeline.evaluation.curves import measure_curve
from maxent_grpo.pipeline.evaluation.generation import (
    BATCH_TOKENS,
    ENGINES,
    Sampling,
    choose_engine,
    load_tokenizer,
    render_prompts,
)
from maxent_grpo.pipeline.evaluation.lighteval import build_lighteval_command, build_sbatch_command
from maxent_grpo.pipeline.evaluation.report import build_table, save_report
from maxent_grpo.pipeline.evaluation.subjects import Subject, build_dataset_subject, build_task_subject
from maxent_grpo.pipeline.rewards import find_reward
from maxent_grpo.pipeline.tasks.catalog import TASKS

LARGEST_K = 64


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="checkpoints: folders, or names on the Hub")
    add("--revision", help="of the models on the Hub")
    add("--dtype", default="auto", help="of the weights (%(default)s)")
    add("--output", type=Path, default=Path("runs/evaluation"), help="where results go (%(default)s)")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--task", choices=TASKS, help="a task of the pipeline, on problems never trained on")
    asked.add_argument("--dataset", help="instead: a Hub dataset, a local file or folder")
    asked.add_argument("--dataset_config", help="its configuration")
    asked.add_argument("--split", help="its split (test; a single file has but train)")
    asked.add_argument("--prompt_column", default="prompt", help="(%(default)s)")
    asked.add_argument("--solution_column", help="the column that the reward sees as `solution`")
    asked.add_argument("--reward", default="math_verify", help="a registered reward or dotted path (%(default)s)")
    asked.add_argument("--right", type=float, default=1.0, help="reward from which an answer is right (%(default)s)")
    asked.add_argument("--prompts", type=int, help="ask the first so many only")
    asked.add_argument(
        "--max_prompt_chars", type=int, default=read_max_prompt_chars(), help="longer prompts are cut (%(default)s)"
    )
    asked.add_argument("--system_prompt", help="system message before every chat")
    asked.add_argument("--prompt_format", choices=("auto", "chat", "text"), default="auto", help="(%(default)s)")
    drawn = parser.add_argument_group("how answers are drawn")
    drawn.add_argument("--engine", choices=("auto", "transformers", "vllm"), default="auto", help="(%(default)s)")
    drawn.add_argument("--samples", type=int, default=LARGEST_K, help="completions a prompt, n (%(default)s)")
    drawn.add_argument("--temperature", type=float, help="(1.0; LightEval 0.6)")
    drawn.add_argument("--max_new_tokens", type=int, help="(1024; LightEval 32768)")
    drawn.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    drawn.add_argument(
        "--batch_prompts", type=int, help=f"of a batch, with transformers (as make {BATCH_TOKENS} tokens)"
    )
    drawn.add_argument("--greedy", action="store_true", help="also the accuracy of greedy decoding")
    light = parser.add_argument_group("LightEval instead")
    light.add_argument("--lighteval", help="benchmarks with commas between them: math_500,aime24,gpqa:diamond")
    light.add_argument("--backend", choices=("vllm", "accelerate"), default="vllm", help="(%(default)s)")
    light.add_argument("--custom_tasks", type=Path, help="a file with LightEval tasks of your own")
    light.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    light.add_argument("--submit", action="store_true", help="send a Slurm job for each benchmark")
    light.add_argument("--sbatch", default="", help='options for sbatch, in one string: --sbatch="--gres=gpu:1"')
    options = parser.parse_args(arguments)
    _expect_options(parser, options)
    if options.lighteval is None:
        options.temperature = 1.0 if options.temperature is None else options.temperature
        options.max_new_tokens = options.max_new_tokens or 1024
    return options


def _expect_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a message that names the option and its value where they do not fit."""
    for name in ("samples", "max_new_tokens", "prompts", "batch_prompts", "max_prompt_chars"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"Expected --{name} >= 1, got {getattr(options, name)}.")
    if options.temperature is not None and not options.temperature >= 0:
        parser.error(f"Expected --temperature >= 0, got {options.temperature}.")
    if sum(each is not None for each in (options.task, options.dataset, options.lighteval)) != 1:
        parser.error("Expected one of --task, --dataset and --lighteval.")
    if options.lighteval is None and (options.dry_run or options.submit):
        parser.error("Expected --lighteval with --dry-run and --submit, got none.")
    if options.lighteval is not None and not _split_benchmarks(options):
        parser.error(f"Expected benchmarks in --lighteval, got {options.lighteval!r}.")
    if options.dtype != "auto" and not isinstance(getattr(torch, options.dtype, None), torch.dtype):
        parser.error(f"Expected --dtype auto or a dtype of torch, got {options.dtype!r}.")


def _split_benchmarks(options: argparse.Namespace) -> list[str]:
    return [name.strip() for name in options.lighteval.split(",") if name.strip()]


def build_subject(options: argparse.Namespace, *, chat: bool) -> Subject:
    """Return what the models are asked.

    Raises:
        ValueError: naming the dataset and the column where something is missing.
    """
    if options.task:
        return build_task_subject(options.task, limit=options.prompts, chat=chat)
    script = GRPOScriptArguments(
        dataset_name=options.dataset,
        dataset_config=options.dataset_config,
        dataset_train_split=options.split or ("train" if has_one_split(options.dataset) else "test"),
        prompt_column=options.prompt_column,
        solution_column=options.solution_column,
        prompt_format="chat" if chat else "text",
        max_prompt_chars=options.max_prompt_chars,
    )
    reward = find_reward(options.reward)
    rows = load_rows(script, [reward])
    if options.prompts is not None:
        rows = rows.select(range(min(len(rows), options.prompts)))
    return build_dataset_subject(options.dataset, rows, reward, right=options.right)


def evaluate_model(model: str, options: argparse.Namespace, engine: str) -> tuple[Subject, Any, dict[str, Any]]:
    """Return what a model was asked, its curve, and its other figures."""
    template = load_tokenizer(model, options.revision).chat_template
    chat = options.prompt_format == "chat" or (options.prompt_format == "auto" and bool(template))
    subject = build_subject(options, chat=chat)
    sampler = ENGINES[engine](model, options.revision, options.dtype)
    texts = render_prompts(subject.prompts, sampler.tokenizer, options.system_prompt)

    def verdicts(samples: int, temperature: float) -> list[Any]:
        sampling = Sampling(samples, temperature, options.max_new_tokens, options.seed, options.batch_prompts)
        return subject.judge(sampler.sample_texts(texts, sampling))

    figures: dict[str, Any] = {"prompt_format": "chat" if chat else "text"}
    if options.greedy:
        greedy = [verdict for (verdict,) in verdicts(1, 0.0) if verdict is not None]
        figures["greedy_accuracy"] = sum(verdict.correct for verdict in greedy) / max(1, len(greedy))
    sampled = verdicts(options.samples, options.temperature)
    figures["samples_without_verdict"] = sum(verdict is None for each in sampled for verdict in each)
    ks = range(1, min(options.samples, LARGEST_K) + 1)
    return subject, measure_curve(sampled, subject.total_modes, ks=ks), figures


def run_evaluation(options: argparse.Namespace, console: Console) -> None:
    """Evaluate every model; the report is written after each, so that nothing is lost with a later one.

    Raises:
        ValueError: before anything is sampled, naming a model that cannot be read.
    """
    engine = choose_engine(options.engine)
    for model in options.models:
        load_tokenizer(model, options.revision)
    results = []
    for model in options.models:
        subject, curve, figures = evaluate_model(model, options, engine)
        results.append((model, curve, figures))
        rows = save_report(
            options.output, describe_settings(options, subject, engine), results, has_modes=subject.has_modes
        )
    console.print(build_table(rows))
    console.print(f"evaluation.json, .md and .png are in {options.output}/.")


def describe_settings(options: argparse.Namespace, subject: Subject, engine: str) -> dict[str, Any]:
    """Return how an evaluation was made, for its report."""
    return {
        "subject": subject.name,
        "prompts": len(subject.prompts),
        "engine": engine,
        **{
            name: getattr(options, name)
            for name in ("samples", "temperature", "max_new_tokens", "seed", "batch_prompts")
        },
        "interval": "95 % percentile bootstrap over prompts, 2000 resamples, seed 0",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "command": shlex.join(["python", "examples/evaluate.py", *sys.argv[1:]]),
    }


def run_lighteval(options: argparse.Namespace, console: Console) -> None:
    """Print, run or submit one LightEval command for each model and benchmark.

    Raises:
        ValueError: if the program that is needed is not installed, or once all have run, if one failed.
    """
    program = "sbatch" if options.submit else "lighteval"
    if not options.dry_run and shutil.which(program) is None:
        hint = "" if options.submit else " (pip install 'lighteval[math]')"
        raise ValueError(
            f"Expected {program} to be installed{hint}, got none on PATH; --dry-run prints the commands."
        )
    given = {name: getattr(options, name) for name in ("max_new_tokens", "temperature")}
    given = {name: value for name, value in given.items() if value is not None}
    failed = []
    for model in options.models:
        for benchmark in _split_benchmarks(options):
            command = build_lighteval_command(
                benchmark,
                model,
                options.output,
                revision=options.revision,
                backend=options.backend,
                custom_tasks=options.custom_tasks,
                **given,
            )
            if options.submit:
                command = build_sbatch_command(command, benchmark, options.output, shlex.split(options.sbatch))
            console.print(shlex.join(command), soft_wrap=True, highlight=False, markup=False)
            if not options.dry_run:
                options.output.mkdir(parents=True, exist_ok=True)
                if code := subprocess.run(command, check=False).returncode:
                    failed.append(f"{benchmark} of {model} (exit code {code})")
    if failed:
        raise ValueError(f"Expected all benchmarks to run, got failures: {', '.join(failed)}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate as the command line says."""
    console = Console(width=None if sys.stdout.isatty() else 132)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    try:
        options = parse_options(arguments)
        (run_lighteval if options.lighteval is not None else run_evaluation)(options, console)
    except ValueError as error:
        raise SystemExit(f"evaluate.py: {error}") from error


if __name__ == "__main__":
    main()
