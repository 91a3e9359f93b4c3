// Attention over time, backward: the tiles of the forward pass, with every tensor read once and the gradients written
// once. Whole rows of the softmax are on chip: δ = Σ p·dp needs no output, but for prefix queries. The prefix tokens
// collect gradients from all blocks: each leaves its part, and a second kernel adds them up.
#include "time_tile.h"

namespace hsta::cuda {
namespace {

// A tile's matrices in shared memory.
template <typename T>
struct Tiles {
  Matrix<T> q, k, v, grad, prefix_out, p, ds;

  __device__ Tiles(int rows, int pitch)
      : q{shared_memory<T>(), pitch},
        k(q.from(rows, 0)),
        v(k.from(rows, 0)),
        grad(v.from(rows, 0)),
        prefix_out(grad.from(rows, 0)),
        p{prefix_out.at(kSquare, 0), pitch_of<T>(rows)},
        ds(p.from(rows, 0)) {}

  static int64_t elements(int rows, int pitch) { return (4 * rows + kSquare) * pitch + 2 * rows * pitch_of<T>(rows); }
};

// Probabilities, and the scores' gradients but for `scale`, of 16 queries: into tiles.p and tiles.ds.
template <typename T>
__device__ void score_gradients(const TimeTile& tile, uint32_t seen, const Tiles<T>& tiles, int first, int padded) {
  Square p[kMaxSquares], dp[kMaxSquares];
  RowPair top = scores(tile, seen, tiles.q, tiles.k, first, padded, p), sum, delta;
  each_seen(seen, [&](int square) {
    p[square].each([&](float value, int r, int) { sum.at[r] += exp2(value - top.at[r]); });
  });
  sum.combine([](float a, float b) { return a + b; });
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first + Square::row(r);
    if (sum.at[r] == 0) sum.at[r] = 1;  // padding: its probabilities are to be 0
    if (!tile.is_prefix(row)) continue;
    const int64_t index = (tile.sample * tile.op.heads + tile.head) * tile.prefix + row - tile.plan.patch_rows;
    const auto stats = load<2>(tile.op.stats + index * 2);
    top.at[r] = stats.at[0], sum.at[r] = stats.at[1];
  }

