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

// δ += dO·O over some columns, of the prefix queries among 16: their rows of the softmax are spread over the blocks. By
// the same kind of product as dp, so that with a one-hot p they cancel exactly.
template <typename T>
__device__ void add_output_products(const TimeTile& tile, const Tiles<T>& tiles, int first, int columns,
                                    RowPair& delta) {
  const auto on_diagonal = [&](int r, int token) { return first + Square::row(r) - tile.plan.patch_rows == token; };
  Square products;
  products.each([&](float& value, int r, int token) { value = on_diagonal(r, token) ? delta.at[r] : 0; });
  multiply<Stored::kAsIs, Stored::kTransposed>(products, tiles.grad.from(first, 0), tiles.prefix_out, columns);
  products.each([&](float value, int r, int token) {
    if (on_diagonal(r, token)) delta.at[r] = value;
  });
}

// Probabilities, and the scores' gradients but for `scale`, of 16 queries: into tiles.p and tiles.ds. What comes in are
// the products q·k and dO·v, and δ of prefix queries.
template <typename T>
__device__ void score_gradients(const TimeTile& tile, uint32_t visible, const Tiles<T>& tiles, int first,
                                Square (&p)[kMaxSquares], Square (&dp)[kMaxSquares], const RowPair& prefix_delta) {
  RowPair row_max = to_scores<T>(tile, visible, first, p), sum, delta;
  each_visible(visible, [&](int square) {
    p[square].each([&](float value, int r, int) { sum.at[r] += exp2(value - row_max.at[r]); });
  });
  sum.combine([](float a, float b) { return a + b; });
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first + Square::row(r);
    if (!tile.is_prefix(row)) {
      if (!tile.is_patch(row)) sum.at[r] = 1;  // padding: its probabilities are to be 0
      continue;
    }
    const int64_t index = (tile.sample * tile.op.heads + tile.head) * tile.prefix + row - tile.plan.patch_rows;
    const auto stats = load<2>(tile.op.stats.as<float>() + index * 2);
    row_max.at[r] = stats.at[0], sum.at[r] = stats.at[1];
  }

  each_visible(visible, [&](int square) {
    p[square].each([&](float& value, int r, int) { value = quotient<T>(exp2(value - row_max.at[r]), sum.at[r]); });
    put(p[square], tiles.p.from(first, square * kSquare));
    each_of(p[square], dp[square], [&](float p, float& dp, int r) { delta.at[r] = multiply_add(p, dp, delta.at[r]); });
  });
#pragma unroll
  for (int r = 0; r < 2; ++r)
    if (tile.is_prefix(first + Square::row(r))) delta.at[r] = prefix_delta.at[r];
  delta.combine([](float a, float b) { return a + b; });
  each_visible(visible, [&](int square) {
    each_of(p[square], dp[square], [&](float p, float& dp, int r) { dp = p * (dp - delta.at[r]); });
    put(dp[square], tiles.ds.from(first, square * kSquare));
  });
}

template <typename T, int kDim>
__global__ void __launch_bounds__(2 * kMaxRows, 3)
    backward_kernel(const __grid_constant__ SpaceTimeAttention op, const __grid_constant__ TimePlan plan, int span) {
  const TimeTile tile(op, plan);
  const HeadDim<T, kDim> d(op.head_dim, span);
  const Tiles<T> tiles(plan.rows, d.pitch);
  const int first = thread_index() / kWarp * kSquare;
  const uint32_t visible = tile.visible_squares(first / kSquare);

  const auto copy_all_but_v = [&](int column) {
    tile.copy_part(0, d, column, tiles.q);
    tile.copy_part(1, d, column, tiles.k);
    const T* grad_out = op.grad_out.at<const T>(tile.sample, 0, tile.head);
    tile.copy_rows(grad_out, op.grad_out.stride[1], d, column, tiles.grad);
  };
  Square p[kMaxSquares], dp[kMaxSquares];
  RowPair prefix_delta;
  for (int column = 0; column < d.padded; column += d.span) {
    if (column) block_barrier();  // all are done with the columns before
    copy_all_but_v(column);
    tile.copy_part(2, d, column, tiles.v);
    if (tile.prefix) {
      const T* out = op.out.as<const T>() + (tile.sample * tile.tokens() * op.heads + tile.head) * d.dim;
      tile.copy_prefix(out, op.heads * d.dim, d, column, tiles.prefix_out);
    }
    commit_copies();
    wait_copies<0>();
    block_barrier();
    const Matrix<T> q = tiles.q.from(first, 0), grad = tiles.grad.from(first, 0);
    const int columns = d.columns(column);
    if (tile.has_prefix(first / kSquare)) add_output_products(tile, tiles, first, columns, prefix_delta);
    each_visible(visible, [&](int square) {
      multiply<Stored::kAsIs, Stored::kTransposed>(p[square], q, tiles.k.from(square * kSquare, 0), columns);
      multiply<Stored::kAsIs, Stored::kTransposed>(dp[square], grad, tiles.v.from(square * kSquare, 0), columns);
    });
  }
  score_gradients(tile, visible, tiles, first, p, dp, prefix_delta);
  block_barrier();

  // The same 16 rows, as queries and as keys. Gradients take the place of their values, to be written in rows.
  const auto write = [&](int begin, int part, float factor, auto&& product) {
    for (int column = 0; column < d.columns(begin); column += kSquare) {
      Square sum;
      each_visible(visible, [&](int square) { product(sum, square * kSquare, column); });
      sum.each([&](float& value, int, int) { value *= factor; });
      sum.each_pair([&](Vector<float, 2> values, int r, int c) {
        const int row = first + Square::row(r), to = begin + column + c;
        if (!tile.is_prefix(row) || to >= d.dim) return;
        const int64_t at = ((tile.sample * plan.splits + tile.split) * 3 + part) * op.heads + tile.head;
        store(op.workspace + (at * op.prefix + row - plan.patch_rows) * d.dim + to, values);
      });
      put(sum, tiles.v.from(first, column));
    }
    warp_barrier();
    T* to = op.grad_qkv[part].at<T>(tile.sample, 0, tile.head);
    tile.store_rows(tiles.v, first, d.valid_columns(begin), to + begin, op.grad_qkv[part].stride[1]);
    warp_barrier();
  };
  const float scale = float(op.scale);
  for (int begin = d.last_span(); begin >= 0; begin -= d.span) {  // backwards: the last columns are here
    if (begin < d.last_span()) {
      block_barrier();
      copy_all_but_v(begin);
      commit_copies();
      wait_copies<0>();
      block_barrier();
    }
    write(begin, 0, scale, [&](Square& sum, int key, int column) {
      multiply<Stored::kAsIs, Stored::kAsIs>(sum, tiles.ds.from(first, key), tiles.k.from(key, column), kSquare);
    });
    write(begin, 1, scale, [&](Square& sum, int query, int column) {
      multiply<Stored::kTransposed, Stored::kAsIs>(sum, tiles.ds.from(query, first), tiles.q.from(query, column),
                                                   kSquare);
    });
    write(begin, 2, 1, [&](Square& sum, int query, int column) {
      multiply<Stored::kTransposed, Stored::kAsIs>(sum, tiles.p.from(query, first), tiles.grad.from(query, column),
                                                   kSquare);
    });
  }
}

template <typename T>
struct ToPrefixGradients {
  SpaceTimeAttention op;
  // `i` counts (3, heads, prefix, head_dim).
  __device__ void operator()(int64_t sample, int64_t i, const Vector<float, 4>& values) const {
    const int64_t column = i % op.head_dim, token = i / op.head_dim % op.prefix;
    const int64_t part_and_head = i / op.head_dim / op.prefix;
    Vector<T, 4> narrow;
    for (int c = 0; c < 4; ++c) narrow.at[c] = narrowed<T>(values.at[c]);
    const TensorView& grad = op.grad_qkv[part_and_head / op.heads];
    store(grad.at<T>(sample, token, part_and_head % op.heads) + column, narrow);
  }
};

}  // namespace

void space_time_attention_backward(const SpaceTimeAttention& op, Stream stream) {
  const TimePlan plan(op);
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    const auto elements = [&](int span) { return Tiles<T>::elements(plan.rows, pitch_of<T>(span)); };
    with_dim_and_span<T>(op.head_dim, elements, [&](auto dim, int span) {
      launch(backward_kernel<T, dim()>, plan.blocks(op), plan.threads(), elements(span) * int64_t(sizeof(T)), stream,
             op, plan, span);
    });
    const int64_t size = 3 * op.heads * op.prefix * op.head_dim;
    if (op.prefix) sum_parts(op.workspace, op.batch, plan.splits, size, ToPrefixGradients<T>{op}, stream);
  });
}

}  // namespace hsta::cuda
