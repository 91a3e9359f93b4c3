#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: build, with the CUDA kernels for this GPU if nvcc is there, tests that need the
# GPU (compute-sanitizer's checks among them, if it is installed), benchmarks. Uses the Python and packages it
# finds, fetches nothing, goes on after a failed step, and ends with a line a step. Leaves its log and results in $OUT.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results/gpu-check}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}" PATH="$PATH:/usr/local/cuda/bin"
if command -v nvcc >/dev/null; then export HSTA_BUILD_CUDA=1; fi
# The folders that have tests for a GPU: others need packages of the frontend to be imported at all.
on_gpu=("$PYTHON" -m pytest -m gpu -p no:cacheprovider)
failed=0
summary=""
: >"$OUT/log.txt"

step() { # name, seconds allowed, command...
  local name=$1 limit=$2
  shift 2
  echo "== $name" | tee -a "$OUT/log.txt"
  timeout "$limit" "$@" 2>&1 | tee -a "$OUT/log.txt"
  local status=${PIPESTATUS[0]}
  summary+="$name: exit $status"$'\n'
  [ "$status" -eq 0 ] || failed=1
}

step build 110 "$PYTHON" setup.py build_ext --inplace
step info 20 "$PYTHON" -m hsta_kernels.info
step tests-ops 100 "${on_gpu[@]}" --ignore=tests/ops/test_hypothesis.py tests/ops # which draws its cases with a package of its own
step tests-cuda 60 "${on_gpu[@]}" -k "not sanitizer" tests/cuda tests/cuda_on_host
step tests-triton 100 "${on_gpu[@]}" -k "not sanitizer" tests/triton
step sanitizer-cuda 45 "${on_gpu[@]}" -k sanitizer tests/cuda
step sanitizer-triton 45 "${on_gpu[@]}" -k sanitizer tests/triton
step benchmarks 95 "$PYTHON" -m benchmarks.run --minutes 1.2 --seconds 0.1 --json "$OUT/benchmarks.json"
# The CUDA kernels are taken only where asked for: what they have is measured again, against Triton's and the contenders.
if [ -n "${HSTA_BUILD_CUDA:-}" ]; then
  step benchmarks-cuda 60 env HSTA_BACKEND=cuda "$PYTHON" -m benchmarks.run --only "(time-T[38]|cross_modal|norm).*bf16" \
    --minutes 0.7 --seconds 0.1 --json "$OUT/benchmarks-cuda.json"
fi
printf '\n%s' "$summary" | tee "$OUT/summary.txt"
exit "$failed"
