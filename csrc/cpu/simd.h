// Vectors of float as wide as the instruction set being compiled for, in the compiler's own vector extension: GCC and
// clang both have it on every processor, so that one source serves them all.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/dtype.h"

namespace hsta {
namespace HSTA_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));

// a * b + c as the vector code computes it: fused where the processor fuses.
static inline float multiply_add(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

static inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

static inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

static inline Vec broadcast(float x) { return x - Vec{}; }

// A NaN in `a` stays a NaN.
static inline Vec max(Vec a, Vec b) { return b > a ? b : a; }

static inline float reduce_max(Vec v) {
  float m = v[0];
  for (int i = 1; i < kLanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

static inline float reduce_add(Vec v) {
  // Pairwise, as a tree: a fixed order whatever the compiler does.
  float s[kLanes];
  std::memcpy(s, &v, sizeof s);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) s[i] += s[i + width];
  return s[0];
}

// 2^x for x <= 127, relative error below 2^-22 (tests/ops/test_native.py measures it); 0 below -126.
// x = n + f with n an integer and |f| <= 1/2: 2^f by a polynomial of degree 6, 2^n by its exponent bits.
static inline Vec exp2(Vec x) {
  const Vec kRound = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Vec clamped = max(x, broadcast(-127.0f));
  const Vec shifted = clamped + kRound;
  const Vec f = clamped - (shifted - kRound);
  Vec p = broadcast(1.546144472e-4f);
  p = p * f + broadcast(1.340042818e-3f);
  p = p * f + broadcast(9.618056678e-3f);
  p = p * f + broadcast(5.550327227e-2f);
  p = p * f + broadcast(2.402265092e-1f);
  p = p * f + broadcast(6.931472067e-01f);
  p = p * f + broadcast(1.0f);
  IntVec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4b400000 + 127) << 23;  // n + bias, moved to the exponent field; n = -127 gives 0
  Vec power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

template <typename T>
static inline void load_row(const T* source, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(source[i]);
}

template <typename T>
static inline void store_row(const float* source, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_float<T>(source[i]);
}

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace HSTA_ISA
}  // namespace hsta
