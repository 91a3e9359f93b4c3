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

  const int row = run.warp * kRowsOfWarp + run.lane % 4 * 2;  // this lane has scores of two rows and two heads
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};         // of these heads; the sum is of this warp's rows
  Square z[Run::kSquares];                                    // (heads, columns)
  for (int tile = 0; run.rows_of(tile); ++tile) {
    const auto y = memory.tile(tile), of_warp = y.from(run.warp * kRowsOfWarp, 0);
    const int rows = run.rows_of(tile);
    wait(memory.arrival(tile), tile / 2);
    run.normalize(tile, of_warp);
    float products[1][2][2];
    multiply_rows(products, memory.heads, of_warp);
    auto& scores = products[0];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int r = 0; r < 2; ++r) scores[h][r] = row + r < rows ? scores[h][r] * kLog2EFloat : -INFINITY;
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
      const Vector<float, 2> weights{{exp2(scores[h][0] - most), exp2(scores[h][1] - most)}};
      *reinterpret_cast<uint32_t*>(p.at(Square::row(h), row)) = narrowed_word<T>(weights);
      correction[h] = exp2(top[h] - most);
      sum[h] = sum[h] * correction[h] + weights.at[0] + weights.at[1];
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
        multiply(z[i], weights[k], right_factor(y.from(k * kSquare, column)));
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
    for (int mask = 1; mask < 4; mask *= 2) sum[h] += shuffle_xor(sum[h], mask);
    if (run.lane % 4 == 0) memory.of_warps[Square::row(h) * kWarps + run.warp] = sum[h];
    if (thread_index() % 4 == 0 && run.warp == 0) memory.of_heads[2 * Square::row(h)] = top[h];
  }
  block_barrier();
  if (thread_index() < kHeads) {
    float total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += memory.of_warps[thread_index() * kWarps + warp];
    memory.of_heads[2 * thread_index() + 1] = total;
  }
  cluster_barrier();

  run.each_share([&](int head, int column) {
    const auto stats_of = [&](int block) {
      return *reinterpret_cast<const Vector<float, 2>*>(in_block(memory.of_heads + 2 * head, block));
    };
    float most = -INFINITY, total = 0;
    for (int block = 0; block < cluster_size(); ++block) most = fmaxf(most, stats_of(block).at[0]);
    Vector<float, 4> values{};
    for (int block = 0; block < cluster_size(); ++block) {
      const Vector<float, 2> stats = stats_of(block);
      const float share = exp2(stats.at[0] - most);
      total += stats.at[1] * share;
      const auto part = *reinterpret_cast<const Vector<float, 4>*>(in_block(sums.at(head, column), block));
      for (int c = 0; c < 4; ++c) values.at[c] = multiply_add(part.at[c], share, values.at[c]);
    }
    for (float& value : values.at) value /= total;
    const int64_t at = run.sample * op.heads + head;
    store(op.z.as<float>() + at * kWidth + column, values);
    if (column == 0) store(op.stats.as<float>() + at * 2, Vector<float, 2>{{most, total}});
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
