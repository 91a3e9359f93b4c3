// C = A B (or C += A B) for the small matrices of one attention group, A and B of words (simd.h), C of floats. B and C
// have rows of whole vectors; A is read one broadcast word at a time, through any two strides, so that a transposed A
// needs no copy. B is best in panels, as wide as a tile: a tile then reads it from one end to the other.
#pragma once

#include "simd.h"

namespace hsta {
namespace HSTA_ISA {

#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileVecs = 4;  // 24 accumulators of 32 registers
#elif defined(__AVX__)
constexpr int kTileRows = 6, kTileVecs = 2;  // 12 of 16
#else
constexpr int kTileRows = 4, kTileVecs = 2;
#endif

template <typename Word>
struct StridedMatrix {
  const Word* data;
  int64_t row, col;
};

// Columns of B that a row of tiles passes over at a time.
constexpr int kPanel = kTileVecs * kLanes;

// Where element (row, column) is in panels of `rows` rows that lie one after the other.
static inline int64_t in_panels(int64_t row, int64_t column, int64_t rows) {
  return column / kPanel * rows * kPanel + row * kPanel + column % kPanel;
}

// What panels need of memory.
static inline int64_t panel_words(int64_t rows, int64_t columns) { return rows * round_up(columns, kPanel); }

// Row k of panel n is at n * panel + k * row.
template <typename Word>
struct PanelMatrix {
  const Word* data;
  int64_t row, panel;
};

// B with its rows one after the other.
template <typename Word>
static inline PanelMatrix<Word> rows_of(const Word* b, int64_t ldb) {
  return {b, ldb, kPanel};
}

// B in panels of `rows` rows.
template <typename Word>
static inline PanelMatrix<Word> panels_of(const Word* b, int64_t rows) {
  return {b, kPanel, rows * kPanel};
}

template <int kRows, int kVecs, typename Word>
static inline __attribute__((always_inline)) void gemm_tile(int64_t k_count, const Word* a, int64_t a_row,
                                                            int64_t a_col, const Word* b, int64_t ldb, float* c,
                                                            int64_t ldc, bool accumulate) {
  Vec sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < kVecs; ++n) sum[m][n] = Vec{};
  for (int64_t k = 0; k < k_count; ++k) {
    decltype(load(b)) row[kVecs];
#pragma GCC unroll 4
    for (int n = 0; n < kVecs; ++n) row[n] = load(b + k * ldb + n * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const auto x = broadcast(a[m * a_row + k * a_col]);
#pragma GCC unroll 4
      for (int n = 0; n < kVecs; ++n) sum[m][n] = multiply_add(sum[m][n], x, row[n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < kVecs; ++n)
      store(c + m * ldc + n * kLanes, accumulate ? load(c + m * ldc + n * kLanes) + sum[m][n] : sum[m][n]);
}

// Not inlined: among what surrounds it, the compiler would lose the registers that the addresses of a tile's rows are
// in.
template <int kRows, typename Word>
static __attribute__((noinline)) void gemm_rows(int64_t n_count, int64_t k_count, const Word* a, int64_t a_row,
                                                int64_t a_col, PanelMatrix<Word> b, float* c, int64_t ldc,
                                                bool accumulate) {
  const Word* panel = b.data;
  for (; n_count >= kPanel; n_count -= kPanel, panel += b.panel, c += kPanel)
    gemm_tile<kRows, kTileVecs>(k_count, a, a_row, a_col, panel, b.row, c, ldc, accumulate);
  if constexpr (kTileVecs == 4)
    if (n_count >= 2 * kLanes) {
      gemm_tile<kRows, 2>(k_count, a, a_row, a_col, panel, b.row, c, ldc, accumulate);
      n_count -= 2 * kLanes, panel += 2 * kLanes, c += 2 * kLanes;
    }
  if (n_count > 0) gemm_tile<kRows, 1>(k_count, a, a_row, a_col, panel, b.row, c, ldc, accumulate);
}

template <typename Word>
static inline void gemm_block(int64_t m_count, int64_t n_count, int64_t k_count, StridedMatrix<Word> a,
                              PanelMatrix<Word> b, float* c, int64_t ldc, bool accumulate) {
  int64_t m = 0;
  for (; m + kTileRows <= m_count; m += kTileRows)
    gemm_rows<kTileRows>(n_count, k_count, a.data + m * a.row, a.row, a.col, b, c + m * ldc, ldc, accumulate);
  const Word* rest = a.data + m * a.row;
  float* c_rest = c + m * ldc;
  switch (m_count - m) {
    case 5:
      return gemm_rows<5>(n_count, k_count, rest, a.row, a.col, b, c_rest, ldc, accumulate);
    case 4:
      return gemm_rows<4>(n_count, k_count, rest, a.row, a.col, b, c_rest, ldc, accumulate);
    case 3:
      return gemm_rows<3>(n_count, k_count, rest, a.row, a.col, b, c_rest, ldc, accumulate);
    case 2:
      return gemm_rows<2>(n_count, k_count, rest, a.row, a.col, b, c_rest, ldc, accumulate);
    case 1:
      return gemm_rows<1>(n_count, k_count, rest, a.row, a.col, b, c_rest, ldc, accumulate);
    default:
      return;
  }
}

// A (m_count, k_count), B (k_count, n_count), C (m_count, n_count), k_count in words; n_count a multiple of kLanes.
// Long sums are taken in blocks of kDepth terms: rounding errors grow with the length of a chain of additions.
constexpr int64_t kDepth = 128;

template <typename Word>
static inline void gemm(int64_t m_count, int64_t n_count, int64_t k_count, StridedMatrix<Word> a, PanelMatrix<Word> b,
                        float* c, int64_t ldc, bool accumulate) {
  for (int64_t k = 0; k == 0 || k < k_count; k += kDepth)
    gemm_block<Word>(m_count, n_count, min(kDepth, k_count - k), {a.data + k * a.col, a.row, a.col},
                     {b.data + k * b.row, b.row, b.panel}, c, ldc, accumulate || k > 0);
}

// a · b in the order and with the instructions of gemm, hence to the same bits: what must cancel against an element of
// a product does.
template <typename A, typename B>
static inline float dot(int64_t count, const A* a, const B* b) {
  float total = 0;
  for (int64_t k = 0; k < count; k += kDepth) {
    float sum = 0;
    for (int64_t i = k; i < count && i < k + kDepth; ++i) sum = multiply_add(to_float(a[i]), to_float(b[i]), sum);
    total += sum;
  }
  return total;
}

#ifdef __AVX512BF16__
static inline float dot(int64_t count, const Pair* a, const BFloat16* b) {
  float total = 0;
  for (int64_t k = 0; k < count; k += 2 * kDepth) {
    Vec sum{};
    for (int64_t i = k; i < count && i < k + 2 * kDepth; i += 2) {
      Pair pair{};
      std::memcpy(static_cast<void*>(&pair), b + i, (i + 1 < count ? 2 : 1) * sizeof(BFloat16));
      sum = multiply_add(sum, broadcast(a[i / 2]), broadcast(pair));
    }
    total += sum[0];
  }
  return total;
}
#endif

}  // namespace HSTA_ISA
}  // namespace hsta
