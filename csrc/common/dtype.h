// Element types that cross the Python boundary, and their conversion to and from float.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace hsta {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kUInt8 = 3 };
constexpr int kFloatingDTypes = 3;  // the first ones

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The conversions are written in integer arithmetic without branches, once for a number (uint32_t and float) and for
// vectors of them (the compiler's vector extension), and none needs a half-precision type of the compiler's own (GCC 11
// has none in C++). They live in an anonymous namespace: each translation unit is compiled for another instruction set
// and must keep its own copy.
namespace {

template <typename To, typename From>
inline To reinterpret_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// The value of the 16 bits in the low half of `bits`.
template <typename Float, typename Bits>
inline Float widen(BFloat16, Bits bits) {
  return reinterpret_bits<Float>(bits << 16);
}

template <typename Float, typename Bits>
inline Float widen(Float16, Bits bits) {
  const Bits sign = (bits & 0x8000u) << 16;
  const Bits magnitude = (bits & 0x7fffu) << 13;
  // Multiplying by 2^112 moves the exponent to float's bias and normalizes subnormals on the way.
  const Float scaled = reinterpret_bits<Float>(magnitude) * 0x1p112f;
  const Bits finite = reinterpret_bits<Bits>(scaled);
  const Bits special = magnitude | 0x7f800000u;
  return reinterpret_bits<Float>(sign | (magnitude >= 0x0f800000u ? special : finite));
}

// Bits whose upper half is the bfloat16 nearest to x; ties to even, a NaN stays a NaN.
template <typename Bits, typename Float>
inline Bits round_to_bfloat16(Float x) {
  const Bits u = reinterpret_bits<Bits>(x);
  Bits all_if_nan;
  if constexpr (std::is_arithmetic_v<Float>)
    all_if_nan = Bits{} - Bits(x != x);
  else
    all_if_nan = (Bits)(x != x);
  return (u + 0x7fffu + ((u >> 16) & 1u)) | all_if_nan;
}

// The 16 bits nearest to x, in the low half; likewise.
template <typename Bits, typename Float>
inline Bits narrow(BFloat16, Float x) {
  return round_to_bfloat16<Bits>(x) >> 16;
}

template <typename Bits, typename Float>
inline Bits narrow(Float16, Float x) {
  const Bits u = reinterpret_bits<Bits>(x);
  const Bits sign = (u >> 16) & 0x8000u;
  const Bits magnitude = u & 0x7fffffffu;
  // Normal halves: rebias the exponent, round to nearest even on the 13 dropped bits.
  const Bits normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal halves: adding 0.5 aligns the wanted bits with the end of float's mantissa, rounded by the addition.
  const Bits subnormal = reinterpret_bits<Bits>(reinterpret_bits<Float>(magnitude) + 0.5f) - 0x3f000000u;
  Bits half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? Bits{} + 0x7c00u : half;  // 65520 and above round to infinity
  half = magnitude > 0x7f800000u ? Bits{} + 0x7e00u : half;
  return sign | half;
}

inline float to_float(float x) { return x; }

template <typename Half>
inline float to_float(Half x) {
  return widen<float>(Half{}, uint32_t(x.bits));
}

template <typename T>
inline T from_float(float x) {
  return {uint16_t(narrow<uint32_t>(T{}, x))};
}

template <>
inline float from_float<float>(float x) {
  return x;
}

// f(element of the type that `dtype` names).
template <typename F>
inline void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kBFloat16:
      return f(BFloat16{});
    case DType::kFloat16:
      return f(Float16{});
    case DType::kUInt8:  // the binding lets none through where an element's type is free
      return;
  }
}

}  // namespace
}  // namespace hsta
