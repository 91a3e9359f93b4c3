// Absorbed attention, backward: also a single pass over the tokens. With y a normalized row and
// p its probabilities, dp = dz·y, ds = p (dp - dz·z), du = Σ ds y and dy = Σ_h p dz + ds u; then LayerNorm's backward
// of the same row, of which dy's part along y and along the constant vector changes nothing.
#include "absorbed_spans.h"

namespace hsta::cuda {
namespace {

// dz·z of a head that is this thread's, of dz as the products with it have it.
template <typename T>
__device__ float output_products(const AbsorbedAttention& op, int64_t sample, int head) {
  float sum = 0;
  if (head < op.heads)
    for (int64_t column = 4 * score_row(); column < op.width; column += 4 * kRows) {
      const int64_t at = (sample * op.heads + head) * op.width + column;
      const auto z = load<4>(op.z.as<float>() + at), grad = load<4>(op.grad_z.as<float>() + at);
      for (int c = 0; c < 4; ++c) sum = multiply_add(z.at[c], widened(narrowed<T>(grad.at[c])), sum);
    }
  return combine_rows(sum, [](float a, float b) { return a + b; });
}

// The sum over a head's columns of u or dz, likewise.
template <typename T>
__device__ float sum_columns(const AbsorbedAttention& op, const float* of, int64_t sample, int head) {
  float sum = 0;
  if (head < op.heads)
    for (int64_t column = 4 * score_row(); column < op.width; column += 4 * kRows)
      for (float value : load<4>(of + (sample * op.heads + head) * op.width + column).at)
        sum += widened(narrowed<T>(value));
  return combine_rows(sum, [](float a, float b) { return a + b; });
}

// max and sum of a head's softmax, as the forward pass left them.
__device__ inline Vector<float, 2> load_stats(const AbsorbedAttention& op, int64_t sample, int head) {
  return head < op.heads ? load<2>(op.stats.as<float>() + (sample * op.heads + head) * 2) : Vector<float, 2>{{0, 1}};
}

// Of 16 heads from `first_head` on, 16 columns from `column` on.
__device__ inline void store_grad_u(const AbsorbedAttention& op, const Square& grad_u, int first_head, int column,
                                    int64_t first_row, float* to) {
  grad_u.each_pair([&](const Vector<float, 2>& pair, int r, int c) {
    const int head = first_head + Square::row(r);
    if (head < op.heads && column + c < op.width) store(to + (first_row + head) * op.width + column + c, pair);
  });
}

// The means of dy and of dy·y over the columns, of a lane's two rows of a square.
struct RowMeans {
  RowPair along_one, along_y;

  // `sums` has the two sums of every row and warp.
  __device__ RowMeans(const float* sums, int width) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      for (int warp = 0; warp < kRunWarps; ++warp) {
        const float* from = sums + (warp * kRows + Square::row(r)) * 2;
        along_one.at[r] += from[0], along_y.at[r] += from[1];
      }
      along_one.at[r] /= float(width), along_y.at[r] /= float(width);
    }
  }

  // LayerNorm's backward: the gradients of 16 × 16 elements take the place of y.
  template <typename T>
  __device__ void put_gradients(const Square& grad_y, Matrix<T> y, const float* rstd) const {
    grad_y.each_pair([&](const Vector<float, 2>& grad, int r, int column) {
      auto& place = *reinterpret_cast<Vector<T, 2>*>(y.at(Square::row(r), column));
      const float scale = rstd[Square::row(r)];
#pragma unroll
      for (int c = 0; c < 2; ++c)
        place.at[c] = narrowed<T>((grad.at[c] - along_one.at[r] - widened(place.at[c]) * along_y.at[r]) * scale);
    });
  }
};

