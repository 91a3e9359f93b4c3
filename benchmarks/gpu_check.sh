#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: native build, tests that need the GPU, benchmarks. Uses the Python and packages it
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
step info 60 "$PYTHON" -m hsta_kernels.info
step tests 150 "$PYTHON" -m pytest -m gpu -p no:cacheprovider tests
step benchmarks 200 "$PYTHON" -m benchmarks.run --budget 150 --seconds 0.1 --json "$OUT/benchmarks.json"
printf '\n%s' "$summary" | tee "$OUT/summary.txt"
exit "$failed"
