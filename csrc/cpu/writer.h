// How an output is written.
//
// An ordinary store first reads the cache line that it is about to overwrite; a streaming store of whole lines does
// not, and leaves in the caches what is there. It pays for outputs that are larger than the caches near the core, the
// more so the more places are written at once. The line is then in memory, not in cache, for the next reader; for us
// that is a matrix product, which has time for it.
#pragma once

#include <initializer_list>

#include "kernels.h"
#include "memory.h"
#include "simd.h"

namespace hsta {
namespace HSTA_ISA {

template <typename V>
static inline void stream(void* to, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)v);
#endif
#if defined(__AVX__)
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)v);
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(V) == 16) return _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)v);
#endif
  std::memcpy(to, &v, sizeof v);
}

class Writer {
 public:
  Writer(void* data, int64_t bytes, int64_t run) : Writer({data}, bytes, run) {}

  // Outputs of `bytes` each, every byte of which is written once, in runs of `run` bytes at multiples of `run`.
  Writer(std::initializer_list<void*> outputs, int64_t bytes, int64_t run)
      : streams_(int64_t(outputs.size()) * bytes >= kCached && run % kLine == 0) {
    for (void* data : outputs) {
      streams_ = streams_ && reinterpret_cast<uintptr_t>(data) % kLine == 0;
      expect_writes(data, bytes);
    }
  }

  template <typename V, typename T, int64_t kCount = kLanes>
  void store(V v, T* to, std::integral_constant<int64_t, kCount> count = Whole{}) const {
    if (!streams_) return store_floats(v, to, count);
    // Through memory that the compiler keeps in a register: the vector of elements, whatever their type.
    T elements[kCount];
    store_floats(v, elements, count);
    typedef uint8_t Bytes __attribute__((vector_size(kCount * sizeof(T))));
    Bytes bits;
    std::memcpy(&bits, elements, sizeof bits);
    stream(to, bits);
  }

#ifdef __AVX512BF16__
  // A whole line at a time.
  void store(Vec low, Vec high, BFloat16* to) const {
    const auto line = (PairVec)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    if (streams_) return stream(to, line);
    std::memcpy(static_cast<void*>(to), &line, sizeof line);
  }
#endif

  template <typename T>
  void store(Vec v, T* to, int64_t count) const {
    store_floats(v, to, count);
  }

  // Called by every thread that has written, before others read.
  void finish() const {
#if defined(__SSE2__)
    if (streams_) _mm_sfence();
#endif
  }

 private:
  static constexpr int64_t kLine = 64, kCached = 2 << 20;
  bool streams_;
};

}  // namespace HSTA_ISA
}  // namespace hsta