  const Matrix<T> grad = tiles.grad.from(first, 0);
  each_seen(seen, [&](int square) {
    p[square].each([&](float& value, int r, int) { value = quotient<T>(exp2(value - top.at[r]), sum.at[r]); });
    put(p[square], tiles.p.from(first, square * kSquare));
    multiply<Stored::kAsIs, Stored::kTransposed>(dp[square], grad, tiles.v.from(square * kSquare, 0), padded);
    each_of(p[square], dp[square], [&](float p, float& dp, int r) { delta.at[r] = multiply_add(p, dp, delta.at[r]); });
  });
  if (tile.has_prefix(first / kSquare)) {
    // A prefix query's row is spread over the blocks. δ = dO·O, by the same kind of product as dp, so that with a
    // one-hot p they cancel exactly.
    Square products;
    multiply<Stored::kAsIs, Stored::kTransposed>(products, grad, tiles.prefix_out, padded);
    products.each([&](float& value, int r, int token) {
      if (first + Square::row(r) - tile.plan.patch_rows != token) value = 0;  // keep the diagonal
    });
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (tile.is_prefix(first + Square::row(r))) delta.at[r] = products.sum(r);
  }
  delta.combine([](float a, float b) { return a + b; });
  each_seen(seen, [&](int square) {
    each_of(p[square], dp[square], [&](float p, float& dp, int r) { dp = p * (dp - delta.at[r]); });
    put(dp[square], tiles.ds.from(first, square * kSquare));
  });
}

template <typename T, int kDim>
__global__ void __launch_bounds__(2 * kMaxRows, 3)
    backward_kernel(const __grid_constant__ SpaceTimeAttention op, const __grid_constant__ TimePlan plan) {
  const TimeTile tile(op, plan);
  const HeadDim<T, kDim> d(op.head_dim);
  const Tiles<T> tiles(plan.rows, d.pitch);
  tile.copy_rows(tile.part<T>(0), op.qkv_stride_token, d.dim, d.padded, tiles.q);
  tile.copy_rows(tile.part<T>(1), op.qkv_stride_token, d.dim, d.padded, tiles.k);
  tile.copy_rows(tile.part<T>(2), op.qkv_stride_token, d.dim, d.padded, tiles.v);
  const T* grad_out =
      static_cast<const T*>(op.grad_out) + tile.sample * op.grad_out_stride_batch + tile.head * op.grad_out_stride_head;
  tile.copy_rows(grad_out, op.grad_out_stride_token, d.dim, d.padded, tiles.grad);
  const T* out = static_cast<const T*>(op.out) + (tile.sample * tile.tokens() * op.heads + tile.head) * d.dim;
  if (tile.prefix) tile.copy_prefix(out, op.heads * d.dim, d.dim, d.padded, tiles.prefix_out);
  commit_copies();
  wait_copies<0>();
  block_barrier();

  const int first = thread_index() / kWarp * kSquare;
  const uint32_t seen = tile.seen(first / kSquare);
  if (seen) score_gradients(tile, seen, tiles, first, d.padded);
  block_barrier();
  if (!seen) return;

  // The same 16 rows, as queries and as keys. Gradients take the place of their values, to be written in rows.
  const auto write = [&](int part, float factor, auto&& product) {
    for (int column = 0; column < d.padded; column += kSquare) {
      Square sum;
      each_seen(seen, [&](int square) { product(sum, square * kSquare, column); });
      sum.each([&](float& value, int, int) { value *= factor; });
      sum.each_pair([&](Vector<float, 2> values, int r, int c) {
        const int row = first + Square::row(r);
        if (!tile.is_prefix(row) || column + c >= d.dim) return;
        const int64_t at = ((tile.sample * plan.slots + tile.slot) * 3 + part) * op.heads + tile.head;
        store(op.workspace + (at * op.prefix + row - plan.patch_rows) * d.dim + column + c, values);
      });
      put(sum, tiles.v.from(first, column));
    }
    warp_barrier();
    T* to = static_cast<T*>(op.grad_qkv) + ((tile.sample * tile.tokens() * 3 + part) * op.heads + tile.head) * d.dim;
    tile.store_rows(tiles.v, first, d.dim, to, 3 * op.heads * d.dim);
    warp_barrier();
  };
  const float scale = float(op.scale);
  write(0, scale, [&](Square& sum, int key, int column) {
    multiply<Stored::kAsIs, Stored::kAsIs>(sum, tiles.ds.from(first, key), tiles.k.from(key, column), kSquare);
  });
  write(1, scale, [&](Square& sum, int query, int column) {
    multiply<Stored::kTransposed, Stored::kAsIs>(sum, tiles.ds.from(query, first), tiles.q.from(query, column),
                                                 kSquare);
  });
  write(2, 1, [&](Square& sum, int query, int column) {
    multiply<Stored::kTransposed, Stored::kAsIs>(sum, tiles.p.from(query, first), tiles.grad.from(query, column),
                                                 kSquare);
  });
}

template <typename T>
struct ToPrefixGradients {
  SpaceTimeAttention op;
  // `i` counts (3, heads, prefix, head_dim).
  __device__ void operator()(int64_t sample, int64_t i, const Vector<float, 4>& values) const {
    const int64_t column = i % op.head_dim, token = i / op.head_dim % op.prefix;
    const int64_t part_and_head = i / op.head_dim / op.prefix, tokens = op.prefix + op.frames * op.patches;
    Vector<T, 4> narrow;
    for (int c = 0; c < 4; ++c) narrow.at[c] = narrowed<T>(values.at[c]);
    const int64_t row = (sample * tokens + token) * 3 * op.heads + part_and_head;
    store(static_cast<T*>(op.grad_qkv) + row * op.head_dim + column, narrow);
  }
};

}  // namespace

int64_t space_time_attention_shared_memory(const SpaceTimeAttention& op) {
  int64_t bytes = 0;
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    bytes = Tiles<T>::elements(TimePlan(op).rows, HeadDim<T, 0>(op.head_dim).pitch) * int64_t(sizeof(T));
  });
  return bytes;
}

void space_time_attention_backward(const SpaceTimeAttention& op, Stream stream) {
  const TimePlan plan(op);
  const int64_t shared_bytes = space_time_attention_shared_memory(op);
  with_type_and_dim(op, [&](auto element, auto dim) {
    using T = decltype(element);
    launch(backward_kernel<T, dim()>, plan.blocks(op), plan.threads(), shared_bytes, stream, op, plan);
  });
  if (!op.prefix) return;
  const int64_t size = 3 * op.heads * op.prefix * op.head_dim;
  with_type(op.dtype, [&](auto element) {
    sum_parts(op.workspace, op.batch, plan.slots, size, ToPrefixGradients<decltype(element)>{op}, stream);
  });
}

}  // namespace hsta::cuda
