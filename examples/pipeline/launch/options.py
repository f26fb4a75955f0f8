"""The flags of `examples/slurm_train.sh`."""

import argparse
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from maxent_grpo._secrets import expect_no_secret_flags, hide_secrets
from maxent_grpo.pipeline.launch.errors import LaunchError
from maxent_grpo.pipeline.launch.owned import OF_SERVER, OF_TRAINER, expect_none_owned
from maxent_grpo.pipeline.recipes import parse_flags

TEXTS = ("--args", "--sbatch", "--vllm-args", "--command")
"""Flags whose value is a command line of its own, and so may begin with dashes."""

READY_MINUTES = 20.0

WITH_COMMAND = ("command", "gpus", "sbatch", "dry_run")
"""What a job with a command of its own may be told."""

DESCRIPTION = """Train as a recipe says, on a Slurm cluster.

  bash examples/slurm_train.sh --model Qwen2.5-1.5B-Instruct --task maxent --config math --dry-run
  bash examples/slurm_train.sh --nodes 2 --accelerator zero3 --sbatch "--account=me --time=8:00:00" \\
      --args "--run_name demo --report_to wandb"

Outside Slurm it checks everything, prints the plan and submits itself; in an allocation it runs there.
examples/README.md explains every flag and what to do when a job fails."""


