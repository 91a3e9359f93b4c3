// Attention over time, forward: every row of the softmax is on chip, so q, k and v are read once and the output is
// written once. A prefix query sees the positions of all blocks: each leaves its part, and a second kernel merges them.
#include "merge.h"
#include "time_tile.h"

namespace hsta::cuda {
namespace {

template <typename T, int kDim>
__global__ void __launch_bounds__(2 * kMaxRows, 3)
    forward_kernel(const __grid_constant__ SpaceTimeAttention op, const __grid_constant__ TimePlan plan,
                   const Parts<float> parts, int span) {
  const TimeTile tile(op, plan);
  const HeadDim<T, kDim> d(op.head_dim, span);
  const Matrix<T> q{shared_memory<T>(), d.pitch}, k = q.from(plan.rows, 0), v = k.from(plan.rows, 0);
  const Matrix<T> p{v.at(plan.rows, 0), pitch_of<T>(plan.rows)};
  const int first = thread_index() / kWarp * kSquare;
  const uint32_t visible = tile.visible_squares(first / kSquare);
  Square s[kMaxSquares];
  for (int column = 0; column < d.padded; column += d.span) {
    if (column) block_barrier();  // all are done with the columns before
    tile.copy_part(0, d, column, q);
    tile.copy_part(1, d, column, k);
    if (column == d.last_span()) tile.copy_part(2, d, column, v);
    commit_copies();
    wait_copies<0>();
    block_barrier();
    each_visible(visible, [&](int square) {
      multiply<Stored::kAsIs, Stored::kTransposed>(s[square], q.from(first, 0), k.from(square * kSquare, 0),
                                                   d.columns(column));
    });
  }
  const RowPair row_max = to_scores<T>(tile, visible, first, s);
  RowPair sum;
  each_visible(visible, [&](int square) {
    s[square].each([&](float& value, int r, int) {
      value = exp2(value - row_max.at[r]);
      sum.at[r] += value;
    });
    put(s[square], p.from(first, square * kSquare));
  });
  sum.combine([](float a, float b) { return a + b; });
  warp_barrier();

  const auto part_row = [&](int row) {
    return parts.row(tile.sample, tile.split, tile.head * op.prefix + row - plan.patch_rows);
  };
  T* out = op.out.as<T>() + (tile.sample * tile.tokens() * op.heads + tile.head) * d.dim;
  // Backwards: the last columns are here. Outputs take the place of the warp's queries, to be written in rows.
  for (int begin = d.last_span(); begin >= 0; begin -= d.span) {
    if (begin < d.last_span()) {
      block_barrier();
      tile.copy_part(2, d, begin, v);
      commit_copies();
      wait_copies<0>();
      block_barrier();
    }
    for (int column = 0; column < d.columns(begin); column += kSquare) {
      Square o;
      each_visible(visible, [&](int square) {
        multiply<Stored::kAsIs, Stored::kAsIs>(o, p.from(first, square * kSquare), v.from(square * kSquare, column),
                                               kSquare);
      });
      o.each([&](float& value, int r, int) { value = quotient<T>(value, sum.at[r]); });
      o.each_pair([&](const Vector<float, 2>& values, int r, int c) {
        const int row = first + Square::row(r), to = begin + column + c;
        if (tile.is_prefix(row) && to < d.dim) store(parts.values + part_row(row) * d.dim + to, values);
      });
      put(o, q.from(first, column));
    }
    warp_barrier();
    tile.store_rows(q, first, d.valid_columns(begin), out + begin, op.heads * d.dim);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first + Square::row(r);
    if (thread_index() % 4 == 0 && tile.is_prefix(row))
      store(parts.stats + part_row(row) * 2, Vector<float, 2>{{row_max.at[r], sum.at[r]}});
  }
}

template <typename T>
struct ToPrefixRows {
  SpaceTimeAttention op;
  __device__ void operator()(int64_t sample, int64_t row, int64_t column, Vector<float, 4> values) const {
    const int64_t head = row / op.prefix, token = row % op.prefix, tokens = op.prefix + op.frames * op.patches;
    Vector<T, 4> narrow;
    for (int i = 0; i < 4; ++i) narrow.at[i] = narrowed<T>(values.at[i]);
    store(op.out.as<T>() + ((sample * tokens + token) * op.heads + head) * op.head_dim + column, narrow);
  }
};

}  // namespace

void space_time_attention_forward(const SpaceTimeAttention& op, Stream stream) {
  const TimePlan plan(op);
  const auto parts = pieces_in<Parts<float>>(op.workspace, op.batch, plan.splits, op.heads * op.prefix, op.head_dim);
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    const auto elements = [&](int span) { return plan.rows * (3 * pitch_of<T>(span) + pitch_of<T>(plan.rows)); };
    with_dim_and_span<T>(op.head_dim, elements, [&](auto dim, int span) {
      launch(forward_kernel<T, dim()>, plan.blocks(op), plan.threads(), elements(span) * int64_t(sizeof(T)), stream, op,
             plan, parts, span);
    });
    if (op.prefix) merge_parts(parts, op.batch, op.stats.as<float>(), ToPrefixRows<T>{op}, stream);
  });
}

int64_t space_time_attention_workspace(const SpaceTimeAttention& op) {
  const int64_t splits = TimePlan(op).splits, rows = op.batch * op.heads * op.prefix;
  const int64_t backward = rows * splits * 3 * op.head_dim;
  const int64_t forward = floats_of<Parts<float>>(op.batch, splits, op.heads * op.prefix, op.head_dim);
  return forward > backward ? forward : backward;
}

}  // namespace hsta::cuda
