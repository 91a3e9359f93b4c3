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
      : drops(rate > 0),
        seed_(seed),
        threshold_(threshold(rate, 32)),
        half_threshold_(threshold(rate, 16)),
        scale_(float(1 / (1 - rate))) {}

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
    BitsVec bits[4];
    generate(counter, bits);
    Vec word[4];
    for (int i = 0; i < 4; ++i) word[i] = not_below(threshold_, bits[i]);
    by_block(word);
    for (int i = 0; i < 4; ++i) store(kept + i * kLanes, word[i]);
  }

  // The same of twice as many elements: four by the low halves of a block's words, then four by the high ones.
  void draw_halves(const BitsVec (&counter)[4], float* kept) const {
    BitsVec bits[4];
    generate(counter, bits);
    Vec low[4], high[4];
    for (int i = 0; i < 4; ++i) {
      low[i] = not_below(half_threshold_, bits[i] & 0xFFFFu);
      high[i] = not_below(half_threshold_, bits[i] >> 16);
    }
    by_block(low), by_block(high);
    for (int i = 0; i < 4; ++i) {
      store(kept + 2 * i * kLanes, shuffle<FoursInTurns<0>>(low[i], high[i]));
      store(kept + (2 * i + 1) * kLanes, shuffle<FoursInTurns<1>>(low[i], high[i]));
    }
  }

 private:
  uint64_t seed_;
  uint32_t threshold_, half_threshold_;
  float scale_;

  typedef uint64_t WideVec __attribute__((vector_size(4 * kLanes)));

  // Numbers of so many bits are dropped below it; never all of them.
  static uint32_t threshold(double rate, int bits) {
    const double count = double(uint64_t(1) << bits);
    return uint32_t(min(int64_t(rate * count + 0.5), int64_t(count) - 1));
  }

  // The four words of each lane's block.
  void generate(const BitsVec (&counter)[4], BitsVec (&bits)[4]) const {
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
    for (int i = 0; i < 4; ++i) bits[i] = (BitsVec)((words[0][i] & 0xFFFFFFFFu) | words[1][i] << 32);
  }

  static Vec not_below(uint32_t threshold, BitsVec numbers) { return numbers >= threshold ? broadcast(1.0f) : Vec{}; }

  // Each run of four lanes has four blocks, a vector for each word: exchanged, a vector for each block.
  static void by_block(Vec (&word)[4]) {
    const Vec low01 = shuffle<InFours<0, 4, 1, 5>>(word[0], word[1]),
              low23 = shuffle<InFours<0, 4, 1, 5>>(word[2], word[3]);
    const Vec high01 = shuffle<InFours<2, 6, 3, 7>>(word[0], word[1]),
              high23 = shuffle<InFours<2, 6, 3, 7>>(word[2], word[3]);
    word[0] = shuffle<InFours<0, 1, 4, 5>>(low01, low23), word[1] = shuffle<InFours<2, 3, 6, 7>>(low01, low23);
    word[2] = shuffle<InFours<0, 1, 4, 5>>(high01, high23), word[3] = shuffle<InFours<2, 3, 6, 7>>(high01, high23);
  }

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
