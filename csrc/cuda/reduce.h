// Sums and maxima over the threads that share a row, and sums over the partial results of blocks.
#pragma once

#include "kernels.h"

namespace hsta::cuda {

constexpr int kWarp = 32;

template <typename Combine>
__device__ inline float combine_warp(float value, Combine&& combine) {
  for (int mask = kWarp / 2; mask; mask /= 2) value = combine(value, shuffle_xor(value, mask));
  return value;
}

__device__ inline float sum_warp(float value) {
  return combine_warp(value, [](float a, float b) { return a + b; });
}

// The sum over `kThreads` neighbouring threads, a warp or a whole block; `between_warps` is shared memory for a float a
// warp, untouched by others since the last barrier.
template <int kThreads>
__device__ inline float sum_threads(float value, float* between_warps) {
  value = sum_warp(value);
  if constexpr (kThreads > kWarp) {
    if (thread_index() % kWarp == 0) between_warps[thread_index() / kWarp] = value;
    block_barrier();
    value = 0;
    for (int warp = 0; warp < kThreads / kWarp; ++warp) value += between_warps[warp];
  }
  return value;
}

constexpr int kSumColumns = 4 * kWarp, kSumThreads = 8 * kWarp;

// to(outer, i, Σ_part parts[outer][part][i]) for four neighbouring i at a time, in a fixed order. `size` is a multiple
// of 4; a block takes kSumColumns of the columns of one `outer`.
template <typename To>
__global__ void __launch_bounds__(kSumThreads, 4)
    sum_parts_kernel(const float* parts, int64_t count, int64_t size, int64_t blocks_per_outer, const To to) {
  const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
  const int64_t outer = block_index() / blocks_per_outer;
  const int64_t column = block_index() % blocks_per_outer * kSumColumns + 4 * lane;
  Vector<float, 4> total{};
  if (column < size)
    for (int64_t part = warp; part < count; part += kSumThreads / kWarp) {
      const auto values = load<4>(parts + (outer * count + part) * size + column);
      for (int i = 0; i < 4; ++i) total.at[i] += values.at[i];
    }
  auto* totals = shared_memory<Vector<float, 4>>();
  totals[thread_index()] = total;
  block_barrier();
  if (warp || column >= size) return;
  for (int other = 1; other < kSumThreads / kWarp; ++other)
    for (int i = 0; i < 4; ++i) total.at[i] += totals[other * kWarp + lane].at[i];
  to(outer, column, total);
}

template <typename To>
void sum_parts(const float* parts, int64_t outer, int64_t count, int64_t size, const To& to, Stream stream) {
  const int64_t blocks = divide_up(size, kSumColumns);
  launch(sum_parts_kernel<To>, outer * blocks, kSumThreads, kSumThreads * 16, stream, parts, count, size, blocks, to);
}

}  // namespace hsta::cuda
