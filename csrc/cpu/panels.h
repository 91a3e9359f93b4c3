// Operands of the products of one attention group, in the layouts that the products read: rows of words as the tokens
// have them, the same transposed, and rows of words along the summed-over index.
#pragma once

#include "gemm.h"

namespace hsta {
namespace HSTA_ISA {

// Asks for a row that is due in a while, into the second cache. Inlined, because GCC drops calls of a function that
// does nothing but prefetch; so must be what calls it alone.
template <typename T>
inline __attribute__((always_inline)) void prefetch(const T* row, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int64_t i = 0; i < count * int64_t(sizeof(T)); i += 64) __builtin_prefetch(bytes + i, 0, 2);
}

// What the layouts of words depend on.
template <typename Word>
constexpr int kPerWord = 1;
template <>
constexpr int kPerWord<Pair> = 2;

// Words of a row, filled up to whole vectors.
template <typename Word>
constexpr int64_t row_words(int64_t dim) {
  return round_up(dim, kPerWord<Word> * kLanes) / kPerWord<Word>;
}

// Rows that are summed over, in words.
template <typename Word>
constexpr int64_t depth_words(int64_t rows) {
  return divide_up(rows, kPerWord<Word>);
}

// One row of words, filled up with zeros.
template <typename T>
void pack_row(const T* from, int64_t dim, float* to) {
  if constexpr (std::is_same_v<T, float>)
    std::memcpy(to, from, size_t(dim) * sizeof(float));
  else
    load_row(from, dim, to);
  for (int64_t d = dim; d < row_words<float>(dim); ++d) to[d] = 0;
}

static inline void pack_row(const BFloat16* from, int64_t dim, Pair* to) {
  std::memcpy(static_cast<void*>(to), from, dim * sizeof(BFloat16));
  std::memset(reinterpret_cast<BFloat16*>(to) + dim, 0, (2 * row_words<Pair>(dim) - dim) * sizeof(BFloat16));
}

// Rows first, first + 1, ... as columns of panels of `words` rows: kLanes of them, those past `count` zeros. A word is
// moved as a float.
template <typename Word>
void transpose_into(Word* panels, int64_t first, int64_t count, const Word* rows, int64_t words) {
  for (int64_t w = 0; w < words; w += kLanes) {
    Vec block[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      block[i] = Vec{};
      if (i < count) std::memcpy(&block[i], rows + i * words + w, sizeof(Vec));
    }
    transpose_block(block);
    for (int i = 0; i < kLanes; ++i)
      std::memcpy(static_cast<void*>(panels + in_panels(w + i, first, words)), &block[i], sizeof(Vec));
  }
}

#ifdef __AVX512BF16__
// Lane i of the result is element i / 2 of the low (i even) or high row, from `kFirst` on.
template <int kFirst>
struct Interleaved {
  static constexpr int of(int lane) { return kFirst + lane / 2 + (lane % 2 ? 2 * kLanes : 0); }
};

// Words of (a[i], b[i]), rounded to bfloat16.
static inline PairVec pair_up(Vec a, Vec b) {
  struct Halves {
    static constexpr int of(int lane) { return lane / 2 + (lane % 2 ? kLanes : 0); }
  };
  const PairVec both = (PairVec)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
  return shuffle<Halves>(both, both);
}

// Words of neighbouring lanes, rounded to bfloat16: half a vector.
static inline void store_pairs(Pair* to, Vec a) {
  const auto half = _mm512_cvtneps_pbh((__m512)a);
  std::memcpy(static_cast<void*>(to), &half, sizeof half);
}

// Rows 2k and 2k + 1 of bfloat16 as one row of words (row 2k's element, row 2k + 1's element); `high` may be null:
// zeros.
static inline void interleave_rows(const Pair* low, const Pair* high, int64_t dim_padded, Pair* to) {
  for (int64_t d = 0; d < dim_padded; d += 2 * kLanes) {
    const PairVec a = load(low + d / 2), b = high ? load(high + d / 2) : PairVec{};
    store(to + d, shuffle<Interleaved<0>>(a, b));
    if (d + kLanes < dim_padded) store(to + d + kLanes, shuffle<Interleaved<kLanes>>(a, b));
  }
}
#endif

}  // namespace HSTA_ISA
}  // namespace hsta
