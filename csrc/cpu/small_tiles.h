// Tiles of scores of a few queries and keys, and sums of rows weighted with them.
//
// A tile of scores is kTileQueries x 4 dot products, each summed along vectors as the rows lie in memory; one tree of
// shuffles then brings the tile's sums into one vector, so a score costs no horizontal reduction of its own. Lane
// 4 * i + j of a tile belongs to query i and key j: softmax over keys is arithmetic on whole tiles and, at its end,
// within runs of four lanes.
#pragma once

#include <type_traits>

#include "attention_groups.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

constexpr int kTileQueries = kLanes / 4, kTileKeys = 4;
constexpr int64_t kMaxQueryTiles = kMaxSmallRows / kTileQueries, kMaxKeyTiles = kMaxSmallRows / kTileKeys;

// The query and the key of a tile that a lane belongs to.
static inline IntVec query_of_lane() { return lane_numbers() / kTileKeys; }
static inline IntVec key_of_lane() { return lane_numbers() % kTileKeys; }

// Pointers to the rows of a group, as words.
template <typename Word>
struct SmallRows {
  const int64_t words;  // of a row
  const Word *q[kMaxSmallRows], *k[kMaxSmallRows], *v[kMaxSmallRows], *grad_out[kMaxSmallRows];

  explicit SmallRows(int64_t words) : words(words) {}
};

// Scores of a group's rows from `first_row` on with each other, as rows of tiles.
struct TileMatrix {
  int64_t first_row, rows, query_tiles, key_tiles;

  TileMatrix(int64_t first_row, int64_t last_row)
      : first_row(first_row),
        rows(last_row - first_row),
        query_tiles(divide_up(rows, kTileQueries)),
        key_tiles(divide_up(rows, kTileKeys)) {}

  // Of row of tiles i: the group's row that is its first query, and how many there are.
  int64_t row(int64_t i) const { return first_row + i * kTileQueries; }
  int64_t queries(int64_t i) const { return min(kTileQueries, rows - i * kTileQueries); }

  // Puts `value` where a row of tiles has keys that do not exist.
  void pad(Vec* tiles, Vec value) const {
    if (rows % kTileKeys == 0) return;
    Vec& last = tiles[key_tiles - 1];
    last = is_below(key_of_lane(), rows % kTileKeys) ? last : value;
  }
  // Of each query, over fours of keys.
  Vec row_max(const Vec* tiles) const {
    Vec found = tiles[0];
    for (int64_t t = 1; t < key_tiles; ++t) found = max(found, tiles[t]);
    return found;
  }
};

// f(constant n) for a count n of 1 to kMax that is known only at run time.
template <int kMax, typename F>
inline __attribute__((always_inline)) void with_constant(int64_t n, const F& f) {
  if constexpr (kMax > 1)
    if (n < kMax) return with_constant<kMax - 1>(n, f);
  f(std::integral_constant<int, kMax>());
}

// Sums of a and b over their far halves or quarters: fours of lanes of the result belong to one of the inputs.
#if defined(__AVX512F__)
struct LowHalves {
  static constexpr int of(int lane) { return lane % 8 + lane / 8 * 16; }
};
struct HighHalves {
  static constexpr int of(int lane) { return LowHalves::of(lane) + 8; }
};
struct EvenFours {
  static constexpr int of(int lane) { return lane / 4 * 8 + lane % 4; }
};
struct OddFours {
  static constexpr int of(int lane) { return EvenFours::of(lane) + 4; }
};
static inline Vec stack_fours(const Vec* v) {
  const auto halves = [](Vec a, Vec b) { return shuffle<LowHalves>(a, b) + shuffle<HighHalves>(a, b); };
  const Vec a = halves(v[0], v[1]), b = halves(v[2], v[3]);
  return shuffle<EvenFours>(a, b) + shuffle<OddFours>(a, b);
}
#elif defined(__AVX__)
struct LowFours {
  static constexpr int of(int lane) { return lane % 4 + lane / 4 * 8; }
};
struct HighFours {
  static constexpr int of(int lane) { return LowFours::of(lane) + 4; }
};
static inline Vec stack_fours(const Vec* v) { return shuffle<LowFours>(v[0], v[1]) + shuffle<HighFours>(v[0], v[1]); }
#else
static inline Vec stack_fours(const Vec* v) { return v[0]; }
#endif

// sum[i][kFirst + j] = products of query i and key j, still to be summed over lanes.
template <int kQueries, int kKeys, int kFirst, int kColumns, typename Word>
inline __attribute__((always_inline)) void multiply_rows(const Word* const* q, const Word* const* k, int64_t words,
                                                         Vec (&sum)[kQueries][kColumns]) {
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kKeys; ++j) sum[i][kFirst + j] = Vec{};
  for (int64_t d = 0; d < words; d += kLanes) {
    decltype(load(*k)) key[kKeys];
#pragma GCC unroll 4
    for (int j = 0; j < kKeys; ++j) key[j] = load(k[j] + d);
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
      const auto query = load(q[i] + d);
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) sum[i][kFirst + j] = multiply_add(sum[i][kFirst + j], query, key[j]);
    }
  }
}

// The sums over lanes as a tile, column c of which is columns[c]; the lanes of absent queries hold copies of the first.
template <int kQueries, int kColumns>
inline __attribute__((always_inline)) Vec tile_of_sums(const Vec (&sum)[kQueries][kColumns], const int (&columns)[4]) {
  Vec column[kColumns];
#pragma GCC unroll 4
  for (int j = 0; j < kColumns; ++j) {
    Vec rows[kTileQueries];
#pragma GCC unroll 4
    for (int i = 0; i < kTileQueries; ++i) rows[i] = sum[i < kQueries ? i : 0][j];
    column[j] = stack_fours(rows);
  }
  const auto pair = [](Vec a, Vec b) {
    return shuffle<InFours<0, 1, 4, 5>>(a, b) + shuffle<InFours<2, 3, 6, 7>>(a, b);
  };
  const Vec left = pair(column[columns[0]], column[columns[1]]), right = pair(column[columns[2]], column[columns[3]]);
  return shuffle<InFours<0, 2, 4, 6>>(left, right) + shuffle<InFours<1, 3, 5, 7>>(left, right);
}

// Scores of kQueries queries and kKeys keys; the lanes of absent ones hold copies of present ones.
template <int kQueries, int kKeys, typename Word>
inline __attribute__((always_inline)) Vec score_tile(const Word* const* q, const Word* const* k, int64_t words) {
  Vec sum[kQueries][kKeys];
  multiply_rows<kQueries, kKeys, 0>(q, k, words, sum);
  constexpr int kLast = kKeys - 1;
  return tile_of_sums(sum, {0, kLast < 1 ? 0 : 1, kLast < 2 ? 0 : 2, kLast < 3 ? 0 : 3});
}

// Scores of kTileQueries rows with one or two prefix tokens, both ways: columns 0 and 1 of this border tile are q of
// the rows times k of the prefix, columns 2 and 3 are q of the prefix times k of the rows. Columns of an absent token
// are copies.
constexpr int kMaxBorderTokens = kTileQueries < 2 ? 1 : 2;

// `q` and `k` are the rows of a group, its prefix first; those of the tile begin at `row`.
template <typename Word>
Vec border_score_tile(const Word* const* q, const Word* const* k, int64_t row, int64_t prefix, int64_t words) {
  Vec tile;
  with_constant<kMaxBorderTokens>(prefix, [&](auto count) {
    constexpr int kPrefix = count();
    Vec sum[kTileQueries][2 * kPrefix];
    multiply_rows<kTileQueries, kPrefix, 0>(q + row, k, words, sum);
    multiply_rows<kTileQueries, kPrefix, kPrefix>(k + row, q, words, sum);
    tile = tile_of_sums(sum, {0, kPrefix - 1, kPrefix, 2 * kPrefix - 1});
  });
  return tile;
}

// Scores of up to kTileQueries queries and all keys, as a row of tiles.
template <typename Word>
void score_tiles(const Word* const* q, int64_t queries, const Word* const* k, int64_t keys, int64_t words, Vec* to) {
  with_constant<kTileQueries>(queries, [&](auto query_count) {
    int64_t j = 0;
    for (; j + kTileKeys <= keys; j += kTileKeys) *to++ = score_tile<query_count(), kTileKeys>(q, k + j, words);
    if (j < keys)
      with_constant<kTileKeys - 1>(
          keys - j, [&](auto key_count) { *to = score_tile<query_count(), key_count()>(q, k + j, words); });
  });
}

// Where the weights of a sum over rows lie: that of row k in sum r at (k / kPerOuter) * outer + (k % kPerOuter) * inner
// + r * sum.
template <int kPerOuter>
struct WeightStrides {
  int64_t outer, inner, sum;
};

// What sums over rows are made of: the weights, the rows, and how many of them.
template <typename Word, int kPerOuter>
struct WeightedRows {
  const Word* weights;
  WeightStrides<kPerOuter> strides;
  const Word* const* rows;
  int64_t count;
};

template <int kRows, int kVecs, typename Word, int kPerOuter>
inline __attribute__((always_inline)) void add_weighted_rows(const WeightedRows<Word, kPerOuter>& part, int64_t d,
                                                             Vec (&sum)[kRows][kVecs]) {
  const Word* weights = part.weights;
  for (int64_t first = 0; first < part.count; first += kPerOuter, weights += part.strides.outer) {
    const int64_t inner_count = min(kPerOuter, part.count - first);
    for (int64_t k = 0; k < inner_count; ++k) {
      const Word* row = part.rows[first + k] + d;
      decltype(load(row)) value[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) value[v] = load(row + v * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const auto weight = broadcast(weights[k * part.strides.inner + r * part.strides.sum]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) sum[r][v] = multiply_add(sum[r][v], weight, value[v]);
      }
    }
  }
}

