r"""Train a language model by MaxEnt-GRPO, or by TRL's GRPO, as a recipe says.

    python examples/train.py --config examples/recipes/tiny-cpu/grpo/config_countdown.yaml --task maxent  # on a CPU
    accelerate launch --config_file examples/accelerate/zero3.yaml examples/train.py --task maxent \
        --config examples/recipes/Qwen2.5-1.5B-Instruct/grpo/config_math.yaml

A recipe is YAML of the fields of `GRPOScriptArguments`, `MaxEntGRPOConfig` and TRL's `ModelConfig`; flags of the same
names override it.

`--task maxent` or `--task grpo` names the trainer. It reads `<task>/config_<name>.yaml` beside the recipe where there
is one, else the recipe itself: fields that the trainer does not have or honor are then left out, and a line says
what is lost without each. `--preflight-only` says what the run would do and the memory it takes.
`--resume_from_checkpoint last` goes on from the newest checkpoint that is whole.
The Hub login is that of HF_TOKEN or of `hf auth login`.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import GRPOTrainer, get_peft_config, get_quantization_config

from maxent_grpo._secrets import hide_in_tracebacks, hide_secrets
from maxent_grpo.adapters.trl import MaxEntGRPOConfig, MaxEntGRPOTrainer
from maxent_grpo.adapters.trl.fitting import expect_whole_rollout
from maxent_grpo.adapters.trl.preflight import write_preflight
from maxent_grpo.pipeline.checkpoints import (
    EndWhereItIsOver,
    KeepSettings,
    expect_no_checkpoints,
    find_checkpoint,
    list_changes,
)
from maxent_grpo.pipeline.data.prompts import expect_tokens, load_prompts
from maxent_grpo.pipeline.data.sources import UnreachableError
from maxent_grpo.pipeline.files import describe_full_disk, expect_writable
from maxent_grpo.pipeline.functions import find_function
from maxent_grpo.pipeline.job_files import add_job_files
from maxent_grpo.pipeline.memory import list_precision_warnings, load_shape, report_memory
from maxent_grpo.pipeline.parser import write_help
from maxent_grpo.pipeline.run import Run, parse_run
from maxent_grpo.pipeline.starts import make_start

logger = logging.getLogger(__name__)


def write_preflight_report(run: Run) -> str:
    """Return what a run would do and the memory it takes; needs no GPU, no network and no weights.

    Raises:
        ValueError: on all that the run itself would refuse, but for data on a Hub that does not answer.
    """
    datasets.disable_progress_bars()
    args = run.training
    expect_no_checkpoints(args)
    shape, _ = load_shape(run)
    lines = [describe_run(run), *(f"not installed here: {name} ({field})" for name, field in run.missing.items())]
    try:
        train, evaluation = load_enough_prompts(run)
        lines.append(
            f"prompts: {len(train)} to train on, {0 if evaluation is None else len(evaluation)} to evaluate on"
        )
    except UnreachableError as error:
        train = None
        lines.append(f"prompts: not looked at. {error}")
    if isinstance(args, MaxEntGRPOConfig):
        lines.append(write_preflight(args, shape, train, None))
    return "\n".join([*lines, report_memory(run)])


def load_enough_prompts(run: Run) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Return the rows to train and to evaluate on.

    Raises:
        ValueError: as `load_prompts`, or if there are fewer than one rollout takes.
    """
    train, evaluation = load_prompts(run)
    try:
        expect_whole_rollout(run.training, len(train))
    except ValueError as error:
        raise ValueError(f"{run.where}: {error}") from error
    return train, evaluation


def describe_run(run: Run) -> str:
    """Return the trainer, the model and the rewards in a line, and a line for each field that is left out."""
    kind = "MaxEntGRPOTrainer" if isinstance(run.training, MaxEntGRPOConfig) else "TRL's GRPOTrainer"
    line = f"{run.where}: {kind} on {run.model.model_name_or_path}, rewards {run.script.reward_funcs}"
    if run.key_function is not None:
        line += f", the same answer by {run.script.key_func}"
    return "\n".join([line, *(f"with --task {run.script.task}, {change}" for change in run.changed)])


