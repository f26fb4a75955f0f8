#!/usr/bin/env bash
# Measure every goal of the kernels on a machine with one NVIDIA GPU and no network: their tests, the benchmark, a whole
# step of TRL's trainer. Ends within $LIMIT seconds, 540 by default; a second call goes on where the first was cut off.
#
#   benchmarks/run_gpu.sh [FOLDER_OF_WHEELS]
#
# benchmarks/wheels.txt says what has to be in the folder. Results go to $OUT, or to benchmarks/results. To go on from an
# earlier call, have its files in either place: what was measured with the same code on the same GPU is kept. The last
# lines printed are the medians of every case and every goal, met, missed or not measured.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

results=benchmarks/results
out="${OUT:-$results}"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
export PYTHONUNBUFFERED=1 PYTHONPATH="$site:$site/nvidia_cutlass_dsl/dsl_packages:$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"

# shellcheck source=benchmarks/lay_out.sh
. benchmarks/lay_out.sh
lay_out "$site" "$@"
python3 - << 'CHECK' || exit 1
import sys
import torch
if not torch.cuda.is_available():
    sys.exit("No GPU: torch.cuda.is_available() is False.")
try:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import selective_log_softmax
except ImportError as error:
    sys.exit(f"TRL cannot be imported, and without it no speed can be judged: {error}. See benchmarks/wheels.txt.")
for module in ("pytest", "hypothesis", "pynvml"):
    __import__(module)  # tests, and the GPU's clock and power
print(torch.cuda.get_device_name(), torch.__version__)
CHECK

for name in kernels-h200.json kernels-tests.json trainer_step-gpu.json; do # of an earlier call
  [ "$out" = "$results" ] || [ ! -f "$results/$name" ] || cp --no-clobber "$results/$name" "$out/$name"
done
left() { echo $((${LIMIT:-540} - $1 - SECONDS)); } # seconds until $1 before the end

code=$(python3 -c 'import sys; sys.path.insert(0, "benchmarks"); from kernels import hash_code; print(hash_code())')
if grep -qs "\"code\": \"$code\", \"passed\": true" "$out/kernels-tests.json"; then
  tests=0
else
  parallel=()
  python3 -c 'import xdist' 2> /dev/null && parallel=(-n 8) # most of a test is compiling
  # The offline compilation needs no GPU: it runs in `make test`.
  timeout -k 5 180 python3 -m pytest -q "${parallel[@]}" -p no:cacheprovider tests/kernels \
    --ignore tests/kernels/test_compiled.py 2>&1 | tee "$out/kernels-tests.log" | tail -n 15
  tests=${PIPESTATUS[0]}
  echo "{\"code\": \"$code\", \"passed\": $([ "$tests" = 0 ] && echo true || echo false)}" > "$out/kernels-tests.json"
fi

timeout -k 5 "$(left 28)" python3 benchmarks/kernels.py --preset h200 --out "$out" > "$out/kernels-h200.log" 2>&1
bench=$?
step="not begun"
if [ "$bench" = 0 ] && [ ! -f "$out/trainer_step-gpu.json" ] && [ "$(left 60)" -gt 60 ]; then
  timeout -k 5 "$(left 20)" python3 benchmarks/trainer_step.py --preset gpu --out "$out/trainer_step-gpu.json"
  step=$?
fi

echo "tests: $([ "$tests" = 0 ] && echo passed || echo "NOT passed ($tests)"); benchmark: $([ "$bench" = 0 ] && echo complete || echo "stopped ($bench): call again"); trainer's step: $step; $SECONDS s"
if [ -f "$out/kernels-h200.json" ]; then # at least what was measured before it was cut off
  python3 benchmarks/kernels.py --report "$out/kernels-h200.json" --brief
else
  echo "No case was measured. The log ends:" && tail -n 20 "$out/kernels-h200.log"
fi
[ "$tests" = 0 ] && [ "$bench" = 0 ]
