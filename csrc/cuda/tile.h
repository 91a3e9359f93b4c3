// Products on the matrix units of small matrices in shared memory, of half types: 16 × 16 or 16 × 8 results a warp.
#pragma once

#include "device.h"

namespace hsta::cuda {

constexpr int kWarp = 32, kSquare = 16;

// A matrix in shared memory: element (row, column) lies at row * pitch + column.
template <typename T>
struct Matrix {
  T* data;
  int pitch;

  __device__ T* at(int row, int column) const { return data + row * pitch + column; }
  // The part of it that begins at an element.
  __device__ Matrix from(int row, int column) const { return {at(row, column), pitch}; }
};

// Elements from one row of a matrix to the next: an odd number of 16-byte units, so that 8 rows at the same column lie
// in different memory banks.
template <typename T>
__host__ __device__ constexpr int pitch_of(int columns) {
  return columns + 16 / int(sizeof(T));
}

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
template <typename T>
__device__ inline void put(const Square& square, Matrix<T> to) {
  square.each_pair([&](Vector<float, 2> pair, int r, int column) {
    *reinterpret_cast<Vector<T, 2>*>(to.at(Square::row(r), column)) = narrowed_pair<T>(pair);
  });
}

// How the factors of a product lie in shared memory: an element's row there is its row in the product's factor, or its
// column.
enum class Stored { kAsIs, kTransposed };

// sum += a · b with a (16, depth) and b (depth, 16); depth is a multiple of 16.
template <Stored kA, Stored kB, typename T>
__device__ inline void multiply(Square& sum, Matrix<T> a, Matrix<T> b, int depth) {
  const int lane = thread_index() % kWarp;
  // Eight lanes give the rows of each 8 × 8 matrix; of four matrices, the second lies below the first or beside it.
  const int below = lane % 16, beside = lane / 16 * 8;
  const int row = lane / 16 * 8 + lane % 8, column = lane % 16 / 8 * 8;
  const T* from_a = kA == Stored::kAsIs ? a.at(below, beside) : a.at(row, column);
  const T* from_b = kB == Stored::kAsIs ? b.at(below, beside) : b.at(row, column);
  const int step_a = kSquare * (kA == Stored::kAsIs ? 1 : a.pitch);
  const int step_b = kSquare * (kB == Stored::kAsIs ? b.pitch : 1);
  for (int k = 0; k < depth; k += kSquare) {
    uint32_t parts_a[4], parts_b[4];
    load_matrices<kA == Stored::kTransposed>(parts_a, from_a);
    load_matrices<kB == Stored::kAsIs>(parts_b, from_b);
    multiply_fragments(sum.at[0], parts_a, parts_b[0], parts_b[1], T{});
    multiply_fragments(sum.at[1], parts_a, parts_b[2], parts_b[3], T{});
    from_a += step_a, from_b += step_b;
  }
}

// results = a · bᵀ with a (16, depth) and b (8, depth); depth is a multiple of 32. A lane has of columns 2·(lane % 4)
// and + 1 those of the rows of a Square.
template <typename T>
__device__ inline void multiply_rows(float (&results)[2][2], Matrix<T> a, Matrix<T> b, int depth) {
  const int lane = thread_index() % kWarp;
  const T *from_a = a.at(lane % 16, lane / 16 * 8), *from_b = b.at(lane % 8, lane / 8 * 8);
  float sums[2][4] = {};  // two, for a product not to wait for the one before
  for (int k = 0; k < depth; k += 2 * kSquare) {
    uint32_t parts_a[2][4], parts_b[4];
    load_matrices<false>(parts_a[0], from_a + k);
    load_matrices<false>(parts_a[1], from_a + k + kSquare);
    load_matrices<false>(parts_b, from_b + k);
    multiply_fragments(sums[0], parts_a[0], parts_b[0], parts_b[1], T{});
    multiply_fragments(sums[1], parts_a[1], parts_b[2], parts_b[3], T{});
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) results[i / 2][i % 2] = sums[0][i] + sums[1][i];
}

}  // namespace hsta::cuda
