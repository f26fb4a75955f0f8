r"""Measure how accurate and how varied checkpoints are: pass@k, mean@k, distinct@k and coverage@k, with intervals.

    python examples/evaluate.py runs/demo/seed0/maxent --task countdown-wide --samples 64 --max_new_tokens 8
    python examples/evaluate.py Qwen/Qwen2.5-1.5B-Instruct --dataset HuggingFaceH4/MATH-500 --split test \
        --prompt_column problem --solution_column answer --reward math_verify --samples 16
    python examples/evaluate.py runs/one --lighteval math_500,aime24,gpqa:diamond --submit --sbatch="--gres=gpu:1"

Several checkpoints share one table and one picture. Results go to evaluation.json, .md and .png in --output.
With transformers the same seed on the same machine gives the same samples: for the demo's checkpoints, its figures.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import datasets
import torch
import transformers
from rich.console import Console

from maxent_grpo._secrets import expect_no_secret_flags, hide_in_tracebacks, hide_secrets
from maxent_grpo.pipeline.arguments import GRPOScriptArguments
from maxent_grpo.pipeline.data.prompts import load_rows
from maxent_grpo.pipeline.data.sources import has_one_split
from maxent_grpo.pipeline.evaluation.curves import Curve, measure_curve
from maxent_grpo.pipeline.evaluation.generation import (
    ENGINES,
    Sampling,
    choose_engine,
    load_tokenizer,
    render_prompts,
)
from maxent_grpo.pipeline.evaluation.lighteval import run_lighteval
from maxent_grpo.pipeline.evaluation.options import LARGEST_K, parse_options
from maxent_grpo.pipeline.evaluation.report import build_table, save_report
from maxent_grpo.pipeline.evaluation.subjects import Subject, build_dataset_subject, build_task_subject
from maxent_grpo.pipeline.files import describe_full_disk, expect_writable
from maxent_grpo.pipeline.key_functions import find_key_function
from maxent_grpo.pipeline.recipes import parse_flags
from maxent_grpo.pipeline.rewards import find_reward
from maxent_grpo.pipeline.starts import make_start
from maxent_grpo.pipeline.tasks.answers import Verdict


def build_subject(options: argparse.Namespace, *, chat: bool) -> Subject:
    """Return what the models are asked.

    Raises:
        ValueError: naming the dataset and the column where something is missing.
    """
    if options.task:
        return build_task_subject(options.task, limit=options.prompts, chat=chat, system=options.system_prompt)
    script = GRPOScriptArguments(
        dataset_name=options.dataset,
        dataset_config=options.dataset_config,
        dataset_train_split=options.split or ("train" if has_one_split(options.dataset) else "test"),
        prompt_column=options.prompt_column,
        solution_column=options.solution_column,
        prompt_format="chat" if chat else "text",
        max_prompt_chars=options.max_prompt_chars,
        system_prompt=options.system_prompt,
    )
    reward = find_reward(options.reward)
    keys = None if options.key_func is None else find_key_function(options.key_func)
    rows = load_rows(script, [reward] if keys is None else [reward, keys])
    if options.prompts is not None:
        rows = rows.select(range(min(len(rows), options.prompts)))
    return build_dataset_subject(options.dataset, rows, reward, right=options.right, keys=keys)


def evaluate_model(model: str, options: argparse.Namespace, engine: str) -> tuple[Subject, Curve, dict[str, Any]]:
    """Return what a model was asked, its curve, and its other figures."""
    template = load_tokenizer(model, options.revision).chat_template
    chat = options.prompt_format == "chat" or (options.prompt_format == "auto" and bool(template))
    if options.system_prompt and not chat:
        raise ValueError(
            f"Expected a chat template, or --prompt_format chat, with --system_prompt, got {model} asked in text."
        )
    subject = build_subject(options, chat=chat)
    sampler = ENGINES[engine](model, options.revision, options.dtype)
    texts = render_prompts(subject.prompts, sampler.tokenizer)

    def judge_samples(samples: int, temperature: float) -> list[list[Verdict | None]]:
        sampling = Sampling(samples, temperature, options.max_new_tokens, options.seed, options.batch_prompts)
        return subject.judge(sampler.draw_samples(texts, sampling))

    figures: dict[str, Any] = {"prompt_format": "chat" if chat else "text"}
    if options.greedy:
        greedy = [verdict for (verdict,) in judge_samples(1, 0.0) if verdict is not None]
        figures["greedy_accuracy"] = sum(verdict.correct for verdict in greedy) / max(1, len(greedy))
    verdicts = judge_samples(options.samples, options.temperature)
    figures["samples_without_verdict"] = sum(verdict is None for samples in verdicts for verdict in samples)
    ks = range(1, min(options.samples, LARGEST_K) + 1)
    return subject, measure_curve(verdicts, subject.total_modes, ks=ks), figures


def run_evaluation(options: argparse.Namespace, console: Console) -> None:
    """Evaluate every model; the report is written after each, so that nothing is lost with a later one.

    Raises:
        ValueError: before anything is sampled, naming a model that cannot be read.
    """
    expect_writable(options.output)
    engine = choose_engine(options.engine)
    models = [make_start(name, options.output.parent) for name in options.models]
    for model in models:
        load_tokenizer(model, options.revision)  # raises where there is no such model
    results = []
    for name, model in zip(options.models, models, strict=True):
        subject, curve, figures = evaluate_model(model, options, engine)
        results.append((name, curve, figures))
        rows = save_report(options.output, describe_settings(options, subject, engine), results, subject.metrics)
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
        "command": hide_secrets(shlex.join(["python", "examples/evaluate.py", *sys.argv[1:]])),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate as the command line says."""
    console = Console(width=None if sys.stdout.isatty() else 132)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    hide_in_tracebacks()
    try:
        expect_no_secret_flags(parse_flags(sys.argv[1:] if arguments is None else arguments))
        options = parse_options(arguments, __doc__)
        (run_lighteval if options.lighteval is not None else run_evaluation)(options, console)
    except ValueError as error:
        raise SystemExit(f"evaluate.py: {hide_secrets(str(error))}") from error
    except KeyboardInterrupt:
        raise SystemExit("evaluate.py: interrupted. The report holds the models that were done.") from None
    except OSError as error:
        if line := describe_full_disk(error):
            raise SystemExit(f"evaluate.py: {line}") from error
        raise


if __name__ == "__main__":
    main()
