r"""The memory a run takes on a GPU, estimated before anything is loaded.

P is the number of parameters, p of those that are trained, N of GPUs. The model has L layers, hidden size h,
intermediate size i, keys and values of width k, and a vocabulary of V. A micro-batch has B rows of S tokens.

    weights       2P with DeepSpeed; else 4P, and 2P more where autocast copies float32 to bfloat16. DDP is estimated
                  with dtype float32, which it needs (see `list_precision_warnings`), and FSDP 2 makes its weights
                  float32; with an adapter they stay in dtype
    gradients     the trained weights once more
    optimizer     12p with DeepSpeed (float32 copy and two moments); else two moments in the weights' dtype
    activations   2BS·(L·h + 6h + 2k + 4i): inputs of all layers and one layer recomputed, or L of them without
                  gradient checkpointing
    logits        4·min(B·T, 4096)·V: a chunk of them, T tokens of a completion; where the fused head holds more rows
                  of bfloat16, it spares the float32 sum of its gradient
    generation    4BS·L·k for each micro-batch of a rollout, and under ZeRO-3 the gathered weights; with vLLM in the
                  same process its share of the GPU instead, which must hold 2P and 4M·L·k of vllm_max_model_length M

Stage 1 shares the optimizer's part over the N, stage 2 the gradients too, stage 3 and FSDP the weights too, but for
the layer at work. It is an estimate: allocators, CUDA contexts and buffers of communication take some GiB more.
"""

import contextlib
import json
import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl import GRPOConfig, ModelConfig, get_peft_config

from maxent_grpo.adapters.trl import MaxEntGRPOConfig
from maxent_grpo.pipeline.run import Run
from maxent_grpo.pipeline.starts import SHAPES, STARTS

CHARACTERS_PER_TOKEN = 3
ROWS_OF_LOGITS = 4096
GIB = 2**30


@dataclass(frozen=True)
class Layout:
    """Which states are shared over the GPUs, and whether DeepSpeed keeps float32 copies for the optimizer."""

    deepspeed: bool
    shares_optimizer: bool
    shares_gradients: bool
    shares_weights: bool


LAYOUTS = {
    "ddp": Layout(False, False, False, False),
    "zero1": Layout(True, True, False, False),
    "zero2": Layout(True, True, True, False),
    "zero3": Layout(True, True, True, True),
    "fsdp2": Layout(False, True, True, True),
}


def load_shape(run: Run) -> tuple[Any, str]:
    """Return the model's configuration and where it is from: a folder, the Hub's cache, our table, or the Hub.

    Raises:
        ValueError: naming the recipe and the model, if none of them has it.
    """
    name = str(run.model.model_name_or_path)
    try:
        return find_shape(run) or (AutoConfig.from_pretrained(name, **_read_settings(run)), "the Hub")
    except Exception as error:  # offline, gated, misspelt: the Hub client has an exception for each
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{run.where}: Expected a model that can be read, got model_name_or_path={name!r}: {first}"
        ) from error


def find_shape(run: Run) -> tuple[Any, str] | None:
    """Return the model's configuration and where it is from, or None where only the Hub has it."""
    name = str(run.model.model_name_or_path)
    if name in STARTS:
        return STARTS[name].build_config(), "the model made on the spot"
    shapes = json.loads(SHAPES.read_text())
    with contextlib.suppress(OSError):
        return AutoConfig.from_pretrained(name, local_files_only=True, **_read_settings(run)), "its own config.json"
    if name in shapes:
        return AutoConfig.for_model(**shapes[name]), f"{SHAPES.name}, as its config.json is not on this machine"
    return None


def _read_settings(run: Run) -> dict[str, Any]:
    return {"revision": run.model.model_revision, "trust_remote_code": run.training.trust_remote_code}


def count_parameters(shape: Any, model: ModelConfig) -> tuple[int, int]:
    """Return how many parameters a model has, and how many of them are trained; nothing is allocated."""
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(shape)
        total = sum(parameter.numel() for parameter in module.parameters())
        if (adapter := get_peft_config(model)) is None:
            return total, total
        from peft import get_peft_model  # noqa: PLC0415  (only where an adapter is asked for)

        module = get_peft_model(module, adapter)
        return total, sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def estimate_memory(run: Run, shape: Any, layout: Layout, gpus: int) -> dict[str, float]:
    """Return the bytes that each part takes on one GPU, and their total at the worst moment."""
    args, config = run.training, shape.get_text_config()
    total, trained = count_parameters(shape, run.model)
    # Bytes of a weight: full training without DeepSpeed needs float32, and autocast then holds a copy in bfloat16.
    width = 2 if layout.deepspeed or (run.model.dtype != "float32" and trained < total) else 4
    copies = 2 * total if width == 4 and args.bf16 else 0
    rows, tokens = args.per_device_train_batch_size, _count_tokens(run)
    completion = args.max_completion_length or 0
    kv = _measure_key_values(config)
    one_layer = 6 * config.hidden_size + 2 * kv + 4 * config.intermediate_size
    recomputed = 1 if args.gradient_checkpointing else config.num_hidden_layers
    share = {True: gpus, False: 1}
    gathered = 2 * total / config.num_hidden_layers if layout.shares_weights else 0.0
    parts = {
        "weights": (total * width + copies) / share[layout.shares_weights] + gathered,
        "gradients": trained * width / share[layout.shares_gradients],
        "optimizer": trained * (12 if layout.deepspeed else 2 * width) / share[layout.shares_optimizer],
        "reference": _holds_reference(run, trained == total) * total * width / share[layout.shares_weights],
        "activations": 2.0 * rows * tokens * (config.num_hidden_layers * config.hidden_size + recomputed * one_layer),
        "logits": 4.0 * min(rows * completion, ROWS_OF_LOGITS) * config.vocab_size,
        "generation": _estimate_generation(
            run, 4.0 * rows * tokens * config.num_hidden_layers * kv, 2.0 * total, layout
        ),
    }
    states = sum(parts[name] for name in ("weights", "gradients", "optimizer", "reference"))
    training = parts["activations"] + parts["logits"]
    # Training and generation take turns, unless vLLM keeps its share of the GPU throughout.
    beside = args.use_vllm and args.vllm_mode == "colocate" and not args.vllm_enable_sleep_mode
    at_work = training + parts["generation"] if beside else max(training, parts["generation"])
    return parts | {"total": states + at_work}


