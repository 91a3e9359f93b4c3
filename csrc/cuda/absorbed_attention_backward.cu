// Absorbed attention, backward: also a single pass over the tokens. With y a normalized row and p its probabilities,
// dp = dz·y, ds = p (dp - dz·z), du = Σ ds y and dy = Σ_h p dz + ds u; then LayerNorm's backward of the same row, of
// which dy's part along y and along the constant vector changes nothing. These parts follow from the products:
// Σ dy = Σ_h p Σ dz + ds Σ u and Σ dy·y = Σ_h p dp + ds (u·y).
#include "absorbed_rows.h"

namespace hsta::cuda {
namespace {

// What a head has of its own.
struct OfHead {
  float delta, sum_u, sum_grad_z;  // dz·z, and the sums over the columns of what products have
};

// Computes it for heads warp, warp + kWarps, ... and leaves three numbers a head.
template <typename T, typename Run>
__device__ void measure_heads(const Run& run, Matrix<T> u, Matrix<T> grad_z, int warps, float* of_heads) {
  for (int head = run.warp; head < kHeads; head += warps) {
    float delta = 0, sum_u = 0, sum_grad_z = 0;
    for (int column = run.lane; column < run.width; column += kWarp) {
      const float grad = widened(*grad_z.at(head, column));
      sum_u += widened(*u.at(head, column)), sum_grad_z += grad;
      if (head < run.op.heads)
        delta = multiply_add(
            load<1>(run.op.z.template as<const float>() + (run.sample * run.op.heads + head) * run.width + column)
                .at[0],
            grad, delta);
    }
    for (int mask = 1; mask < kWarp; mask *= 2) {
      delta += shuffle_xor(delta, mask);
      sum_u += shuffle_xor(sum_u, mask), sum_grad_z += shuffle_xor(sum_grad_z, mask);
    }
    if (run.lane == 0) of_heads[3 * head] = delta, of_heads[3 * head + 1] = sum_u, of_heads[3 * head + 2] = sum_grad_z;
  }
}

// LayerNorm's backward: the gradients of 16 × 16 elements take the place of y. Of a row are the means of dy and of
// dy·y, and 1 / sqrt(var + eps).
template <typename T>
__device__ void put_gradients(const Square& grad_y, Matrix<T> y, const float* of_rows) {
  grad_y.each_pair([&](const Vector<float, 2>& grad, int r, int column) {
    const float* of_row = of_rows + 3 * Square::row(r);
    auto& place = *reinterpret_cast<Vector<T, 2>*>(y.at(Square::row(r), column));
    Vector<float, 2> x;
#pragma unroll
    for (int c = 0; c < 2; ++c) x.at[c] = (grad.at[c] - of_row[0] - widened(place.at[c]) * of_row[1]) * of_row[2];
    place = narrowed_pair<T>(x);
  });
}

template <typename T, int kWarps, int kSquares>
__global__ void __launch_bounds__(kWarps* kWarp, 1)
    backward_kernel(const __grid_constant__ AbsorbedAttention op, const __grid_constant__ Shares shares, int padded) {
  const Rows<T, kWarps, kSquares> run(op, shares, padded);
  const Memory<T, kWarps, 2> memory(padded);
  const Matrix<T> u = memory.heads[0], grad_z = memory.heads[1], p = memory.scores[0], ds = memory.scores[1];
  run.start(memory);
  run.load_heads(op.u.as<const float>(), u);
  run.load_heads(op.grad_z.as<const float>(), grad_z);
  block_barrier();
  measure_heads(run, u, grad_z, kWarps, memory.of_heads);
  block_barrier();

  const int row = run.warp * kRowsOfWarp + run.lane % 4 * 2;  // this lane has scores of two rows and two heads
  OfHead head[2];
  float top[2] = {}, share[2] = {1, 1};  // of these heads: the softmax's maximum, and 1 / its sum
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float* from = memory.of_heads + 3 * Square::row(h);
    head[h] = {from[0], from[1], from[2]};
    if (Square::row(h) >= op.heads) continue;
    const auto stats = load<2>(op.stats.as<const float>() + (run.sample * op.heads + Square::row(h)) * 2);
    top[h] = stats.at[0], share[h] = 1 / stats.at[1];
  }
  Square grad_u[kSquares];  // (heads, columns)
  for (int tile = 0; run.rows_of(tile); ++tile) {
    const Matrix<T> y = memory.tile(tile), of_warp = y.from(run.warp * kRowsOfWarp, 0);
    const int rows = run.rows_of(tile);
    wait(memory.arrival(tile), tile / 2);
    const float rstd = run.normalize(tile, of_warp);
    if (run.lane < kRowsOfWarp) memory.of_rows[3 * (run.warp * kRowsOfWarp + run.lane) + 2] = rstd;
    warp_barrier();
    float scores[2][2], products[2][2];  // with u, and with dz
    multiply_rows(scores, u, of_warp, padded);
    multiply_rows(products, grad_z, of_warp, padded);
    float along_one[2] = {}, along_y[2] = {};  // of this lane's rows and heads
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Vector<float, 2> weight, grad;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        weight.at[r] = row + r < rows ? exp2(scores[h][r] * kLog2EFloat - top[h]) * share[h] : 0;
        grad.at[r] = weight.at[r] * (products[h][r] - head[h].delta);
      }
      const Vector<T, 2> weights = narrowed_pair<T>(weight), grads = narrowed_pair<T>(grad);
      *reinterpret_cast<Vector<T, 2>*>(p.at(Square::row(h), row)) = weights;
      *reinterpret_cast<Vector<T, 2>*>(ds.at(Square::row(h), row)) = grads;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float weight = widened(weights.at[r]), grad = widened(grads.at[r]);
        along_one[r] += weight * head[h].sum_grad_z + grad * head[h].sum_u;
        along_y[r] += weight * products[h][r] + grad * scores[h][r];
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      for (int mask = 4; mask < kWarp; mask *= 2)
        along_one[r] += shuffle_xor(along_one[r], mask), along_y[r] += shuffle_xor(along_y[r], mask);
      float* of_row = memory.of_rows + 3 * (row + r);
      if (run.lane < 4) of_row[0] = along_one[r] / float(op.width), of_row[1] = along_y[r] / float(op.width);
    }
    block_barrier();

