// Rows as long as a token is wide, a few of them at a time: crossmodal attention's operands.
#pragma once

#include <cmath>

#include "panels.h"

namespace hsta {
namespace HSTA_ISA {

// Rows an odd number of cache lines apart fall on different sets of the cache.
constexpr int64_t odd_vectors(int64_t count) { return round_up(count, kLanes) | kLanes; }

// What makes y, the normalized row, of a row of numbers: y = (number - mean) * rstd.
struct Normalization {
  float mean, rstd;
};

// to = x - mean(x), filled up with zeros. The mean is rounded: what it is off, is left for the result's.
template <typename T>
static inline Normalization centre(const T* x, int64_t width, int64_t padded, float eps, float* to) {
  const int64_t whole = width / kLanes * kLanes;
  Vec sum = sum_vectors(whole, [&](int64_t c) {
    const Vec v = load_floats(x + c);
    store(to + c, v);
    return v;
  });
  if (whole < width) {
    store(to + whole, load_floats(x + whole, width - whole));
    sum += load(to + whole);
  }
  const Vec mean = broadcast(reduce_add(sum) / float(width));
  Vec rest[4] = {}, squares[4] = {};
  const auto subtract = [&](int64_t c, int chain) {
    const Vec v = load(to + c) - mean;
    store(to + c, v);
    rest[chain] += v, squares[chain] += v * v;
  };
  int64_t c = 0;
  for (; c + 4 * kLanes <= whole; c += 4 * kLanes)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) subtract(c + i * kLanes, i);
  for (; c < whole; c += kLanes) subtract(c, 0);
  if (whole < width) {
    store(to + whole, load(to + whole) - mean);
    for (c = width; c < whole + kLanes; ++c) to[c] = 0;
    rest[0] += load(to + whole), squares[0] += load(to + whole) * load(to + whole);
  }
  for (c = round_up(width, kLanes); c < padded; ++c) to[c] = 0;
  const float off = reduce_add((rest[0] + rest[1]) + (rest[2] + rest[3])) / float(width);
  const float square = reduce_add((squares[0] + squares[1]) + (squares[2] + squares[3])) / float(width);
  return {off, 1.0f / std::sqrt(square - off * off + eps)};
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

// A row as words that products over it can be corrected for: centred, where a word is a float.
template <typename T>
static inline Normalization take_row(const T* x, int64_t width, int64_t padded, float eps, float*, float* words) {
  return centre(x, width, padded, eps, words);
}

#ifdef __AVX512BF16__
// As it is, where a word is a pair: that costs no arithmetic, and no rounding. The sums of the row and of its squares
// are pair products, too. They lose what the mean is larger than the deviation, and so do products with the row: where
// it is much larger, the row is centred (into `row`) and rounded.
constexpr float kFarFromZero = 64;  // mean² / variance

static inline Normalization take_row(const BFloat16* x, int64_t width, int64_t padded, float eps, float* row,
                                     Pair* words) {
  const Pair one = {from_float<BFloat16>(1), from_float<BFloat16>(1)};
  const PairVec ones = broadcast(one);
  const int64_t whole = width / (2 * kLanes) * kLanes;
  std::memset(static_cast<void*>(words + whole), 0, (padded / 2 - whole) * sizeof(Pair));
  std::memcpy(static_cast<void*>(words + whole), x + 2 * whole, (width - 2 * whole) * sizeof(BFloat16));
  Vec sum[2] = {}, squares[2] = {};
  int64_t w = 0;
  const auto add = [&](PairVec v, int chain) {
    sum[chain] = multiply_add(sum[chain], v, ones), squares[chain] = multiply_add(squares[chain], v, v);
  };
  for (; w < whole; w += kLanes) {
    PairVec v;
    std::memcpy(&v, x + 2 * w, sizeof v);
    store(words + w, v);
    add(v, w / kLanes % 2);
  }
  if (w < padded / 2) add(load(words + w), 0);
  const float mean = reduce_add(sum[0] + sum[1]) / float(width);
  const float variance = reduce_add(squares[0] + squares[1]) / float(width) - mean * mean;
  if (mean * mean <= kFarFromZero * variance) return {mean, 1.0f / std::sqrt(variance + eps)};
  const Normalization y = centre(x, width, padded, eps, row);
  round_row(row, padded, words);
  return y;
}
#endif

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
