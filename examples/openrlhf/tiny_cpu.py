"""OpenRLHF's whole command line on a CPU with a model of 4,000 parameters: its own Ray, DeepSpeed and log.

    make nightly-openrlhf                                                  # one and two ranks, and a resumed run
    build/openrlhf/bin/python examples/openrlhf/tiny_cpu.py --ranks 2      # one run

Real are the command line, Ray's actors, DeepSpeed and the reward function. Not real are CUDA and vLLM: the package
`vllm` under tests/adapters/openrlhf/cpu samples from the model as it was at the start, and drops the weights that it
is sent. So these runs show that all parts fit, not that they learn, and no stale head after an update.
"""

import argparse
import ast
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

HERE = Path(__file__).parent
LETTERS = "abcdefgh"
STEP = re.compile(r"Global step (\d+): (\{.*\})")
SHOWN = ("maxent/", "policy_loss", "actor_grad_norm", "rollout/", "ppo_clip_ratio", "kl")


def save_model(folder: Path) -> None:
    """Save a random model whose words are letters."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {letter: 3 + i for i, letter in enumerate(LETTERS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(vocabulary), eos_token_id=1, pad_token_id=0, **sizes, **heads)
    ).save_pretrained(folder)


def list_arguments(folder: Path, ranks: int) -> list[str]:
    """Return a plain GRPO command line of OpenRLHF; ours are appended to it."""
    options = {
        "actor.model_name_or_path": folder / "model",
        "actor.num_gpus_per_node": ranks,
        "ref.num_gpus_per_node": ranks,
        "vllm.num_engines": 1,
        "vllm.sync_backend": "gloo",
        "reward.remote_url": HERE / "tiny_reward.py",
        "data.prompt_dataset": folder / "prompts.jsonl",
        "data.max_len": 16,
        "rollout.batch_size": 4,
        "rollout.n_samples_per_prompt": 4,
        "rollout.max_new_tokens": 6,
        "rollout.micro_batch_size": 3 if ranks == 1 else 2,  # both tear groups; 3 would not deal 16 evenly to 2
        "train.batch_size": 16,
        "train.micro_batch_size": 2,
        "actor.adam.lr": 1e-3,
        "actor.eps_clip": 0.2,
        "algo.advantage.estimator": "group_norm",
        "algo.kl.init_coef": 0,
        "ds.zero_stage": 2,
        "ds.attn_implementation": "eager",
        "ckpt.path": folder / "checkpoints",
        "ckpt.output_dir": folder / "trained",
        "ckpt.save_steps": 1,
        "logger.tensorboard_dir": folder / "tensorboard",
    }
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def run_training(folder: Path, ranks: int, options: list[str]) -> dict[str, Any]:
    """Return the logged steps of a run, its command and its duration.

    Raises:
        RuntimeError: with the end of its log, if it fails.
    """
    arguments = [*list_arguments(folder, ranks), *options]
    command = [sys.executable, "-m", "maxent_grpo.adapters.openrlhf", *arguments]
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 8, "GPU": 2 * ranks + 1}),  # as many as it asks for
        "RAY_TMPDIR": str(folder / "ray"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "torch_extensions"),  # another version's would be built anew
    }
    start = time.monotonic()
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    (folder / "log.txt").write_text(run.stdout + run.stderr)
    if run.returncode:
        raise RuntimeError((run.stdout + run.stderr)[-6000:])
    steps = {number: read_status(status) for number, status in STEP.findall(run.stdout + run.stderr)}
    shown = [text.replace(str(folder), "RUN").replace(str(HERE), "examples/openrlhf") for text in arguments]
    return {"ranks": ranks, "arguments": shown, "seconds": round(time.monotonic() - start), "steps": steps}


def read_status(status: str) -> dict[str, float]:
    """Return the entries of a logged status that say something of a run this small."""
    entries: dict[str, float] = ast.literal_eval(re.sub(r"\bnan\b", "None", status))
    return {
        name: math.nan if value is None else float(f"{value:.6g}")
        for name, value in sorted(entries.items())
        if name.startswith(SHOWN)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("options", nargs="*", help="more of OpenRLHF's and ours, after --")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlhf-") as name:
        prepare_folder(Path(name))
        print(json.dumps(run_training(Path(name), chosen.ranks, chosen.options), indent=1))


def prepare_folder(folder: Path, prompts: int = 8) -> None:
    """Put a model and prompts into a folder."""
    (folder / "ray").mkdir()
    save_model(folder / "model")
    texts = [LETTERS[row % 8] * 2 + LETTERS[(row + row // 8) % 8] for row in range(prompts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))


if __name__ == "__main__":
    main()
