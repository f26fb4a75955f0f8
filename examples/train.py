r"""Train a language model by MaxEnt-GRPO, or by TRL's GRPO, as a recipe says.

python examples/train.py --config examples/recipes/tiny-cpu/grpo/config_countdown.yaml --task maxent  # on a CPU
accelerate launch --config_file examples/accelerate/zero3.yaml examples/train.py --task maxent \
    --config examples/recipes/Qwen2.5-1.5B-Instruct/grpo/config_math.yaml
"""

from maxent_grpo.pipeline.train import main

if __name__ == "__main__":
    main()
