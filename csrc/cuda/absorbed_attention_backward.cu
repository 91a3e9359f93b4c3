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
template <typename T, int kWidth, int kWarps>
__device__ void measure_heads(const Rows<T, kWidth, kWarps>& run, Matrix<T, kWidth> u, Matrix<T, kWidth> grad_z,
                              float* of_heads) {
  constexpr int kColumns = 2 * kWarp, kTurns = (kWidth + kColumns - 1) / kColumns;
#pragma unroll 1
  for (int head = run.warp; head < kHeads; head += kWarps) {
    const float* z = run.row_of_head(run.op.z.template as<const float>(), head);
    Vector<float, 2> of_z[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) of_z[turn] = load<2>(z + (turn * kColumns + 2 * run.lane) % kWidth);
    float delta = 0, sum_u = 0, sum_grad_z = 0;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int column = turn * kColumns + 2 * run.lane;
      if (kWidth % kColumns && column >= kWidth) break;
      const auto of_u = widened_pair<T>(*reinterpret_cast<const uint32_t*>(u.at(head, column)));
      const auto grad = widened_pair<T>(*reinterpret_cast<const uint32_t*>(grad_z.at(head, column)));
      sum_u += of_u.at[0] + of_u.at[1], sum_grad_z += grad.at[0] + grad.at[1];
      delta = multiply_add(of_z[turn].at[0], grad.at[0], multiply_add(of_z[turn].at[1], grad.at[1], delta));
    }
    for (int mask = 1; mask < kWarp; mask *= 2) {
      delta += shuffle_xor(delta, mask);
      sum_u += shuffle_xor(sum_u, mask), sum_grad_z += shuffle_xor(sum_grad_z, mask);
    }
    if (run.lane == 0)
      of_heads[3 * head] = delta, of_heads[3 * head + 1] = sum_u, of_heads[3 * head + 2] = sum_grad_z;
  }
}

// LayerNorm's backward, dx = rstd (dy - mean dy - y mean dy·y), of a lane's two rows of a square.
struct OfRows {
  float rstd[2], shift[2], along_y[2];

  // Of a row are the means of dy and of dy·y, and 1 / sqrt(var + eps).
  __device__ explicit OfRows(const float* of_rows) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float* from = of_rows + 3 * Square::row(r);
      rstd[r] = from[2], shift[r] = -from[0] * from[2], along_y[r] = -from[1] * from[2];
    }
  }

  // The gradients of 16 × 16 elements take the place of y.
  template <typename T, int kWidth>
  __device__ void put_gradients(const Square& grad_y, Matrix<T, kWidth> y) const {
    grad_y.each_pair([&](const Vector<float, 2>& grad, int r, int column) {
      auto& word = *reinterpret_cast<uint32_t*>(y.at(Square::row(r), column));
      Vector<float, 2> pair = widened_pair<T>(word);
#pragma unroll
      for (int c = 0; c < 2; ++c)
        pair.at[c] = multiply_add(pair.at[c], along_y[r], multiply_add(grad.at[c], rstd[r], shift[r]));
      word = narrowed_word<T>(pair);
    });
  }
};

