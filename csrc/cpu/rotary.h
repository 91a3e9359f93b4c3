// Rotary position embedding of rows of q and k, and of their gradients.
//
// Of a token's row x it makes y = x * cos + rotate(x) * sin, where rotate makes (-second, first) of a pair of channels:
// neighbours, or the same place in both halves of the row. The tables have any numbers, so y need not be x rotated; the
// gradient is the transpose of the map, x' = y' * cos - rotate(y' * sin).
#pragma once

#include "kernels.h"
#include "row_vectors.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

class Rotary {
 public:
  explicit Rotary(const SpaceTimeAttention& op)
      : cos_(op.cos), sin_(op.sin), dim_(op.head_dim), interleaved_(op.rotary_pairs == RotaryPairs::kInterleaved) {}

  bool rotates() const { return cos_.rows != nullptr; }

  // A token's row, which is a function of where its elements are and how many of them, to memory.
  template <typename Row, typename Element>
  HSTA_INLINE void rotate(const Row& row, int64_t token, Element* to) const {
    for_pairs(row, token, to, [](Vec x, Vec partner, Vec cos, Vec sin, Vec, Vec sign) __attribute__((always_inline)) {
      return x * cos + partner * sin * sign;
    });
  }

  // The gradient of a token's row, from that of what the row became, in its place.
  __attribute__((noinline)) void transpose(float* row, int64_t token) const {
    const auto elements = [=](int64_t d, auto count) { return load_floats(row + d, count); };
    for_pairs(elements, token, row,
              [](Vec y, Vec partner, Vec cos, Vec, Vec sin_of_partner, Vec sign)
                  __attribute__((always_inline)) { return y * cos - partner * sin_of_partner * sign; });
  }

 private:
  struct Table {
    const float* rows;
    int64_t stride_token;

    explicit Table(const TensorView& of) : rows(of.as<const float>()), stride_token(of.stride[0]) {}
    const float* row(int64_t token) const { return rows + token * stride_token; }
  };

  // to = step(x, x of the partners, cos, sin, sin of the partners, sign of what rotate puts here).
  template <typename Row, typename Element, typename Step>
  HSTA_INLINE void for_pairs(const Row& from, int64_t token, Element* to, const Step& step) const {
    const float *cos = cos_.row(token), *sin = sin_.row(token);
    const Vec first = broadcast(-1.0f), second = broadcast(1.0f);
    if (interleaved_) {
      const auto swapped = [](Vec v) { return shuffle<Neighbour<1>>(v, v); };
      const Vec sign = is_equal(lane_numbers() % 2, 0) ? first : second;
      for_vectors(dim_, [=](int64_t d, auto count) __attribute__((always_inline)) {
        const Vec x = from(d, count), s = load_floats(sin + d, count);
        store_floats(step(x, swapped(x), load_floats(cos + d, count), s, swapped(s), sign), to + d, count);
      });
    } else {
      const int64_t half = dim_ / 2;
      for_vectors(half, [=](int64_t d, auto count) __attribute__((always_inline)) {
        const int64_t e = d + half;
        const Vec x = from(d, count), y = from(e, count);
        const Vec of_x = load_floats(sin + d, count), of_y = load_floats(sin + e, count);
        store_floats(step(x, y, load_floats(cos + d, count), of_x, of_y, first), to + d, count);
        store_floats(step(y, x, load_floats(cos + e, count), of_y, of_x, second), to + e, count);
      });
    }
  }

  const Table cos_, sin_;
  const int64_t dim_;
  const bool interleaved_;
};

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta
