// GELU by the error function, and its derivative.
#pragma once

#include "simd.h"

namespace hsta {
namespace HSTA_ISA {

// |x|; beyond 8, where the normal distribution's tail is nothing beside |x|, a number for which it is 0. A NaN stays.
static inline Vec distance(Vec x) {
  const Vec a = magnitude(x);
  return a > broadcast(8.0f) ? broadcast(15.0f) : a;
}

// Phi(-a), the normal distribution's tail, for a = distance(x), absolute error below 2^-23 (tests/ops/test_bias_gelu.py
// measures it). Its logarithm to base 2 is smooth, a polynomial -1 + a * (...) fitted to the least error of the tail:
// no division, and no cancellation as in 1 - erf.
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

static inline Vec gelu(Vec x) {
  const Vec a = distance(x);
  return (x > 0 ? x : x * 0) - a * tail(a);  // of -inf, NaN: what x * Phi(x) is
}

// Phi(x) + x * phi(x).
static inline Vec gelu_derivative(Vec x) {
  const Vec a = distance(x);
  const Vec density = broadcast(0.39894228f) * exp2(a * a * broadcast(-0.72134752f));  // 1 / sqrt(2 pi), log2(e) / 2
  const Vec below = tail(a) - magnitude(x) * density;  // of infinite x, NaN: what x * phi(x) is
  return x < 0 ? below : broadcast(1.0f) - below;
}

}  // namespace HSTA_ISA
}  // namespace hsta
