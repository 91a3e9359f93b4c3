// Attention over time, forward: every row of the softmax is on chip, so q, k and v are read once and the output is
// written once. A prefix query sees the places of all blocks: each leaves its part, and a second kernel merges them.
#include "merge.h"
#include "time_tile.h"

namespace hsta::cuda {
namespace {

template <typename T, int kDim>
__global__ void __launch_bounds__(2 * kMaxRows, 3)
    forward_kernel(const __grid_constant__ SpaceTimeAttention op, const __grid_constant__ TimePlan plan,
                   const Parts<float> parts) {
  const TimeTile tile(op, plan);
  const HeadDim<T, kDim> d(op.head_dim);
  const Matrix<T> q{shared_memory<T>(), d.pitch}, k = q.from(plan.rows, 0), v = k.from(plan.rows, 0);
  const Matrix<T> p{v.at(plan.rows, 0), pitch_of<T>(plan.rows)};
  tile.copy_rows(tile.part<T>(0), op.qkv_stride_token, d.dim, d.padded, q);
  tile.copy_rows(tile.part<T>(1), op.qkv_stride_token, d.dim, d.padded, k);
  tile.copy_rows(tile.part<T>(2), op.qkv_stride_token, d.dim, d.padded, v);
  commit_copies();
  wait_copies<0>();
  block_barrier();

  const int first = thread_index() / kWarp * kSquare;
  const uint32_t seen = tile.seen(first / kSquare);
  if (!seen) return;
  Square s[kMaxSquares];
  const RowPair top = scores(tile, seen, q, k, first, d.padded, s);
  RowPair sum;
  each_seen(seen, [&](int square) {
    s[square].each([&](float& value, int r, int) {
      value = exp2(value - top.at[r]);
      sum.at[r] += value;
    });
    put(s[square], p.from(first, square * kSquare));
  });
  sum.combine([](float a, float b) { return a + b; });
  warp_barrier();

  // Outputs take the place of the warp's queries, to be written in rows.
  const auto part_row = [&](int row) {
    return parts.row(tile.sample, tile.slot, tile.head * op.prefix + row - plan.patch_rows);
  };
  for (int column = 0; column < d.padded; column += kSquare) {
    Square o;
    each_seen(seen, [&](int square) {
      multiply<Stored::kAsIs, Stored::kAsIs>(o, p.from(first, square * kSquare), v.from(square * kSquare, column),
                                             kSquare);
    });
    o.each([&](float& value, int r, int) { value = quotient<T>(value, sum.at[r]); });
    o.each_pair([&](const Vector<float, 2>& values, int r, int c) {
      const int row = first + Square::row(r);
      if (tile.is_prefix(row) && column + c < d.dim) store(parts.values + part_row(row) * d.dim + column + c, values);
    });
    put(o, q.from(first, column));
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first + Square::row(r);
    if (thread_index() % 4 == 0 && tile.is_prefix(row))
      store(parts.stats + part_row(row) * 2, Vector<float, 2>{{top.at[r], sum.at[r]}});
  }
  warp_barrier();
  tile.store_rows(q, first, d.dim,
                  static_cast<T*>(op.out) + (tile.sample * tile.tokens() * op.heads + tile.head) * d.dim,
                  op.heads * d.dim);
}

template <typename T>
struct ToPrefixRows {
  SpaceTimeAttention op;
  __device__ void operator()(int64_t sample, int64_t row, int64_t column, Vector<float, 4> values) const {
    const int64_t head = row / op.prefix, token = row % op.prefix, tokens = op.prefix + op.frames * op.patches;
    Vector<T, 4> narrow;
    for (int i = 0; i < 4; ++i) narrow.at[i] = narrowed<T>(values.at[i]);
    store(static_cast<T*>(op.out) + ((sample * tokens + token) * op.heads + head) * op.head_dim + column, narrow);
  }
};

}  // namespace

void space_time_attention_forward(const SpaceTimeAttention& op, Stream stream) {
  const TimePlan plan(op);
  const Parts<float> parts(op.workspace, op.batch, plan.slots, op.heads * op.prefix, op.head_dim);
  with_type_and_dim(op, [&](auto element, auto dim) {
    using T = decltype(element);
    const HeadDim<T, dim()> d(op.head_dim);
    const int64_t shared_bytes = plan.rows * (3 * d.pitch + pitch_of<T>(plan.rows)) * int64_t(sizeof(T));
    launch(forward_kernel<T, dim()>, plan.blocks(op), plan.threads(), shared_bytes, stream, op, plan, parts);
  });
  if (!op.prefix) return;
  with_type(op.dtype,
            [&](auto element) { merge_parts(parts, op.batch, op.stats, ToPrefixRows<decltype(element)>{op}, stream); });
}

int64_t space_time_attention_workspace(const SpaceTimeAttention& op) {
  const int64_t slots = TimePlan(op).slots, rows = op.batch * op.heads * op.prefix;
  const int64_t backward = rows * slots * 3 * op.head_dim;
  const int64_t forward = Parts<float>::floats(op.batch, slots, op.heads * op.prefix, op.head_dim);
  return forward > backward ? forward : backward;
}

}  // namespace hsta::cuda
