// Element types that cross the Python boundary, and their conversion to and from float.
#pragma once

#include <cstdint>
#include <cstring>

namespace hsta {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The conversions are written in integer arithmetic without branches, so that every compiler vectorizes the loops
// around them and none needs a half-precision type of its own (GCC 11 has none in C++). They live in an anonymous
// namespace: each translation unit is compiled for another instruction set and must keep its own copy.
namespace {

inline float bits_to_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}

inline uint32_t float_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  return u;
}

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }

inline float to_float(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  // Multiplying by 2^112 moves the exponent to float's bias and normalizes subnormals on the way.
  const float scaled = bits_to_float(magnitude) * 0x1p112f;
  const uint32_t finite = float_to_bits(scaled);
  const uint32_t special = magnitude | 0x7f800000u;
  return bits_to_float(sign | (magnitude >= 0x0f800000u ? special : finite));
}

template <typename T>
inline T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

// Round to nearest, ties to even; a NaN stays a NaN.
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  const uint32_t u = float_to_bits(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t nan = (u >> 16) | 0x40u;
  return {uint16_t((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}

template <>
inline Float16 from_float<Float16>(float x) {
  const uint32_t u = float_to_bits(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  // Normal halves: rebias the exponent, round to nearest even on the 13 dropped bits.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal halves: adding 0.5 aligns the wanted bits with the end of float's mantissa, rounded by the addition.
  const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above round to infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return {uint16_t(sign | half)};
}

}  // namespace
}  // namespace hsta
