// sum = x + residual and norm = LayerNorm(sum) in one pass over memory, forward and backward.
#include <cmath>

#include "kernels.h"
#include "memory.h"
#include "row_shares.h"
#include "row_vectors.h"
#include "writer.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

struct Statistics {
  float mean, rstd;
};

// Of a row whose sum is known, with room for a whole number of vectors. Variance by a second pass over the row, which
// is in cache; the padding is given the mean, which adds nothing to it.
Statistics statistics(float* row, float sum, int64_t width, float eps) {
  const float mean = sum / float(width);
  for (int64_t c = width; c < round_up(width, kLanes); ++c) row[c] = mean;
  const Vec squares = sum_vectors(width, [&](int64_t c) {
    const Vec centred = load(row + c) - broadcast(mean);
    return centred * centred;
  });
  return {mean, 1.0f / std::sqrt(reduce_add(squares) / float(width) + eps)};
}

struct ForwardBuffers {
  float *row, *weight, *bias;
  ForwardBuffers(Arena& arena, int64_t padded)
      : row(arena.take(padded)), weight(arena.take(padded)), bias(arena.take(padded)) {}
};

template <typename T>
Writer writer_of(const AddLayerNorm& op, const TensorView& output) {
  const int64_t row_bytes = op.width * int64_t(sizeof(T));
  return {output.data, output.data ? op.rows * row_bytes : 0, row_bytes};
}

template <typename R, typename X, typename N>
void forward(const AddLayerNorm& op) {
  const Writer sum_writer = writer_of<R>(op, op.sum), norm_writer = writer_of<N>(op, op.norm);
#pragma omp parallel
  {
    const auto buffers = pieces<ForwardBuffers>(Scratch::kThread, round_up(op.width, kLanes));
    float* row = buffers.row;
    const float* weight = in_order_of<R>(op.weight.as<float>(), op.width, buffers.weight);
    const float* bias = in_order_of<R>(op.bias.as<float>(), op.width, buffers.bias);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < op.rows; ++i) {
      const R* residual = op.residual.at<const R>(i);
      const X* x = op.x.at<const X>(i);
      R* sum = op.sum.at<R>(i);
      N* norm = op.norm.at<N>(i);
      Vec total{};
      // Captured by value, here and below: of what is captured by reference the compiler must believe that a store of
      // elements changes it, and reads it again for every vector.
      for_vectors<R>(op.width, [=, &total](int64_t c, auto count) {
        const auto exact = load_floats(residual + c, count) + load_floats(x + c, count);
        sum_writer.store(exact, sum + c, count);
        const auto stored = round_to<R>(exact);  // normalize what the next layer reads
        store(row + c, stored);
        total += stored;
      });
      const Statistics s = statistics(row, reduce_add(total), op.width, op.eps);
      for_vectors<R>(op.width, [=](int64_t c, auto count) {
        const auto normalized = (load(row + c, count) - broadcast(s.mean)) * broadcast(s.rstd);
        const auto affine = normalized * load_floats(weight + c, count) + load_floats(bias + c, count);
        norm_writer.store(affine, norm + c, count);
      });
    }
    sum_writer.finish(), norm_writer.finish();
  }
}

// dL/dsum = grad_sum + rstd * (g - mean(g) - y * mean(g * y)), g = weight * grad_norm, y the normalized row.
struct BackwardBuffers {
  float *row, *grad, *weight, *bias;
  BackwardBuffers(Arena& arena, int64_t padded)
      : row(arena.take(padded)), grad(arena.take(padded)), weight(arena.take(padded)), bias(arena.take(padded)) {}
};

