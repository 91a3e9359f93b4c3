// GELU by the error function, and its derivative.
#pragma once

#include "gelu_pieces.h"

namespace hsta {
namespace HSTA_ISA {

#if defined(__AVX2__)

#if defined(__AVX512F__)
static inline Vec lookup(const float* table, IntVec index) {
  return (Vec)_mm512_permutex2var_ps((__m512)load(table), (__m512i)index, (__m512)load(table + kLanes));
}
#else
static inline Vec lookup(const float* table, IntVec index) {
  return (Vec)_mm256_permutevar8x32_ps((__m256)load(table), (__m256i)index);
}
#endif

// a, up to the middle of the last piece, where the function counts as 0.
template <int kDegree>
static inline Vec within(const Pieces<kDegree>& pieces, Vec a) {
  return at_most(a, broadcast((Pieces<kDegree>::kCount - 1) * pieces.width));
}

// Coefficients are chosen by permutations, which take the low bits of an index and leave its others alone.
template <int kDegree>
static inline Vec evaluate(const Pieces<kDegree>& pieces, Vec a) {
  const Vec kRound = broadcast(12582912.0f);  // 1.5 * 2^23: the sum has the nearest integer in its low bits
  const Vec shifted = a * broadcast(1 / pieces.width) + kRound;
  const Vec r = a - (shifted - kRound) * broadcast(pieces.width);
  IntVec index;
  std::memcpy(&index, &shifted, sizeof index);
  Vec p = lookup(pieces.coefficients[kDegree], index);
#pragma GCC unroll 8
  for (int d = kDegree - 1; d >= 0; --d) p = p * r + lookup(pieces.coefficients[d], index);
  return p;
}

// |x|, no more than where the normal distribution's tail is nothing beside it. A NaN stays.
static inline Vec distance(Vec x) { return within(kTail, magnitude(x)); }

// Phi(-a), the normal distribution's tail, for a = distance(x).
static inline Vec tail(Vec a) { return evaluate(kTail, a); }

// Phi(-a) - a * phi(a) for a = |x|; of infinity, NaN: what a * phi(a) is.
static inline Vec slope(Vec a) { return evaluate(kSlope, within(kSlope, a)) + a * broadcast(0.0f); }

#else  // no table fits a register

static inline Vec distance(Vec x) {
  const Vec a = magnitude(x);
  return a > broadcast(8.0f) ? broadcast(15.0f) : a;  // for which the tail is 0
}

// Its logarithm to base 2 is smooth, a polynomial -1 + a * (...) fitted to the least error of the tail: no division,
// and no cancellation as in 1 - erf.
static inline Vec tail(Vec a) {
  Vec p = broadcast(-3.224521805123004e-08f);
  p = p * a + broadcast(9.533299589747912e-07f);
  p = p * a + broadcast(-1.1876728422066662e-05f);
  p = p * a + broadcast(8.059794345172122e-05f);
  p = p * a + broadcast(-0.0002891572949010879f);
  p = p * a + broadcast(9.747507647261955e-06f);
  p = p * a + broadcast(0.0069459788501262665f);
  p = p * a + broadcast(-0.05244682729244232f);
  p = p * a + broadcast(-0.45921748876571655f);
  p = p * a + broadcast(-1.1511046886444092f);
  return exp2(p * a - broadcast(1.0f));
}

static inline Vec slope(Vec a) {
  const Vec density = broadcast(0.39894228f) * exp2(a * a * broadcast(-0.72134752f));  // 1 / sqrt(2 pi), log2(e) / 2
  return tail(distance(a)) - a * density;
}

#endif

static inline Vec gelu(Vec x) {
  // max(x, 0) but for -inf, of which it is NaN, as x * Phi(x) is.
  const Vec positive = x * broadcast(0.5f) + magnitude(x) * broadcast(0.5f);
  const Vec a = distance(x);
  return positive - a * tail(a);
}

// Phi(x) + x * phi(x).
static inline Vec gelu_derivative(Vec x) {
  const Vec below = slope(magnitude(x));
  return x < 0 ? below : broadcast(1.0f) - below;
}

}  // namespace HSTA_ISA
}  // namespace hsta
