// Absorbed attention, forward: tokens are read once, as they are. The softmax goes along, a tile of rows at a time, as
// in flash attention.
#include "absorbed_rows.h"

namespace hsta::cuda {
namespace {

template <typename T, int kWidth, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp, 1)
    forward_kernel(const __grid_constant__ AbsorbedAttention op, const __grid_constant__ Shares shares) {
  using Run = Rows<T, kWidth, kWarps>;
  const Run run(op, shares);
  const Memory<T, kWidth, kWarps, 1> memory;
  const auto p = memory.scores[0];
  run.start(memory);
  run.load_heads(op.u.as<const float>(), memory.heads[0]);
  block_barrier();
  for (int head = run.warp; head < kHeads; head += kWarps) {
    const float sum = run.sum_of_head(memory.heads[0], head);
    if (run.lane == 0) memory.of_heads[head] = sum;
  }
  block_barrier();

  // This lane has scores of two rows and two heads. Of these heads are what follows; the sums are of this warp's rows.
  const int row = run.warp * kRowsOfWarp + run.lane % 4 * 2;
  const float sum_u[2] = {memory.of_heads[Square::row(0)], memory.of_heads[Square::row(1)]};
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  float multiplied[2] = {}, shift[2] = {};  // Σ p and Σ (p scale) mean, of p scale as it is multiplied
  Square z[Run::kSquares];                  // (heads, columns) of Σ (p scale) x
  for (int tile = 0; run.rows_of(tile); ++tile) {
    const auto x = memory.tile(tile);
    const int rows = run.rows_of(tile);
    wait(memory.arrival(tile), tile / 2);
    float products[1][2][2];
    run.multiply_heads(products, memory.heads, tile, x.from(run.warp * kRowsOfWarp, 0),
                       memory.moments + run.warp * kRowsOfWarp);
    const Moments of_row[2] = {memory.moments[row], memory.moments[row + 1]};
    float scores[2][2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float score = (products[0][h][r] - of_row[r].mean * sum_u[h]) * of_row[r].scale;
        scores[h][r] = row + r < rows ? score * kLog2EFloat : -INFINITY;
      }
      float most = fmaxf(scores[h][0], scores[h][1]);
      for (int mask = 1; mask < 4; mask *= 2) most = fmaxf(most, shuffle_xor(most, mask));
      if (run.lane % 4 == 0) memory.of_warps[Square::row(h) * kWarps + run.warp] = most;
    }
    block_barrier();
    float correction[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = top[h];
      for (int warp = 0; warp < kWarps; ++warp) most = fmaxf(most, memory.of_warps[Square::row(h) * kWarps + warp]);
      const float weights[2] = {exp2(scores[h][0] - most), exp2(scores[h][1] - most)};
      const uint32_t scaled = narrowed_word<T>({{weights[0] * of_row[0].scale, weights[1] * of_row[1].scale}});
      *reinterpret_cast<uint32_t*>(p.at(Square::row(h), row)) = scaled;
      const Vector<float, 2> as_multiplied = widened_pair<T>(scaled);
      correction[h] = exp2(top[h] - most);
      sum[h] = sum[h] * correction[h] + weights[0] + weights[1];
      multiplied[h] *= correction[h], shift[h] *= correction[h];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        multiplied[h] += as_multiplied.at[r] * of_row[r].inverse_scale;
        shift[h] += as_multiplied.at[r] * of_row[r].mean;
      }
      top[h] = most;
    }
    block_barrier();
    LeftFactor<T> weights[Run::kTile / kSquare];
#pragma unroll
    for (int k = 0; k < Run::kTile / kSquare; ++k) weights[k] = left_factor<Stored::kAsIs>(p.from(0, k * kSquare));
    run.each_square([&](int i, int column) {
      z[i].each([&](float& value, int r, int) { value *= correction[r]; });
#pragma unroll
      for (int k = 0; k < Run::kTile / kSquare; ++k)
        multiply(z[i], weights[k], right_factor(x.from(k * kSquare, column)));
    });
    order_before_copies();
    block_barrier();
    run.bring(tile + 2, memory);
  }

  // The tiles' place is free: the block's softmax, for the cluster to see.
  const auto sums = memory.sums();
  run.each_square([&](int i, int column) { put(z[i], sums.from(0, column)); });
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float* of_warp = memory.of_warps + 3 * (Square::row(h) * kWarps + run.warp);
    const float sums[3] = {sum_lanes(sum[h], 1, 4), sum_lanes(multiplied[h], 1, 4), sum_lanes(shift[h], 1, 4)};
    if (run.lane % 4 == 0) of_warp[0] = sums[0], of_warp[1] = sums[1], of_warp[2] = sums[2];
    if (run.lane % 4 == 0 && run.warp == 0) memory.of_heads[4 * Square::row(h)] = top[h];
  }
  block_barrier();
  if (const int head = thread_index(); head < kHeads) {
    float* of_head = memory.of_heads + 4 * head;
    of_head[1] = of_head[2] = of_head[3] = 0;
    for (int warp = 0; warp < kWarps; ++warp)
      for (int i = 0; i < 3; ++i) of_head[1 + i] += memory.of_warps[3 * (head * kWarps + warp) + i];
  }
  cluster_barrier();

  run.each_share([&](int head, int column) {
    float most = -INFINITY, sum = 0, multiplied = 0;
    for (int block = 0; block < cluster_size(); ++block)
      most = fmaxf(most, *in_block(memory.of_heads + 4 * head, block));
    Vector<float, 4> values{};
    for (int block = 0; block < cluster_size(); ++block) {
      const float* of_head = in_block(memory.of_heads + 4 * head, block);  // maximum, sum, multiplied, shift
      const auto& part = *reinterpret_cast<const Vector<float, 4>*>(in_block(sums.at(head, column), block));
      const float share = exp2(of_head[0] - most);
      sum += of_head[1] * share, multiplied += of_head[2] * share;
      for (int c = 0; c < 4; ++c) values.at[c] = multiply_add(part.at[c] - of_head[3], share, values.at[c]);
    }
    // Weights as they are multiplied, whose sum is not quite the probabilities': where one key has all the weight, z is
    // its y, or the backward pass would see a gradient of scores that is not there.
    for (float& value : values.at) value /= multiplied;
    const int64_t at = run.sample * op.heads + head;
    store(op.z.as<float>() + at * kWidth + column, values);
    if (column == 0) store(op.stats.as<float>() + at * 2, Vector<float, 2>{{most, sum}});
  });
  cluster_barrier();  // nobody leaves whose shared memory is being read
}

}  // namespace

void absorbed_attention_forward(const AbsorbedAttention& op, Stream stream) {
  constexpr int kWarps = 8;
  const Shares shares(op);
  with_constants(op.dtype, op.width, [&](auto element, auto width) {
    using T = decltype(element);
    launch(forward_kernel<T, width(), kWarps>, op.batch * shares.blocks, shares.blocks, kWarps * kWarp,
           Memory<T, width(), kWarps, 1>::kBytes, stream, op, shares);
  });
}

}  // namespace hsta::cuda
