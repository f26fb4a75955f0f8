#!/usr/bin/env bash
# Run the kernels' tests and their benchmark on a machine with one NVIDIA GPU and no network. Ends within $LIMIT
# seconds, 540 by default.
#
#   benchmarks/run_gpu.sh [FOLDER_OF_WHEELS]
#
# Needs Python 3.12 with torch 2.11 and triton 3.6. Packages that the machine lacks (pytest and hypothesis for the tests;
# trl, liger-kernel, cut-cross-entropy and quack-kernels as peers; for two of them nvidia-cutlass-dsl with its -libs-base,
# -libs-core and -libs-cu13) are taken from the folder of wheels if one is given; a peer that is still missing is
# reported as absent. JSON, table and chart go to $OUT, or to benchmarks/results. The last lines printed are the medians
# of every case and every goal, met, missed or not measured: the cases with goals run first, so that a slow compiler
# costs the others.
set -uo pipefail
cd "$(dirname "$0")/.."

out="${OUT:-benchmarks/results}"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
# A GPU machine without a network has no environment to install into: wheels are laid into a folder, which Python is shown here.
export PYTHONUNBUFFERED=1 PYTHONPATH="$site:$site/nvidia_cutlass_dsl/dsl_packages:$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"

# The package as an installation lays it out, since the report imports maxent_grpo.pipeline.
mkdir "$site/maxent_grpo"
ln -s "$PWD"/maxent_grpo/* "$site/maxent_grpo/"
ln -s "$PWD/adapters" "$site/maxent_grpo/adapters"
ln -s "$PWD/examples/pipeline" "$site/maxent_grpo/pipeline"

if [ $# -ge 1 ]; then
  for wheel in "$1"/*.whl; do # one by one: pip installs none of a list with one that does not fit
    python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" "$wheel" ||
      echo "$wheel could not be installed."
  done
fi
python3 -c 'import torch; assert torch.cuda.is_available(), "no GPU"; print(torch.cuda.get_device_name(), torch.__version__)' || exit 1

tests="none run"
if python3 -c 'import pytest, hypothesis' 2>/dev/null; then
  # The offline compilation needs no GPU: it runs in `make test`.
  python3 -c 'import xdist' 2>/dev/null && parallel="-n 8" # most of a test is compiling
  timeout -k 5 180 python3 -m pytest -q ${parallel:-} -p no:cacheprovider tests/kernels \
    --ignore tests/kernels/test_compiled.py 2>&1 | tee "$out/kernels-tests.log" | tail -n 15
  tests=${PIPESTATUS[0]}
else
  echo "pytest and hypothesis are not installed: no tests were run."
fi

rm -f "$out"/kernels-h200.{json,part,log} # or an older run's would pass for this one's
# What the tests left; the report takes the last 28 seconds.
timeout -k 5 $((${LIMIT:-540} - 28 - SECONDS)) python3 benchmarks/kernels.py --preset h200 --out "$out" > "$out/kernels-h200.log" 2>&1
bench=$?

echo "tests: $([ "$tests" = 0 ] && echo passed || echo "NOT passed ($tests)"); benchmark: $([ "$bench" = 0 ] && echo complete || echo "stopped ($bench)"); $SECONDS s"
if [ -f "$out/kernels-h200.json" ]; then # at least what was measured before it was cut off
  python3 benchmarks/kernels.py --report "$out/kernels-h200.json" --brief
else
  echo "No case was measured. The log ends:" && tail -n 20 "$out/kernels-h200.log"
fi
[ "$tests" = 0 ] && [ "$bench" = 0 ]
