#!/usr/bin/env bash
#SBATCH --job-name=maxent-verl
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
# Qwen2.5-1.5B on MATH with verl.
#   bash examples/verl/train_math.sh [overrides]      one machine: verl starts Ray
#   sbatch --nodes=2 examples/verl/train_math.sh      several: Ray runs in a step of the job
#   RAY_ADDRESS=HOST:PORT bash ...                    a Ray cluster that is there
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
PYTHON=${PYTHON:-python}
GPUS=${SLURM_GPUS_ON_NODE:-$(nvidia-smi --list-gpus | wc -l)}
NODES=${SLURM_NNODES:-1}
PORT=${RAY_PORT:-6379}  # below the ephemeral range, so that no outgoing connection has it

overrides=(
  # What makes it ours; without these lines it is GRPO.
  trainer.v1.trainer_mode=maxent_sync
  +algorithm.maxent.preset=diverse  # with no key function κ counts equal texts, of which reasoning has few
  algorithm.adv_estimator=grpo
  data.train_files="${DATA:-data/math}/train.parquet"
  data.val_files="${DATA:-data/math}/test.parquet"
  data.train_batch_size=128
  data.max_prompt_length=1024
  data.max_response_length=2048
  data.filter_overlong_prompts=True
  actor_rollout_ref.model.path="${MODEL:-Qwen/Qwen2.5-1.5B-Instruct}"
  actor_rollout_ref.actor.strategy=fsdp2
  actor_rollout_ref.actor.optim.lr=1e-6
  actor_rollout_ref.actor.ppo_mini_batch_size=128
  actor_rollout_ref.actor.use_dynamic_bsz=True
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.n=8
  actor_rollout_ref.rollout.gpu_memory_utilization=0.6
  actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True
  actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=32768
  actor_rollout_ref.ref.log_prob_use_dynamic_bsz=True
  actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=32768
  trainer.n_gpus_per_node="$GPUS"
  trainer.nnodes="$NODES"
  trainer.project_name=maxent
  trainer.experiment_name=qwen2.5-1.5b-math
  trainer.logger='["console","tensorboard"]'
  trainer.total_epochs=4
  trainer.save_freq=20
  trainer.test_freq=10
  "$@"
)

# Refuse in a second what would fail after the models are loaded.
"$PYTHON" -m maxent_grpo.adapters.verl --check "${overrides[@]}"
train=("$PYTHON" -m verl.trainer.main_ppo "${overrides[@]}")

if [[ -z ${SLURM_JOB_ID:-} || $NODES == 1 ]]; then
  exec "${train[@]}"
fi

# Ray lives in a step: when the job ends, Slurm ends every process of it.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" hostname --ip-address | awk '{ print $1 }')
export RAY_ADDRESS="$address:$PORT" RAY_USAGE_STATS_ENABLED=0
# shellcheck disable=SC2016 # each node expands these by itself
srun --overlap --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
  if [[ $SLURM_NODEID == 0 ]]; then
    exec ray start --head --block --node-ip-address="${RAY_ADDRESS%:*}" --port="${RAY_ADDRESS#*:}" --num-gpus="$0"
  fi
  sleep 10
  exec ray start --block --address="$RAY_ADDRESS" --num-gpus="$0"' "$GPUS" &
ray_step=$!
trap 'kill "$ray_step" 2> /dev/null || true' EXIT
for _ in $(seq 60); do  # two minutes for all nodes to join
  (( $("$PYTHON" -c 'import ray; ray.init(log_to_driver=False); print(len(ray.nodes()))' 2> /dev/null || echo 0) >= NODES )) && break
  kill -0 "$ray_step"
  sleep 2
done
"${train[@]}"
