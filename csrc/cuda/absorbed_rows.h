// The rows of [query, tokens] of a sample, through shared memory 16 at a time: while a block computes with some rows,
// the next ones are on their way. Rows are normalized in place. Each of the block's warps has some of the columns, in
// squares of 16 rows, for the products with all heads. Where registers or shared memory do not take this,
// absorbed_spans.h has another form.
#pragma once

#include "merge.h"
#include "tile.h"

namespace hsta::cuda {

constexpr int kRunWarps = 8, kRunThreads = kRunWarps * kWarp;
constexpr int kHeads = kSquare, kRows = kSquare;
constexpr float kLog2EFloat = 1.4426950408889634f;
static_assert(kRunThreads == kHeads * kRows, "a thread a score");

// Into how many runs the rows of a sample are split. Several blocks share a sample so that small batches fill the GPU.
// A run's result is as large as 2 or 4 times `heads` tokens and is written and read: that bounds their number. The
// batch has no say: results do not depend on it.
struct RunPlan {
  int64_t rows_per_split, splits;

  explicit RunPlan(const AbsorbedAttention& op) {
    const int64_t rows = op.tokens + 1, wanted = op.tokens / (24 * op.heads);
    rows_per_split = divide_up(divide_up(rows, wanted > 1 ? wanted : 1), kRows) * kRows;
    splits = divide_up(rows, rows_per_split);
  }
};

__host__ __device__ inline int padded_width(int64_t width) { return int((width + kSquare - 1) / kSquare) * kSquare; }

// Shared memory of the kernels, for `stages` of 16 rows and `head_squares` of 16 heads. kSides: 1 for the forward pass,
// which has products with u; 2 for the backward pass, which also has some with the gradient of z.
template <typename T, int kSides>
struct RunMemory {
  Matrix<T> heads[kSides];   // u, and the gradient of z
  Matrix<T> rows;            // of the stages, in turn
  Matrix<T> scores[kSides];  // probabilities, and the scores' gradients: (rows, heads)
  float* parts;              // of the products over the columns: (warps, kSides, head squares, rows, heads)
  float* of_heads;           // two numbers a head
  float* of_rows;            // rstd, then two numbers a row and warp

  __device__ explicit RunMemory(int pitch, int stages = 2, int head_squares = 1) {
    const int all_heads = head_squares * kHeads;
    Matrix<T> next{shared_memory<T>(), pitch};
    for (auto& matrix : heads) matrix = next, next = next.from(all_heads, 0);
    rows = next, next = next.from(stages * kRows, 0);
    next.pitch = pitch_of<T>(all_heads);
    for (auto& matrix : scores) matrix = next, next = next.from(kRows, 0);
    parts = reinterpret_cast<float*>(next.data);
    of_heads = parts + kRunWarps * kSides * kRows * all_heads;
    of_rows = of_heads + 2 * all_heads;
  }

  __device__ Matrix<T> stage(int index) const { return rows.from(index * kRows, 0); }

  static int64_t bytes(int pitch, int stages = 2, int head_squares = 1) {
    const int all_heads = head_squares * kHeads;
    const int64_t elements = (kSides * all_heads + stages * kRows) * pitch + kSides * kRows * pitch_of<T>(all_heads);
    const int64_t floats = kRunWarps * kSides * kRows * all_heads + 2 * all_heads + kRows + 2 * kRows * kRunWarps;
    return elements * int64_t(sizeof(T)) + floats * 4;
  }
};

// A run of rows of a sample, and the heads of that sample. Columns are named by the first and by how many there are.
template <typename T>
struct RowRun {
  static constexpr int kPiece = 16 / sizeof(T);

  const AbsorbedAttention& op;
  int width, padded;
  int64_t sample, split, first, last;

  __device__ RowRun(const AbsorbedAttention& op, const RunPlan& plan, int64_t index)
      : op(op), width(int(op.width)), padded(padded_width(op.width)) {
    sample = index / plan.splits, split = index % plan.splits;
    first = split * plan.rows_per_split;
    last = first + plan.rows_per_split < op.tokens + 1 ? first + plan.rows_per_split : op.tokens + 1;
  }

  // Copies 16 rows from `row` on in the background; zeros where a row or a column does not exist, and nothing after the
  // last row: no copy is left on its way when the block ends.
  __device__ void copy_rows(int64_t row, int begin, int columns, Matrix<T> to) const {
    if (row >= last) return;
    const int pieces = columns / kPiece;
    const T* query = op.query.at<const T>(sample);
    const T* token = op.token.at<const T>(sample);
    for (int i = thread_index(); i < kRows * pieces; i += kRunThreads) {
      const int64_t source = row + i / pieces;
      const int column = i % pieces * kPiece;
      const bool valid = source < last && begin + column < width;
      const T* from = source == 0 ? query : token + (source - 1) * op.token.stride[1];
      copy_async(to.at(i / pieces, column), valid ? from + begin + column : query, valid);
    }
    commit_copies();
  }

  // Writes the gradients of the 16 rows from `row` on.
  __device__ void store_rows(Matrix<T> from, int64_t row, int begin, int columns) const {
    const int pieces = columns / kPiece;
    for (int i = thread_index(); i < kRows * pieces; i += kRunThreads) {
      const int64_t target = row + i / pieces;
      if (target >= last) break;
      const int column = i % pieces * kPiece;
      T* to = target == 0 ? op.grad_query.as<T>() + sample * width
                          : op.grad_token.as<T>() + (sample * op.tokens + target - 1) * width;
      store(to + begin + column, *reinterpret_cast<const Vector<T, kPiece>*>(from.at(i / pieces, column)));
    }
  }

