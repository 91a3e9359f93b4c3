// Memory: the threads' working buffers, and pages for outputs.
#pragma once

#include <cstdint>
#include <iosfwd>

#include "../common/tensor_view.h"

namespace hsta {

// Aligned working memory of the calling thread, kept between calls; its contents are undefined.
// `slot` tells apart buffers that are in use at the same time.
enum class Scratch : int { kThread = 0, kShared = 1 };
float* scratch(Scratch slot, int64_t floats);

// Typed pieces of working memory, one after the other; without memory, only how much they need.
struct Arena {
  float* base = nullptr;
  int64_t floats = 0;

  template <typename Word = float>
  HSTA_INLINE Word* take(int64_t words) {
    static_assert(sizeof(Word) == sizeof(float), "words have the size of a float");
    floats += words;
    return base ? reinterpret_cast<Word*>(base + (floats - words)) : nullptr;
  }
};

// Pieces that belong together are a struct whose constructor takes them from an Arena and touches none: how many floats
// they need, and the struct itself in `slot`.
template <typename Pieces, typename... Sizes>
HSTA_INLINE int64_t floats_of(const Sizes&... sizes) {
  Arena arena;
  Pieces(arena, sizes...);
  return arena.floats;
}

template <typename Pieces, typename... Sizes>
HSTA_INLINE Pieces pieces(Scratch slot, const Sizes&... sizes) {
  Arena arena{scratch(slot, floats_of<Pieces>(sizes...))};
  return Pieces(arena, sizes...);
}

// Called before a large output is written for the first time. The C library returns blocks of more than 32 MB to the
// system when they are freed, so such an output is always new memory; in huge pages it takes 512 times fewer page
// faults.
void expect_writes(void* data, int64_t bytes);

// Whether every memory node has twice `bytes` in free huge pages; `buddyinfo` is what /proc/buddyinfo says.
bool huge_pages_to_spare(std::istream& buddyinfo, int64_t bytes);

}  // namespace hsta
