// A row as vectors: one at a time, or two taken as one where that converts its elements faster.
#pragma once

#include "simd.h"

namespace hsta {
namespace HSTA_ISA {

// Two vectors taken as one: the even elements and the odd ones of a run of a row. Two bfloat16 in a word become floats
// by one operation each, and two rounded floats a word by three; in order, AVX2 takes two a vector one way and three
// the other. Floats that go with such a row are kept in its order, a vector of even ones before a vector of odd ones.
struct EvenOdd {
  Vec even, odd;
  EvenOdd(Vec even, Vec odd) : even(even), odd(odd) {}
  EvenOdd(Vec both) : even(both), odd(both) {}  // a number that all elements have in common
};

static inline EvenOdd operator+(EvenOdd a, EvenOdd b) { return {a.even + b.even, a.odd + b.odd}; }
static inline EvenOdd operator-(EvenOdd a, EvenOdd b) { return {a.even - b.even, a.odd - b.odd}; }
static inline EvenOdd operator*(EvenOdd a, EvenOdd b) { return {a.even * b.even, a.odd * b.odd}; }
static inline Vec operator+=(Vec& total, EvenOdd v) { return total += v.even + v.odd; }

using Twice = std::integral_constant<int64_t, 2 * kLanes>;

// From and to a row with room for a whole number of vectors.
static inline Vec load(const float* p, int64_t) { return load(p); }
static inline EvenOdd load(const float* p, Twice) { return {load(p), load(p + kLanes)}; }
static inline void store(float* p, EvenOdd v) { store(p, v.even), store(p + kLanes, v.odd); }

static inline EvenOdd load_floats(const float* source, Twice count) { return load(source, count); }

static inline void store_floats(EvenOdd v, float* to, Twice) { store(to, v); }

static inline EvenOdd load_floats(const BFloat16* source, Twice) {
  BitsVec words;
  std::memcpy(&words, source, sizeof words);
  return {(Vec)(words << 16), (Vec)(words & 0xffff0000u)};
}

static inline void store_floats(EvenOdd v, BFloat16* to, Twice) {
  const BitsVec words = round_to_bfloat16<BitsVec>(v.even) >> 16 | (round_to_bfloat16<BitsVec>(v.odd) & 0xffff0000u);
  std::memcpy(static_cast<void*>(to), &words, sizeof words);
}

template <typename T>
static inline EvenOdd round_to(EvenOdd v) {
  return {round_to<T>(v.even), round_to<T>(v.odd)};
}

// Whether rows of T are taken so: not where an instruction narrows to bfloat16, in order.
template <typename T>
constexpr bool kEvenOdd = false;
#ifndef __AVX512BF16__
template <>
inline constexpr bool kEvenOdd<BFloat16> = true;
#endif

// step(first column, columns) for each vector of a row, or two of them taken as one where its elements are T: the whole
// ones, then what is left, which is in order.
template <typename T = float, typename Step>
static inline void for_vectors(int64_t width, Step step) {
  int64_t c = 0;
  if constexpr (kEvenOdd<T>)
    for (; c + 2 * kLanes <= width; c += 2 * kLanes) step(c, Twice{});
  for (; c + kLanes <= width; c += kLanes) step(c, Whole{});
  if (c < width) step(c, width - c);
}

template <bool kOdd>
struct EverySecond {
  static constexpr int of(int lane) { return 2 * lane + kOdd; }
};

template <bool kUpper>
struct Alternating {
  static constexpr int of(int lane) { return lane / 2 + lane % 2 * kLanes + kUpper * kLanes / 2; }
};

// Two vectors of elements in order to even and odd ones, and back. What is taken as one vector is in order as it is.
static inline EvenOdd separate(EvenOdd v) {
  return {shuffle<EverySecond<false>>(v.even, v.odd), shuffle<EverySecond<true>>(v.even, v.odd)};
}
static inline EvenOdd interleave(EvenOdd v) {
  return {shuffle<Alternating<false>>(v.even, v.odd), shuffle<Alternating<true>>(v.even, v.odd)};
}
static inline Vec separate(Vec v) { return v; }
static inline Vec interleave(Vec v) { return v; }

// Floats in the order of a row of T: as they are, or laid out anew in `memory`.
template <typename T>
static inline const float* in_order_of(const float* floats, int64_t width, [[maybe_unused]] float* memory) {
  if constexpr (kEvenOdd<T>) {
    for_vectors<T>(width, [=](int64_t c, auto count) {
      store_floats(separate(load_floats(floats + c, count)), memory + c, count);
    });
    return memory;
  } else {
    return floats;
  }
}

}  // namespace HSTA_ISA
}  // namespace hsta
