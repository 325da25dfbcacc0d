#!/usr/bin/env bash
# Every GPU test and GPU benchmark of the project, within fourteen minutes, on a machine with a CUDA device.
#
#   benchmarks/gpu_suite.sh [FOLDER]      results as JSON in FOLDER (default: benchmarks/results)
#
# Without a GPU the same commands run on the CPU in a tiny mode, so that they cannot rot; FOLDER must then be given.
# Needs the project's dependencies and pytest; nothing is downloaded, the data are bundled or drawn.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0

step() { # step SECONDS NAME COMMAND…: a step that fails or hangs does not stop the others
  local limit=$1 name=$2
  shift 2
  echo "== $name"
  timeout "$limit" "$@" || { echo "== $name: failed with $?"; failed=1; }
}

if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  out=${1:-benchmarks/results}
  card=$(python -c 'import re, torch; print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()))')
  device=cuda minutes=8 checkpoints="--engine compile --every 100 --network lenet300 --seconds 5 --repeats 1"
else
  out=${1:?no CUDA device: name a folder for the results of the tiny CPU mode}
  card=cpu device=cpu minutes=10 checkpoints="--quick"
fi
mkdir -p "$out"

# What is right comes first, Triton kernels that no engine uses yet among it, then how fast it is: LeNet-300-100 alone and 64 and 256 of it side by side, graphed and
# launched one by one, ResNets beside the tuned plain loops, layers in blocks and 2:4 and specialised programs; last,
# checkpoints every 100 steps, which are written while steps are captured.
step 120 tests python -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu.py tests/test_gpu_programs.py \
  --junitxml="$out/gpu-tests-$card.xml"
step 120 kernels python -m pytest -q -p no:cacheprovider tests/test_gpu_kernels_on_card.py \
  --junitxml="$out/gpu-kernel-tests-$card.xml"
step $((minutes * 60 + 30)) benchmarks python -m benchmarks.gpu --minutes "$minutes" --device "$device" --out "$out/$card"
step 60 checkpoints python -m benchmarks.checkpoints --device "$device" $checkpoints \
  --json "$out/checkpoints-$card.json"
exit $failed
