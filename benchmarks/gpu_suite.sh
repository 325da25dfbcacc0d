#!/usr/bin/env bash
# Every GPU test and GPU benchmark of the project, within nine minutes, on a machine with a CUDA device.
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
  device=cuda networks="lenet300 conv4 resnet20 resnet18" precisions="fp32 tf32 bf16" widths="1 8 64 256"
  settings="" short="" each=40 checkpoints="--network resnet18 --seconds 12 --every 5s --repeats 1"
  execution="fp32 bf16" tickets="--network linear4096 --network lenet300 --batch 64 --batch 4096"
else
  out=${1:?no CUDA device: name a folder for the results of the tiny CPU mode}
  card=cpu device=cpu networks="lenet300" precisions="bf16" widths="1 2"
  settings="--quick" short="--seconds 0.05 --repeats 1" each=90 checkpoints="--quick" execution="fp32" tickets="--quick"
fi
mkdir -p "$out"

step 90 tests python -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu.py --junitxml="$out/gpu-tests-$card.xml"
for network in $networks; do
  step $each "training $network" python -m benchmarks.training --device "$device" --network "$network" $settings \
    --json "$out/training-$network-$card.json"
done
step 35 checkpoints python -m benchmarks.checkpoints --device "$device" $checkpoints \
  --json "$out/checkpoints-$card.json"
for precision in $execution; do
  step $((each + 20)) "execution $precision" python -m benchmarks.execution --device "$device" --precision "$precision" $tickets \
    --json "$out/execution-$precision-$card.json"
done
for precision in $precisions; do
  step $((each + 5)) "replicates $precision" python -m benchmarks.replicates --device "$device" --widths $widths $short \
    --precision "$precision" --json "$out/replicates-lenet300-$precision-$card.json"
done
exit $failed