    const int depth = int(round_up(rows, kSquare));
    run.each_square([&](int i, int column) {
      multiply<Stored::kAsIs, Stored::kAsIs>(grad_u[i], ds, y.from(0, column), depth);
      warp_barrier();  // all lanes are done with y, whose place its gradient takes
      for (int first = 0; first < depth; first += kSquare) {
        Square grad_y;  // (rows, columns)
        multiply<Stored::kTransposed, Stored::kAsIs>(grad_y, p.from(0, first), grad_z.from(0, column), kHeads);
        multiply<Stored::kTransposed, Stored::kAsIs>(grad_y, ds.from(0, first), u.from(0, column), kHeads);
        put_gradients(grad_y, y.from(first, column), memory.of_rows + 3 * first);
      }
    });
    block_barrier();
    run.store_gradients(tile, y);
    order_before_copies();
    block_barrier();
    run.bring(tile + 2, memory);
  }

  // The tiles' place is free: the block's sums, for the cluster to see.
  const Matrix<float> sums = memory.sums(padded);
  run.each_square([&](int i, int column) { put(grad_u[i], sums.from(0, column)); });
  cluster_barrier();
  run.each_share([&](int head, int column) {
    Vector<float, 4> values{};
    for (int block = 0; block < cluster_size(); ++block) {
      const auto part = *reinterpret_cast<const Vector<float, 4>*>(in_block(sums.at(head, column), block));
      for (int c = 0; c < 4; ++c) values.at[c] += part.at[c];
    }
    store(op.grad_u.as<float>() + (run.sample * op.heads + head) * op.width + column, values);
  });
  cluster_barrier();  // nobody leaves whose shared memory is being read
}

}  // namespace

void absorbed_attention_backward(const AbsorbedAttention& op, Stream stream) {
  constexpr int kWarps = 6;
  const Shares shares(op);
  const int padded = padded_width(op.width);
  with_half_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    with_squares<kWarps>(op.width, [&](auto squares) {
      launch(backward_kernel<T, kWarps, squares()>, op.batch * shares.blocks, shares.blocks, kWarps * kWarp,
             Memory<T, kWarps, 2>::bytes(padded), stream, op, shares, padded);
    });
  });
}

}  // namespace hsta::cuda
