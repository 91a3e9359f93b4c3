// sum = x + residual and norm = LayerNorm(sum) in one pass over memory, forward and backward.
#include <cmath>

#include "kernels.h"
#include "memory.h"
#include "row_shares.h"
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

template <typename R, typename X>
void forward(const AddLayerNorm& op) {
  const int64_t row_bytes = op.width * int64_t(sizeof(R));
  const Writer sum_writer(op.sum, op.rows * row_bytes, row_bytes), norm_writer(op.norm, op.rows * row_bytes, row_bytes);
#pragma omp parallel
  {
    float* row = scratch(Scratch::kThread, round_up(op.width, kLanes));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < op.rows; ++i) {
      const R* residual = static_cast<const R*>(op.residual) + i * op.residual_stride_row;
      const X* x = static_cast<const X*>(op.x) + i * op.x_stride_row;
      R* sum = static_cast<R*>(op.sum) + i * op.width;
      R* norm = static_cast<R*>(op.norm) + i * op.width;
      Vec total{};
      for_vectors(op.width, [&](int64_t c, auto count) {
        const Vec exact = load_floats(residual + c, count) + load_floats(x + c, count);
        sum_writer.store(exact, sum + c, count);
        const Vec stored = round_to<R>(exact);  // normalize what the next layer reads
        store(row + c, stored);
        total += stored;
      });
      const Statistics s = statistics(row, reduce_add(total), op.width, op.eps);
      for_vectors(op.width, [&](int64_t c, auto count) {
        const Vec normalized = (load(row + c) - broadcast(s.mean)) * broadcast(s.rstd);
        const Vec affine = normalized * load_floats(op.weight + c, count) + load_floats(op.bias + c, count);
        norm_writer.store(affine, norm + c, count);
      });
    }
    sum_writer.finish(), norm_writer.finish();
  }
}

// dL/dsum = grad_sum + rstd * (g - mean(g) - y * mean(g * y)), g = weight * grad_norm, y the normalized row.
template <typename R>
void backward(const AddLayerNorm& op) {
  const int64_t padded = round_up(op.width, kLanes);
  const int64_t items = divide_up(op.rows, kRowsPerItem);
  float* shares = scratch(Scratch::kShared, items * 2 * padded);
  const int64_t row_bytes = op.width * int64_t(sizeof(R));
  const Writer writer(op.grad_residual, op.rows * row_bytes, row_bytes);
#pragma omp parallel
  {
    float* row = scratch(Scratch::kThread, 2 * padded);
    float* grad = row + padded;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < items; ++item) {
      float* grad_weight = shares + item * 2 * padded;
      float* grad_bias = grad_weight + padded;
      for (int64_t c = 0; c < 2 * padded; ++c) grad_weight[c] = 0;
      for (int64_t i = item * kRowsPerItem; i < min((item + 1) * kRowsPerItem, op.rows); ++i) {
        const R* sum = static_cast<const R*>(op.sum) + i * op.width;
        const R* grad_norm = static_cast<const R*>(op.grad_norm) + i * op.grad_norm_stride_row;
        const R* grad_sum = static_cast<const R*>(op.grad_sum) + i * op.grad_sum_stride_row;
        R* grad_residual = static_cast<R*>(op.grad_residual) + i * op.width;
        Vec total{};
        for_vectors(op.width, [&](int64_t c, auto count) {
          const Vec y = load_floats(sum + c, count);
          store(row + c, y);
          total += y;
        });
        const Statistics s = statistics(row, reduce_add(total), op.width, op.eps);
        Vec g_total{}, along_total{};
        for_vectors(op.width, [&](int64_t c, auto count) {
          const Vec y = (load(row + c) - broadcast(s.mean)) * broadcast(s.rstd);
          const Vec incoming = load_floats(grad_norm + c, count);
          const Vec g = incoming * load_floats(op.weight + c, count);
          store(row + c, y);
          store(grad + c, g);
          g_total += g;
          along_total += g * y;
          store(grad_weight + c, load(grad_weight + c) + incoming * y);
          store(grad_bias + c, load(grad_bias + c) + incoming);
        });
        const Vec mean = broadcast(reduce_add(g_total) / float(op.width));
        const Vec along = broadcast(reduce_add(along_total) / float(op.width));
        for_vectors(op.width, [&](int64_t c, auto count) {
          const Vec through_norm = broadcast(s.rstd) * (load(grad + c) - mean - load(row + c) * along);
          writer.store(load_floats(grad_sum + c, count) + through_norm, grad_residual + c, count);
        });
      }
    }
    writer.finish();
#pragma omp for schedule(static)
    for (int64_t c = 0; c < padded; c += kLanes) {
      const int64_t count = min(kLanes, op.width - c);
      store_floats(sum_shares(shares + c, items, 2 * padded), op.grad_weight + c, count);
      store_floats(sum_shares(shares + padded + c, items, 2 * padded), op.grad_bias + c, count);
    }
  }
}

template <typename R>
void forward_for(const AddLayerNorm& op) {
  if (op.x_dtype == op.dtype) return forward<R, R>(op);
  if (op.x_dtype == DType::kBFloat16) return forward<R, BFloat16>(op);
  return forward<R, Float16>(op);
}

}  // namespace

void add_layer_norm_forward(const AddLayerNorm& op) {
  switch (op.dtype) {
    case DType::kFloat32:
      return forward_for<float>(op);
    case DType::kBFloat16:
      return forward<BFloat16, BFloat16>(op);
    case DType::kFloat16:
      return forward<Float16, Float16>(op);
  }
}

void add_layer_norm_backward(const AddLayerNorm& op) {
  switch (op.dtype) {
    case DType::kFloat32:
      return backward<float>(op);
    case DType::kBFloat16:
      return backward<BFloat16>(op);
    case DType::kFloat16:
      return backward<Float16>(op);
  }
}

}  // namespace HSTA_ISA
}  // namespace hsta
