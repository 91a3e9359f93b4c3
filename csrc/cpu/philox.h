// Dropout whose mask is a function of a seed and of an element's place, so that no mask is kept for the backward pass.
//
// The generator is Philox 4x32-10 (Salmon et al., SC 2011): blocks of four random words, each a function of the seed as
// key and of a counter of four words. Every backend computes the same (hsta_kernels/ops/philox.py).
#pragma once

#include "simd.h"

namespace hsta {
namespace HSTA_ISA {

class Dropout {
 public:
  Dropout(double rate, uint64_t seed)
      : drops(rate > 0), seed_(seed), threshold_(uint32_t(rate * 4294967296.0)), scale_(float(1 / (1 - rate))) {}

  const bool drops;

  // Dropped elements are zeros, whatever they were; others are divided by 1 - rate.
  Vec apply(Vec elements, Vec kept) const { return kept > 0 ? elements * broadcast(scale_) : Vec{}; }

  // What number each lane's block has among kLanes blocks whose words come out in order.
  static BitsVec block_numbers() {
    const BitsVec lane = (BitsVec)lane_numbers();
    return lane / 4 + lane % 4 * (kLanes / 4);
  }

  // Whether to keep the elements of kLanes blocks, 1 or 0, four a block. `counter` has a block in each lane.
  void draw(const BitsVec (&counter)[4], float* kept) const {
    // Blocks of even and of odd lanes: of elements of 64 bits the low half counts, the high one is left as it comes.
    WideVec words[2][4];
    for (int i = 0; i < 4; ++i) words[0][i] = (WideVec)counter[i], words[1][i] = (WideVec)counter[i] >> 32;
    uint64_t key0 = seed_ & 0xFFFFFFFFu, key1 = seed_ >> 32;
    for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u)
      for (auto& w : words) {
        const WideVec first = multiply(w[0], 0xD2511F53u), second = multiply(w[2], 0xCD9E8D57u);
        w[0] = (second >> 32) ^ w[1] ^ key0, w[1] = second;
        w[2] = (first >> 32) ^ w[3] ^ key1, w[3] = first;
      }
    Vec word[4];
    for (int i = 0; i < 4; ++i) {
      const BitsVec bits = (BitsVec)((words[0][i] & 0xFFFFFFFFu) | words[1][i] << 32);
      word[i] = bits >= threshold_ ? broadcast(1.0f) : Vec{};
    }
    // Each run of four lanes has four blocks a vector for each word: exchanged, a vector for each block.
    const Vec low01 = shuffle<InFours<0, 4, 1, 5>>(word[0], word[1]),
              low23 = shuffle<InFours<0, 4, 1, 5>>(word[2], word[3]);
    const Vec high01 = shuffle<InFours<2, 6, 3, 7>>(word[0], word[1]),
              high23 = shuffle<InFours<2, 6, 3, 7>>(word[2], word[3]);
    store(kept, shuffle<InFours<0, 1, 4, 5>>(low01, low23));
    store(kept + kLanes, shuffle<InFours<2, 3, 6, 7>>(low01, low23));
    store(kept + 2 * kLanes, shuffle<InFours<0, 1, 4, 5>>(high01, high23));
    store(kept + 3 * kLanes, shuffle<InFours<2, 3, 6, 7>>(high01, high23));
  }

 private:
  uint64_t seed_;
  uint32_t threshold_;
  float scale_;

  typedef uint64_t WideVec __attribute__((vector_size(4 * kLanes)));

  // Of the low halves. GCC would multiply all bits, which takes three times as long.
  static WideVec multiply(WideVec a, uint64_t b) {
#if defined(__AVX512F__)
    return (WideVec)_mm512_mul_epu32((__m512i)a, (__m512i)(b - WideVec{}));
#elif defined(__AVX2__)
    return (WideVec)_mm256_mul_epu32((__m256i)a, (__m256i)(b - WideVec{}));
#elif defined(__SSE2__) && !defined(__AVX__)
    return (WideVec)_mm_mul_epu32((__m128i)a, (__m128i)(b - WideVec{}));
#else
    return (a & 0xFFFFFFFFu) * b;
#endif
  }
};

}  // namespace HSTA_ISA
}  // namespace hsta
