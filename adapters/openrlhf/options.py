"""The options: what is honoured, what is refused, and what travels to the workers."""

import argparse
import functools
import logging
import math
import runpy
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

from openrlhf.utils.config import hierarchize

from maxent_grpo._checks import expect
from maxent_grpo._secrets import DiscreetParser
from maxent_grpo.adapters._groups import Answers
from maxent_grpo.adapters._settings import describe_fields, expect_group_size, read_settings
from maxent_grpo.config import PRESETS, MaxEntConfig

logger = logging.getLogger(__name__)

PROGRAM = "maxent_grpo.adapters.openrlhf"
STOCK_PROGRAM = "openrlhf.cli.train_ppo_ray"


@dataclass(frozen=True)
class Refusal:
    """Why an option of OpenRLHF has few values here.

    Attributes:
        values: those that leave the method alone.
        lost: what another value would have done, or what does it here.
    """

    values: tuple[Any, ...]
    lost: str


_RAW = "the target reads rewards as they are"
REFUSED = {
    "algo.advantage.estimator": Refusal(
        ("group_norm", "dr_grpo"), "the target takes the place of GRPO's advantages; others see no groups or a critic"
    ),
    "algo.advantage.no_std_norm": Refusal((False,), "--maxent.utility_transform says how rewards are scaled"),
    "algo.advantage.gamma": Refusal((1.0,), "a candidate's tokens share its coefficient"),
    "algo.advantage.lambd": Refusal((1.0,), "a candidate's tokens share its coefficient"),
    "reward.normalize_enable": Refusal((False,), f"{_RAW}; --maxent.utility_transform scales them per group"),
    "reward.clip_range": Refusal(((-10, 10),), f"{_RAW} and clips none, not even at OpenRLHF's ±10"),
    "actor.policy_loss_type": Refusal(("ppo",), "a clipped update compares policies token by token"),
    "actor.dual_clip": Refusal((None,), "large ratios have no bound of their own; the clip is --actor.eps_clip"),
    "actor.loss_agg_mode": Refusal(("token-mean",), "--maxent.nll_reduction says what a candidate is divided by"),
    "data.max_images_per_prompt": Refusal((0,), "prompts that differ in their images alone would look the same"),
}
"""Options of OpenRLHF that would change the method, by name."""


