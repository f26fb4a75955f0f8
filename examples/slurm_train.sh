#!/usr/bin/env bash
# Train on a Slurm cluster: bash examples/slurm_train.sh --help; examples/README.md explains flags and failures.
# The one place for what a site wants of every job; what --sbatch says beats it. Sites differ most in the GPUs:
#   --gres=gpu:a100:8 (by type), --gpus-per-node=8 (newer sites), --gres=none (no gres: see `sinfo -o %G`)
#SBATCH --job-name=maxent
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gres=gpu:8
#SBATCH --time=24:00:00
#SBATCH --output=logs/%x-%j.out
#SBATCH --error=logs/%x-%j.err
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --signal=B:USR1@300
##SBATCH --account=...  --partition=...  --exclusive

set -euo pipefail
trap 'export ASKED_TO_STOP=1' USR1 # Slurm's stop may come before the launcher listens

fail() {
  echo "slurm_train.sh: $*" >&2
  exit 2
}

load() { # source a file that others wrote: it may read variables that are not set, and end with a test that is false
  set +eu
  # shellcheck source=/dev/null
  source "$1"
  set -eu
}

# In a job this file is Slurm's copy somewhere else.
if [[ -n ${SLURM_JOB_ID:-} && ! -f $(dirname "$0")/train.py ]]; then
  root=${SLURM_SUBMIT_DIR:-$PWD}
else
  root=$(dirname "$0")/..
fi
cd "$root"
[[ -f examples/slurm_train.sh ]] || fail "Expected to be submitted from the repository, got $PWD."

# The place for `module load`: a file of your own that git ignores.
if [[ -f examples/site.sh ]]; then
  load examples/site.sh
fi

# ENV_MODE=conda|venv|none; by default what `make conda-local` or `make venv-local` has made.
CONDA_ENV=${CONDA_ENV:-$PWD/openr1}
ENV_ACTIVATE=${ENV_ACTIVATE:-$PWD/openr1-venv/bin/activate}
if [[ -z ${ENV_MODE:-} ]]; then
  ENV_MODE=none
  [[ ! -f $ENV_ACTIVATE ]] || ENV_MODE=venv
  [[ ! -d $CONDA_ENV ]] || ENV_MODE=conda
fi
case $ENV_MODE in
  conda)
    command -v conda > /dev/null || fail "Expected conda on PATH (a module to load in examples/site.sh?) with ENV_MODE=conda."
    set +u # scripts of conda read variables that are not set
    eval "$(conda shell.bash hook)"
    conda activate "$CONDA_ENV" || fail "Expected an environment, got CONDA_ENV=$CONDA_ENV."
    set -u
    ;;
  venv)
    [[ -f $ENV_ACTIVATE ]] || fail "Expected a file to source, got ENV_ACTIVATE=$ENV_ACTIVATE."
    load "$ENV_ACTIVATE"
    ;;
  none) ;;
  *) fail "Expected ENV_MODE of conda, venv, none, got ENV_MODE=$ENV_MODE." ;;
esac
# The core alone would be found in this folder, installed or not.
python -c 'import maxent_grpo.pipeline' 2> /dev/null ||
  fail "Expected maxent_grpo to be installed for $(command -v python || echo 'no python on PATH'), with ENV_MODE=$ENV_MODE (make venv-local brings an environment)."

# What is blocked waits until the launcher listens, however long its imports take.
trap '' USR1
exec python -c '
import os, runpy, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
if os.environ.pop("ASKED_TO_STOP", ""):
    os.kill(os.getpid(), signal.SIGUSR1)
runpy.run_module("maxent_grpo.pipeline.launch", run_name="__main__")
' "$@"
