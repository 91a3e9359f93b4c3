// Rows as long as a token is wide, a few of them at a time: crossmodal attention's operands.
#pragma once

#include <cmath>

#include "panels.h"

namespace hsta {
namespace HSTA_ISA {

// Rows an odd number of cache lines apart fall on different sets of the cache.
constexpr int64_t odd_vectors(int64_t count) { return round_up(count, kLanes) | kLanes; }

// y = x - mean(x), filled up with zeros; returns 1 / sqrt(var + eps).
template <typename T>
static inline float centre(const T* x, int64_t width, int64_t padded, float eps, float* y) {
  const int64_t whole = width / kLanes * kLanes;
  Vec sum = sum_vectors(whole, [&](int64_t c) {
    const Vec v = load_floats(x + c);
    store(y + c, v);
    return v;
  });
  if (whole < width) {
    store(y + whole, load_floats(x + whole, width - whole));
    sum += load(y + whole);
  }
  const Vec mean = broadcast(reduce_add(sum) / float(width));
  const auto subtract = [&](int64_t c) {
    const Vec v = load(y + c) - mean;
    store(y + c, v);
    return v * v;
  };
  Vec squares = sum_vectors(whole, subtract);
  if (whole < width) subtract(whole);
  for (int64_t c = width; c < padded; ++c) y[c] = 0;
  if (whole < width) squares += load(y + whole) * load(y + whole);
  return 1.0f / std::sqrt(reduce_add(squares) / float(width) + eps);
}

// As words.
template <typename Word>
static inline void round_row(const float* from, int64_t padded, Word* to) {
  for (int64_t c = 0; c < padded; c += kLanes)
    if constexpr (kPerWord<Word> == 1)
      store(to + c, load(from + c));
    else
      store_pairs(to + c / 2, load(from + c));
}

// kLanes dot products: of kTileOfRows rows of a with two rows of b; lane i * kTileOfRows + r is a[r] · b[i].
constexpr int64_t kTileOfRows = kLanes / 2;

template <typename Word>
static inline Vec dot_tile(int64_t words, const Word* a, int64_t a_stride, const Word* b, int64_t b_stride) {
  Vec sum[kLanes] = {};
  for (int64_t w = 0; w < words; w += kLanes) {
    const auto first = load(b + w), second = load(b + b_stride + w);
#pragma GCC unroll 8
    for (int r = 0; r < kTileOfRows; ++r) {
      const auto row = load(a + r * a_stride + w);
      sum[r] = multiply_add(sum[r], row, first);
      sum[r + kTileOfRows] = multiply_add(sum[r + kTileOfRows], row, second);
    }
  }
  return sums_of_lanes(sum);
}

}  // namespace HSTA_ISA
}  // namespace hsta
