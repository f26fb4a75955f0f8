"""Train a language model by MaxEnt-GRPO, or by TRL's GRPO, as a recipe says.

python examples/train.py --config examples/recipes/tiny-cpu/maxent/config_countdown.yaml   # no GPU, no network
accelerate launch --config_file examples/accelerate/zero3.yaml examples/train.py \
        --config examples/recipes/Qwen2.5-1.5B-Instruct/maxent/config_math.yaml
"""

from maxent_grpo.pipeline.train import main

if __name__ == "__main__":
    main()
