// Products on the matrix units of small matrices in shared memory, of half types: 16 × 16 or 16 × 8 results a warp.
#pragma once

#include "device.h"

namespace hsta::cuda {

constexpr int kWarp = 32, kSquare = 16;

// The sum over the lanes whose numbers differ in bits from `first` on and below `end`.
__device__ inline float sum_lanes(float value, int first, int end) {
  for (int mask = first; mask < end; mask *= 2) value += shuffle_xor(value, mask);
  return value;
}

// A matrix in shared memory: element (row, column) lies at row * kPitch + column. Of half types the pitch is an odd
// number of 16-byte units: 8 rows at the same column lie in different memory banks.
template <typename T, int kColumns>
struct Matrix {
  static constexpr int kPitch = kColumns + 8;
  T* data;

  __device__ T* at(int row, int column) const { return data + row * kPitch + column; }
  // The part of it that begins at an element.
  __device__ Matrix from(int row, int column) const { return {at(row, column)}; }
  static constexpr int bytes(int rows) { return rows * kPitch * int(sizeof(T)); }
};

// 16 × 16 results of a warp. Lane i holds of rows i / 4 and i / 4 + 8 the columns 2·(i % 4), + 1, + 8 and + 9.
struct Square {
  float at[2][4] = {};

  // The first (0) and the second (1) of a lane's rows.
  __device__ static int row(int r) { return thread_index() % kWarp / 4 + r * 8; }

  // f(value, r, column) for each of this lane's results.
  template <typename F>
  __device__ void each(F&& f) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(at[half][i], i / 2, first_column(half) + i % 2);
  }

  // f(pair of neighbouring values, r, column of the first) for each of this lane's pairs.
  template <typename F>
  __device__ void each_pair(F&& f) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int r = 0; r < 2; ++r) f(Vector<float, 2>{{at[half][2 * r], at[half][2 * r + 1]}}, r, first_column(half));
  }

 private:
  __device__ static int first_column(int half) { return 8 * half + thread_index() % 4 * 2; }
};

// Writes a square's results into `to`, whose element (0, 0) takes the square's.
template <int kColumns>
__device__ inline void put(const Square& square, Matrix<float, kColumns> to) {
  square.each_pair([&](Vector<float, 2> pair, int r, int column) {
    *reinterpret_cast<Vector<float, 2>*>(to.at(Square::row(r), column)) = pair;
  });
}

// How a factor of a product lies in shared memory: an element's row there is its row in the factor, or its column.
enum class Stored { kAsIs, kTransposed };

// 16 × 16 elements as the left factor of a product, and as the right one. Eight lanes give the rows of each 8 × 8
// matrix; of four matrices, the second lies below the first or beside it.
template <typename T>
struct LeftFactor {
  uint32_t words[4];
};
template <typename T>
struct RightFactor {
  uint32_t words[4];
};

template <Stored kStored, typename T, int kColumns>
__device__ inline LeftFactor<T> left_factor(Matrix<T, kColumns> from) {
  const int lane = thread_index() % kWarp;
  LeftFactor<T> factor;
  if constexpr (kStored == Stored::kAsIs)
    load_matrices<false>(factor.words, from.at(lane % 16, lane / 16 * 8));
  else
    load_matrices<true>(factor.words, from.at(lane / 16 * 8 + lane % 8, lane % 16 / 8 * 8));
  return factor;
}

// As it is stored.
template <typename T, int kColumns>
__device__ inline RightFactor<T> right_factor(Matrix<T, kColumns> from) {
  const int lane = thread_index() % kWarp;
  RightFactor<T> factor;
  load_matrices<true>(factor.words, from.at(lane % 16, lane / 16 * 8));
  return factor;
}

// sum += a · b.
template <typename T>
__device__ inline void multiply(Square& sum, const LeftFactor<T>& a, const RightFactor<T>& b) {
  multiply_fragments(sum.at[0], a.words, b.words[0], b.words[1], T{});
  multiply_fragments(sum.at[1], a.words, b.words[2], b.words[3], T{});
}

// Where a lane has its share of columns 32 * i and the 31 after it of eight rows, for load_matrices and store_matrices.
template <typename T, int kColumns>
__device__ inline T* of_eight_rows(Matrix<T, kColumns> rows, int i) {
  const int lane = thread_index() % kWarp;
  return rows.at(lane % 8, 32 * i + lane / 8 * 8);
}

// Eight rows of kColumns columns, a multiple of 32, in a warp's registers: of each 32 columns, lane i has of row i / 4
// columns 2·(i % 4) and + 1, + 8, + 9, + 16 and so on.
template <typename T, int kColumns>
struct EightRows {
  uint32_t words[kColumns / 32][4];

  __device__ static int row() { return thread_index() % kWarp / 4; }

  __device__ explicit EightRows(Matrix<T, kColumns> from) {
#pragma unroll
    for (int i = 0; i < kColumns / 32; ++i) load_matrices<false>(words[i], of_eight_rows(from, i));
  }
  __device__ void store(Matrix<T, kColumns> to) const {
#pragma unroll
    for (int i = 0; i < kColumns / 32; ++i) store_matrices(words[i], of_eight_rows(to, i));
  }

  // f(word) for each of this lane's.
  template <typename F>
  __device__ void each(F&& f) {
#pragma unroll
    for (auto& four : words)
#pragma unroll
      for (uint32_t& word : four) f(word);
  }
};

// results = left · rowsᵀ, (16, 8), of several left factors. A lane has of columns 2·(lane % 4) and + 1 those of the
// rows of a Square. f(word) for each word that it has of the rows, as an EightRows has them.
template <typename T, int kColumns, int kCount, typename F>
__device__ inline void multiply_rows(float (&results)[kCount][2][2], const Matrix<T, kColumns> (&left)[kCount],
                                     Matrix<T, kColumns> rows, F&& f) {
  float sums[kCount][2][4] = {};  // two, for a product not to wait for the one before
#pragma unroll
  for (int i = 0; i < kColumns / 32; ++i) {
    uint32_t words[4];
    load_matrices<false>(words, of_eight_rows(rows, i));
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        const auto factor = left_factor<Stored::kAsIs>(left[n].from(0, 32 * i + 16 * half));
        multiply_fragments(sums[n][half], factor.words, words[2 * half], words[2 * half + 1], T{});
      }
#pragma unroll
    for (uint32_t word : words) f(word);
  }
#pragma unroll
  for (int n = 0; n < kCount; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) results[n][i / 2][i % 2] = sums[n][0][i] + sums[n][1][i];
}

}  // namespace hsta::cuda
