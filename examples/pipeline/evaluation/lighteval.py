"""Benchmarks of LightEval as commands, one each: to read, to run, or to send to Slurm."""

import argparse
import difflib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from maxent_grpo.pipeline.launch.submit import expect_submission, wrap_command

TASKS: dict[str, list[str]] = json.loads(Path(__file__).with_name("lighteval_tasks.json").read_text())
"""The subsets of each task of LightEval 0.13, as docs/tools/list_lighteval_tasks.py finds them; `*` is any."""


def expect_tasks(benchmarks: Sequence[str]) -> None:
    """Refuse benchmarks that LightEval does not know, which it would say in the job, hours later.

    Args:
        benchmarks: such as `math_500`, `gpqa:diamond`, `mmlu` for all its subsets, or `gsm8k|5`.

    Raises:
        ValueError: naming the benchmark, and one that is spelled alike.
    """
    for benchmark in benchmarks:
        *suite, name, examples = benchmark.split("|") if "|" in benchmark else (benchmark, "0")
        task, _, subset = name.partition("@")[0].partition(":")
        subsets = TASKS.get(task)
        if subsets is None or (subset and subset not in subsets and "*" not in subsets):
            known = [":".join(filter(None, (each, part))) for each, parts in TASKS.items() for part in ("", *parts)]
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"Expected a task of LightEval 0.13, or --custom_tasks with a file of your own, got {benchmark!r}"
                + (f" (did you mean {near[0]}?)." if near else ".")
            )
        if len(suite) > 1 or not examples.isdecimal():
            raise ValueError(f"Expected TASK or TASK|EXAMPLES in --lighteval, got {benchmark!r}.")


def build_lighteval_command(
    benchmark: str,
    model: str,
    output: Path,
    *,
    revision: str | None = None,
    backend: str = "vllm",
    max_new_tokens: int = 32768,
    temperature: float = 0.6,
    custom_tasks: Path | None = None,
) -> list[str]:
    """Return the command that runs one benchmark, for LightEval 0.13.

    Args:
        benchmark: such as `math_500`, `gpqa:diamond`, or `gsm8k|5` with five examples in the prompt.
        model: a checkpoint.
        output: where results go.
        revision: of the model.
        backend: `vllm` or `accelerate`.
        max_new_tokens: where a completion is cut.
        temperature: 0 is greedy.
        custom_tasks: a file with tasks of one's own.

    >>> " ".join(build_lighteval_command("math_500", "runs/one", Path("out"), temperature=0.0, max_new_tokens=64))
    'lighteval vllm model_name=runs/one,dtype=bfloat16,generation_parameters={max_new_tokens:64,temperature:0.0} math_500|0 --output-dir out --save-details'
    """  # noqa: E501
    settings = [f"model_name={model}", "dtype=bfloat16"]
    if revision:
        settings.append(f"revision={revision}")
    settings.append(f"generation_parameters={{max_new_tokens:{max_new_tokens},temperature:{temperature}}}")
    task = benchmark if "|" in benchmark else f"{benchmark}|0"
    command = ["lighteval", backend, ",".join(settings), task, "--output-dir", str(output), "--save-details"]
    return command + (["--custom-tasks", str(custom_tasks)] if custom_tasks else [])


def run_lighteval(options: argparse.Namespace, console: Console) -> None:
    """Print, run or submit one LightEval command for each model and benchmark.

    Raises:
        ValueError: if the program that is needed is not installed, or once all have run, if one failed.
    """
    if not options.dry_run:
        _expect_program(submit=options.submit)
    failures = []
    for name, command in _list_commands(options):
        console.print(shlex.join(command), soft_wrap=True, highlight=False, markup=False)
        if not options.dry_run:
            options.output.mkdir(parents=True, exist_ok=True)
            if code := subprocess.run(command, check=False).returncode:
                failures.append(f"{name} (exit code {code})")
    if failures:
        raise ValueError(f"Expected all benchmarks to run, got failures: {', '.join(failures)}.")


def _expect_program(*, submit: bool) -> None:
    if submit:
        expect_submission(Path.cwd())
    elif shutil.which("lighteval") is None:
        raise ValueError(
            "Expected lighteval to be installed (pip install 'lighteval[math]'), got none on PATH; --dry-run prints "
            "the commands."
        )


def _list_commands(options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each evaluation and its command; LightEval keeps its own settings unless others are given."""
    sampling = {name: getattr(options, name) for name in ("max_new_tokens", "temperature")}
    sampling = {name: value for name, value in sampling.items() if value is not None}
    for model in options.models:
        for benchmark in options.lighteval:
            command = build_lighteval_command(
                benchmark,
                model,
                options.output,
                revision=options.revision,
                backend=options.backend,
                custom_tasks=options.custom_tasks,
                **sampling,
            )
            if options.submit:
                name = re.sub(r"[^A-Za-z0-9_.-]+", "-", benchmark)
                command = wrap_command(shlex.join(command), f"--job-name=lighteval-{name} {options.sbatch}")
            yield f"{benchmark} of {model}", command
