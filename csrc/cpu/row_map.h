// What rows of q and of k become where they are read: normalized (qk_norm.h), and then rotated (rotary.h); and the way
// back of their gradients.
#pragma once

#include "panels.h"
#include "qk_norm.h"
#include "rotary.h"
#include "row_vectors.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

class RowMap {
 public:
  // `part` is 0 for q, 1 for k.
  RowMap(const SpaceTimeAttention& op, int part) : norm_(op, part), rotary_(op), dim_(op.head_dim) {}

  bool normalizes() const { return norm_.normalizes(); }
  bool changes_rows() const { return norm_.normalizes() || rotary_.rotates(); }

  // A token's row as words, rounded once, filled up with zeros. Computed in one place: the backward pass needs the bits
  // of the forward pass.
  template <typename T, typename Word>
  __attribute__((noinline)) void pack_row(const T* from, int64_t token, Word* to) const {
    using Element = std::conditional_t<std::is_same_v<Word, float>, float, BFloat16>;
    auto* row = reinterpret_cast<Element*>(to);
    if (norm_.normalizes())
      pack(norm_.normalized(from), token, row);
    else
      rotary_.rotate([=](int64_t d, auto count) { return load_floats(from + d, count); }, token, row);
    const int64_t filled = kPerWord<Word> * row_words<Word>(dim_);
    std::memset(static_cast<void*>(row + dim_), 0, size_t(filled - dim_) * sizeof(Element));
  }

  // The gradient of a token's row, from that of what the row became, in its place.
  template <typename T>
  void pull_back(const T* row, int64_t token, float* grad, AffineSums* sums) const {
    if (rotary_.rotates()) rotary_.transpose(grad, token);
    if (norm_.normalizes()) norm_.backward(row, grad, *sums);
  }

 private:
  template <typename Row, typename Element>
  HSTA_INLINE void pack(const Row& row, int64_t token, Element* to) const {
    if (rotary_.rotates()) return rotary_.rotate(row, token, to);
    for_vectors(dim_, [=](int64_t d, auto count)
                          __attribute__((always_inline)) { store_floats(row(d, count), to + d, count); });
  }

  const QKNorm norm_;
  const Rotary rotary_;
  const int64_t dim_;
};

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta
