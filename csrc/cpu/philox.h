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
    BitsVec words[4] = {counter[0], counter[1], counter[2], counter[3]};
    uint32_t key0 = uint32_t(seed_), key1 = uint32_t(seed_ >> 32);
    for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
      BitsVec high0, low0, high1, low1;
      multiply(words[0], 0xD2511F53u, &high0, &low0);
      multiply(words[2], 0xCD9E8D57u, &high1, &low1);
      words[0] = high1 ^ words[1] ^ key0, words[1] = low1;
      words[2] = high0 ^ words[3] ^ key1, words[3] = low0;
    }
    Vec word[4];
    for (int i = 0; i < 4; ++i) word[i] = words[i] >= threshold_ ? broadcast(1.0f) : Vec{};
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

  // The high and low halves of 32-bit products.
  static void multiply(BitsVec a, uint32_t b, BitsVec* high, BitsVec* low) {
    typedef uint64_t WideVec __attribute__((vector_size(8 * kLanes)));
    const WideVec product = __builtin_convertvector(a, WideVec) * uint64_t(b);
    *high = __builtin_convertvector(product >> 32, BitsVec);
    *low = a * b;
  }
};

}  // namespace HSTA_ISA
}  // namespace hsta
