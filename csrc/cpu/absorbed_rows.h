// A block of the rows of absorbed attention in a buffer that stays in cache: normalized, multiplied with all heads' u,
// and added up with their weights.
//
// There are few heads and many columns, so that lanes run along the columns in both products and no head is padded to a
// vector. The buffer has rows of words w with y = (w - mean) * rstd (long_rows.h), which the products never see:
//     u · y_j = rstd_j (u · w_j - mean_j sum(u)),   sum_j p_j y_j = sum_j p_j rstd_j w_j - sum_j p_j rstd_j mean_j.
#pragma once

#include <cstring>

#include "gemm.h"
#include "kernels.h"
#include "long_rows.h"
#include "memory.h"
#include "row_vectors.h"

namespace hsta {
namespace HSTA_ISA {

constexpr int64_t kBlockRows = 32;

// Sizes of rows and buffers, and the runs of rows that are the work items.
template <typename Word>
struct RowPlan {
  int64_t rows, width, padded, stride, words, words_stride, heads, slots, rows_per_item, items;

  explicit RowPlan(const AbsorbedAttention& op) {
    rows = 1 + op.tokens;
    width = op.width;
    words = row_words<Word>(width), words_stride = odd_vectors(words);
    padded = words * kPerWord<Word>, stride = odd_vectors(padded);
    heads = op.heads;
    slots = 2 * divide_up(rows, 192);  // even, for two processors
    rows_per_item = divide_up(rows, slots);
    items = op.batch * slots;
  }
};

template <typename T>
const T* source_row(const AbsorbedAttention& op, int64_t sample, int64_t row) {
  return row == 0 ? op.query.at<const T>(sample) : op.token.at<const T>(sample, row - 1);
}

// The sum of a row of words.
static inline float sum_words(int64_t words, const float* row) {
  return reduce_add(sum_vectors(words, [&](int64_t w) { return load(row + w); }));
}

#ifdef __AVX512BF16__
static inline float sum_words(int64_t words, const Pair* row) {
  const Pair one = {from_float<BFloat16>(1), from_float<BFloat16>(1)};
  return reduce_add(sum_vectors(words, [&](int64_t w) { return multiply_add(Vec{}, load(row + w), broadcast(one)); }));
}
#endif

// gemm a slice of columns at a time: the slice of B stays in the first cache for all rows of A.
template <typename Word>
void gemm_in_slices(int64_t m_count, int64_t n_count, int64_t k_count, StridedMatrix<Word> a, const Word* b,
                    int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  for (int64_t n = 0; n < n_count; n += kPanel)
    gemm(m_count, min(kPanel, n_count - n), k_count, a, rows_of(b + n, ldb), c + n, ldc, accumulate);
}

// What words consist of.
template <typename Word, typename T>
using ElementOf = std::conditional_t<kPerWord<Word> == 1, float, T>;

// A block of rows as the products read them: words along the columns, and words along the rows.
template <typename T, typename Word = typename WordOf<T>::type>
struct BlockOfRows {
  float mean[kBlockRows], rstd[kBlockRows];
  Word* words;
  float* row;  // a row before it is rounded to words
  Word* deep;

  BlockOfRows(Arena& arena, const RowPlan<Word>& plan)
      : words(arena.take<Word>(kBlockRows * plan.words_stride)),
        row(arena.take(plan.padded)),
        deep(kPerWord<Word> == 1 ? words : arena.take<Word>(kBlockRows / 2 * plan.stride)) {}

