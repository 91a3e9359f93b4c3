// Additive bias of a group's scores, and its gradient.
//
// A bias has a number for each head, query and key of a group, the same in all samples and groups. Its gradient is the
// sum of the scores' over these. They are dealt out to a few shares, each added up in order by one thread, and the
// shares are added up in order: the sum does not depend on threads, and memory does not grow with samples and groups.
#pragma once

#include "attention_groups.h"
#include "row_shares.h"
#include "row_vectors.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

class AttentionBias {
 public:
  explicit AttentionBias(const SpaceTimeAttention& op) : bias_(op.bias), rows_(op.group_rows()), scale_(1.0) {}

  bool adds() const { return bias_.data != nullptr; }

  const float* row(int64_t head, int64_t query) const { return bias_.at<const float>(head, query); }

  // `scores` of keys j, j + 1, ..., base 2, and the bias in `row`; zeros stand for keys past the last. Forward and
  // backward pass add the same bits.
  HSTA_INLINE Vec add(Vec scores, const float* row, int64_t j) const {
    const int64_t left = rows_ - j;
    const Vec bias = left >= kLanes ? load(row + j) : left > 0 ? load_floats(row + j, left) : Vec{};
    return rounded(scores + scaled(bias, scale_));
  }

 private:
  const TensorView bias_;
  const int64_t rows_;
  const ScoreScale scale_;
};

// Of one share of the gradient, as plan.bias_shares has it.
inline int64_t bias_share_floats(const Plan& plan, const SpaceTimeAttention& op) {
  return op.heads * plan.rows * plan.rows_padded;
}

// The shares' sum.
inline void add_bias_shares(const Plan& plan, const SpaceTimeAttention& op) {
  const int64_t stride = bias_share_floats(plan, op);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < op.heads * plan.rows; ++row) {
    const float* from = plan.bias_shares + row * plan.rows_padded;
    float* to = op.grad_bias.as<float>() + row * plan.rows;
    for_vectors(plan.rows, [&](int64_t j, auto count) {
      store_floats(sum_shares(from + j, plan.shares(), stride), to + j, count);
    });
  }
}

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta
