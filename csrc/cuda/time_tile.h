// Attention over time a tile at a time: a block stacks the rows of some neighbouring positions, `frames` each, and then
// the prefix tokens. A query sees the keys of its own position and of the prefix; of the square of all rows with all
// rows only the 16 × 16 squares in which somebody sees somebody are computed. A warp takes 16 rows of queries, or of
// keys. The prefix comes last: before the positions it would push them across the squares' borders.
// Where a GPU's shared memory does not take all columns of a head, they come a span at a time, and some twice:
// the second time from L2.
#pragma once

#include "../common/score_scale.h"
#include "tile.h"

namespace hsta::cuda {

constexpr int kMaxRows = 80, kMaxSquares = kMaxRows / kSquare;

// How the positions are dealt out to blocks. The batch has no say, so that results do not depend on it.
struct TimePlan {
  int rows, positions, patch_rows;  // of a tile
  int64_t splits;                   // tiles of a sample and head
  ScoreScale scale;

  explicit TimePlan(const SpaceTimeAttention& op) : scale(op.scale) {
    if (op.axis != Axis::kTime || op.order != TokenOrder::kTimeMajor ||
        (op.prefix && op.prefix_attention != PrefixAttention::kAll))
      throw std::runtime_error("the CUDA kernels attend over time, tokens time-major, the prefix to all");
    const int sequence = int(op.frames + op.prefix);
    // Rows of float take twice the shared memory, and gain nothing from larger tiles.
    const int limit = sequence <= 32 && op.dtype == DType::kFloat32 ? 32 : sequence <= 64 ? 64 : kMaxRows;
    positions = int((limit - op.prefix) / op.frames);
    if (positions > op.patches) positions = int(op.patches);
    patch_rows = positions * int(op.frames);
    rows = int(divide_up(patch_rows + op.prefix, kSquare)) * kSquare;
    splits = divide_up(op.patches, positions);
  }

  int64_t blocks(const SpaceTimeAttention& op) const { return op.batch * splits * op.heads; }
  int threads() const { return rows / kSquare * kWarp; }
};

// A head's columns, and how many of them, `span`, are in shared memory at a time.
template <typename T, int kDim>
struct HeadDim {
  int dim, padded, span, pitch;
  __device__ HeadDim(int64_t head_dim, int span)
      : dim(kDim ? kDim : int(head_dim)),
        padded((dim + kSquare - 1) / kSquare * kSquare),
        span(kDim ? padded : span),
        pitch(pitch_of<T>(this->span)) {}

  // Of the span that begins at column `first`: how many columns there are, and without padding.
  __device__ int columns(int first) const { return smaller(span, padded - first); }
  __device__ int valid_columns(int first) const { return smaller(span, dim - first); }
  __device__ int last_span() const { return (padded - 1) / span * span; }

 private:
  __device__ static int smaller(int a, int b) { return a < b ? a : b; }
};

// The keys that a row's query sees: a run of patches, and the prefix or not.
struct VisibleKeys {
  int first, last;
  bool prefix;
};

struct TimeTile {
  const SpaceTimeAttention& op;
  const TimePlan& plan;
  int prefix, frames, valid_rows;  // valid_rows: of patches that exist
  int64_t sample, split, head;     // heads lie side by side in memory: neighbouring blocks take them

  __device__ TimeTile(const SpaceTimeAttention& op, const TimePlan& plan)
      : op(op), plan(plan), prefix(int(op.prefix)), frames(int(op.frames)) {
    head = block_index() % op.heads;
    split = block_index() / op.heads % plan.splits;
    sample = block_index() / op.heads / plan.splits;
    const int64_t positions = op.patches - split * plan.positions;
    valid_rows = int(positions < plan.positions ? positions : plan.positions) * frames;
  }

  __device__ bool is_prefix(int row) const { return row >= plan.patch_rows && row < plan.patch_rows + prefix; }
  __device__ bool is_patch(int row) const { return row < valid_rows; }
  __device__ int64_t tokens() const { return op.prefix + op.frames * op.patches; }
  __device__ int64_t token(int row) const {
    if (row >= plan.patch_rows) return row - plan.patch_rows;
    return prefix + row % frames * op.patches + split * plan.positions + row / frames;
  }

  __device__ VisibleKeys visible_keys(int row) const {
    if (is_patch(row)) return {row / frames * frames, row / frames * frames + frames, true};
    if (is_prefix(row)) return {0, valid_rows, split == 0};  // among themselves in one split, so as to count once
    return {0, 0, false};
  }
  __device__ bool is_visible(const VisibleKeys& keys, int column) const {
    return (column >= keys.first && column < keys.last) || (keys.prefix && is_prefix(column));
  }

  // Whether some of 16 rows are the prefix's.
  __device__ bool has_prefix(int square) const {
    return prefix && square * kSquare < plan.patch_rows + prefix && (square + 1) * kSquare > plan.patch_rows;
  }

  // The squares in which rows of square `a` see columns, a bit each. It is the same seen from the columns.
  __device__ uint32_t visible_squares(int a) const {
    uint32_t bits = 0;
    for (int b = 0; b < plan.rows / kSquare; ++b) bits |= uint32_t(square_sees(a, b)) << b;
    return bits;
  }

  // Copies the rows' columns of the span at `first` in the background; zeros where a row or a column does not exist.
  template <typename T, int kDim>
  __device__ void copy_rows(const T* from, int64_t token_stride, const HeadDim<T, kDim>& d, int first,
                            Matrix<T> to) const {
    constexpr int kPiece = 16 / sizeof(T);
    const int pieces = d.columns(first) / kPiece;
    for (int i = thread_index(); i < plan.rows * pieces; i += thread_count()) {
      const int row = i / pieces, column = i % pieces * kPiece;
      const bool valid = (is_patch(row) || is_prefix(row)) && first + column < d.dim;
      copy_async(to.at(row, column), valid ? from + token(row) * token_stride + first + column : from, valid);
    }
  }

  // The same for the prefix tokens alone, at the first rows of `to`.
  template <typename T, int kDim>
  __device__ void copy_prefix(const T* from, int64_t token_stride, const HeadDim<T, kDim>& d, int first,
                              Matrix<T> to) const {
    constexpr int kPiece = 16 / sizeof(T);
    const int pieces = d.columns(first) / kPiece;
    for (int i = thread_index(); i < kSquare * pieces; i += thread_count()) {
      const int token = i / pieces, column = i % pieces * kPiece;
      const bool valid = token < prefix && first + column < d.dim;
      copy_async(to.at(token, column), valid ? from + token * token_stride + first + column : from, valid);
    }
  }

  // Writes the patches' rows of one warp's 16, `columns` of them, from shared memory.
  template <typename T>
  __device__ void store_rows(Matrix<T> from, int first, int columns, T* to, int64_t token_stride) const {
    constexpr int kPiece = 16 / sizeof(T);
    const int pieces = columns / kPiece;
    for (int i = thread_index() % kWarp; i < kSquare * pieces; i += kWarp) {
      const int row = first + i / pieces, column = i % pieces * kPiece;
      if (is_patch(row))
        store(to + token(row) * token_stride + column,
              *reinterpret_cast<const Vector<T, kPiece>*>(from.at(row, column)));
    }
  }

  template <typename T, int kDim>
  __device__ void copy_part(int part, const HeadDim<T, kDim>& d, int first, Matrix<T> to) const {
    copy_rows(op.qkv[part].at<const T>(sample, 0, head), op.qkv[part].stride[1], d, first, to);
  }

 private:
  __device__ bool has_patches(int square) const { return square * kSquare < valid_rows; }
  __device__ bool square_sees(int a, int b) const {
    if (has_prefix(a) && (has_patches(b) || has_prefix(b))) return true;
    if (has_prefix(b) && has_patches(a)) return true;
    if (!has_patches(a) || !has_patches(b)) return false;
    const auto first_position = [&](int square) { return square * kSquare / frames; };
    const auto last_position = [&](int square) {
      const int last = (square + 1) * kSquare;
      return ((last < valid_rows ? last : valid_rows) - 1) / frames;
    };
    return first_position(a) <= last_position(b) && first_position(b) <= last_position(a);
  }
};

// f(square) for those of the squares that are `visible`, as constants.
template <typename F>
__device__ inline void each_visible(uint32_t visible, F&& f) {
#pragma unroll
  for (int square = 0; square < kMaxSquares; ++square)
    if (visible >> square & 1) f(square);
}

// Makes scores, exponents of 2, of the products q·k of 16 queries; minus infinity where a query does not see a key.
// Returns their maxima. The forward and the backward pass compute them by the same operations, to the same bits, so
// that a probability of one is recovered as exactly one, however large the scores; into how many spans the columns are
// divided makes no difference to them.
template <typename T>
__device__ inline RowPair to_scores(const TimeTile& tile, uint32_t visible, int first, Square (&s)[kMaxSquares]) {
  const VisibleKeys keys[2] = {tile.visible_keys(first + Square::row(0)), tile.visible_keys(first + Square::row(1))};
  RowPair row_max{{-INFINITY, -INFINITY}};
  each_visible(visible, [&](int square) {
    s[square].each([&](float& value, int r, int column) {
      float scaled = value * tile.plan.scale.high;
      if constexpr (sizeof(T) == 4) scaled += value * tile.plan.scale.low;
      value = tile.is_visible(keys[r], square * kSquare + column) ? scaled : -INFINITY;
      row_max.at[r] = fmaxf(row_max.at[r], value);
    });
  });
  row_max.combine([](float a, float b) { return fmaxf(a, b); });
  for (float& value : row_max.at)
    if (value == -INFINITY) value = 0;  // a row of padding, or of NaN
  return row_max;
}

// f(head_dim as a constant where the kernels have one and all its columns fit into shared memory, else 0; span).
// elements(span) is how many elements of T a block then has there.
template <typename T, typename Elements, typename F>
void with_dim_and_span(int64_t head_dim, Elements&& elements, F&& f) {
  const int padded = int(divide_up(head_dim, kSquare)) * kSquare;
  const int span = columns_that_fit(padded, kSquare, [&](int span) { return elements(span) * int64_t(sizeof(T)); });
  switch (span == padded ? head_dim : 0) {
    case 32:
      return f(std::integral_constant<int, 32>(), span);
    case 64:
      return f(std::integral_constant<int, 64>(), span);
    case 128:
      return f(std::integral_constant<int, 128>(), span);
  }
  f(std::integral_constant<int, 0>(), span);
}

}  // namespace hsta::cuda
