"""The demo's command line, and the settings of the methods that it compares."""

import argparse
import dataclasses
import math
from pathlib import Path

from maxent_grpo import MaxEntConfig
from maxent_grpo._secrets import DiscreetParser
from maxent_grpo.pipeline.tasks.catalog import list_problems
from maxent_grpo.pipeline.tiny.wide_countdown import MAX_NEW_TOKENS, NAME

ARMS = ("dr_grpo", "maxent", "maxent_diverse")
AT_LEAST = {
    **dict.fromkeys(("steps", "seeds", "prompts", "samples", "warm_steps", "eval_every", "eval_prompts"), 1),
    "eval_samples": 8,
}


def parse_options(arguments: list[str] | None, description: str | None) -> argparse.Namespace:
    """Return the options of the command line; end with a message on one that some worker would stumble over."""
    parser = DiscreetParser(
        "quickstart.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    published, diverse = MaxEntConfig(), MaxEntConfig.diverse()
    add = parser.add_argument
    add("--steps", type=int, default=240, help="updates of each method (%(default)s)")
    add("--seed", type=int, default=0, help="the first seed (%(default)s)")
    add("--seeds", type=int, default=1, help="how many seeds to train and average (%(default)s)")
    add("--tau", type=float, default=published.tau, help="temperature of the target, both MaxEnt arms (%(default)s)")
    add("--beta", type=float, default=published.beta, help="pull to the warm start, both MaxEnt arms (%(default)s)")
    add("--dedup", type=float, default=diverse.dedup, help="κ, discount of duplicates, diverse arm (%(default)s)")
    add("--success-power", type=float, default=diverse.success_power, help="a, diverse arm (%(default)s)")
    add("--learning-rate", type=float, default=1e-4, help="of Adam, all methods (%(default)s)")
    add("--prompts", type=int, default=32, help="prompts per update (%(default)s)")
    add("--samples", type=int, default=8, help="completions per prompt, K (%(default)s)")
    add("--temperature", type=float, default=1.0, help="sampling temperature in training (%(default)s)")
    add("--warm-steps", type=int, default=300, help="steps of supervised learning before (%(default)s)")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="methods to train (all)")
    add("--eval-every", type=int, default=20, help="updates between evaluations and saves (%(default)s)")
    add("--eval-prompts", type=int, default=512, help="held-out problems of the final evaluation (%(default)s)")
    add("--eval-samples", type=int, default=16, help="completions per held-out problem, >= 8 (%(default)s)")
    add("--output", type=Path, default=Path("runs/demo"), help="where results go (%(default)s)")
    add("--resume", action="store_true", help="go on with the run in --output")
    options = parser.parse_args(arguments)
    try:
        _expect_options(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def _expect_options(options: argparse.Namespace) -> None:
    for name, least in AT_LEAST.items():
        if getattr(options, name) < least:
            raise ValueError(f"Expected {_name_flag(name)} >= {least}, got {getattr(options, name)}.")
    for name in ("temperature", "learning_rate"):
        if not 0 < getattr(options, name) < math.inf:
            raise ValueError(f"Expected {_name_flag(name)} to be positive and finite, got {getattr(options, name)}.")
    needed, number = options.eval_prompts + options.prompts, len(list_problems(NAME))
    if needed > number:
        raise ValueError(f"Expected --eval-prompts and --prompts to share {number} problems, got {needed}.")
    for arm in ARMS:
        build_config(arm, options)


def _name_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def build_config(arm: str, options: argparse.Namespace) -> MaxEntConfig:
    """Return the settings of a method. Dr.GRPO is the surrogate with equal candidate weights."""
    if arm == "dr_grpo":
        return MaxEntConfig(projection="surrogate", max_length=MAX_NEW_TOKENS)
    if arm == "maxent":
        return MaxEntConfig(tau=options.tau, beta=options.beta)
    return dataclasses.replace(
        MaxEntConfig.diverse(max_length=MAX_NEW_TOKENS),
        tau=options.tau,
        beta=options.beta,
        dedup=options.dedup,
        success_power=options.success_power,
    )
