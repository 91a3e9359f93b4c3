// Products of bfloat16 by tile registers (AMX): C (+)= A B, a tile of 16 x 16 floats at a time.
//
// All operands are made of whole tiles of 1 KB, 16 rows of 64 bytes. A tile of A has 16 rows of 32 elements along the
// summed-over index. A tile of B has 16 columns: each of its rows has two neighbours along the summed-over index of
// every column. A tile of A with its words transposed is hence a tile of B with A's rows as columns.
#pragma once

#include "panels.h"

#ifdef __AMX_BF16__

namespace hsta {
namespace HSTA_ISA {

constexpr int64_t kTile = 16;        // rows of a tile, and columns of a tile of floats
constexpr int64_t kTileDepth = 32;   // elements of bfloat16 in a row
constexpr int64_t kTileWords = 256;  // of a tile

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

// Tile (i, k) of an operand, i along the result's rows or columns and k along the summed-over index, is at
// data + i * outer + k * inner, in words.
struct Tiles {
  const Pair* data;
  int64_t outer, inner;

  Tiles from(int64_t i, int64_t k) const { return {data + i * outer + k * inner, outer, inner}; }
};

// Up to 2 x 2 tiles of C: registers 0 to 3 hold them, 4 and 5 A, 6 and 7 B. The compiler knows nothing of what these
// registers read and write, hence the fences in tile_product.
template <int kRows, int kColumns>
inline __attribute__((always_inline)) void tile_block(int64_t depth, Tiles a, Tiles b, float* c, int64_t ldc,
                                                      bool accumulate) {
  const int64_t row_bytes = ldc * int64_t(sizeof(float));
  float* below = c + kTile * ldc;
  if (accumulate) {
    _tile_loadd(0, c, row_bytes);
    if (kColumns > 1) _tile_loadd(1, c + kTile, row_bytes);
    if (kRows > 1) _tile_loadd(2, below, row_bytes);
    if (kRows > 1 && kColumns > 1) _tile_loadd(3, below + kTile, row_bytes);
  } else {
    _tile_zero(0);
    if (kColumns > 1) _tile_zero(1);
    if (kRows > 1) _tile_zero(2);
    if (kRows > 1 && kColumns > 1) _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; ++k, a.data += a.inner, b.data += b.inner) {
    _tile_loadd(6, b.data, 64);
    _tile_loadd(4, a.data, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (kColumns > 1) {
      _tile_loadd(7, b.data + b.outer, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kRows > 1) {
      _tile_loadd(5, a.data + a.outer, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (kColumns > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, row_bytes);
  if (kColumns > 1) _tile_stored(1, c + kTile, row_bytes);
  if (kRows > 1) _tile_stored(2, below, row_bytes);
  if (kRows > 1 && kColumns > 1) _tile_stored(3, below + kTile, row_bytes);
}

template <int kRows>
inline void tile_rows(int64_t columns, int64_t depth, Tiles a, Tiles b, float* c, int64_t ldc, bool accumulate) {
  int64_t n = 0;
  for (; n + 2 <= columns; n += 2) tile_block<kRows, 2>(depth, a, b.from(n, 0), c + n * kTile, ldc, accumulate);
  if (n < columns) tile_block<kRows, 1>(depth, a, b.from(n, 0), c + n * kTile, ldc, accumulate);
}

// All counts in tiles.
static inline void tile_product(int64_t rows, int64_t columns, int64_t depth, Tiles a, Tiles b, float* c, int64_t ldc,
                                bool accumulate) {
  __asm__ volatile("" ::: "memory");
  int64_t m = 0;
  for (; m + 2 <= rows; m += 2) tile_rows<2>(columns, depth, a.from(m, 0), b, c + m * kTile * ldc, ldc, accumulate);
  if (m < rows) tile_rows<1>(columns, depth, a.from(m, 0), b, c + m * kTile * ldc, ldc, accumulate);
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

// 32 rows of bfloat16 as tiles of B that sum over these rows: one tile every `apart` words for 16 columns each.
static inline void interleave_tiles(const Pair* from, int64_t words, Pair* tiles, int64_t apart) {
  for (int64_t r = 0; r < kTile; ++r, from += 2 * words)
    for (int64_t w = 0; w < words; w += kLanes) {
      const PairVec low = load(from + w), high = load(from + words + w);
      Pair* to = tiles + 2 * w / kLanes * apart + r * kLanes;
      store(to, shuffle<Interleaved<0>>(low, high));
      store(to + apart, shuffle<Interleaved<kLanes>>(low, high));
    }
}

}  // namespace HSTA_ISA
}  // namespace hsta

#endif
