// Absorbed attention, forward: tokens are read once, as they are. Scores and weighted sums of
// all heads are products of 16 × 16 squares; the softmax goes along, as in flash attention.
#include "absorbed_spans.h"

namespace hsta::cuda {
namespace {

// A block's part of the softmax, or all of it where a sample has one block.
template <typename T>
struct Result {
  const AbsorbedAttention& op;
  const Parts<T>& parts;
  int64_t first_row;  // of the sample and split

  __device__ void store_stats(const OnlineSoftmax& softmax, int head) const {
    float* stats = parts.splits > 1 ? parts.stats : op.stats.as<float>();
    if (head < op.heads) store(stats + (first_row + head) * 2, Vector<float, 2>{{softmax.top, softmax.sum}});
  }

  // Of 16 heads from `first_head` on, 16 columns from `column` on.
  __device__ void store_z(const Square& z, int first_head, int column, const float* sums) const {
    z.each_pair([&](Vector<float, 2> pair, int r, int c) {
      const int head = first_head + Square::row(r);
      if (head >= op.heads || column + c >= op.width) return;
      for (float& value : pair.at) value /= sums[head];
      const int64_t at = (first_row + head) * op.width + column + c;
      if (parts.splits > 1) {
        store(parts.values + at, narrowed_pair<T>(pair));
      } else {
        store(op.z.as<float>() + at, pair);
      }
    });
  }
};

template <typename T, int kSquares>
__global__ void __launch_bounds__(kRunThreads)
    forward_kernel(const __grid_constant__ AbsorbedAttention op, const __grid_constant__ RunPlan plan,
                   const __grid_constant__ Parts<T> parts, int pitch) {
  const WholeRows<T, kSquares> run(op, plan);
  const RunMemory<T, 1> memory(pitch);
  const Matrix<T> u = memory.heads[0], p = memory.scores[0];
  float *correction = memory.of_heads, *sums = memory.of_heads + kHeads;
  run.copy_rows(run.first, 0, run.padded, memory.stage(0));
  run.load_heads(op.u.as<const float>(), 0, run.padded, kHeads, u);

  OnlineSoftmax softmax;  // of this thread's head
  Square z[kSquares];     // (heads, columns)
  int stage = 0;
  for (int64_t row = run.first; row < run.last; row += kRows, stage ^= 1) {
    const Matrix<T> y = memory.stage(stage);
    wait_copies<0>();
    block_barrier();
    run.copy_rows(row + kRows, 0, run.padded, memory.stage(stage ^ 1));
    run.normalize(y, memory.of_rows);
    block_barrier();
    run.put_products(y, u, memory.parts + thread_index() / kWarp * kRows * kHeads);
    block_barrier();
    const bool valid = row + score_row() < run.last;
    const float score = valid ? sum_products(memory.parts, 1, 0) * kLog2EFloat : -INFINITY;
    float factor;
    *p.at(score_row(), score_head()) = narrowed<T>(softmax.weight(score, factor));
    if (score_row() == 0) correction[score_head()] = factor;
    block_barrier();
    run.each_square([&](int i, int column) {
      z[i].each([&](float& value, int r, int) { value *= correction[Square::row(r)]; });
      multiply<Stored::kTransposed, Stored::kAsIs>(z[i], p, y.from(0, column), kRows);
    });
  }

  const Result<T> result{op, parts, parts.row(run.sample, run.split, 0)};
  if (score_row() == 0) {
    sums[score_head()] = softmax.sum;
    result.store_stats(softmax, score_head());
  }
  block_barrier();
  run.each_square([&](int i, int column) { result.store_z(z[i], 0, column, sums); });
}

template <typename T>
__global__ void __launch_bounds__(kRunThreads, 1)
    forward_spans_kernel(const __grid_constant__ AbsorbedAttention op, const __grid_constant__ RunPlan plan,
                         const __grid_constant__ SpanPlan spans, const __grid_constant__ Parts<T> parts) {
  const RunMemory<T, 1> memory(pitch_of<T>(spans.span), 1, spans.head_squares);
  const Matrix<T> y = memory.stage(0), u = memory.heads[0], p = memory.scores[0];
  const int heads = spans.head_squares * kHeads;
  float *correction = memory.of_heads, *sums = memory.of_heads + heads;
  SpansOfRows<T> run(op, plan, spans, y);

  OnlineSoftmax softmax[kMaxHeadSquares];  // of this thread's heads
  Square z[kUnits];                        // (heads, columns)
  int u_here = -1;                         // first column of the span of u in shared memory
  for (int64_t row = run.first; row < run.last; row += kRows) {
    run.measure(row, memory.of_rows);
    Square products[kMaxHeadSquares];
    run.each_span([&](int begin) {
      run.bring(row, begin);
      if (u_here != begin) run.load_heads(op.u.as<const float>(), begin, run.columns(begin), heads, u);
      u_here = begin;
      run.normalize();
      block_barrier();
      run.add_products(products, u);
    });
    run.put_products(products, 1, 0, memory.parts);
    block_barrier();
    const bool valid = row + score_row() < run.last;
    run.each_head_square([&](int g) {
      const int head = g * kHeads + score_head();
      const float score = valid ? sum_products(memory.parts, spans.head_squares, g) * kLog2EFloat : -INFINITY;
      float factor;
      *p.at(score_row(), head) = narrowed<T>(softmax[g].weight(score, factor));
      if (score_row() == 0) correction[head] = factor;
    });
    block_barrier();
    run.each_unit(0, run.padded, [&](int i, int, int g) {
      z[i].each([&](float& value, int r, int) { value *= correction[g * kHeads + Square::row(r)]; });
    });
    run.each_span_back([&](int begin) {
      if (run.bring(row, begin)) {
        run.normalize();
        block_barrier();
      }
      run.each_unit(begin, begin + spans.span, [&](int i, int column, int g) {
        multiply<Stored::kTransposed, Stored::kAsIs>(z[i], p.from(0, g * kHeads), y.from(0, column - begin), kRows);
      });
    });
  }

  const Result<T> result{op, parts, parts.row(run.sample, run.split, 0)};
  if (score_row() == 0)
    run.each_head_square([&](int g) {
      const int head = g * kHeads + score_head();
      sums[head] = softmax[g].sum;
      if (run.share_first == 0) result.store_stats(softmax[g], head);
    });
  block_barrier();
  run.each_unit(0, run.padded, [&](int i, int column, int g) { result.store_z(z[i], g * kHeads, column, sums); });
}

struct ToZ {
  AbsorbedAttention op;
  __device__ void operator()(int64_t sample, int64_t head, int64_t column, const Vector<float, 4>& values) const {
    store(op.z.as<float>() + (sample * op.heads + head) * op.width + column, values);
  }
};

}  // namespace

void absorbed_attention_forward(const AbsorbedAttention& op, Stream stream) {
  const RunPlan plan(op);
  const int64_t runs = op.batch * plan.splits;
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    const auto parts = pieces_in<Parts<T>>(op.workspace, op.batch, plan.splits, op.heads, op.width);
    if (takes_whole_rows<T>(op)) {
      const int pitch = pitch_of<T>(padded_width(op.width));
      with_squares(op.width, [&](auto squares) {
        launch(forward_kernel<T, squares()>, runs, kRunThreads, RunMemory<T, 1>::bytes(pitch), stream, op, plan, parts,
               pitch);
      });
    } else {
      const SpanPlan spans = span_plan<T>(op);
      const int64_t bytes = RunMemory<T, 1>::bytes(pitch_of<T>(spans.span), 1, spans.head_squares);
      launch(forward_spans_kernel<T>, runs * spans.shares, kRunThreads, bytes, stream, op, plan, spans, parts);
    }
    if (plan.splits > 1) merge_parts(parts, op.batch, op.stats.as<float>(), ToZ{op}, stream);
  });
}

int64_t absorbed_attention_workspace(const AbsorbedAttention& op) {
  const int64_t splits = RunPlan(op).splits;
  return splits > 1 ? floats_of<Parts<float>>(op.batch, splits, op.heads, op.width) : 0;
}

}  // namespace hsta::cuda