template <typename T, int kSquares>
__global__ void __launch_bounds__(kRunThreads, 1)
    backward_kernel(const __grid_constant__ AbsorbedAttention op, const __grid_constant__ RunPlan plan,
                    float* grad_u_parts, int pitch) {
  const WholeRows<T, kSquares> run(op, plan);
  const RunMemory<T, 2> memory(pitch);
  const Matrix<T> u = memory.heads[0], grad_z = memory.heads[1], p = memory.scores[0], ds = memory.scores[1];
  const int warp = thread_index() / kWarp, width = run.width;
  float *rstd = memory.of_rows, *row_sums = rstd + kRows;
  run.copy_rows(run.first, 0, run.padded, memory.stage(0));
  run.load_heads(op.u.as<const float>(), 0, run.padded, kHeads, u);
  run.load_heads(op.grad_z.as<const float>(), 0, run.padded, kHeads, grad_z);

  const float delta = output_products<T>(op, run.sample, score_head());
  const Vector<float, 2> stats = load_stats(op, run.sample, score_head());
  Square grad_u[kSquares];  // (heads, columns)
  int stage = 0;
  for (int64_t row = run.first; row < run.last; row += kRows, stage ^= 1) {
    const Matrix<T> y = memory.stage(stage);
    wait_copies<0>();
    block_barrier();
    run.copy_rows(row + kRows, 0, run.padded, memory.stage(stage ^ 1));
    run.normalize(y, rstd);
    block_barrier();
    run.put_products(y, u, memory.parts + (2 * warp) * kRows * kHeads);
    run.put_products(y, grad_z, memory.parts + (2 * warp + 1) * kRows * kHeads);
    block_barrier();
    const float score = sum_products(memory.parts, 2, 0) * kLog2EFloat;
    const float weight = row + score_row() < run.last ? quotient<T>(exp2(score - stats.at[0]), stats.at[1]) : 0;
    *p.at(score_row(), score_head()) = narrowed<T>(weight);
    *ds.at(score_row(), score_head()) = narrowed<T>(weight * (sum_products(memory.parts, 2, 1) - delta));
    block_barrier();

    Square grad_y[kSquares];  // (rows, columns)
    RowPair along_one, along_y;
    run.each_square([&](int i, int column) {
      multiply<Stored::kTransposed, Stored::kAsIs>(grad_u[i], ds, y.from(0, column), kRows);
      multiply<Stored::kAsIs, Stored::kAsIs>(grad_y[i], p, grad_z.from(0, column), kHeads);
      multiply<Stored::kAsIs, Stored::kAsIs>(grad_y[i], ds, u.from(0, column), kHeads);
      grad_y[i].each_pair([&](const Vector<float, 2>& grad, int r, int c) {
        const auto& stored = *reinterpret_cast<const Vector<T, 2>*>(y.at(Square::row(r), column + c));
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          along_one.at[r] += grad.at[c];
          along_y.at[r] = multiply_add(grad.at[c], widened(stored.at[c]), along_y.at[r]);
        }
      });
    });
    const auto add = [](float a, float b) { return a + b; };
    along_one.combine(add), along_y.combine(add);
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (thread_index() % 4 == 0) {
        float* to = row_sums + (warp * kRows + Square::row(r)) * 2;
        to[0] = along_one.at[r], to[1] = along_y.at[r];
      }
    block_barrier();
    const RowMeans means(row_sums, width);
    run.each_square([&](int i, int column) { means.put_gradients(grad_y[i], y.from(0, column), rstd); });
    block_barrier();
    run.store_rows(y, row, 0, width);
  }

  const int64_t first_row = (run.sample * plan.splits + run.split) * op.heads;
  run.each_square([&](int i, int column) { store_grad_u(op, grad_u[i], 0, column, first_row, grad_u_parts); });
}