template <int kRows, int kVecs, typename... Parts>
inline __attribute__((always_inline)) void weighted_sum_tile(int64_t d, float* to, int64_t to_row,
                                                             const Parts&... parts) {
  Vec sum[kRows][kVecs];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sum[r][v] = Vec{};
  (add_weighted_rows(parts, d, sum), ...);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store(to + r * to_row + d + v * kLanes, sum[r][v]);
}

// to[r] = sum of the weighted rows of all parts, for up to kTileQueries rows of dim_padded floats.
template <typename... Parts>
void weighted_sum(int64_t rows, int64_t dim_padded, float* to, const Parts&... parts) {
  with_constant<kTileQueries>(rows, [&](auto n) {
    int64_t d = 0;
    for (; d + 4 * kLanes <= dim_padded; d += 4 * kLanes) weighted_sum_tile<n(), 4>(d, to, dim_padded, parts...);
    for (; d + 2 * kLanes <= dim_padded; d += 2 * kLanes) weighted_sum_tile<n(), 2>(d, to, dim_padded, parts...);
    for (; d < dim_padded; d += kLanes) weighted_sum_tile<n(), 1>(d, to, dim_padded, parts...);
  });
}

// Rows as a sum over them reads them: as they are, or for pairs two rows interleaved, in `copies`, and pointers to them
// in `deep`.
static inline const float* const* deep_rows(const float* const* rows, int64_t, int64_t, float*, const float**) {
  return rows;
}
#ifdef __AVX512BF16__
static inline const Pair* const* deep_rows(const Pair* const* rows, int64_t count, int64_t dim_padded, Pair* copies,
                                           const Pair** deep) {
  for (int64_t r = 0; r < count; r += 2, copies += dim_padded) {
    interleave_rows(rows[r], r + 1 < count ? rows[r + 1] : nullptr, dim_padded, copies);
    deep[r / 2] = copies;
  }
  return deep;
}
#endif

// How many words their copies are.
static inline int64_t deep_words(int64_t rows, int64_t dim_padded) { return (rows + 1) / 2 * dim_padded; }

// What the backward pass sums over.
template <typename Word>
struct DeepRows {
  const Word *const *q, *const *k, *const *grad_out;
};

// A tile of weights in memory: for sums over its keys, whose column 2 is kToColumn2 further on, and over its queries.
template <typename Word>
struct WeightTile;
template <>
struct WeightTile<float> {
  static constexpr int kFloats = kLanes, kToColumn2 = 2, kKeysPerOuter = kTileKeys, kQueriesPerOuter = kTileQueries;
  using OverKeys = WeightedRows<float, kKeysPerOuter>;
  using OverQueries = WeightedRows<float, kQueriesPerOuter>;
  static constexpr WeightStrides<kKeysPerOuter> over_keys() { return {kLanes, 1, 4}; }
  static constexpr WeightStrides<kQueriesPerOuter> over_queries(int64_t key_tiles) {
    return {key_tiles * kLanes, 4, 1};
  }
  static void store_over_keys(float* to, Vec tile) { store(to, tile); }
  static void store_over_queries(float* to, Vec tile) { store(to, tile); }
};
#ifdef __AVX512BF16__
template <>
struct WeightTile<Pair> {
  static constexpr int kFloats = kLanes / 2, kToColumn2 = 1;
  static constexpr int kKeysPerOuter = kTileKeys / 2, kQueriesPerOuter = kTileQueries / 2;
  using OverKeys = WeightedRows<Pair, kKeysPerOuter>;
  using OverQueries = WeightedRows<Pair, kQueriesPerOuter>;
  static constexpr WeightStrides<kKeysPerOuter> over_keys() { return {kLanes / 2, 1, 2}; }
  static constexpr WeightStrides<kQueriesPerOuter> over_queries(int64_t key_tiles) {
    return {key_tiles * kLanes / 2, 4, 1};
  }
  static void store_over_keys(Pair* to, Vec tile) { store_pairs(to, tile); }
  static void store_over_queries(Pair* to, Vec tile) {
    const PairVec words = pair_up(shuffle<Fours<0>>(tile, tile), shuffle<Fours<1>>(tile, tile));
    std::memcpy(static_cast<void*>(to), &words, kFloats * sizeof(Pair));
  }
  template <int kOdd>
  struct Fours {  // of queries 0 and 2, or 1 and 3, first
    static constexpr int of(int lane) { return (lane / 4 * 8 + kOdd * 4) % kLanes + lane % 4; }
  };
};
#endif

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta
