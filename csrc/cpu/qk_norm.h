// LayerNorm or RMSNorm over head_dim of rows of q or of k, and of their gradients.
//
// Of a row x it makes y * weight + bias with y = (x - mean) * rstd; RMSNorm's mean is 0. A gradient g of that gives
// rstd * (h - mean(h) - y * mean(h * y)) with h = g * weight to x, without mean(h) in RMSNorm, g * y to the weight and
// g to the bias. Statistics are recomputed from the row, which costs less than to keep them.
#pragma once

#include <cmath>

#include "kernels.h"
#include "row_shares.h"
#include "row_vectors.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

// Gradients of a weight and a bias, summed over rows. Some rows are summed apart before they join the others: a long
// sum of floats would gather their rounding errors.
class AffineSums {
 public:
  static constexpr int64_t kRows = 4;  // of `padded` floats: the sums, weight's and bias's, and those of some rows

  AffineSums(float* memory, int64_t padded) : all_(memory), some_(memory + 2 * padded), padded_(padded) {
    for (int64_t i = 0; i < kRows * padded; ++i) memory[i] = 0;
  }

  float* weight() const { return some_; }
  float* bias() const { return some_ + padded_; }
  void end_row() {
    if (++rows_ == kRowsPerItem) finish();
  }
  void finish() {
    for (int64_t i = 0; i < 2 * padded_; ++i) all_[i] += some_[i], some_[i] = 0;
    rows_ = 0;
  }

 private:
  float *all_, *some_;
  int64_t padded_, rows_ = 0;
};

class QKNorm {
 public:
  // `part` is 0 for q, 1 for k.
  QKNorm(const SpaceTimeAttention& op, int part)
      : affine_(op.affine.as<const float>()),
        dim_(op.head_dim),
        centres_(op.qk_norm == NormKind::kLayer),
        eps_(float(op.qk_norm_eps)) {
    if (affine_) affine_ += part * 2 * dim_;
  }

  bool normalizes() const { return affine_ != nullptr; }

  // The normalized row, as a function of where its elements are and how many of them.
  template <typename T>
  HSTA_INLINE auto normalized(const T* row) const {
    const Statistics s = statistics(row);
    const float *weight = affine_, *bias = affine_ + dim_;
    return [=](int64_t d, auto count) __attribute__((always_inline)) {
      return s.normalized(row, d, count) * load_floats(weight + d, count) + load_floats(bias + d, count);
    };
  }

  // The gradient of a row, from that of the normalized row, in its place.
  template <typename T>
  __attribute__((noinline)) void backward(const T* row, float* grad, AffineSums& sums) const {
    const Statistics s = statistics(row);
    const float* weight = affine_;
    float *grad_weight = sums.weight(), *grad_bias = sums.bias();
    Vec total{}, along{};
    for_vectors(dim_, [=, &total, &along](int64_t d, auto count) __attribute__((always_inline)) {
      const Vec y = s.normalized(row, d, count), g = load_floats(grad + d, count);
      const Vec h = g * load_floats(weight + d, count);
      store_floats(load_floats(grad_weight + d, count) + g * y, grad_weight + d, count);
      store_floats(load_floats(grad_bias + d, count) + g, grad_bias + d, count);
      store_floats(h, grad + d, count);
      total += h;
      along += present(h * y, count);
    });
    sums.end_row();
    const Vec mean = broadcast(centres_ ? reduce_add(total) / float(dim_) : 0.0f);
    const Vec mean_along = broadcast(reduce_add(along) / float(dim_));
    for_vectors(dim_, [=](int64_t d, auto count) __attribute__((always_inline)) {
      const Vec y = s.normalized(row, d, count);
      store_floats(broadcast(s.rstd) * (load_floats(grad + d, count) - mean - y * mean_along), grad + d, count);
    });
  }

 private:
  struct Statistics {
    float mean, rstd;

    template <typename T, typename Count>
    HSTA_INLINE Vec normalized(const T* row, int64_t d, Count count) const {
      return (load_floats(row + d, count) - broadcast(mean)) * broadcast(rstd);
    }
  };

  // Zeros in the lanes that a row's tail does not fill.
  static HSTA_INLINE Vec present(Vec v, Whole) { return v; }
  static HSTA_INLINE Vec present(Vec v, int64_t count) { return is_below(lane_numbers(), count) ? v : Vec{}; }

  template <typename T>
  HSTA_INLINE Statistics statistics(const T* row) const {
    float mean = 0;
    if (centres_) {
      Vec total{};
      for_vectors(dim_, [=, &total](int64_t d, auto count)
                            __attribute__((always_inline)) { total += load_floats(row + d, count); });
      mean = reduce_add(total) / float(dim_);
    }
    Vec squares{};
    for_vectors(dim_, [=, &squares](int64_t d, auto count) __attribute__((always_inline)) {
      const Vec centred = present(load_floats(row + d, count) - broadcast(mean), count);
      squares += centred * centred;
    });
    return {mean, 1.0f / std::sqrt(reduce_add(squares) / float(dim_) + eps_)};
  }

  const float* affine_;  // weight and bias
  int64_t dim_;
  bool centres_;
  float eps_;
};

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta
