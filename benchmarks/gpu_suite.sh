#!/usr/bin/env bash
# Every GPU test and GPU benchmark of the project, within nine minutes, on a machine with a CUDA device.
#
#   benchmarks/gpu_suite.sh [FOLDER]      results as JSON in FOLDER (default: benchmarks/results)
#
# Needs the project's dependencies and pytest; nothing is downloaded, the data are the bundled digits.
set -u
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0

step() { # step SECONDS NAME COMMAND…: a step that fails or hangs does not stop the others
  local limit=$1 name=$2
  shift 2
  echo "== $name"
  timeout "$limit" "$@" || { echo "== $name: failed with $?"; failed=1; }
}

python - <<'PY' || exit 3
import torch
assert torch.cuda.is_available(), "no CUDA device"
print(torch.__version__, torch.cuda.get_device_name())
PY
card=$(python -c 'import re, torch; print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()))')

step 180 tests python -m pytest -q -p no:cacheprovider -m gpu $(grep -l "mark\.gpu" tests/*.py) --junitxml="$out/gpu-tests-$card.xml"
for pair in lenet300:60 conv4:60 resnet20:128 resnet18:128; do
  arch=${pair%%:*} batch=${pair##*:}
  step 80 "train_step $arch" python -m benchmarks.train_step --device cuda --arch "$arch" --batch-size "$batch" \
    --steps 100 --repeats 5 --json "$out/train_step-$arch-$card.json"
done
exit $failed