def build_trainer(run: Run) -> GRPOTrainer:
    """Return the trainer of a run, its model loaded.

    Raises:
        ValueError: before the model is loaded, on data or a tokenizer that cannot be trained with.
    """
    args, model = run.training, run.model
    load_shape(run)
    if args.disable_tqdm:
        datasets.disable_progress_bars()
    with args.main_process_first(local=False, desc="data and start"):
        train, evaluation = load_enough_prompts(run)
        folder = make_start(str(model.model_name_or_path), Path(args.output_dir).parent)
    if args.process_index == 0:
        logger.warning("\n".join([describe_run(run), *list_precision_warnings(run)]))
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    } | (args.model_init_kwargs or {})
    tokenizer = load_tokenizer(run, folder)
    expect_tokens(train, tokenizer)
    trainer_class: type[GRPOTrainer] = GRPOTrainer
    settings: dict[str, Any] = {}
    if isinstance(args, MaxEntGRPOConfig):
        trainer_class = MaxEntGRPOTrainer
        settings = {"key_func": run.key_function}
    if run.script.trainer_mixin is not None:
        trainer_class = add_mixin(trainer_class, run)
    return trainer_class(
        folder,
        [reward.function for reward in run.rewards],
        args,
        train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
        **settings,
    )


def add_mixin(trainer_class: type[GRPOTrainer], run: Run) -> type[GRPOTrainer]:
    """Return the trainer's class with the recipe's class before it.

    Raises:
        ValueError: if there is no such class.
    """
    path = str(run.script.trainer_mixin)
    try:
        mixin = find_function(path, ["none"])
    except ValueError as error:
        raise ValueError(f"{run.where}: trainer_mixin: {error}") from error
    if not isinstance(mixin, type):
        raise ValueError(f"{run.where}: Expected trainer_mixin to name a class, got trainer_mixin={path!r}.")
    return type(trainer_class.__name__, (mixin, trainer_class), {})


def load_tokenizer(run: Run, folder: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, with the chat template of the recipe if it has one.

    Raises:
        ValueError: if prompts are chats and there is no template for them.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        folder,
        revision=run.model.model_revision,
        trust_remote_code=run.training.trust_remote_code,
        padding_side="left",
        truncation_side="left",
    )
    template = run.script.chat_template
    if template is not None:
        tokenizer.chat_template = Path(template).read_text() if "{" not in template else template
    if run.script.prompt_format == "chat" and not tokenizer.chat_template:
        raise ValueError(
            f"{run.where}: Expected a chat template, or prompt_format: text, for a model without "
            f"one, got prompt_format=chat with model_name_or_path={folder!r}."
        )
    return tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    hide_in_tracebacks()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not {"-h", "--help"}.isdisjoint(arguments):
        print(write_help(__doc__))
        return
    try:
        run = parse_run(arguments)
        if run.script.preflight_only:
            print(write_preflight_report(run))
            return
        expect_writable(Path(run.training.output_dir))
        expect_no_checkpoints(run.training)
        checkpoint = find_checkpoint(run.training)
        trainer = build_trainer(run)
    except ValueError as error:
        raise SystemExit(f"train.py: {hide_secrets(str(error))}") from error
    except KeyboardInterrupt:
        raise SystemExit("train.py: interrupted before the first step.") from None
    run_training(trainer, checkpoint)


def run_training(trainer: GRPOTrainer, checkpoint: str | None) -> None:
    """Train, evaluate and save; end with one line where the user stops it or nothing more can be written."""
    args = trainer.args
    changes = list_changes(args, checkpoint) if checkpoint else []
    if changes and args.process_index == 0:
        logger.warning("Going on from %s with other settings: %s.", checkpoint, ", ".join(changes))
    trainer.add_callback(KeepSettings())
    trainer.add_callback(EndWhereItIsOver(trainer))
    job_files = add_job_files(trainer)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
        if not job_files.has_stopped:  # else a checkpoint is saved, and the job's time is nearly over
            if args.do_eval:
                trainer.log_metrics("eval", trainer.evaluate())
            trainer.save_model(args.output_dir)
            trainer.save_state()
    except KeyboardInterrupt:
        raise SystemExit(
            "train.py: interrupted. With --resume_from_checkpoint last it goes on from the newest checkpoint."
        ) from None
    except Exception as error:
        if line := describe_full_disk(error):
            raise SystemExit(f"train.py: {line}") from error
        raise
    end_training(trainer)


def end_training(trainer: GRPOTrainer) -> None:
    """End training on all ranks; on gloo end the processes as well, without Python's shutdown.

    gloo's threads take the GIL to drop the tensors of the last collective, and abort a process that is shutting down.
    DeepSpeed holds on to the groups, so that destroying them joins no thread.
    """
    on_gloo = torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo"
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if on_gloo:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