template <typename T, int kWidth, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp, 1)
    backward_kernel(const __grid_constant__ AbsorbedAttention op, const __grid_constant__ Shares shares) {
  using Run = Rows<T, kWidth, kWarps>;
  const Run run(op, shares);
  const Memory<T, kWidth, kWarps, 2> memory;
  const auto u = memory.heads[0], grad_z = memory.heads[1];
  const auto p = memory.scores[0], ds = memory.scores[1];
  run.start(memory);
  run.load_heads(op.u.as<const float>(), u);
  run.load_heads(op.grad_z.as<const float>(), grad_z);
  block_barrier();
  measure_heads(run, u, grad_z, memory.of_heads);
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
  Square grad_u[Run::kSquares];  // (heads, columns)
  for (int tile = 0; run.rows_of(tile); ++tile) {
    const auto y = memory.tile(tile), of_warp = y.from(run.warp * kRowsOfWarp, 0);
    const int rows = run.rows_of(tile);
    wait(memory.arrival(tile), tile / 2);
    const float rstd = run.normalize(tile, of_warp);
    if (run.lane % 4 == 0) memory.of_rows[3 * (run.warp * kRowsOfWarp + run.lane / 4) + 2] = rstd;
    float products[2][2][2];
    multiply_rows(products, memory.heads, of_warp);
    const auto &scores = products[0], &dp = products[1];
    float along_one[2] = {}, along_y[2] = {};  // of this lane's rows and heads
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Vector<float, 2> weight, grad;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        weight.at[r] = row + r < rows ? exp2(scores[h][r] * kLog2EFloat - top[h]) * share[h] : 0;
        grad.at[r] = weight.at[r] * (dp[h][r] - head[h].delta);
      }
      const uint32_t weights = narrowed_word<T>(weight), grads = narrowed_word<T>(grad);
      *reinterpret_cast<uint32_t*>(p.at(Square::row(h), row)) = weights;
      *reinterpret_cast<uint32_t*>(ds.at(Square::row(h), row)) = grads;
      weight = widened_pair<T>(weights), grad = widened_pair<T>(grads);  // as the products have them
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        along_one[r] += weight.at[r] * head[h].sum_grad_z + grad.at[r] * head[h].sum_u;
        along_y[r] += weight.at[r] * dp[h][r] + grad.at[r] * scores[h][r];
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      for (int mask = 4; mask < kWarp; mask *= 2)
        along_one[r] += shuffle_xor(along_one[r], mask), along_y[r] += shuffle_xor(along_y[r], mask);
      float* of_row = memory.of_rows + 3 * (row + r);
      if (run.lane < 4) of_row[0] = along_one[r] / float(kWidth), of_row[1] = along_y[r] / float(kWidth);
    }
    block_barrier();

    run.each_square([&](int i, int column) {
#pragma unroll
      for (int k = 0; k < Run::kTile; k += kSquare)
        multiply(grad_u[i], left_factor<Stored::kAsIs>(ds.from(0, k)), right_factor(y.from(k, column)));
      warp_barrier();  // all lanes are done with y, whose place its gradient takes
      const auto dz_here = right_factor(grad_z.from(0, column)), u_here = right_factor(u.from(0, column));
#pragma unroll
      for (int k = 0; k < Run::kTile; k += kSquare) {
        Square grad_y;  // (rows, columns)
        multiply(grad_y, left_factor<Stored::kTransposed>(p.from(0, k)), dz_here);
        multiply(grad_y, left_factor<Stored::kTransposed>(ds.from(0, k)), u_here);
        OfRows(memory.of_rows + 3 * k).put_gradients(grad_y, y.from(k, column));
      }
    });
    block_barrier();
    run.store_gradients(tile, y);
    order_before_copies();
    block_barrier();
    run.bring(tile + 2, memory);
  }

  // The tiles' place is free: the block's sums, for the cluster to see.
  const auto sums = memory.sums();
  run.each_square([&](int i, int column) { put(grad_u[i], sums.from(0, column)); });
  cluster_barrier();
  run.each_share([&](int head, int column) {
    Vector<float, 4> values{};
    for (int block = 0; block < cluster_size(); ++block) {
      const auto part = *reinterpret_cast<const Vector<float, 4>*>(in_block(sums.at(head, column), block));
      for (int c = 0; c < 4; ++c) values.at[c] += part.at[c];
    }
    store(op.grad_u.as<float>() + (run.sample * op.heads + head) * kWidth + column, values);
  });
  cluster_barrier();  // nobody leaves whose shared memory is being read
}

}  // namespace

void absorbed_attention_backward(const AbsorbedAttention& op, Stream stream) {
  constexpr int kWarps = 6;
  const Shares shares(op);
  with_constants(op.dtype, op.width, [&](auto element, auto width) {
    using T = decltype(element);
    launch(backward_kernel<T, width(), kWarps>, op.batch * shares.blocks, shares.blocks, kWarps * kWarp,
           Memory<T, width(), kWarps, 2>::kBytes, stream, op, shares);
  });
}

}  // namespace hsta::cuda