def report_memory(run: Run) -> str:
    """Return the estimate for every layout as a table."""
    shape, origin = load_shape(run)
    total, trained = count_parameters(shape, run.model)
    gpus, memory = run.script.gpus, run.script.gpu_memory
    vllm_fits, vllm_lines = _check_vllm_share(run, shape.get_text_config(), total)
    lines = [
        f"{run.model.model_name_or_path}: {total:,} parameters, {trained:,} of them trained (shape from {origin})",
        *list_precision_warnings(run),
        *vllm_lines,
        f"{_describe_batches(run, gpus)}; memory on each of them, of {memory:g} GiB, estimated in GiB:",
    ]
    table = {name: estimate_memory(run, shape, layout, gpus) for name, layout in LAYOUTS.items()}
    lines.append(f"{'':8}" + "".join(f"{part:>12}" for part in table["ddp"]))
    for name, parts in table.items():
        verdict = "fits" if vllm_fits and parts["total"] < 0.9 * memory * GIB else "too much"
        lines.append(f"{name:8}" + "".join(f"{value / GIB:12.1f}" for value in parts.values()) + f"  {verdict}")
    return "\n  ".join(lines)


def list_precision_warnings(run: Run) -> list[str]:
    """Return what is wrong with the dtype of a full training, unless its launcher keeps float32 copies."""
    dtype, rate = run.model.dtype, run.training.learning_rate
    launched = any(os.environ.get(f"ACCELERATE_USE_{kind}") == "true" for kind in ("DEEPSPEED", "FSDP"))
    if launched or run.training.deepspeed or dtype not in ("bfloat16", "float16") or get_peft_config(run.model):
        return []
    return [
        f"Without DeepSpeed or FSDP 2, dtype={dtype} makes AdamW round its updates of learning_rate={rate:g} away: "
        "set dtype: float32 (bf16: true keeps the computation in bfloat16)."
    ]


def _check_vllm_share(run: Run, config: Any, total: int) -> tuple[bool, list[str]]:
    """Return whether vLLM's share of a GPU holds its weights and one sequence, and a line that says so."""
    args = run.training
    if not args.use_vllm or args.vllm_mode != "colocate":
        return True, []
    length = args.vllm_max_model_length or config.max_position_embeddings
    share, split = _estimate_generation(run, 0.0, 0.0, LAYOUTS["ddp"]), args.vllm_tensor_parallel_size
    weights, cache = 2 * total / split, 4 * length * config.num_hidden_layers * _measure_key_values(config) / split
    needed = _count_tokens(run)
    wrong = []
    if share < weights + cache:
        wrong.append("raise vllm_gpu_memory_utilization or lower vllm_max_model_length")
    if length < needed:
        wrong.append(f"vllm_max_model_length is under the {needed} tokens of a sequence")
    return not wrong, [
        f"vLLM's share of {share / GIB:.1f} GiB for weights of {weights / GIB:.1f} and a KV cache of "
        f"vllm_max_model_length={length} of {cache / GIB:.1f}: {'; '.join(wrong) or 'fits'}"
    ]


def _measure_key_values(config: Any) -> int:
    return int(config.num_key_value_heads * (config.hidden_size // config.num_attention_heads))


def _describe_batches(run: Run, gpus: int) -> str:
    args = run.training
    completions = args.per_device_train_batch_size * gpus
    candidates = args.num_generations
    return (
        f"on {gpus} GPUs {completions * args.steps_per_generation / candidates:g} prompts x {candidates} candidates "
        f"per rollout, {completions * args.gradient_accumulation_steps / candidates:g} prompts per optimizer step, "
        f"sequences of {_count_tokens(run)} tokens"
    )


def _count_tokens(run: Run) -> int:
    """Return how long a sequence may get: the longest prompt by its characters, and the completion."""
    return run.script.max_prompt_chars // CHARACTERS_PER_TOKEN + (run.training.max_completion_length or 0)


def _holds_reference(run: Run, all_trained: bool) -> bool:
    """Return whether a second model is held: an adapter's reference is the model without it."""
    args = run.training
    beta = args.reference_beta if isinstance(args, MaxEntGRPOConfig) else args.beta
    return all_trained and beta != 0


def _estimate_generation(run: Run, cache: float, gathered: float, layout: Layout) -> float:
    args: GRPOConfig = run.training
    if args.use_vllm:
        share = float(args.vllm_gpu_memory_utilization)
        return share * run.script.gpu_memory * GIB if args.vllm_mode == "colocate" else 0.0
    return cache * int(args.steps_per_generation) + (gathered if layout.shares_weights else 0.0)
