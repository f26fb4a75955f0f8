"""verl whole on a CPU: its main program, Ray, queue, FSDP2 worker and loss; a tiny model that likes the letter a.

python examples/verl/tiny_cpu.py runs/verl-tiny [overrides]

Two updates and a validation, as tiny.yaml says; with trainer.v1.trainer_mode=sync it is verl's own GRPO.
"""

import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LETTERS = "abcdefgh"
ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "cpu_platform,tiny_engine",
    "PYTHONPATH": str(HERE),  # for the workers that Ray starts
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


def compute_score(data_source: str, solution_str: str, ground_truth: str, **_: Any) -> float:
    """Return the share of the wanted letter in an answer."""
    return solution_str.count(ground_truth) / max(len(solution_str), 1)


def find_keys(completions: list[str], **_: Any) -> list[str]:
    """Return the letters of each answer in one order."""
    return ["".join(sorted(text)) for text in completions]


def make_model(folder: Path) -> None:
    """Save a model and a tokenizer of a dozen tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415  (Ray's workers read this file too)
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM  # noqa: PLC0415

    names = ["<pad>", "<|im_end|>", "<unk>", "\u010a", *LETTERS]  # as a Qwen has: the end of a turn, and a new line
    words = Tokenizer(models.WordLevel({name: row for row, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token=names[1], unk_token="<unk>", bos_token=names[1]
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(names), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)


def make_data(file: Path) -> None:
    import pandas as pd  # noqa: PLC0415  (Ray's workers read this file too)

    rows = [
        {
            "data_source": "letters",
            "prompt": [{"role": "user", "content": letter * 3}],
            "reward_model": {"style": "rule", "ground_truth": "a"},
            "extra_info": {"index": row},
        }
        for row, letter in enumerate(LETTERS)
    ]
    pd.DataFrame(rows).to_parquet(file)


def main(folder: Path, overrides: list[str]) -> None:
    os.environ.update(ENVIRONMENT)
    sys.path.insert(0, str(HERE))
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / "model")
    make_data(folder / "letters.parquet")
    ray_folder = tempfile.mkdtemp(prefix="ray-")  # short: a socket's path has at most 107 bytes
    sys.argv[1:] = [
        f"--config-path={HERE}",
        "--config-name=tiny",
        f"actor_rollout_ref.model.path={folder / 'model'}",
        f"data.train_files={folder / 'letters.parquet'}",
        f"data.val_files={folder / 'letters.parquet'}",
        f"reward.custom_reward_function.path={HERE / 'tiny_cpu.py'}",
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        f"+ray_kwargs.ray_init._temp_dir={ray_folder}",
        f"hydra.run.dir={folder}",
        *overrides,
    ]
    try:
        runpy.run_module("verl.trainer.main_ppo", run_name="__main__")
    finally:
        import psutil  # noqa: PLC0415  (Ray brings it)
        import ray  # noqa: PLC0415

        processes = psutil.Process().children(recursive=True)
        ray.shutdown()
        psutil.wait_procs(processes, timeout=30)  # they still write there
        shutil.rmtree(ray_folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
