// Shares of the gradients of what all rows have in common, weights and biases. Rows are dealt out to work items, each
// leaves its share, and the shares are added up in order: so that the sum does not depend on threads.
#pragma once

#include "simd.h"

namespace hsta {
namespace HSTA_ISA {

constexpr int64_t kRowsPerItem = 32;

// One vector of the sum; the items' shares lie `stride` floats apart.
static inline Vec sum_shares(const float* shares, int64_t items, int64_t stride) {
  Vec total{};
  for (int64_t item = 0; item < items; ++item) total += load(shares + item * stride);
  return total;
}

}  // namespace HSTA_ISA
}  // namespace hsta
