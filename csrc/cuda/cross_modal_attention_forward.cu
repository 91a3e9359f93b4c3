// The streaming pass of crossmodal attention, forward: tokens are read once, as they are. Scores and weighted sums of
// all heads are products of 16 × 16 squares; the softmax goes along, as in flash attention.
#include "row_stream.h"

namespace hsta::cuda {
namespace {

template <typename T, int kSquares>
__global__ void __launch_bounds__(kStreamThreads)
    forward_kernel(const __grid_constant__ CrossModalAttention op, const __grid_constant__ StreamPlan plan,
                   const __grid_constant__ Parts<T> parts, int pitch) {
  const RowStream<T, kSquares> stream(op, plan);
  const StreamMemory<T, 1> memory(pitch);
  const Matrix<T> u = memory.heads[0], p = memory.scores[0];
  float *correction = memory.of_heads, *sums = memory.of_heads + kHeads;
  stream.copy_rows(stream.first, memory.stage(0));
  stream.load_heads(op.u, u);

  float top = -INFINITY, sum = 0;  // of this thread's head
  Square z[kSquares];              // (heads, columns)
  int stage = 0;
  for (int64_t row = stream.first; row < stream.last; row += kRows, stage ^= 1) {
    const Matrix<T> y = memory.stage(stage);
    wait_copies<0>();
    block_barrier();
    stream.copy_rows(row + kRows, memory.stage(stage ^ 1));
    stream.normalize(y, memory.of_rows);
    block_barrier();
    stream.put_products(y, u, memory.parts + thread_index() / kWarp * kRows * kHeads);
    block_barrier();
    const bool valid = row + score_row() < stream.last;
    const float score = valid ? sum_products(memory.parts, 1, 0) * kLog2EFloat : -INFINITY;
    const float new_top = fmaxf(top, combine_rows(score, [](float a, float b) { return fmaxf(a, b); }));
    const float weight = exp2(score - new_top), factor = exp2(top - new_top);
    sum = sum * factor + combine_rows(weight, [](float a, float b) { return a + b; });
    top = new_top;
    *p.at(score_row(), score_head()) = narrowed<T>(weight);
    if (score_row() == 0) correction[score_head()] = factor;
    block_barrier();
    stream.each_square([&](int i, int column) {
      z[i].each([&](float& value, int r, int) { value *= correction[Square::row(r)]; });
      multiply<Stored::kTransposed, Stored::kAsIs>(z[i], p, y.from(0, column), kRows);
    });
  }

  const int64_t first_row = parts.row(stream.sample, stream.slot, 0);
  if (score_row() == 0) {
    sums[score_head()] = sum;
    float* stats = plan.slots > 1 ? parts.stats : op.stats;
    if (score_head() < op.heads) store(stats + (first_row + score_head()) * 2, Vector<float, 2>{{top, sum}});
  }
  block_barrier();
  stream.each_square([&](int i, int column) {
    z[i].each_pair([&](Vector<float, 2> pair, int r, int c) {
      const int head = Square::row(r);
      if (head >= op.heads || column + c >= stream.width) return;
      for (float& value : pair.at) value /= sums[head];
      const int64_t at = (first_row + head) * stream.width + column + c;
      if (plan.slots > 1) {
        store(parts.values + at, narrowed_pair<T>(pair));
      } else {
        store(op.z + at, pair);
      }
    });
  });
}

struct ToZ {
  CrossModalAttention op;
  __device__ void operator()(int64_t sample, int64_t head, int64_t column, const Vector<float, 4>& values) const {
    store(op.z + (sample * op.heads + head) * op.width + column, values);
  }
};

}  // namespace

void cross_modal_attention_forward(const CrossModalAttention& op, Stream stream) {
  const StreamPlan plan(op);
  with_type_and_squares(op, [&](auto element, auto squares) {
    using T = decltype(element);
    const Parts<T> parts(op.workspace, op.batch, plan.slots, op.heads, op.width);
    const int pitch = pitch_of<T>(padded_width(op.width));
    launch(forward_kernel<T, squares()>, op.batch * plan.slots, kStreamThreads, StreamMemory<T, 1>::bytes(pitch),
           stream, op, plan, parts, pitch);
    if (plan.slots > 1) merge_parts(parts, op.batch, op.stats, ToZ{op}, stream);
  });
}

int64_t cross_modal_attention_workspace(const CrossModalAttention& op) {
  const int64_t slots = StreamPlan(op).slots;
  return slots > 1 ? Parts<float>::floats(op.batch, slots, op.heads, op.width) : 0;
}

}  // namespace hsta::cuda
