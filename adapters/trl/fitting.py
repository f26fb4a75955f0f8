"""Which arguments go with the model, the data and the rewards that the trainer is given beside them."""

from typing import Any

from datasets import Dataset, IterableDataset

from maxent_grpo._checks import expect
from maxent_grpo.adapters.trl.config import MaxEntGRPOConfig

PROMPTS_READ = 64
"""How many prompts are looked at before training."""


def expect_fitting(
    args: MaxEntGRPOConfig, model_config: Any, *, reward_funcs: Any, train: Any, evaluation: Any, adapter: bool
) -> None:
    """Refuse, by name, arguments that do not go with what the trainer is given beside them.

    Args:
        args: the trainer's arguments.
        model_config: the model's configuration.
        reward_funcs: one or several, or None.
        train: dataset of prompts, or None.
        evaluation: dataset, dict of datasets, or None.
        adapter: whether an adapter of PEFT is trained.
    """
    functions = len(reward_funcs) if isinstance(reward_funcs, list) else 1
    expect(
        reward_funcs is None or args.reward_weights is None or len(args.reward_weights) == functions,
        f"a weight for each of {functions} reward functions",
        reward_weights=args.reward_weights,
    )
    expect(
        not (adapter and args.sync_ref_model),
        "sync_ref_model=False with PEFT (its reference is the model without the adapter)",
        sync_ref_model=args.sync_ref_model,
    )
    expect(
        args.reward_weights is None or any(weight != 0 for weight in args.reward_weights),
        "a reward function with a weight other than 0 (the others never count)",
        reward_weights=args.reward_weights,
    )
    expect(
        args.reference_beta == 0 or adapter or bool(model_config._name_or_path),
        "a model that was loaded from a path or the Hub, from where its reference is loaded too (save_pretrained it "
        "first), with init_kl_coeff > 0 or beta other than 0",
        name_or_path=model_config._name_or_path,
    )
    _expect_router(args, pick_text_config(model_config))
    for dataset in (train, *(evaluation.values() if isinstance(evaluation, dict) else [evaluation])):
        _expect_text(dataset)
    _expect_prompts(args, train)
    expect(
        not getattr(model_config, "is_encoder_decoder", False),
        "a causal language model",
        model_type=getattr(model_config, "model_type", None),
    )
    candidates = args.num_generations_eval or args.num_generations
    expect(
        evaluation is None or args.per_device_eval_batch_size * args.world_size % candidates == 0,
        f"an evaluation batch over {args.world_size} ranks to hold whole groups of {candidates} candidates",
        per_device_eval_batch_size=args.per_device_eval_batch_size,
    )


def _expect_prompts(args: MaxEntGRPOConfig, train: Any) -> None:
    if isinstance(train, Dataset):
        expect("prompt" in train.column_names, "a column 'prompt' in train_dataset", columns=train.column_names)
        expect_whole_rollout(args, len(train))


def expect_whole_rollout(args: Any, prompts: int) -> None:
    """Refuse fewer prompts than one rollout takes: the trainer would take no step, and save the untouched model."""
    rollout = args.generation_batch_size // args.num_generations
    if prompts < rollout:
        raise ValueError(
            f"Expected at least {rollout} prompts, which one rollout takes (generation_batch_size="
            f"{args.generation_batch_size}, num_generations={args.num_generations}), got {prompts} to train on."
        )


def expect_tokenizer(processor: Any, text_config: Any) -> None:
    """Refuse a tokenizer that has tokens which the model has not, or nothing to pad and to end with."""
    tokenizer, vocabulary = getattr(processor, "tokenizer", processor), getattr(text_config, "vocab_size", None)
    tokens = len(tokenizer) if hasattr(tokenizer, "__len__") else 0
    expect(
        vocabulary is None or tokens <= vocabulary,
        f"a tokenizer of at most the model's {vocabulary} tokens (resize_token_embeddings makes room)",
        tokens=tokens,
    )
    ends = getattr(tokenizer, "pad_token", ""), getattr(tokenizer, "eos_token", "")
    expect(ends != (None, None), "a tokenizer with a pad_token or an eos_token", pad_token=None, eos_token=None)


def _expect_router(args: MaxEntGRPOConfig, text_config: Any) -> None:
    """Check the coefficient of a router's auxiliary loss, which is the model's own unless the arguments set it."""
    own, routed = getattr(text_config, "router_aux_loss_coef", 0.0), hasattr(text_config, "output_router_logits")
    coefficient = own if args.router_aux_loss_coef is None else args.router_aux_loss_coef
    expect(
        routed or not args.router_aux_loss_coef,
        "router_aux_loss_coef=None with a model that has no router",
        router_aux_loss_coef=args.router_aux_loss_coef,
    )
    expect(
        not (routed and coefficient) or not args.rehearses,
        "router_aux_loss_coef=0 with maxent_bank_weight (the router's loss would see the answers that are rehearsed)",
        router_aux_loss_coef=coefficient,
    )
    expect(
        not (routed and coefficient) or args.maxent_config().keep_fraction is None,
        "router_aux_loss_coef=0 with maxent_keep_fraction (the router's loss needs the candidates that it drops)",
        router_aux_loss_coef=coefficient,
    )


def _expect_text(dataset: Dataset | IterableDataset | None) -> None:
    columns = set(getattr(dataset, "column_names", None) or ())
    expect(not columns & {"image", "images"}, "a dataset of text (images are not supported)", columns=sorted(columns))
    messages = [message for prompt in read_prompts(dataset) if not isinstance(prompt, str) for message in prompt]
    contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    parts = {part["type"] for content in contents for part in content}
    expect(parts <= {"text"}, "messages with parts of text (images are not supported)", parts=sorted(parts))


def pick_text_config(model_config: Any) -> Any:
    """Return the part of a model's configuration that is about text, which models of several kinds nest."""
    return model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config


def read_prompts(dataset: Dataset | IterableDataset | None) -> list[Any]:
    """Return the first prompts; none where they cannot be read twice."""
    if not isinstance(dataset, Dataset) or "prompt" not in dataset.column_names:
        return []
    return list(dataset[:PROMPTS_READ]["prompt"])
