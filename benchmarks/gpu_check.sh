#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: native build, with the CUDA kernels for this GPU if nvcc is there, tests that need the
# GPU (compute-sanitizer's checks among them, if it is installed), benchmarks. Uses the Python and packages it
# finds, fetches nothing, goes on after a failed step, and ends with a line a step. Results are left in $OUT.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results/gpu-check}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
failed=0
summary=""

step() { # name, seconds allowed, command...
  local name=$1 limit=$2
  shift 2
  echo "== $name"
  timeout "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
  local status=${PIPESTATUS[0]}
  summary+="$name: exit $status"$'\n'
  [ "$status" -eq 0 ] || failed=1
}

step build 120 "$PYTHON" setup.py build_ext --inplace
step info 20 "$PYTHON" -m hsta_kernels.info
step tests 120 "$PYTHON" -m pytest -m gpu -k "not sanitizer" -p no:cacheprovider tests
step sanitizer 100 "$PYTHON" -m pytest -m gpu -k sanitizer -p no:cacheprovider tests
step benchmarks 110 "$PYTHON" -m benchmarks.run --budget 80 --seconds 0.1 --json "$OUT/benchmarks.json"
# The CUDA kernels are taken only where asked for: what they have is measured again, with them as ours.
step benchmarks-cuda 70 env HSTA_BACKEND=cuda "$PYTHON" -m benchmarks.run --only "time|cross_modal|norm" --budget 45 \
  --seconds 0.1 --json "$OUT/benchmarks-cuda.json"
printf '\n%s' "$summary" | tee "$OUT/summary.txt"
exit "$failed"