// What a row's LayerNorm takes of dy, its sums over the columns, follows from the products: Σ dy = Σ_h p Σ dz + ds Σ u
// and Σ dy·y = Σ_h p (dz·y) + ds (u·y). So dy is not needed before a span's columns are written.
template <typename T>
__global__ void __launch_bounds__(kRunThreads, 1)
    backward_spans_kernel(const __grid_constant__ AbsorbedAttention op, const __grid_constant__ RunPlan plan,
                          const __grid_constant__ SpanPlan spans, float* grad_u_parts) {
  const RunMemory<T, 2> memory(pitch_of<T>(spans.span), 1, spans.head_squares);
  const Matrix<T> y = memory.stage(0), u = memory.heads[0], grad_z = memory.heads[1];
  const Matrix<T> p = memory.scores[0], ds = memory.scores[1];
  float *rstd = memory.of_rows, *row_sums = rstd + kRows;
  SpansOfRows<T> run(op, plan, spans, y);

  Vector<float, 2> stats[kMaxHeadSquares];  // of this thread's heads, as all that follows
  float delta[kMaxHeadSquares], sum_u[kMaxHeadSquares], sum_grad_z[kMaxHeadSquares];
  run.each_head_square([&](int g) {
    const int head = g * kHeads + score_head();
    stats[g] = load_stats(op, run.sample, head);
    delta[g] = output_products<T>(op, run.sample, head);
    sum_u[g] = sum_columns<T>(op, op.u.as<const float>(), run.sample, head);
    sum_grad_z[g] = sum_columns<T>(op, op.grad_z.as<const float>(), run.sample, head);
  });
  int heads_here = -1;  // first column of the span of u and grad_z in shared memory
  const auto bring = [&](int64_t row, int begin) {
    const bool brought = run.bring(row, begin);
    if (heads_here != begin) {
      run.load_heads(op.u.as<const float>(), begin, run.columns(begin), spans.head_squares * kHeads, u);
      run.load_heads(op.grad_z.as<const float>(), begin, run.columns(begin), spans.head_squares * kHeads, grad_z);
    }
    heads_here = begin;
    return brought;
  };

  Square grad_u[kUnits];  // (heads, columns)
  for (int64_t row = run.first; row < run.last; row += kRows) {
    run.measure(row, rstd);
    Square with_u[kMaxHeadSquares], with_grad_z[kMaxHeadSquares];
    run.each_span([&](int begin) {
      bring(row, begin);
      run.normalize();
      block_barrier();
      run.add_products(with_u, u);
      run.add_products(with_grad_z, grad_z);
    });
    run.put_products(with_u, 2, 0, memory.parts);
    run.put_products(with_grad_z, 2, 1, memory.parts);
    block_barrier();
    const bool valid = row + score_row() < run.last;
    float along_one = 0, along_y = 0;  // of this thread's row and heads
    run.each_head_square([&](int g) {
      const float score = sum_products(memory.parts, 2 * spans.head_squares, g);
      const float dp = sum_products(memory.parts, 2 * spans.head_squares, spans.head_squares + g);
      const float weight = valid ? quotient<T>(exp2(score * kLog2EFloat - stats[g].at[0]), stats[g].at[1]) : 0;
      const T narrow = narrowed<T>(weight), gradient = narrowed<T>(weight * (dp - delta[g]));
      *p.at(score_row(), g * kHeads + score_head()) = narrow;
      *ds.at(score_row(), g * kHeads + score_head()) = gradient;
      along_one += widened(narrow) * sum_grad_z[g] + widened(gradient) * sum_u[g];
      along_y += widened(narrow) * dp + widened(gradient) * score;
    });
    along_one += shuffle_xor(along_one, kRows), along_y += shuffle_xor(along_y, kRows);
    if (run.lane < kRows) {
      float* to = row_sums + (run.warp * kRows + score_row()) * 2;
      to[0] = along_one, to[1] = along_y;
    }
    block_barrier();

    const RowMeans means(row_sums, run.width);
    run.each_span_back([&](int begin) {
      if (bring(row, begin)) {
        run.normalize();
        block_barrier();
      }
      const int end = begin + run.columns(begin);
      run.each_unit(begin, end, [&](int i, int column, int g) {
        multiply<Stored::kTransposed, Stored::kAsIs>(grad_u[i], ds.from(0, g * kHeads), y.from(0, column - begin),
                                                     kRows);
      });
      warp_barrier();  // all lanes are done with y, whose place its gradient takes
      const int first = begin > run.share_first ? begin : run.share_first;
      const int last = end < run.share_last ? end : run.share_last;
      for (int column = first - begin + run.warp * kSquare; column < last - begin; column += kUnitColumns) {
        Square grad_y;
        run.each_head_square([&](int g) {
          multiply<Stored::kAsIs, Stored::kAsIs>(grad_y, p.from(0, g * kHeads), grad_z.from(g * kHeads, column),
                                                 kHeads);
          multiply<Stored::kAsIs, Stored::kAsIs>(grad_y, ds.from(0, g * kHeads), u.from(g * kHeads, column), kHeads);
        });
        means.put_gradients(grad_y, y.from(0, column), rstd);
      }
      block_barrier();
      run.store_rows(y.from(0, first - begin), row, first, (last < run.width ? last : run.width) - first);
    });
  }

  const int64_t first_row = (run.sample * plan.splits + run.split) * op.heads;
  run.each_unit(0, run.padded, [&](int i, int column, int g) {
    store_grad_u(op, grad_u[i], g * kHeads, column, first_row, grad_u_parts);
  });
}

struct ToGradU {
  AbsorbedAttention op;
  __device__ void operator()(int64_t sample, int64_t i, const Vector<float, 4>& values) const {
    store(op.grad_u.as<float>() + sample * op.heads * op.width + i, values);
  }
};

}  // namespace

void absorbed_attention_backward(const AbsorbedAttention& op, Stream stream) {
  const RunPlan plan(op);
  float* parts = plan.splits > 1 ? op.workspace : op.grad_u.as<float>();
  const int64_t runs = op.batch * plan.splits;
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    if (takes_whole_rows<T>(op)) {
      const int pitch = pitch_of<T>(padded_width(op.width));
      with_squares(op.width, [&](auto squares) {
        launch(backward_kernel<T, squares()>, runs, kRunThreads, RunMemory<T, 2>::bytes(pitch), stream, op, plan, parts,
               pitch);
      });
    } else {
      const SpanPlan spans = span_plan<T>(op);
      const int64_t bytes = RunMemory<T, 2>::bytes(pitch_of<T>(spans.span), 1, spans.head_squares);
      launch(backward_spans_kernel<T>, runs * spans.shares, kRunThreads, bytes, stream, op, plan, spans, parts);
    }
  });
  if (plan.splits > 1) sum_parts(parts, op.batch, plan.splits, op.heads * op.width, ToGradU{op}, stream);
}

}  // namespace hsta::cuda
