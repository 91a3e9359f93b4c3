// Products of bfloat16 by tile registers (AMX): C (+)= A B, 32 x 32 floats at a time.
//
// A tile has 16 rows of 64 bytes. Of A these are 16 rows of 32 elements along the summed-over index. A tile of B has 16
// columns: each of its rows has two neighbours along the summed-over index of every column. So a tile of A with its
// words transposed is a tile of B with A's rows as columns. Operands lie in panels of 32 rows of A or columns of B: two
// tiles for each 32 of the summed-over index.
#pragma once

#include "panels.h"

#ifdef __AMX_BF16__

namespace hsta {
namespace HSTA_ISA {

constexpr int64_t kTile = 16;        // rows of a tile, and columns of a tile of floats
constexpr int64_t kTileDepth = 32;   // elements of bfloat16 in a tile's row
constexpr int64_t kTileWords = 256;  // of a tile
constexpr int64_t kTilePanel = 32;   // rows or columns of a panel

// What panels need of memory, and where one begins.
constexpr int64_t tile_panel_words(int64_t rows, int64_t depth) {
  return divide_up(rows, kTilePanel) * divide_up(depth, kTileDepth) * 2 * kTileWords;
}

// While it lives, all tile registers of this thread have their full size.
class TileRegisters {
 public:
  TileRegisters() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof config == 64, "as the processor reads it");
    for (int t = 0; t < 8; ++t) config.row_bytes[t] = 64, config.rows[t] = kTile;
    _tile_loadconfig(&config);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// Instructions on tile registers. GCC's own intrinsics are macros that do not say which memory they read.
template <int kTo>
HSTA_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTo));
}
template <int kTo>
HSTA_INLINE void tile_load(const void* from, int64_t row_bytes) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(kTo));
}
template <int kFrom>
HSTA_INLINE void tile_store(void* to, int64_t row_bytes) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(kFrom));
}
template <int kTo, int kA, int kB>
HSTA_INLINE void tile_multiply_add() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kTo), "i"(kA), "i"(kB));
}

// One panel of A by one of B, `depth` tiles long. Registers 0 to 3 hold C, 4 and 5 A, 6 and 7 B.
static inline void tile_product(const Pair* a, const Pair* b, int64_t depth, float* c, int64_t ldc, bool accumulate) {
  const int64_t row_bytes = ldc * int64_t(sizeof(float));
  float* below = c + kTile * ldc;
  if (accumulate) {
    tile_load<0>(c, row_bytes);
    tile_load<1>(c + kTile, row_bytes);
    tile_load<2>(below, row_bytes);
    tile_load<3>(below + kTile, row_bytes);
  } else {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
  }
  for (int64_t k = 0; k < depth; ++k, a += 2 * kTileWords, b += 2 * kTileWords) {
    tile_load<6>(b, 64);
    tile_load<4>(a, 64);
    tile_multiply_add<0, 4, 6>();
    tile_load<7>(b + kTileWords, 64);
    tile_multiply_add<1, 4, 7>();
    tile_load<5>(a + kTileWords, 64);
    tile_multiply_add<2, 5, 6>();
    tile_multiply_add<3, 5, 7>();
  }
  tile_store<0>(c, row_bytes);
  tile_store<1>(c + kTile, row_bytes);
  tile_store<2>(below, row_bytes);
  tile_store<3>(below + kTile, row_bytes);
}

// Panels that lie one every `words`.
struct TilePanels {
  const Pair* data;
  int64_t words, count;
};

// C (+)= A B, sums over `depth` tiles.
static inline void tile_product(TilePanels a, TilePanels b, int64_t depth, float* c, int64_t ldc, bool accumulate) {
  __asm__ volatile("" ::: "memory");  // the compiler knows nothing of what tile registers read and write
  for (int64_t m = 0; m < a.count; ++m)
    for (int64_t n = 0; n < b.count; ++n)
      tile_product(a.data + m * a.words, b.data + n * b.words, depth, c + (m * ldc + n) * kTilePanel, ldc, accumulate);
  __asm__ volatile("" ::: "memory");
}

// 16 rows of 16 words at `from`, `words` apart, as a tile.
static inline void copy_tile(const Pair* from, int64_t words, Pair* tile) {
  for (int64_t r = 0; r < kTile; ++r) store(tile + r * kLanes, load(from + r * words));
}

// The same with rows and columns of words exchanged.
static inline void transpose_tile(const Pair* from, int64_t words, Pair* tile) {
  Vec block[kLanes];
  for (int r = 0; r < kLanes; ++r) std::memcpy(&block[r], from + r * words, sizeof(Vec));
  transpose_block(block);
  for (int r = 0; r < kLanes; ++r) std::memcpy(static_cast<void*>(tile + r * kLanes), &block[r], sizeof(Vec));
}

// 32 rows of 16 words as the two tiles of B that sum over these rows.
static inline void interleave_tiles(const Pair* from, int64_t words, Pair* tiles) {
  for (int64_t r = 0; r < kTile; ++r, from += 2 * words, tiles += kLanes) {
    const PairVec low = load(from), high = load(from + words);
    store(tiles, shuffle<Interleaved<0>>(low, high));
    store(tiles + kTileWords, shuffle<Interleaved<kLanes>>(low, high));
  }
}

}  // namespace HSTA_ISA
}  // namespace hsta

#endif
