// sum = x + residual and norm = LayerNorm(sum) in one pass over memory, forward and backward.
#include <cmath>

#include "kernels.h"
#include "memory.h"
#include "writer.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

// Rows whose share of the weight gradients is summed by one work item; fixed, so that the order of summation is.
constexpr int64_t kRowsPerItem = 32;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

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

template <typename X, typename R>
void forward(const AddLayerNorm& op) {
  const int64_t row_bytes = op.width * int64_t(sizeof(X));
  const Writer sum_writer(op.sum, op.rows * row_bytes, row_bytes), norm_writer(op.norm, op.rows * row_bytes, row_bytes);
#pragma omp parallel
  {
    float* row = scratch(Scratch::kThread, round_up(op.width, kLanes));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < op.rows; ++i) {
      const X* x = static_cast<const X*>(op.x) + i * op.x_stride_row;
      const R* residual = static_cast<const R*>(op.residual) + i * op.residual_stride_row;
      X* sum = static_cast<X*>(op.sum) + i * op.width;
      X* norm = static_cast<X*>(op.norm) + i * op.width;
      Vec total{};
      for_vectors(op.width, [&](int64_t c, auto count) {
        const Vec exact = load_floats(x + c, count) + load_floats(residual + c, count);
        sum_writer.store(exact, sum + c, count);
        const Vec stored = round_to<X>(exact);  // normalize what the next layer reads
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
template <typename X>
void backward(const AddLayerNorm& op) {
  const int64_t padded = round_up(op.width, kLanes);
  const int64_t items = (op.rows + kRowsPerItem - 1) / kRowsPerItem;
  float* parts = scratch(Scratch::kShared, items * 2 * padded);
  const int64_t row_bytes = op.width * int64_t(sizeof(X));
  const Writer writer(op.grad_x, op.rows * row_bytes, row_bytes);
#pragma omp parallel
  {
    float* row = scratch(Scratch::kThread, 2 * padded);
    float* grad = row + padded;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < items; ++item) {
      float* grad_weight = parts + item * 2 * padded;
      float* grad_bias = grad_weight + padded;
      for (int64_t c = 0; c < 2 * padded; ++c) grad_weight[c] = 0;
      for (int64_t i = item * kRowsPerItem; i < min((item + 1) * kRowsPerItem, op.rows); ++i) {
        const X* sum = static_cast<const X*>(op.sum) + i * op.width;
        const X* grad_norm = static_cast<const X*>(op.grad_norm) + i * op.grad_norm_stride_row;
        const X* grad_sum = static_cast<const X*>(op.grad_sum) + i * op.grad_sum_stride_row;
        X* grad_x = static_cast<X*>(op.grad_x) + i * op.width;
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
          writer.store(load_floats(grad_sum + c, count) + through_norm, grad_x + c, count);
        });
      }
    }
    writer.finish();
#pragma omp for schedule(static)
    for (int64_t c = 0; c < padded; c += kLanes) {
      Vec weight_total{}, bias_total{};
      for (int64_t item = 0; item < items; ++item) {
        weight_total += load(parts + item * 2 * padded + c);
        bias_total += load(parts + (item * 2 + 1) * padded + c);
      }
      store_floats(weight_total, op.grad_weight + c, min(kLanes, op.width - c));
      store_floats(bias_total, op.grad_bias + c, min(kLanes, op.width - c));
    }
  }
}

template <typename X>
void forward_for(const AddLayerNorm& op) {
  if (op.residual_dtype == op.dtype) return forward<X, X>(op);
  if (op.residual_dtype == DType::kBFloat16) return forward<X, BFloat16>(op);
  return forward<X, Float16>(op);
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