  // Takes rows of a sample from `first` on, `count` of them in all, and their scores while they are in the first cache:
  // scores[i][r] = u[i] · y[r] for u_rows of u, a multiple of kTileHeads, whose sums are `sums`. Scores are kBlockRows
  // wide.
  void take(const AbsorbedAttention& op, const RowPlan<Word>& plan, int64_t sample, int64_t first, int64_t count,
            int64_t u_rows, const Word* u, const float* sums, float* scores) {
    for (int64_t i = 0; i < kBlockRows; ++i) mean[i] = 0, rstd[i] = 0;
    for (int64_t tile = 0; tile < count; tile += kTileOfRows) {
      for (int64_t i = tile; i < tile + kTileOfRows; ++i) {
        Word* to = words + i * plan.words_stride;
        if (i >= count) {
          std::memset(static_cast<void*>(to), 0, plan.words * sizeof(Word));
          mean[i] = rstd[i] = 0;  // factors of weights that are zeros
          continue;
        }
        const auto y = take_row(source_row<T>(op, sample, first + i), plan.width, plan.padded, op.eps, row, to);
        mean[i] = y.mean, rstd[i] = y.rstd;
      }
      const T* ahead[kTileOfRows];  // the same rows of the next block
      for (int64_t r = 0; r < kTileOfRows; ++r)
        ahead[r] = source_row<T>(op, sample, min(first + kBlockRows + tile + r, plan.rows - 1));
      score_tile(plan, u_rows, u, sums, tile, ahead, scores + tile);
#ifdef __AVX512BF16__
      if constexpr (kPerWord<Word> == 2)
        for (int64_t i = tile; i < tile + kTileOfRows; i += 2) {
          const Word* low = words + i * plan.words_stride;
          interleave_rows(low, low + plan.words_stride, plan.padded, deep + i / 2 * plan.stride);
        }
#endif
    }
  }

  // c (+)= weights · words, of `heads` rows of weights kBlockRows wide, as words.
  void add_rows(const RowPlan<Word>& plan, int64_t count, const Word* weights, float* c, bool accumulate) const {
    const int64_t ld = kPerWord<Word> == 1 ? plan.words_stride : plan.stride;
    gemm_in_slices<Word>(plan.heads, plan.padded, depth_words<Word>(count), {weights, kBlockRows / kPerWord<Word>, 1},
                         deep, ld, c, plan.padded, accumulate);
  }

  // Weights of the block's rows, kBlockRows floats, to weights of their words; returns what these make of the means.
  float weights_of_words(float* weights, Word* to) const {
    Vec shift{};
    for (int64_t i = 0; i < kBlockRows; i += kLanes) {
      const Vec weight = round_to<ElementOf<Word, T>>(load(weights + i) * load(rstd + i));
      shift += weight * load(mean + i);
      store(weights + i, weight);
    }
    round_row(weights, kBlockRows, to);
    return reduce_add(shift);
  }

 private:
  void score_tile(const RowPlan<Word>& plan, int64_t u_rows, const Word* u, const float* sums, int64_t tile,
                  const T* const* ahead, float* scores) const {
    float means[kLanes], factors[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) {
      means[r] = mean[tile + r % kTileOfRows];
      factors[r] = rstd[tile + r % kTileOfRows];
    }
    const int64_t rows_at_a_time = divide_up(kTileOfRows * kTileHeads, u_rows);
    for (int64_t i = 0; i < u_rows; i += kTileHeads) {
      float tile_sums[kLanes], products[kLanes];
      for (int64_t r = 0; r < kLanes; ++r) tile_sums[r] = sums[i + r / kTileOfRows];
      const int64_t done = min(i / kTileHeads * rows_at_a_time, kTileOfRows);
      const T* const* next = ahead + done;
      const int64_t next_count = min(rows_at_a_time, kTileOfRows - done);
      const auto ask_for_next_rows = [&](int64_t w) __attribute__((always_inline)) {
        for (int64_t r = 0; r < next_count; ++r) __builtin_prefetch(next[r] + w * kPerWord<Word>, 0, 2);
      };
      const Vec raw = dot_tile(plan.words, words + tile * plan.words_stride, plan.words_stride,
                               u + i * plan.words_stride, plan.words_stride, ask_for_next_rows);
      store(products, (raw - load(means) * load(tile_sums)) * load(factors));
      for (int64_t k = 0; k < kTileHeads; ++k)
        std::memcpy(scores + (i + k) * kBlockRows, products + k * kTileOfRows, kTileOfRows * sizeof(float));
    }
  }
};

}  // namespace HSTA_ISA
}  // namespace hsta