template <typename R, typename N>
void backward(const AddLayerNorm& op) {
  const int64_t padded = round_up(op.width, kLanes);
  const int64_t items = divide_up(op.rows, kRowsPerItem);
  float* shares = scratch(Scratch::kShared, (items + 1) * 2 * padded);
  float* sums = shares + items * 2 * padded;
  const Writer writer = writer_of<R>(op, op.grad_residual);
  const Writer x_writer = writer_of<N>(op, op.grad_x), norm_writer = writer_of<N>(op, op.norm);
#pragma omp parallel
  {
    const auto buffers = pieces<BackwardBuffers>(Scratch::kThread, padded);
    float *row = buffers.row, *grad = buffers.grad;
    const float* weight = in_order_of<R>(op.weight.as<float>(), op.width, buffers.weight);
    const float* bias = in_order_of<R>(op.bias.as<float>(), op.width, buffers.bias);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < items; ++item) {
      float* grad_weight = shares + item * 2 * padded;
      float* grad_bias = grad_weight + padded;
      for (int64_t c = 0; c < 2 * padded; ++c) grad_weight[c] = 0;
      for (int64_t i = item * kRowsPerItem; i < min((item + 1) * kRowsPerItem, op.rows); ++i) {
        const R* sum = op.sum.at<const R>(i);
        const N* grad_norm = op.grad_norm.at<const N>(i);
        const R* grad_sum = op.grad_sum.at<const R>(i);
        R* grad_residual = op.grad_residual.at<R>(i);
        N* grad_x = op.grad_x.data ? op.grad_x.at<N>(i) : nullptr;
        N* norm = op.norm.data ? op.norm.at<N>(i) : nullptr;
        Vec total{};
        for_vectors<R>(op.width, [=, &total](int64_t c, auto count) {
          const auto y = load_floats(sum + c, count);
          store(row + c, y);
          total += y;
        });
        const Statistics s = statistics(row, reduce_add(total), op.width, op.eps);
        Vec g_total{}, along_total{};
        for_vectors<R>(op.width, [=, &g_total, &along_total](int64_t c, auto count) {
          const auto y = (load(row + c, count) - broadcast(s.mean)) * broadcast(s.rstd);
          const auto incoming = load_floats(grad_norm + c, count);
          const auto g = incoming * load_floats(weight + c, count);
          store(row + c, y);
          store(grad + c, g);
          g_total += g;
          along_total += g * y;
          store(grad_weight + c, load(grad_weight + c, count) + incoming * y);
          store(grad_bias + c, load(grad_bias + c, count) + incoming);
        });
        const Vec mean = broadcast(reduce_add(g_total) / float(op.width));
        const Vec along = broadcast(reduce_add(along_total) / float(op.width));
        for_vectors<R>(op.width, [=](int64_t c, auto count) {
          const auto y = load(row + c, count);
          const auto through_norm = broadcast(s.rstd) * (load(grad + c, count) - mean - y * along);
          const auto all = load_floats(grad_sum + c, count) + through_norm;
          writer.store(all, grad_residual + c, count);
          if (grad_x) x_writer.store(all, grad_x + c, count);
          if (norm)
            norm_writer.store(y * load_floats(weight + c, count) + load_floats(bias + c, count), norm + c, count);
        });
      }
    }
    writer.finish(), x_writer.finish(), norm_writer.finish();
#pragma omp for schedule(static)
    for (int64_t c = 0; c < 2 * padded; c += kLanes) store(sums + c, sum_shares(shares + c, items, 2 * padded));
  }
  float *grad_weight = op.grad_weight.as<float>(), *grad_bias = op.grad_bias.as<float>();
  for_vectors<R>(op.width, [=](int64_t c, auto count) {
    store_floats(interleave(load_floats(sums + c, count)), grad_weight + c, count);
    store_floats(interleave(load_floats(sums + padded + c, count)), grad_bias + c, count);
  });
}

}  // namespace

void add_layer_norm_forward(const AddLayerNorm& op) {
  with_type(op.x.dtype, [&](auto x) {
    using X = decltype(x);
    if (op.dtype == op.x.dtype) return forward<X, X, X>(op);
    if (op.norm.dtype == op.dtype) return forward<float, X, float>(op);
    forward<float, X, X>(op);
  });
}

void add_layer_norm_backward(const AddLayerNorm& op) {
  with_type(op.grad_norm.dtype, [&](auto narrow) {
    using N = decltype(narrow);
    if (op.dtype == op.grad_norm.dtype) return backward<N, N>(op);
    backward<float, N>(op);
  });
}

}  // namespace HSTA_ISA
}  // namespace hsta
