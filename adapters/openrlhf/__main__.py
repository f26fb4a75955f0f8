"""The driver: OpenRLHF's command line with its trainers, its actor and its reading of arguments replaced by name."""

import argparse
import runpy
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import openrlhf.utils.config
import ray
from openrlhf.trainer import ppo_trainer, ppo_trainer_async
from openrlhf.trainer.ray import ppo_actor

from maxent_grpo._secrets import hide_secrets
from maxent_grpo.adapters.openrlhf.options import STOCK_PROGRAM, build_parser, read_arguments
from maxent_grpo.adapters.openrlhf.workers import MaxEntAsyncTrainer, MaxEntPolicyActor, MaxEntTrainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train with OpenRLHF's command line; leaves with status 2, before Ray starts, on an option that is refused."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
        print("\nOpenRLHF's own:\n")

    def read_or_refuse(flat: argparse.Namespace) -> SimpleNamespace:
        try:
            return read_arguments(options, flat)
        except ValueError as error:
            parser.exit(2, hide_secrets(str(error).replace("maxent_", "--maxent.")) + "\n")

    openrlhf.utils.config.hierarchize = read_or_refuse
    ppo_actor.PolicyModelActor = ray.remote(num_gpus=1)(MaxEntPolicyActor)
    ppo_trainer.PPOTrainer = ray.remote(MaxEntTrainer)
    ppo_trainer_async.TrainingActor = ray.remote(MaxEntAsyncTrainer)
    sys.argv = [STOCK_PROGRAM, *rest]
    runpy.run_module(STOCK_PROGRAM, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
