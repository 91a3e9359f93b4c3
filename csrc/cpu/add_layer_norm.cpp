// sum = x + residual and norm = LayerNorm(sum) in one pass over memory, forward and backward.
#include <cmath>

#include "kernels.h"
#include "simd.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

// Rows whose share of the weight gradients is summed by one work item; fixed, so that the order of summation is.
constexpr int64_t kRowsPerItem = 64;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

struct Statistics {
  float mean, rstd;
};

// Of a row padded with zeros; variance by a second pass over the row, which is in cache.
Statistics statistics(const float* row, int64_t width, float eps) {
  const int64_t whole = width / kLanes * kLanes;
  Vec sum{};
  for (int64_t c = 0; c < round_up(width, kLanes); c += kLanes) sum += load(row + c);
  const float mean = reduce_add(sum) / float(width);
  Vec squares{};
  for (int64_t c = 0; c < whole; c += kLanes) {
    const Vec centred = load(row + c) - broadcast(mean);
    squares += centred * centred;
  }
  float total = reduce_add(squares);
  for (int64_t c = whole; c < width; ++c) total += (row[c] - mean) * (row[c] - mean);
  return {mean, 1.0f / std::sqrt(total / float(width) + eps)};
}

template <typename X, typename R>
void forward(const AddLayerNorm& op) {
  const int64_t padded = round_up(op.width, kLanes);
#pragma omp parallel
  {
    float* row = scratch(Scratch::kThread, 2 * padded);
    float* other = row + padded;
    for (int64_t c = op.width; c < padded; ++c) row[c] = 0;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < op.rows; ++i) {
      load_row(static_cast<const X*>(op.x) + i * op.x_stride_row, op.width, row);
      load_row(static_cast<const R*>(op.residual) + i * op.residual_stride_row, op.width, other);
      for (int64_t c = 0; c < op.width; ++c) row[c] += other[c];
      X* sum = static_cast<X*>(op.sum) + i * op.width;
      store_row(row, op.width, sum);
      load_row(sum, op.width, row);  // normalize what the next layer reads: the rounded sum
      const Statistics s = statistics(row, op.width, op.eps);
      for (int64_t c = 0; c < op.width; ++c) other[c] = (row[c] - s.mean) * s.rstd * op.weight[c] + op.bias[c];
      store_row(other, op.width, static_cast<X*>(op.norm) + i * op.width);
    }
  }
}

// dL/dsum = grad_sum + rstd * (g - mean(g) - y * mean(g * y)), g = weight * grad_norm, y the normalized row.
template <typename X>
void backward(const AddLayerNorm& op) {
  const int64_t padded = round_up(op.width, kLanes);
  const int64_t items = (op.rows + kRowsPerItem - 1) / kRowsPerItem;
  float* parts = scratch(Scratch::kShared, items * 2 * padded);
#pragma omp parallel
  {
    float* y = scratch(Scratch::kThread, 4 * padded);
    float* grad = y + padded;
    float* incoming = grad + padded;
    float* weight = incoming + padded;
    for (int64_t c = 0; c < padded; ++c) weight[c] = c < op.width ? op.weight[c] : 0.0f;
    for (int64_t c = op.width; c < padded; ++c) y[c] = incoming[c] = 0;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < items; ++item) {
      float* grad_weight = parts + item * 2 * padded;
      float* grad_bias = grad_weight + padded;
      for (int64_t c = 0; c < 2 * padded; ++c) grad_weight[c] = 0;
      for (int64_t i = item * kRowsPerItem; i < min((item + 1) * kRowsPerItem, op.rows); ++i) {
        load_row(static_cast<const X*>(op.sum) + i * op.width, op.width, y);
        load_row(static_cast<const X*>(op.grad_norm) + i * op.grad_norm_stride_row, op.width, incoming);
        for (int64_t c = op.width; c < padded; ++c) y[c] = 0;
        const Statistics s = statistics(y, op.width, op.eps);
        Vec sum{}, projection{};
        for (int64_t c = 0; c < padded; c += kLanes) {
          const Vec normalized = (load(y + c) - broadcast(s.mean)) * broadcast(s.rstd);
          const Vec g = load(incoming + c) * load(weight + c);
          store(y + c, normalized);
          store(grad + c, g);
          sum += g;
          projection += g * normalized;
          store(grad_weight + c, load(grad_weight + c) + load(incoming + c) * normalized);
          store(grad_bias + c, load(grad_bias + c) + load(incoming + c));
        }
        const Vec mean = broadcast(reduce_add(sum) / float(op.width));
        const Vec along = broadcast(reduce_add(projection) / float(op.width));
        for (int64_t c = 0; c < padded; c += kLanes)
          store(grad + c, broadcast(s.rstd) * (load(grad + c) - mean - load(y + c) * along));
        load_row(static_cast<const X*>(op.grad_sum) + i * op.grad_sum_stride_row, op.width, incoming);
        for (int64_t c = 0; c < op.width; ++c) grad[c] += incoming[c];
        store_row(grad, op.width, static_cast<X*>(op.grad_x) + i * op.width);
      }
    }
#pragma omp for schedule(static)
    for (int64_t c = 0; c < op.width; ++c) {
      float weight_total = 0, bias_total = 0;
      for (int64_t item = 0; item < items; ++item) {
        weight_total += parts[item * 2 * padded + c];
        bias_total += parts[(item * 2 + 1) * padded + c];
      }
      op.grad_weight[c] = weight_total;
      op.grad_bias[c] = bias_total;
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
