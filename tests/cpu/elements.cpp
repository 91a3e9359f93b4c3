// Conversions of the half types, over all of their values, and the vectorized exponential.
#include "check.h"

namespace hsta {
namespace {

template <typename T>
void test_conversions(int mantissa_bits, double smallest) {
  double next = 0;
  for (uint32_t bits = 0; bits < 0x8000u; ++bits) {
    const float value = to_float(T{uint16_t(bits)});
    const uint32_t back = from_float<T>(value).bits;
    bool good;
    if (bits >> mantissa_bits == 0x7fffu >> mantissa_bits) {  // infinity, and NaN, which keeps being one
      good = std::isinf(value) ? back == bits : std::isnan(value) && std::isnan(to_float(from_float<T>(value)));
    } else {
      // Values are a unit apart; from the middle between two, rounding goes to the even one.
      const double unit = value > 0 ? std::max(smallest, std::exp2(std::ilogb(value) - mantissa_bits)) : smallest;
      good = value == next && back == bits && from_float<T>(float(value + unit / 2)).bits == bits + bits % 2 &&
             from_float<T>(float(-value - unit / 4)).bits == (bits | 0x8000u);
      next = value + unit;
    }
    if (good) continue;
    std::fprintf(stderr, "conversion of the bits %04x, %g, is wrong\n", bits, double(value));
    std::exit(1);
  }
}

}  // namespace

void test_elements() {
  test_conversions<BFloat16>(7, 0x1p-133);
  test_conversions<Float16>(10, 0x1p-24);
  for (int64_t count : {1, 15, 16, 17, 1000}) {
    Tensor<float> x({count}), y({count});
    for (int64_t i = 0; i < count; ++i) x[i] = -126 * float(i) / float(count);
    kernels().exp2(x.memory.data(), y.memory.data(), count);
    for (int64_t i = 0; i < count; ++i) {
      const double exact = std::exp2(double(x[i]));
      if (std::abs(y[i] - exact) < 0x1p-22 * exact) continue;
      std::fprintf(stderr, "%s: 2^%.9g is %.9g, not %.9g\n", kernels().isa, double(x[i]), double(y[i]), exact);
      std::exit(1);
    }
  }
}

}  // namespace hsta
