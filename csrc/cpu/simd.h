// Vectors of float as wide as the instruction set being compiled for, in the compiler's own vector extension: GCC and
// clang both have it on every processor, so that one source serves them all.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../common/tensor_view.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

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
typedef uint32_t BitsVec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes)));

// A word is the 4 bytes of an operand that a product takes at once: a float, or two bfloat16 where the processor
// multiplies and adds pairs of them and has no tile registers: beside those, pairs are slower than floats. Everything
// that handles words handles both.
struct Pair {
  BFloat16 low, high;
};
typedef uint16_t PairVec __attribute__((vector_size(4 * kLanes)));
template <typename T>
struct WordOf {
  using type = float;
};
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
template <>
struct WordOf<BFloat16> {
  using type = Pair;
};
#endif

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

static inline PairVec load(const Pair* p) {
  PairVec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename Word, typename V>
static inline void store(Word* p, V v) {
  std::memcpy(static_cast<void*>(p), &v, sizeof v);
}

static inline Vec broadcast(float x) { return x - Vec{}; }

static inline IntVec broadcast(int32_t x) { return x - IntVec{}; }

static inline PairVec broadcast(Pair x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (PairVec)broadcast(bits);
}

// Masks of the lanes whose element of `x` is below, or equal to, a number of at most 31 bits.
static inline IntVec is_below(IntVec x, int64_t bound) { return x < broadcast(int32_t(bound)); }
static inline IntVec is_equal(IntVec x, int64_t value) { return x == broadcast(int32_t(value)); }

// sum + a * b, word by word.
static inline Vec multiply_add(Vec sum, Vec a, Vec b) { return sum + a * b; }
#ifdef __AVX512BF16__
static inline Vec multiply_add(Vec sum, PairVec a, PairVec b) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

// The value of x as rounded here: the compiler may not fuse its last product into what follows.
static inline Vec rounded(Vec x) {
#if defined(__x86_64__)
  __asm__("" : "+v"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#else
  __asm__("" : "+m"(x));
#endif
  return x;
}

// 0, 1, 2, ...: each lane's own number.
template <int... kLane>
static inline IntVec lane_numbers(std::integer_sequence<int, kLane...>) {
  return IntVec{kLane...};
}
static inline IntVec lane_numbers() { return lane_numbers(std::make_integer_sequence<int, kLanes>()); }

// Lanes of the concatenation (a, b), chosen at compile time: lane i of the result is lane Choice::of(i).
template <typename Choice, typename V, int... kLane>
static inline V shuffle_by(V a, V b, std::integer_sequence<int, kLane...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, Choice::of(kLane)...);
#else
  using Index = decltype(a < b);
  return __builtin_shuffle(a, b, Index{Choice::of(kLane)...});
#endif
}

template <typename Choice, typename V>
static inline V shuffle(V a, V b) {
  return shuffle_by<Choice>(a, b, std::make_integer_sequence<int, int(sizeof(V) / sizeof(a[0]))>());
}

// In every run of four lanes the same choice: 0-3 from a, 4-7 from b.
template <int k0, int k1, int k2, int k3>
struct InFours {
  static constexpr int of(int lane) {
    const int choices[4] = {k0, k1, k2, k3};
    const int k = choices[lane % 4];
    return lane / 4 * 4 + k % 4 + (k < 4 ? 0 : kLanes);
  }
};

// The first (0) or second (1) vector of two in which runs of four lanes come from a and from b in turns.
template <int which>
struct FoursInTurns {
  static constexpr int of(int lane) {
    const int run = (which * kLanes + lane) / 4;
    return run % 2 * kLanes + run / 2 * 4 + lane % 4;
  }
};

// b > a ? b : a, and b < a ? b : a, so a NaN in `a` stays a NaN. GCC makes one instruction of that in some places and
// three in others.
static inline Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)b, (__m512)a);
#elif defined(__AVX__)
  return (Vec)_mm256_max_ps((__m256)b, (__m256)a);
#elif defined(__SSE2__)
  return (Vec)_mm_max_ps((__m128)b, (__m128)a);
#else
  return b > a ? b : a;
#endif
}
static inline Vec at_most(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_min_ps((__m512)b, (__m512)a);
#elif defined(__AVX__)
  return (Vec)_mm256_min_ps((__m256)b, (__m256)a);
#elif defined(__SSE2__)
  return (Vec)_mm_min_ps((__m128)b, (__m128)a);
#else
  return b < a ? b : a;
#endif
}
static inline IntVec max(IntVec a, IntVec b) { return b > a ? b : a; }

static inline Vec magnitude(Vec x) {
  IntVec bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits &= 0x7fffffff;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The largest, and the sum, of each run of four lanes, in all four of them.
static inline Vec max_in_fours(Vec v) {
  v = max(v, shuffle<InFours<1, 0, 3, 2>>(v, v));
  return max(v, shuffle<InFours<2, 3, 0, 1>>(v, v));
}

static inline Vec add_in_fours(Vec v) {
  v += shuffle<InFours<1, 0, 3, 2>>(v, v);
  return v + shuffle<InFours<2, 3, 0, 1>>(v, v);
}

// The lane kBlock away: halves, quarters, ... of a vector change places.
template <int kBlock>
struct Neighbour {
  static constexpr int of(int lane) { return lane ^ kBlock; }
};

// The same over lanes four apart, in all of them.
template <int kBlock = kLanes / 2>
static inline Vec max_over_fours(Vec v) {
  if constexpr (kBlock >= 4) v = max_over_fours<kBlock / 2>(max(v, shuffle<Neighbour<kBlock>>(v, v)));
  return v;
}

template <int kBlock = kLanes / 2>
static inline Vec add_over_fours(Vec v) {
  if constexpr (kBlock >= 4) v = add_over_fours<kBlock / 2>(v + shuffle<Neighbour<kBlock>>(v, v));
  return v;
}

// Lane i of vector j to lane j of vector i: every step swaps blocks of half the size across the diagonal.
template <int kBlock, bool kUpper>
struct SwappedBlocks {
  static constexpr int of(int lane) {
    const bool odd = lane / kBlock % 2;
    return kUpper ? (odd ? kLanes + lane - kBlock : lane) : (odd ? kLanes + lane : lane + kBlock);
  }
};

template <int kBlock = kLanes / 2>
static inline void transpose_block(Vec* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (i / kBlock % 2 == 0) {
      const Vec a = rows[i], b = rows[i + kBlock];
      rows[i] = shuffle<SwappedBlocks<kBlock, true>>(a, b);
      rows[i + kBlock] = shuffle<SwappedBlocks<kBlock, false>>(a, b);
    }
  if constexpr (kBlock > 1) transpose_block<kBlock / 2>(rows);
}

// Lane i of the result is the sum of the lanes of rows[i]; `rows` is overwritten.
template <int kBlock = kLanes / 2>
static inline Vec sums_of_lanes(Vec* rows) {
#pragma GCC unroll 8
  for (int i = 0; i < kBlock; ++i) {
    const Vec a = rows[i], b = rows[i + kBlock];
    rows[i] = shuffle<SwappedBlocks<kBlock, true>>(a, b) + shuffle<SwappedBlocks<kBlock, false>>(a, b);
  }
  if constexpr (kBlock > 1) return sums_of_lanes<kBlock / 2>(rows);
  return rows[0];
}

template <int kBlock = kLanes / 2, typename V>
static inline auto reduce_max(V v) {
  v = max(v, shuffle<Neighbour<kBlock>>(v, v));
  if constexpr (kBlock > 1) return reduce_max<kBlock / 2>(v);
  return v[0];
}

template <int kBlock = kLanes / 2>
static inline float reduce_add(Vec v) {
  v += shuffle<Neighbour<kBlock>>(v, v);
  if constexpr (kBlock > 1) return reduce_add<kBlock / 2>(v);
  return v[0];
}

// term(0) + term(kLanes) + ... up to `count`, in four chains that do not wait for each other.
template <typename Term>
static inline Vec sum_vectors(int64_t count, Term term) {
  Vec sum[4] = {};
  int64_t c = 0;
  for (; c + 4 * kLanes <= count; c += 4 * kLanes)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sum[i] += term(c + i * kLanes);
  for (; c < count; c += kLanes) sum[0] += term(c);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// 2^x for x <= 127, relative error below 2^-22 (tests/ops/test_cpu.py measures it); 0 below -126.
// x = n + f with n an integer and |f| <= 1/2: 2^f by a polynomial of degree 6, 2^n by its exponent bits.
static inline Vec exp2(Vec x) {
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits; 127 more, and it is the exponent's field.
  const Vec kRound = broadcast(12582912.0f + 127.0f);
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
  bits <<= 23;  // n = -127 gives 0
  Vec power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// 2^x for weights that are rounded to bfloat16, relative error below 2^-18; 1 for 0. x = n + f with n the integer below
// it: 2^f by a polynomial of degree 4.
static inline Vec exp2_for_bfloat16(Vec x) {
#ifdef __AVX512F__
  constexpr int kFloor = 1;
  const Vec f = (Vec)_mm512_reduce_ps((__m512)x, kFloor);
  Vec p = broadcast(1.342515442e-02f);
  p = p * f + broadcast(5.224537404e-02f);
  p = p * f + broadcast(2.412785561e-01f);
  p = p * f + broadcast(6.930451545e-01f);
  p = p * f + broadcast(1.0f);
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
  return exp2(x);
#endif
}

// The elements of a whole vector as floats, and floats rounded to elements.
using Whole = std::integral_constant<int64_t, kLanes>;

static inline Vec load_floats(const float* source, Whole = {}) { return load(source); }

// Halves as the low halves of words, and back. GCC makes four instructions of what AVX2 and AVX-512 do in one.
static inline BitsVec in_words(HalfVec halves) {
#if defined(__AVX512F__)
  return (BitsVec)_mm512_cvtepu16_epi32((__m256i)halves);
#elif defined(__AVX2__)
  return (BitsVec)_mm256_cvtepu16_epi32((__m128i)halves);
#else
  return __builtin_convertvector(halves, BitsVec);
#endif
}

// Of words whose upper halves are zeros.
static inline HalfVec from_words(BitsVec words) {
#if defined(__AVX512F__)
  return (HalfVec)_mm512_cvtepi32_epi16((__m512i)words);
#elif defined(__AVX2__)
  return (HalfVec)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)words), _mm256_extracti128_si256((__m256i)words, 1));
#else
  return __builtin_convertvector(words, HalfVec);
#endif
}

template <typename Half>
static inline Vec load_floats(const Half* source, Whole = {}) {
  HalfVec halves;
  std::memcpy(&halves, source, sizeof halves);
  return widen<Vec>(Half{}, in_words(halves));
}

static inline void store_floats(Vec v, float* to, Whole = {}) { store(to, v); }

template <typename Half>
static inline void store_floats(Vec v, Half* to, Whole = {}) {
  const HalfVec bits = from_words(narrow<BitsVec>(Half{}, v));
  std::memcpy(static_cast<void*>(to), &bits, sizeof bits);
}

// The processor's own conversions.
#if defined(__AVX512F__) || defined(__F16C__)
static inline Vec load_floats(const Float16* source, Whole = {}) {
#ifdef __AVX512F__
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
#else
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
#endif
}

static inline void store_floats(Vec v, Float16* to, Whole = {}) {
#ifdef __AVX512F__
  const __m256i bits = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#else
  const __m128i bits = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#endif
  std::memcpy(static_cast<void*>(to), &bits, sizeof bits);
}
#endif

#ifdef __AVX512BF16__
static inline void store_floats(Vec v, BFloat16* to, Whole = {}) {
  const __m256bh bits = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(static_cast<void*>(to), &bits, sizeof bits);
}
#endif

// v with its elements rounded to T.
template <typename T>
static inline Vec round_to(Vec v) {
#ifndef __AVX512BF16__
  if constexpr (std::is_same_v<T, BFloat16>) return (Vec)(round_to_bfloat16<BitsVec>(v) & 0xffff0000u);
#endif
  T elements[kLanes];
  store_floats(v, elements);
  return load_floats(elements);
}

// The first `count` elements of a vector; the rest are zeros, and nothing behind them is read or written.
template <typename T>
static inline Vec load_floats(const T* source, int64_t count) {
  T elements[kLanes] = {};
  std::memcpy(elements, source, size_t(count) * sizeof(T));
  return load_floats(elements);
}

template <typename T>
static inline void store_floats(Vec v, T* to, int64_t count) {
  T elements[kLanes];
  store_floats(v, elements);
  std::memcpy(static_cast<void*>(to), elements, size_t(count) * sizeof(T));
}

template <typename T>
static inline void load_row(const T* source, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load_floats(source + i));
  for (; i < count; ++i) to[i] = to_float(source[i]);
}

template <typename T>
static inline void store_row(const float* source, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_floats(load(source + i), to + i);
  for (; i < count; ++i) to[i] = from_float<T>(source[i]);
}

}  // namespace HSTA_ISA
}  // namespace hsta
