#!/usr/bin/env bash
# Qwen2.5-1.5B on OpenR1-Math with OpenRLHF: a plain GRPO command line under our module's name, with two options of ours.
#
#   bash examples/openrlhf/train_math.sh                      # the GPUs of this machine
#   RAY_ADDRESS=head:6379 bash examples/openrlhf/train_math.sh  # those of a Ray cluster that runs
#   bash examples/openrlhf/train_math.sh --maxent.beta 0.04   # more options, ours or OpenRLHF's
#
# NODES and GPUS (per node) say how many there are; every GPU holds a part of all models (hybrid engine).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
nodes=${NODES:-1} gpus=${GPUS:-8}
output=${OUTPUT:-runs/Qwen2.5-1.5B-Instruct/openrlhf-math}
rewards=$PWD/examples/openrlhf/math_reward.py

arguments=(
  --actor.model_name_or_path Qwen/Qwen2.5-1.5B-Instruct
  --actor.num_nodes "$nodes" --actor.num_gpus_per_node "$gpus"
  --ref.num_nodes "$nodes" --ref.num_gpus_per_node "$gpus" # used with --maxent.beta > 0 or a KL term
  --train.colocate_all --ds.enable_sleep --vllm.enable_sleep
  --vllm.num_engines $((nodes * gpus)) --vllm.tensor_parallel_size 1 --vllm.gpu_memory_utilization 0.6
  --data.prompt_dataset open-r1/OpenR1-Math-220k --data.input_key problem --data.label_key answer
  --data.apply_chat_template --data.max_len 4096
  --reward.remote_url "$rewards"
  --algo.advantage.estimator group_norm --algo.kl.init_coef 0
  --rollout.n_samples_per_prompt 8 --rollout.batch_size 128 --rollout.max_new_tokens 2048
  --rollout.micro_batch_size 16 --train.batch_size 1024 --train.micro_batch_size 8
  --actor.adam.lr 1e-6 --actor.max_norm 1.0 --actor.gradient_checkpointing_enable
  --ds.zero_stage 2 --ds.param_dtype bf16
  --ckpt.path "$output/checkpoints" --ckpt.output_dir "$output" --ckpt.save_steps 20 --ckpt.load_enable
  --logger.tensorboard_dir "$output/tensorboard"
  --maxent.preset diverse --maxent.key_func "$rewards"
)
exec python -m maxent_grpo.adapters.openrlhf "${arguments[@]}" "$@"
