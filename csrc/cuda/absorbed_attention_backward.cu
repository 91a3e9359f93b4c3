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
    Vector<float, 2> of_z[kTurns];  // all are asked for before the first is waited for
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) of_z[turn] = load<2>(z + (turn * kColumns + 2 * run.lane) % kWidth);
    float delta = 0;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int column = turn * kColumns + 2 * run.lane;
      if (kWidth % kColumns && column >= kWidth) break;
      const auto grad = widened_pair<T>(*reinterpret_cast<const uint32_t*>(grad_z.at(head, column)));
      delta = multiply_add(of_z[turn].at[0], grad.at[0], multiply_add(of_z[turn].at[1], grad.at[1], delta));
    }
    delta = sum_lanes(delta, 1, kWarp);
    const float sum_u = run.sum_of_head(u, head), sum_grad_z = run.sum_of_head(grad_z, head);
    if (run.lane == 0) of_heads[3 * head] = delta, of_heads[3 * head + 1] = sum_u, of_heads[3 * head + 2] = sum_grad_z;
  }
}

// LayerNorm's backward of 16 × 16 elements, whose gradients take their place: dx = rstd (dy - mean dy - y mean dy·y),
// for each row as (x - of_row[0]) of_row[1] + grad of_row[2] + of_row[3].
template <typename T, int kWidth>
__device__ void put_gradients(const Square& grad, Matrix<T, kWidth> x, const Vector<float, 4>* of_rows) {
  const Vector<float, 4> of_row[2] = {of_rows[Square::row(0)], of_rows[Square::row(1)]};
  grad.each_pair([&](const Vector<float, 2>& grad, int r, int column) {
    auto& word = *reinterpret_cast<uint32_t*>(x.at(Square::row(r), column));
    const auto& of = of_row[r].at;
    Vector<float, 2> pair = widened_pair<T>(word);
#pragma unroll
    for (int c = 0; c < 2; ++c)
      pair.at[c] = multiply_add(pair.at[c] - of[0], of[1], multiply_add(grad.at[c], of[2], of[3]));
    word = narrowed_word<T>(pair);
  });
}

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
  float shift[2] = {};           // of these heads, Σ (ds scale) mean over this warp's rows
  Square grad_u[Run::kSquares];  // (heads, columns) of Σ (ds scale) x
  for (int tile = 0; run.rows_of(tile); ++tile) {
    const auto x = memory.tile(tile);
    const int rows = run.rows_of(tile);
    wait(memory.arrival(tile), tile / 2);
    float products[2][2][2];
    run.multiply_heads(products, memory.heads, tile, x.from(run.warp * kRowsOfWarp, 0),
                       memory.moments + run.warp * kRowsOfWarp);
    const Moments of_row[2] = {memory.moments[row], memory.moments[row + 1]};
    float along_one[2] = {}, along_y[2] = {};  // of this lane's rows and heads, scale · dy and scale · dy·y
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Vector<float, 2> weight, grad;
      float score[2], dp[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        score[r] = (products[0][h][r] - of_row[r].mean * head[h].sum_u) * of_row[r].scale;
        dp[r] = (products[1][h][r] - of_row[r].mean * head[h].sum_grad_z) * of_row[r].scale;
        const float probability = row + r < rows ? exp2(score[r] * kLog2EFloat - top[h]) * share[h] : 0;
        weight.at[r] = probability * of_row[r].scale;
        grad.at[r] = probability * (dp[r] - head[h].delta) * of_row[r].scale;
      }
      const uint32_t weights = narrowed_word<T>(weight), grads = narrowed_word<T>(grad);
      *reinterpret_cast<uint32_t*>(p.at(Square::row(h), row)) = weights;
      *reinterpret_cast<uint32_t*>(ds.at(Square::row(h), row)) = grads;
      weight = widened_pair<T>(weights), grad = widened_pair<T>(grads);  // as the products have them
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        along_one[r] += weight.at[r] * head[h].sum_grad_z + grad.at[r] * head[h].sum_u;
        along_y[r] += weight.at[r] * dp[r] + grad.at[r] * score[r];
        shift[h] += grad.at[r] * of_row[r].mean;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      along_one[r] = sum_lanes(along_one[r], 4, kWarp) / float(kWidth);
      along_y[r] = sum_lanes(along_y[r], 4, kWarp) / float(kWidth);
      const float rest = of_row[r].rstd / of_row[r].scale;  // of rstd, that dy does not have yet
      if (run.lane < 4)
        memory.of_rows[row + r] = {{of_row[r].mean, -along_y[r] * of_row[r].scale * rest, rest, -along_one[r] * rest}};
    }
    block_barrier();
    // All are past the tile before, and its gradients have had this long to leave the place.
    if (tile) run.bring(tile + 1, memory);

    constexpr int kParts = Run::kTile / kSquare;  // of the rows
    LeftFactor<T> ds_of_heads[kParts], ds_of_rows[kParts], p_of_rows[kParts];
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      ds_of_heads[k] = left_factor<Stored::kAsIs>(ds.from(0, k * kSquare));
      ds_of_rows[k] = left_factor<Stored::kTransposed>(ds.from(0, k * kSquare));
      p_of_rows[k] = left_factor<Stored::kTransposed>(p.from(0, k * kSquare));
    }
    run.each_square([&](int i, int column) {
      const auto dz_here = right_factor(grad_z.from(0, column)), u_here = right_factor(u.from(0, column));
      Square grads[kParts];  // (rows, columns) of scale · dy
#pragma unroll
      for (int k = 0; k < kParts; ++k) {
        multiply(grad_u[i], ds_of_heads[k], right_factor(x.from(k * kSquare, column)));
        multiply(grads[k], p_of_rows[k], dz_here);
        multiply(grads[k], ds_of_rows[k], u_here);
      }
      warp_barrier();  // all lanes are done with x, whose place its gradient takes
#pragma unroll
      for (int k = 0; k < kParts; ++k)
        put_gradients(grads[k], x.from(k * kSquare, column), memory.of_rows + k * kSquare);
    });
    order_before_copies();
    block_barrier();
    run.store_gradients(tile, x);
  }
  if (run.warp == 0) wait_stores();
  block_barrier();

  // The tiles' place is free: the block's sums, for the cluster to see.
  const auto sums = memory.sums();
  run.each_square([&](int i, int column) { put(grad_u[i], sums.from(0, column)); });
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    shift[h] = sum_lanes(shift[h], 1, 4);
    if (run.lane % 4 == 0) memory.of_warps[Square::row(h) * kWarps + run.warp] = shift[h];
  }
  cluster_barrier();
  run.each_share([&](int head, int column) {
    Vector<float, 4> values{};
    for (int block = 0; block < cluster_size(); ++block) {
      const auto& part = *reinterpret_cast<const Vector<float, 4>*>(in_block(sums.at(head, column), block));
      const float* of_warps = in_block(memory.of_warps + head * kWarps, block);
      float of_shift = 0;
      for (int warp = 0; warp < kWarps; ++warp) of_shift += of_warps[warp];
      for (int c = 0; c < 4; ++c) values.at[c] += part.at[c] - of_shift;
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
