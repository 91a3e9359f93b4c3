// Memory: the threads' working buffers, and pages for outputs.
#pragma once

#include <cstdint>
#include <iosfwd>

#include "../common/arena.h"

namespace hsta {

// Aligned working memory of the calling thread, kept between calls; its contents are undefined.
// `slot` tells apart buffers that are in use at the same time.
enum class Scratch : int { kThread = 0, kShared = 1 };
float* scratch(Scratch slot, int64_t floats);

// Pieces that belong together (see arena.h), in `slot`.
template <typename Pieces, typename... Sizes>
HSTA_INLINE Pieces pieces(Scratch slot, const Sizes&... sizes) {
  return pieces_in<Pieces>(scratch(slot, floats_of<Pieces>(sizes...)), sizes...);
}

// Called before a large output is written for the first time. The C library returns blocks of more than 32 MB to the
// system when they are freed, so such an output is always new memory; in huge pages it takes 512 times fewer page
// faults.
void expect_writes(void* data, int64_t bytes);

// Whether every memory node has twice `bytes` in free huge pages; `buddyinfo` is what /proc/buddyinfo says.
bool huge_pages_to_spare(std::istream& buddyinfo, int64_t bytes);

}  // namespace hsta
