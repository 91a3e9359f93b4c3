// Softmax over all keys from softmaxes over runs of them. A part is m = max s, l = Σ 2^(s - m) and v = Σ 2^(s - m) v /
// l of its own keys; with M the largest m of a row's parts, each counts l·2^(m - M) times.
#pragma once

#include "../common/arena.h"
#include "reduce.h"

namespace hsta::cuda {

// Parts of `rows` softmaxes a sample: values (batch, splits, rows, columns), stats (batch, splits, rows, 2).
template <typename T>
struct Parts {
  T* values;
  float* stats;
  int64_t splits, rows, columns;

  Parts(Arena& arena, int64_t batch, int64_t splits, int64_t rows, int64_t columns)
      : values(
            reinterpret_cast<T*>(arena.take(divide_up(batch * splits * rows * columns * int64_t(sizeof(T)), 16) * 4))),
        stats(arena.take(batch * splits * rows * 2)),
        splits(splits),
        rows(rows),
        columns(columns) {}

  __device__ int64_t row(int64_t sample, int64_t split, int64_t row) const {
    return (sample * splits + split) * rows + row;
  }
};

// Part of a row's softmax that a lane knows, of four columns.
struct Partial {
  float max = -INFINITY, sum = 0;
  Vector<float, 4> values{};

  __device__ void merge(const Partial& other) {
    if (other.sum == 0) return;  // no key, or none with a score above -inf
    const float both = fmaxf(max, other.max);
    const float mine = exp2(max - both), theirs = exp2(other.max - both);
    sum = sum * mine + other.sum * theirs;
    for (int i = 0; i < 4; ++i) values.at[i] = values.at[i] * mine + other.values.at[i] * theirs;
    max = both;
  }
};

constexpr int kMergeColumns = 4 * kWarp, kMergeWarps = 8;

// A block merges kMergeColumns columns of a row: its warps some parts each, in order, and then the first warp theirs.
template <typename T, typename To>
__global__ void __launch_bounds__(kMergeWarps* kWarp)
    merge_kernel(const __grid_constant__ Parts<T> parts, int64_t blocks_per_row, float* stats, const To to) {
  const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
  const int64_t sample = block_index() / blocks_per_row / parts.rows, row = block_index() / blocks_per_row % parts.rows;
  const int64_t column = block_index() % blocks_per_row * kMergeColumns + 4 * lane;
  const bool valid = column < parts.columns;
  Partial total;
  for (int64_t split = warp; split < parts.splits; split += kMergeWarps) {
    const int64_t at = parts.row(sample, split, row);
    const auto part_stats = load<2>(parts.stats + at * 2);
    Partial part{part_stats.at[0], part_stats.at[1], {}};
    if (valid) {
      const auto values = load<4>(parts.values + at * parts.columns + column);
      for (int i = 0; i < 4; ++i) part.values.at[i] = widened(values.at[i]) * part.sum;
    }
    total.merge(part);
  }
  auto* others = shared_memory<Partial>();
  others[thread_index()] = total;
  block_barrier();
  if (warp || !valid) return;
  for (int other = 1; other < kMergeWarps; ++other) total.merge(others[other * kWarp + lane]);
  for (float& value : total.values.at) value /= total.sum;
  to(sample, row, column, total.values);
  if (column == 0) store(stats + (sample * parts.rows + row) * 2, Vector<float, 2>{{total.max, total.sum}});
}

// Merges all parts: to(sample, row, column, four values from this column on), stats (batch, rows, 2).
template <typename T, typename To>
void merge_parts(const Parts<T>& parts, int64_t batch, float* stats, const To& to, Stream stream) {
  const int64_t blocks = divide_up(parts.columns, kMergeColumns);
  launch(merge_kernel<T, To>, batch * parts.rows * blocks, kMergeWarps * kWarp,
         int64_t(kMergeWarps * kWarp * sizeof(Partial)), stream, parts, blocks, stats, to);
}

}  // namespace hsta::cuda
