// Rows of float as integers of 8 bits, each with a scale of its own, and what a product of integers becomes by them. A
// row is read once from memory, and twice more from the first cache.
#include <limits>

#include "gelu.h"
#include "kernels.h"
#include "row_vectors.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

typedef uint8_t ByteVec __attribute__((vector_size(kLanes)));

template <typename Count>  // a constant, of whole vectors
inline void store_bytes(IntVec v, uint8_t* to, Count count) {
  // By halves: in one step GCC takes the vector apart.
  const ByteVec bytes = __builtin_convertvector(__builtin_convertvector(v, HalfVec), ByteVec);
  std::memcpy(to, &bytes, size_t(count));
}

// The largest magnitude. As integers, the bits of magnitudes have the magnitudes' order, and a NaN is above infinity.
float largest_of(const float* x, int64_t width) {
  IntVec largest{};
  for_vectors(width, [&](int64_t c, auto count) {
    largest = max(largest, reinterpret_bits<IntVec>(magnitude(load_floats(x + c, count))));
  });
  return reinterpret_bits<float>(int32_t(reduce_max(largest)));
}

}  // namespace

void quantize_rows(const QuantizedRows& op) {
  // Added to a number, it leaves the nearest integer above the zero point in the low bits: of a tie the even one, since
  // the zero point is even.
  const Vec round = broadcast(12582912.0f + float(op.most + 1));
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < op.rows; ++i) {
    const float* x = op.x.at<const float>(i);
    uint8_t* integers = op.integers.at<uint8_t>(i);
    const float largest = largest_of(x, op.width);
    const float smallest = std::numeric_limits<float>::min();
    const float scale = (largest < smallest ? smallest : largest) / float(op.most);  // a NaN stays
    *op.scale.at<float>(i) = scale;
    for_vectors(op.width, [&](int64_t c, auto count) {
      const Vec shifted = load_floats(x + c, count) / broadcast(scale) + round;
      store_bytes(reinterpret_bits<IntVec>(shifted), integers + c, count);
    });
  }
}

void scale_rows(const QuantizedRows& op) {
  const float* bias = op.bias.as<float>();
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < op.rows; ++i) {
    float* y = op.y.at<float>(i);
    const Vec scale = broadcast(*op.scale.at<float>(i));
    for_vectors(op.width, [&](int64_t c, auto count) {
      const Vec sum = load_floats(y + c, count) * scale + load_floats(bias + c, count);
      store_floats(op.gelu ? gelu(sum) : sum, y + c, count);
    });
  }
}

}  // namespace HSTA_ISA
}  // namespace hsta
