"""Benchmarks of LightEval as commands: one for each benchmark, to read, to run, or to send to Slurm."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path


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


def build_sbatch_command(command: Sequence[str], benchmark: str, output: Path, options: Sequence[str]) -> list[str]:
    """Return the command that sends another one to Slurm as a job of its own.

    >>> build_sbatch_command(["lighteval", "vllm", "a b"], "gpqa:diamond", Path("out"), ["--gres=gpu:1"])[-2:]
    ['--wrap', "lighteval vllm 'a b'"]
    """
    name = f"lighteval-{re.sub(r'[^A-Za-z0-9_.-]+', '-', benchmark)}"
    log = f"--output={output}/{name}-%j.log"
    return ["sbatch", f"--job-name={name}", log, *options, "--wrap", shlex.join(command)]
