// Typed pieces of one block of floats: the layout of working memory, stated where its pieces are named.
#pragma once

#include "tensor_view.h"

namespace hsta {

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
// they need.
template <typename Pieces, typename... Sizes>
HSTA_INLINE int64_t floats_of(const Sizes&... sizes) {
  Arena arena;
  Pieces(arena, sizes...);
  return arena.floats;
}

// Such a struct, in `memory`.
template <typename Pieces, typename... Sizes>
HSTA_INLINE Pieces pieces_in(float* memory, const Sizes&... sizes) {
  Arena arena{memory};
  return Pieces(arena, sizes...);
}

}  // namespace hsta
