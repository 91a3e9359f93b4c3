// Rows as long as a token is wide, a few of them at a time: operands of absorbed attention and of its projections.
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
  const auto mean_of_row = [&] {
    return reduce_add(sum_vectors(padded, [&](int64_t c) { return load(to + c); })) / float(width);
  };
  load_row(x, width, to);
  for (int64_t c = width; c < padded; ++c) to[c] = 0;
  const float mean = mean_of_row();
  for (int64_t c = 0; c < width; ++c) to[c] -= mean;
  const float off = mean_of_row();
  return {off, 1.0f / std::sqrt(dot(width, to, to) / float(width) - off * off + eps)};
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

// sum + the numbers of v.
static inline Vec add_up(Vec sum, Vec v) { return sum + v; }

#ifdef __AVX512BF16__
static inline Vec add_up(Vec sum, PairVec v) {
  const Pair one = {from_float<BFloat16>(1), from_float<BFloat16>(1)};
  return multiply_add(sum, v, broadcast(one));
}
#endif

// A vector of words.
template <typename Word, typename T>
static inline auto load_words(const T* x) {
  if constexpr (kPerWord<Word> == 1)
    return load_floats(x);
  else
    return load(reinterpret_cast<const Word*>(x));
}

// A row as words, and what makes y of their numbers. It is taken as it is, which costs no arithmetic and, where words
// are pairs, no rounding: what its mean adds to a product is taken out of the product. That loses what the mean is
// larger than the deviation; a row of which it is much larger is centred (into `row`) first.
template <typename T, typename Word>
static inline Normalization take_row(const T* x, int64_t width, int64_t padded, float eps, float* row, Word* words) {
  constexpr float kFar = kPerWord<Word> == 1 ? 0.25f : 64;  // mean² / variance; pairs are less exact themselves
  const int64_t whole = width / (kPerWord<Word> * kLanes) * kLanes;
  Vec sum[4] = {}, squares[4] = {};
  const auto add = [&](auto v, int chain) {
    sum[chain] = add_up(sum[chain], v), squares[chain] = multiply_add(squares[chain], v, v);
  };
  const auto take = [&](int64_t w, int chain) {
    const auto v = load_words<Word>(x + kPerWord<Word> * w);
    store(words + w, v);
    add(v, chain);
  };
  int64_t w = 0;
  for (; w + 4 * kLanes <= whole; w += 4 * kLanes)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) take(w + i * kLanes, i);
  for (; w < whole; w += kLanes) take(w, 0);
  if (w * kPerWord<Word> < width) {
    pack_row(x + kPerWord<Word> * w, width - kPerWord<Word> * w, words + w);
    add(load(words + w), 0);
  }
  const float mean = reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3])) / float(width);
  const float square = reduce_add((squares[0] + squares[1]) + (squares[2] + squares[3])) / float(width);
  const float variance = square - mean * mean;
  if (mean * mean <= kFar * variance) return {mean, 1.0f / std::sqrt(variance + eps)};
  const Normalization y = centre(x, width, padded, eps, row);
  round_row(row, padded, words);
  return y;
}

// kLanes dot products: of kTileOfRows rows of a with kTileHeads rows of b; lane i * kTileOfRows + r is a[r] · b[i].
// meanwhile(w) asks for what is due next, a few lines at a time between the products: lines asked for all at once stop
// the core, which has room for some twenty that are on their way.
constexpr int64_t kTileHeads = 4, kTileOfRows = kLanes / kTileHeads;

template <typename Word, typename Meanwhile>
inline __attribute__((always_inline)) Vec dot_tile(int64_t words, const Word* a, int64_t a_stride, const Word* b,
                                                   int64_t b_stride, const Meanwhile& meanwhile) {
  Vec sum[kLanes] = {};
  for (int64_t w = 0; w < words; w += kLanes) {
    meanwhile(w);
    decltype(load(b)) head[kTileHeads];
#pragma GCC unroll 8
    for (int i = 0; i < kTileHeads; ++i) head[i] = load(b + i * b_stride + w);
#pragma GCC unroll 8
    for (int r = 0; r < kTileOfRows; ++r) {
      const auto row = load(a + r * a_stride + w);
#pragma GCC unroll 8
      for (int i = 0; i < kTileHeads; ++i) {
        Vec& to = sum[i * kTileOfRows + r];
        to = multiply_add(to, row, head[i]);
      }
    }
  }
  return sums_of_lanes(sum);
}

}  // namespace HSTA_ISA
}  // namespace hsta