  // Writes `heads` rows of a (B, H, C) array of float as factors of products; zeros where there are none.
  __device__ void load_heads(const float* from, int begin, int columns, int heads, Matrix<T> to) const {
    const int pieces = columns / 4;
    for (int i = thread_index(); i < heads * pieces; i += kRunThreads) {
      const int head = i / pieces, column = i % pieces * 4;
      Vector<float, 4> values{};
      if (head < op.heads && begin + column < width)
        values = load<4>(from + (sample * op.heads + head) * width + begin + column);
      Vector<T, 4> narrow;
      for (int c = 0; c < 4; ++c) narrow.at[c] = narrowed<T>(values.at[c]);
      *reinterpret_cast<Vector<T, 4>*>(to.at(head, column)) = narrow;
    }
  }
};

// A block's run of rows, whole. kSquares: squares of columns that a warp may have.
template <typename T, int kSquares>
struct WholeRows : RowRun<T> {
  using RowRun<T>::kPiece, RowRun<T>::op, RowRun<T>::width, RowRun<T>::padded;
  static constexpr int kPieces = kRunWarps * kSquares * kSquare / (kWarp * kPiece);  // of a row, a lane

  __device__ WholeRows(const AbsorbedAttention& op, const RunPlan& plan) : RowRun<T>(op, plan, block_index()) {}

  // f(i, column) for the squares of columns that belong to this thread's warp.
  template <typename F>
  __device__ void each_square(F&& f) const {
#pragma unroll
    for (int i = 0; i < kSquares; ++i) {
      const int column = (thread_index() / kWarp + i * kRunWarps) * kSquare;
      if (column < padded) f(i, column);
    }
  }

  // y = (x - mean) / sqrt(var + eps) of the 16 rows, two a warp; rstd[row] = 1 / sqrt(var + eps).
  __device__ void normalize(Matrix<T> rows, float* rstd) const {
    const int lane = thread_index() % kWarp;
    for (int row = thread_index() / kWarp; row < kRows; row += kRunWarps) {
      float x[kPieces][kPiece], sum = 0, squares = 0;
      const auto each_piece = [&](auto&& f) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          const int column = (i * kWarp + lane) * kPiece;
          if (column < width) f(x[i], *reinterpret_cast<Vector<T, kPiece>*>(rows.at(row, column)));
        }
      };
      each_piece([&](float (&x)[kPiece], const Vector<T, kPiece>& stored) {
#pragma unroll
        for (int c = 0; c < kPiece; ++c) x[c] = widened(stored.at[c]), sum += x[c];
      });
      const float mean = sum_warp(sum) / float(width);
      each_piece([&](float (&x)[kPiece], const Vector<T, kPiece>&) {
#pragma unroll
        for (int c = 0; c < kPiece; ++c) x[c] -= mean, squares = multiply_add(x[c], x[c], squares);
      });
      const float scale = 1 / sqrtf(sum_warp(squares) / float(width) + op.eps);
      each_piece([&](float (&x)[kPiece], Vector<T, kPiece>& stored) {
#pragma unroll
        for (int c = 0; c < kPiece; ++c) stored.at[c] = narrowed<T>(x[c] * scale);
      });
      if (lane == 0) rstd[row] = scale;
    }
  }

  // This warp's part of rows · headsᵀ, for (rows, heads) at `to`.
  __device__ void put_products(Matrix<T> rows, Matrix<T> heads, float* to) const {
    Square sum;
    each_square([&](int, int column) {
      multiply<Stored::kAsIs, Stored::kTransposed>(sum, rows.from(0, column), heads.from(0, column), kSquare);
    });
    put(sum, Matrix<float>{to, kHeads});
  }
};

// After put_products, a thread has the product of one row and head. Rows lie in neighbouring lanes.
__device__ inline int score_row() { return thread_index() % kRows; }
__device__ inline int score_head() { return thread_index() / kRows; }

// `parts` is (warps, count, rows, heads).
__device__ inline float sum_products(const float* parts, int count, int index) {
  float sum = 0;
  for (int warp = 0; warp < kRunWarps; ++warp)
    sum += parts[((warp * count + index) * kRows + score_row()) * kHeads + score_head()];
  return sum;
}

template <typename Combine>
__device__ inline float combine_rows(float value, Combine&& combine) {
  for (int mask = kRows / 2; mask; mask /= 2) value = combine(value, shuffle_xor(value, mask));
  return value;
}

// Softmax over the rows, 16 at a time as they come, of a thread's head.
struct OnlineSoftmax {
  float top = -INFINITY, sum = 0;

  // The weight of a row of which this thread has the score. All weights before count `factor` times from now on.
  __device__ float weight(float score, float& factor) {
    const float new_top = fmaxf(top, combine_rows(score, [](float a, float b) { return fmaxf(a, b); }));
    const float weight = exp2(score - new_top);
    factor = exp2(top - new_top);
    sum = sum * factor + combine_rows(weight, [](float a, float b) { return a + b; });
    top = new_top;
    return weight;
  }
};

constexpr int kMaxRunSquares = 6;

// Whether the backward pass can take whole rows. Both passes take the same form: by the same operations the scores
// come out with the same bits, and a probability of one is recovered as exactly one.
template <typename T>
bool takes_whole_rows(const AbsorbedAttention& op) {
  return op.heads <= kHeads && op.width <= kMaxRunSquares * kRunWarps * kSquare &&
         RunMemory<T, 2>::bytes(pitch_of<T>(padded_width(op.width))) <= shared_memory_limit();
}

// f(number of squares of columns a warp may have).
template <typename F>
void with_squares(int64_t width, F&& f) {
  if (width <= 3 * kRunWarps * kSquare) return f(std::integral_constant<int, 3>());
  f(std::integral_constant<int, kMaxRunSquares>());
}

}  // namespace hsta::cuda
