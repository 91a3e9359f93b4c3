// The rows of absorbed_rows.h where registers or shared memory do not take them: 16 at a time too, but a span of their
// columns at a time, with the same columns of the heads, and nothing on its way meanwhile. Rows are gone through
// several times: what is no longer in shared memory then is in L2.
#pragma once

#include "absorbed_rows.h"

namespace hsta::cuda {

constexpr int kMaxHeadSquares = 2;
constexpr int kUnits = 12;                         // squares of results, (heads, columns), that a warp has in registers
constexpr int kUnitColumns = kRunWarps * kSquare;  // a square of columns a warp

struct SpanPlan {
  int head_squares;
  int span;   // columns in shared memory at a time: as many in both passes, whose scores thus have the same bits
  int share;  // columns whose results a block has; all blocks of a run compute its scores
  int64_t shares;
};

template <typename T>
SpanPlan span_plan(const AbsorbedAttention& op) {
  SpanPlan plan;
  plan.head_squares = int(divide_up(op.heads, kHeads));
  const int64_t units = divide_up(op.width, kUnitColumns);
  plan.span = columns_that_fit(int(units) * kUnitColumns, kUnitColumns, [&](int span) {
    return RunMemory<T, 2>::bytes(pitch_of<T>(span), 1, plan.head_squares);
  });
  plan.shares = divide_up(units, kUnits / plan.head_squares);
  plan.share = int(divide_up(units, plan.shares)) * kUnitColumns;
  return plan;
}

template <typename T>
struct SpansOfRows : RowRun<T> {
  using RowRun<T>::kPiece, RowRun<T>::op, RowRun<T>::width, RowRun<T>::padded;

  const SpanPlan& plan;
  Matrix<T> rows;
  int share_first, share_last;  // of this block's share of the columns
  int warp, lane;
  int here = -1;           // first column of the span in shared memory
  float mean[2], rstd[2];  // of this warp's two rows

  // Neighbouring blocks go through the same rows at the same time, and meet in L2.
  __device__ SpansOfRows(const AbsorbedAttention& op, const RunPlan& runs, const SpanPlan& plan, Matrix<T> rows)
      : RowRun<T>(op, runs, block_index() / plan.shares), plan(plan), rows(rows) {
    share_first = int(block_index() % plan.shares) * plan.share;
    share_last = share_first + plan.share < padded ? share_first + plan.share : padded;
    warp = thread_index() / kWarp, lane = thread_index() % kWarp;
  }

  // f(first column) for all spans.
  template <typename F>
  __device__ void each_span(F&& f) const {
    for (int begin = 0; begin < padded; begin += plan.span) f(begin);
  }
  // The same for those with columns of the share, the last one first: it may still be there.
  template <typename F>
  __device__ void each_span_back(F&& f) const {
    for (int begin = (share_last - 1) / plan.span * plan.span; begin + plan.span > share_first && begin >= 0;
         begin -= plan.span)
      f(begin);
  }
  __device__ int columns(int begin) const { return plan.span < padded - begin ? plan.span : padded - begin; }

  // f(square of heads).
  template <typename F>
  __device__ void each_head_square(F&& f) const {
#pragma unroll
    for (int g = 0; g < kMaxHeadSquares; ++g)
      if (g < plan.head_squares) f(g);
  }

  // f(i, column, square of heads) for the squares of results of this warp whose columns begin in [from, to).
  template <typename F>
  __device__ void each_unit(int from, int to, F&& f) const {
    int column = share_first + warp * kSquare, g = 0;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (column >= from && column < to && column < share_last) f(i, column, g);
      if (++g == plan.head_squares) g = 0, column += kUnitColumns;
    }
  }

  // Copies the span of columns at `begin` of the 16 rows from `row` on, if it is not there; says whether it was not.
  __device__ bool bring(int64_t row, int begin) {
    if (here == begin) return false;
    here = begin;
    block_barrier();  // all are done with the span before
    this->copy_rows(row, begin, columns(begin), rows);
    wait_copies<0>();
    block_barrier();
    return true;
  }

  // Mean and 1 / sqrt(var + eps) of the 16 rows from `row` on, two a warp; the latter also into of_rows.
  __device__ void measure(int64_t row, float* of_rows) {
    here = -1;
    float sums[2] = {}, squares[2] = {};
    each_span([&](int begin) {
      bring(row, begin);
      each_piece(begin, [&](int r, const Vector<T, kPiece>& x) {
#pragma unroll
        for (int c = 0; c < kPiece; ++c) sums[r] += widened(x.at[c]);
      });
    });
    for (int r = 0; r < 2; ++r) mean[r] = sum_warp(sums[r]) / float(width);
    each_span([&](int begin) {
      bring(row, begin);
      each_piece(begin, [&](int r, const Vector<T, kPiece>& x) {
#pragma unroll
        for (int c = 0; c < kPiece; ++c) {
          const float centered = widened(x.at[c]) - mean[r];
          squares[r] = multiply_add(centered, centered, squares[r]);
        }
      });
    });
    for (int r = 0; r < 2; ++r) {
      rstd[r] = 1 / sqrtf(sum_warp(squares[r]) / float(width) + op.eps);
      if (lane == 0) of_rows[warp + r * kRunWarps] = rstd[r];
    }
  }

  // y = (x - mean) / sqrt(var + eps) of the span that was brought.
  __device__ void normalize() {
    each_piece(here, [&](int r, Vector<T, kPiece>& x) {
#pragma unroll
      for (int c = 0; c < kPiece; ++c) x.at[c] = narrowed<T>((widened(x.at[c]) - mean[r]) * rstd[r]);
    });
  }

  // sums += rows · headsᵀ over this warp's columns of the span, (rows, heads) for every square of heads.
  __device__ void add_products(Square (&sums)[kMaxHeadSquares], Matrix<T> heads) const {
    for (int column = warp * kSquare; column < columns(here); column += kUnitColumns)
      each_head_square([&](int g) {
        multiply<Stored::kAsIs, Stored::kTransposed>(sums[g], rows.from(0, column), heads.from(g * kHeads, column),
                                                     kSquare);
      });
  }

  // Into `parts`, of `sides` products.
  __device__ void put_products(const Square (&sums)[kMaxHeadSquares], int sides, int side, float* parts) const {
    each_head_square([&](int g) {
      const int index = (warp * sides + side) * plan.head_squares + g;
      put(sums[g], Matrix<float>{parts + index * kRows * kHeads, kHeads});
    });
  }

 private:
  // f(r, piece) for the pieces of this warp's rows in the span that this lane has.
  template <typename F>
  __device__ void each_piece(int begin, F&& f) const {
    const int valid = width - begin < plan.span ? width - begin : plan.span;
#pragma unroll
    for (int r = 0; r < 2; ++r)
      for (int column = lane * kPiece; column < valid; column += kWarp * kPiece)
        f(r, *reinterpret_cast<Vector<T, kPiece>*>(rows.at(warp + r * kRunWarps, column)));
  }
};
static_assert(kRows == 2 * kRunWarps, "two rows a warp");

}  // namespace hsta::cuda