@dataclass(frozen=True)
class Options:
    """What was asked for; None where the recipe, the allocation or the other flags decide."""

    model: str
    task: str
    config: str
    accelerator: str
    vllm: str
    vllm_nodes: int | None
    vllm_gpus: int | None
    dp: int | None
    tp: int
    vllm_port: int | None
    vllm_group_port: int | None
    nodes: int | None
    gpus: int | None
    requeue: int
    ready_minutes: float
    stall_minutes: float
    sbatch: tuple[str, ...]
    args: tuple[str, ...]
    vllm_args: tuple[str, ...]
    command: tuple[str, ...]
    dry_run: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Complain in one line."""
        raise LaunchError(f"{message.removeprefix('argument ')} (--help lists the flags).")


def parse_options(arguments: Sequence[str]) -> Options:
    """Return the flags of a command line.

    Raises:
        LaunchError: naming the flag and its value.
    """
    values = vars(_build_parser().parse_args(_join_texts(arguments)))
    command = values["command"]
    for flag in TEXTS:
        name = flag.removeprefix("--").replace("-", "_")
        values[name] = split_text(flag, values[name] or "")
    if command is not None and not values["command"]:
        raise LaunchError(f"Expected a command, got {show_flag('command', command)}.")
    options = Options(**values)
    _expect_ranges(options)
    expect_none_owned("--args", options.args, OF_TRAINER)
    expect_none_owned("--vllm-args", options.vllm_args, OF_SERVER)
    _expect_command_alone(options)
    return options


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="examples/slurm_train.sh",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what is trained").add_argument
    add("--model", default="Qwen2.5-1.5B-Instruct", help="folder of examples/recipes (%(default)s)")
    add("--task", choices=("grpo", "maxent"), default="grpo", help="the trainer (%(default)s)")
    add("--config", default="math", help="recipe config_<name>.yaml (%(default)s)")
    add("--accelerator", default="zero3", help="file of examples/accelerate (%(default)s)")
    add("--args", default="", help='flags for train.py, in one string: --args "--run_name demo"')
    add = parser.add_argument_group("who samples").add_argument
    add("--vllm", choices=("auto", "server", "colocate", "off"), default="auto", help="(%(default)s)")
    add("--vllm-nodes", type=int, help="of several nodes, those that serve (1)")
    add("--vllm-gpus", type=int, help="GPUs that serve, of each serving node (1 of a single node, else all)")
    add("--dp", type=int, help="copies of the model that serve (as many as fit)")
    add("--tp", type=int, default=1, help="GPUs that share one copy (%(default)s)")
    add("--vllm-port", type=int, help="of the server (derived from the job id)")
    add("--vllm-group-port", type=int, help="of the weight updates (derived from the job id)")
    add("--vllm-args", default="", help='flags for vLLM, in one string: --vllm-args "--enforce-eager"')
    add = parser.add_argument_group("the job").add_argument
    add("--nodes", type=int, help="(1)")
    add("--gpus", type=int, help="of each node (8, or what --sbatch asks for)")
    add("--sbatch", default="", help='flags for sbatch, in one string: --sbatch "--account=me --time=8:00:00"')
    add("--requeue", type=int, default=0, metavar="TIMES", help="start again after a preemption, at most so often")
    add(
        "--ready-minutes",
        type=float,
        default=READY_MINUTES,
        help="for the server to start (%(default)s)",
    )
    add("--stall-minutes", type=float, default=60.0, help="how long a step may take (%(default)s)")
    add("--command", help="run this instead, on one node, in the same environment")
    add("--dry-run", action="store_true", help="print the plan and stop; needs no Slurm")
    return parser


def _join_texts(arguments: Sequence[str]) -> list[str]:
    """Write `--args VALUE` as `--args=VALUE`: argparse would take a value with dashes for a flag."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in TEXTS:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def split_text(flag: str, text: str) -> tuple[str, ...]:
    """Return a value's words, as a shell would split it; nothing in it is evaluated.

    Args:
        flag: the flag or the variable that has the value.
        text: the value.

    Raises:
        LaunchError: if a quotation does not end, or there is a secret in it.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise LaunchError(f"Expected {flag} as a shell would split it, got {error}.") from None
    try:
        expect_no_secret_flags(parse_flags(words))
        # `--export=ALL,NAME=value` is a list of assignments, and `env NAME=value program` has one.
        lists = [part for word in words for part in (word, word.partition("=")[2])]
        parts = [part.partition("=") for each in lists for part in each.split(",")]
        expect_no_secret_flags([(name, [value]) for name, equals, value in parts if equals])
    except ValueError as error:
        raise LaunchError(f"{flag}: {str(error).removeprefix('command line: ')}") from None
    return words


def _expect_ranges(options: Options) -> None:
    least = {"vllm_nodes": 1, "vllm_gpus": 1, "dp": 1, "tp": 1, "nodes": 1, "gpus": 1, "requeue": 0}
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise LaunchError(f"Expected {show_flag(name)} >= {bound}, got {show_flag(name, value)}.")
    for name in ("vllm_port", "vllm_group_port"):
        value = getattr(options, name)
        if value is not None and not 1024 <= value <= 65535:
            raise LaunchError(f"Expected {show_flag(name)} from 1024 to 65535, got {show_flag(name, value)}.")
    for name in ("ready_minutes", "stall_minutes"):
        value = getattr(options, name)
        if not (value > 0 and math.isfinite(value)):
            raise LaunchError(f"Expected {show_flag(name)} > 0, got {show_flag(name, value)}.")
    if options.vllm_port is not None and options.vllm_port == options.vllm_group_port:
        raise LaunchError(f"Expected two ports, got --vllm-port and --vllm-group-port {options.vllm_port}.")


def _expect_command_alone(options: Options) -> None:
    """Refuse the flags of a training job beside `--command`, which would have no effect."""
    defaults = vars(_build_parser().parse_args([]))
    for name, value in vars(options).items() if options.command else ():
        if name not in WITH_COMMAND and value != (defaults[name] or type(value)()):
            raise LaunchError(f"Expected --command without flags of a training job, got {show_flag(name, value)}.")


def show_flag(name: str, value: object = None) -> str:
    """Return a field as its flag, with its value as a shell would want it.

    >>> show_flag("vllm_gpus"), show_flag("config", ""), show_flag("vllm_args", ("--x", "1"))
    ('--vllm-gpus', "--config ''", "--vllm-args '--x 1'")
    """
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return flag
    text = shlex.join(value) if isinstance(value, tuple) else str(value)
    return f"{flag} {shlex.quote(hide_secrets(text))}"  # within quotes nobody would look for a secret