@dataclass(frozen=True)
class Method:
    """What OpenRLHF's arguments carry to the workers as `args.maxent`.

    Attributes:
        config: the settings.
        clipped: whether some updates train on candidates of an earlier policy.
        kl_coef: coefficient of the token-level KL in the loss; OpenRLHF's own only says whether there is a reference.
        key_file: a Python file with a `key_func`, or None.
    """

    config: MaxEntConfig
    clipped: bool
    kl_coef: float
    key_file: str | None


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options that OpenRLHF does not have."""
    parser = DiscreetParser(
        prog=f"python -m {PROGRAM}",
        usage=f"%(prog)s [--maxent.NAME VALUE ...] [arguments of {STOCK_PROGRAM}, listed after these]",
        add_help=False,
        allow_abbrev=False,
    )
    options = parser.add_argument_group("MaxEnt-GRPO (loss of the actor and its target)")
    descriptions, types = describe_fields(), get_type_hints(MaxEntConfig)
    for field in fields(MaxEntConfig):
        # A switch may stand alone; the values are read where recipes are, so that both take the same ones.
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if types[field.name] is bool else {}
        name, text = f"maxent_{field.name}", descriptions[field.name]
        options.add_argument(f"--maxent.{field.name}", dest=name, metavar="VALUE", help=text, **switch)
    options.add_argument("--maxent.preset", dest="maxent_preset", choices=sorted(PRESETS), help="a whole recipe")
    options.add_argument(
        "--maxent.key_func",
        dest="key_file",
        metavar="FILE.py",
        help="file with key_func(queries, prompts, labels), called as reward_func is: it returns for each candidate "
        "the text of its answer, by which dedup counts candidates as the same, or None where equal tokens do",
    )
    return parser


def read_arguments(options: argparse.Namespace, flat: argparse.Namespace) -> SimpleNamespace:
    """Return OpenRLHF's arguments, nested as its `hierarchize` nests them, with the `Method` as `maxent`.

    OpenRLHF calls this when it has parsed its command line, before it starts Ray.

    Raises:
        ValueError: naming the option, on one that would change the method or on settings that exclude one another.
    """
    args: SimpleNamespace = hierarchize(flat)
    refuse_options(args)
    refuse_sizes(args)
    args.maxent = read_method(options, args)
    if args.maxent.config.needs_reference and args.maxent.kl_coef == 0:
        # OpenRLHF starts a reference, and keeps its scores, only for a KL term: the trainer takes the term out again.
        args.algo.kl.init_coef, args.algo.kl.use_loss = 1.0, True
    return args


def refuse_options(args: SimpleNamespace) -> None:
    """Refuse, by name, the options of OpenRLHF that would change the method."""
    for name, refusal in REFUSED.items():
        value: Any = functools.reduce(getattr, name.split("."), args)
        value = tuple(value) if isinstance(value, list) else value
        allowed = " or ".join(map(str, refusal.values))
        expect(value in refusal.values, f"--{name} to be {allowed} ({refusal.lost})", **{f"--{name}": value})
    kl = args.algo.kl
    expect(
        kl.init_coef <= 0 or kl.use_loss,
        "--algo.kl.use_loss with --algo.kl.init_coef > 0 (a KL inside the reward would be lost; 0 asks for none)",
        **{"--algo.kl.init_coef": kl.init_coef},
    )


def refuse_sizes(args: SimpleNamespace) -> None:
    """Refuse sizes that lose candidates, or let ranks wait for one another without an end.

    OpenRLHF deals whole rollout micro-batches to the ranks and leaves out what does not fill a rank's last
    micro-batch. What is left of an update goes into the next rollout's or, with dynamic batches, nowhere.
    """
    train, ranks, dynamic = args.train, count_ranks(args), args.train.dynamic_batch_enable
    prompts = min(args.rollout.batch_size, args.rollout.vllm_generate_batch_size or args.rollout.batch_size)
    candidates = prompts * args.rollout.n_samples_per_prompt

    def expect_size(name: str, size: int, holds: bool, expectation: str) -> None:
        expect(holds, f"--{name} to {expectation} the {candidates} candidates of a rollout", **{f"--{name}": size})

    accumulates = not dynamic and train.batch_size % candidates == 0
    whole = candidates % train.batch_size == 0 or accumulates
    expect_size("train.batch_size", train.batch_size, whole, "divide" if dynamic else "divide, or be a multiple of,")
    if dynamic:
        return  # ranks are balanced, and micro-batches filled by tokens
    size = args.rollout.micro_batch_size
    even = ranks == 1 or candidates % (size * ranks) == 0
    expect_size("rollout.micro_batch_size", size, even, f"deal evenly to {ranks} ranks")
    size = train.micro_batch_size
    filled = candidates % (size * ranks) == 0
    expect_size("train.micro_batch_size", size, filled, f"divide, on each of {ranks} ranks, its part of")


def trim_rollout(samples: list[Any], args: SimpleNamespace) -> list[Any]:
    """Return the samples of a rollout that are trained on: whole groups, as many on all ranks, in whole updates.

    The last rollout of an epoch is smaller where the prompts are no multiple of it, and after filtering.
    """
    train, ranks = args.train, count_ranks(args)
    whole = args.rollout.batch_size * args.rollout.n_samples_per_prompt
    parts = [args.rollout.n_samples_per_prompt, train.batch_size if whole % train.batch_size == 0 else 1]
    if not train.dynamic_batch_enable:
        parts += [train.micro_batch_size * ranks, args.rollout.micro_batch_size * ranks if ranks > 1 else 1]
    kept = len(samples) - len(samples) % math.lcm(*parts)
    if kept < len(samples):
        logger.warning(
            "The last %d of %d candidates of this rollout are left out: they do not fill an update on %d ranks.",
            *(len(samples) - kept, len(samples), ranks),
        )
    return samples[:kept]


def count_ranks(args: SimpleNamespace) -> int:
    """Return the number of the actor's data-parallel ranks."""
    sharing: int = args.ds.ring_attn_size * args.ds.tensor_parallel_size
    ranks: int = args.actor.num_nodes * args.actor.num_gpus_per_node // sharing
    return ranks


def read_method(options: argparse.Namespace, args: SimpleNamespace) -> Method:
    """Return the method that our options and OpenRLHF's amount to."""
    low, high = args.actor.eps_clip_low_high or (args.actor.eps_clip, args.actor.eps_clip)
    # A conversation of several turns may fill the context; a single completion ends earlier.
    limit = args.data.max_len if args.train.agent_func_path else args.rollout.max_new_tokens or args.data.max_len
    config = read_settings(vars(options), max_length=limit, clip_low=low, clip_high=high)
    expect(
        config.projection != "surrogate" or config.beta == 0,
        "maxent_beta=0 with maxent_projection='surrogate' (its weights have no anchor; see --algo.kl.init_coef)",
        maxent_beta=config.beta,
    )
    candidates = args.rollout.n_samples_per_prompt
    expect_group_size(config, candidates, candidates)
    load_key_function(options.key_file)
    several_updates = args.train.max_epochs > 1 or args.rollout.batch_size * candidates > args.train.batch_size
    return Method(config, several_updates, max(args.algo.kl.init_coef, 0.0), options.key_file)


def load_key_function(path: str | None) -> Callable[..., Answers] | None:
    """Return `key_func` of a Python file, or None without a file.

    Raises:
        ValueError: naming the file, if there is none or it has no such function.
    """
    if path is None:
        return None
    function: Any = runpy.run_path(path).get("key_func") if Path(path).is_file() else None
    expect(callable(function), "--maxent.key_func to be a file with a function key_func", file=path)
    return function  # type: ignore[no-any-return]
