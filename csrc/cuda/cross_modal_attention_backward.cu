// The streaming pass of crossmodal attention, backward: also a single pass over the tokens. With y a normalized row and
// p its probabilities, dp = dz·y, ds = p (dp - dz·z), du = Σ ds y and dy = Σ_h p dz + ds u; then LayerNorm's backward
// of the same row, of which dy's part along y and along the constant vector changes nothing.
#include "row_stream.h"

namespace hsta::cuda {
namespace {

// dz·z of this thread's head, of dz as the products with it have it.
template <typename T>
__device__ float output_products(const CrossModalAttention& op, int64_t sample) {
  float sum = 0;
  if (score_head() < op.heads)
    for (int64_t column = 4 * score_row(); column < op.width; column += 4 * kRows) {
      const int64_t at = (sample * op.heads + score_head()) * op.width + column;
      const auto z = load<4>(op.z + at), grad = load<4>(op.grad_z + at);
      for (int c = 0; c < 4; ++c) sum = multiply_add(z.at[c], widened(narrowed<T>(grad.at[c])), sum);
    }
  return combine_rows(sum, [](float a, float b) { return a + b; });
}

template <typename T, int kSquares>
__global__ void __launch_bounds__(kStreamThreads, 1)
    backward_kernel(const __grid_constant__ CrossModalAttention op, const __grid_constant__ StreamPlan plan,
                    float* grad_u_parts, int pitch) {
  const RowStream<T, kSquares> stream(op, plan);
  const StreamMemory<T, 2> memory(pitch);
  const Matrix<T> u = memory.heads[0], grad_z = memory.heads[1], p = memory.scores[0], ds = memory.scores[1];
  const int warp = thread_index() / kWarp, width = stream.width;
  float *rstd = memory.of_rows, *row_sums = rstd + kRows;
  stream.copy_rows(stream.first, memory.stage(0));
  stream.load_heads(op.u, u);
  stream.load_heads(op.grad_z, grad_z);

  const float delta = output_products<T>(op, stream.sample);
  Vector<float, 2> stats{{0, 1}};
  if (score_head() < op.heads) stats = load<2>(op.stats + (stream.sample * op.heads + score_head()) * 2);
  Square grad_u[kSquares];  // (heads, columns)
  int stage = 0;
  for (int64_t row = stream.first; row < stream.last; row += kRows, stage ^= 1) {
    const Matrix<T> y = memory.stage(stage);
    wait_copies<0>();
    block_barrier();
    stream.copy_rows(row + kRows, memory.stage(stage ^ 1));
    stream.normalize(y, rstd);
    block_barrier();
    stream.put_products(y, u, memory.parts + (2 * warp) * kRows * kHeads);
    stream.put_products(y, grad_z, memory.parts + (2 * warp + 1) * kRows * kHeads);
    block_barrier();
    const float score = sum_products(memory.parts, 2, 0) * kLog2EFloat;
    const float weight = row + score_row() < stream.last ? quotient<T>(exp2(score - stats.at[0]), stats.at[1]) : 0;
    *p.at(score_row(), score_head()) = narrowed<T>(weight);
    *ds.at(score_row(), score_head()) = narrowed<T>(weight * (sum_products(memory.parts, 2, 1) - delta));
    block_barrier();

    Square grad_y[kSquares];  // (rows, columns)
    RowPair along_one, along_y;
    const auto each_pair_of_y = [&](int i, int column, auto&& f) {
      grad_y[i].each_pair([&](Vector<float, 2> grad, int r, int c) {
        auto& stored = *reinterpret_cast<Vector<T, 2>*>(y.at(Square::row(r), column + c));
        f(grad, stored, r);
      });
    };
    stream.each_square([&](int i, int column) {
      multiply<Stored::kTransposed, Stored::kAsIs>(grad_u[i], ds, y.from(0, column), kRows);
      multiply<Stored::kAsIs, Stored::kAsIs>(grad_y[i], p, grad_z.from(0, column), kHeads);
      multiply<Stored::kAsIs, Stored::kAsIs>(grad_y[i], ds, u.from(0, column), kHeads);
      each_pair_of_y(i, column, [&](const Vector<float, 2>& grad, const Vector<T, 2>& y, int r) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          along_one.at[r] += grad.at[c];
          along_y.at[r] = multiply_add(grad.at[c], widened(y.at[c]), along_y.at[r]);
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
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      along_one.at[r] = along_y.at[r] = 0;
      for (int other = 0; other < kStreamWarps; ++other) {
        const float* from = row_sums + (other * kRows + Square::row(r)) * 2;
        along_one.at[r] += from[0], along_y.at[r] += from[1];
      }
      along_one.at[r] /= float(width), along_y.at[r] /= float(width);
    }
    // The rows' gradients take the rows' place, to be written as rows.
    stream.each_square([&](int i, int column) {
      each_pair_of_y(i, column, [&](const Vector<float, 2>& grad, Vector<T, 2>& y, int r) {
        const float scale = rstd[Square::row(r)];
#pragma unroll
        for (int c = 0; c < 2; ++c)
          y.at[c] = narrowed<T>((grad.at[c] - along_one.at[r] - widened(y.at[c]) * along_y.at[r]) * scale);
      });
    });
    block_barrier();
    stream.store_rows(y, row);
  }

  const int64_t first_row = (stream.sample * plan.slots + stream.slot) * op.heads;
  stream.each_square([&](int i, int column) {
    grad_u[i].each_pair([&](const Vector<float, 2>& pair, int r, int c) {
      const int head = Square::row(r);
      if (head < op.heads && column + c < width) store(grad_u_parts + (first_row + head) * width + column + c, pair);
    });
  });
}

struct ToGradU {
  CrossModalAttention op;
  __device__ void operator()(int64_t sample, int64_t i, const Vector<float, 4>& values) const {
    store(op.grad_u + sample * op.heads * op.width + i, values);
  }
};

}  // namespace

int64_t cross_modal_attention_shared_memory(const CrossModalAttention& op) {
  int64_t bytes = 0;
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    bytes = StreamMemory<T, 2>::bytes(pitch_of<T>(padded_width(op.width)));
  });
  return bytes;
}

void cross_modal_attention_backward(const CrossModalAttention& op, Stream stream) {
  const StreamPlan plan(op);
  float* parts = plan.slots > 1 ? op.workspace : op.grad_u;
  with_type_and_squares(op, [&](auto element, auto squares) {
    using T = decltype(element);
    const int pitch = pitch_of<T>(padded_width(op.width));
    launch(backward_kernel<T, squares()>, op.batch * plan.slots, kStreamThreads,
           cross_modal_attention_shared_memory(op), stream, op, plan, parts, pitch);
  });
  if (plan.slots > 1) sum_parts(parts, op.batch, plan.slots, op.heads * op.width, ToGradU{op}, stream);
}

}  // namespace hsta::cuda
