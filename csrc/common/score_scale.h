// The factor on scores: scale * log2(e), because softmax works in base 2.
#pragma once

#include <cmath>

namespace hsta {

// The factor in two parts, for score * high + score * low: rounded to one float, its error would scale every score of
// every row alike. Both parts have one sign and neither is zero unless the factor is, so that an infinite score stays
// what it is: of parts that differ in sign the sum would be NaN.
struct ScoreScale {
  float high, low;

  explicit ScoreScale(double scale) {
    constexpr double kLog2E = 1.4426950408889634;
    const double factor = scale * kLog2E;
    high = float(factor);
    if (std::fabs(high) > std::fabs(factor)) high = std::nextafter(high, 0.0f);
    low = float(factor - high);
    if (low == 0) low = high * 0x1p-40f;
  }
};

}  // namespace hsta
