// Attention within a group of few tokens, one head: what attention over time is made of.
//
// A tile of scores is kTileQueries x 4 dot products, each summed along vectors as the rows lie in memory; one tree of
// shuffles then brings the tile's sums into one vector, so a score costs no horizontal reduction of its own. Lane
// 4 * i + j of a tile belongs to query i and key j: softmax over keys is arithmetic on whole tiles and, at its end,
// within runs of four lanes. Rows are read where they lie when their memory layout is that of the words.
#pragma once

#include <type_traits>

#include "attention_groups.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

constexpr int kTileQueries = kLanes / 4, kTileKeys = 4;
constexpr int64_t kMaxQueryTiles = kMaxSmallRows / kTileQueries, kMaxKeyTiles = kMaxSmallRows / kTileKeys;

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

// Scores of kQueries queries and kKeys keys; the lanes of absent ones hold copies of present ones.
template <int kQueries, int kKeys, typename Word>
inline __attribute__((always_inline)) Vec score_tile(const Word* const* q, const Word* const* k, int64_t words) {
  Vec sum[kQueries][kKeys];
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kKeys; ++j) sum[i][j] = Vec{};
  for (int64_t d = 0; d < words; d += kLanes) {
    decltype(load(*k)) key[kKeys];
#pragma GCC unroll 4
    for (int j = 0; j < kKeys; ++j) key[j] = load(k[j] + d);
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
      const auto query = load(q[i] + d);
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) sum[i][j] = multiply_add(sum[i][j], query, key[j]);
    }
  }
  Vec column[4];
#pragma GCC unroll 4
  for (int j = 0; j < kKeys; ++j) {
    Vec rows[kTileQueries];
#pragma GCC unroll 4
    for (int i = 0; i < kTileQueries; ++i) rows[i] = sum[i < kQueries ? i : 0][j];
    column[j] = stack_fours(rows);
  }
#pragma GCC unroll 4
  for (int j = kKeys; j < 4; ++j) column[j] = column[0];
  const auto pair = [](Vec a, Vec b) {
    return shuffle<InFours<0, 1, 4, 5>>(a, b) + shuffle<InFours<2, 3, 6, 7>>(a, b);
  };
  const Vec left = pair(column[0], column[1]), right = pair(column[2], column[3]);
  return shuffle<InFours<0, 2, 4, 6>>(left, right) + shuffle<InFours<1, 3, 5, 7>>(left, right);
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

// Where the weights of a sum lie: weight of term k in row r at (k / per_outer) * outer + (k % per_outer) * inner + r *
// row.
struct Weights {
  int64_t outer, inner, row;
};

template <int kRows, int kVecs, int kPerOuter, typename Word>
inline __attribute__((always_inline)) void weighted_sum_tile(const Word* weights, Weights at, const Word* const* terms,
                                                             int64_t count, int64_t d, float* to, int64_t to_row) {
  Vec sum[kRows][kVecs];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sum[r][v] = Vec{};
  for (int64_t first = 0; first < count; first += kPerOuter, weights += at.outer) {
    const int64_t inner_count = min(kPerOuter, count - first);
    for (int64_t k = 0; k < inner_count; ++k) {
      const Word* term = terms[first + k] + d;
      decltype(load(term)) value[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) value[v] = load(term + v * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const auto weight = broadcast(weights[k * at.inner + r * at.row]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) sum[r][v] = multiply_add(sum[r][v], weight, value[v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store(to + r * to_row + d + v * kLanes, sum[r][v]);
}

// to[r] = sum of weighted terms, for up to kTileQueries rows of dim_padded floats.
template <int kPerOuter, typename Word>
void weighted_sum(int64_t rows, const Word* weights, Weights at, const Word* const* terms, int64_t count,
                  int64_t dim_padded, float* to) {
  with_constant<kTileQueries>(rows, [&](auto n) {
    int64_t d = 0;
    for (; d + 4 * kLanes <= dim_padded; d += 4 * kLanes)
      weighted_sum_tile<n(), 4, kPerOuter>(weights, at, terms, count, d, to, dim_padded);
    for (; d + 2 * kLanes <= dim_padded; d += 2 * kLanes)
      weighted_sum_tile<n(), 2, kPerOuter>(weights, at, terms, count, d, to, dim_padded);
    for (; d < dim_padded; d += kLanes)
      weighted_sum_tile<n(), 1, kPerOuter>(weights, at, terms, count, d, to, dim_padded);
  });
}

// Pointers to the rows of a group as words: the tensor's own memory where that will do, else copies.
template <typename T, typename Word>
void take_rows(const Group<T>& group, const Rows<T>& from, Word* copies, const Word** rows) {
  const Plan& plan = group.plan;
  const int64_t words = row_words<Word>(plan.dim);
  const bool in_place = sizeof(Word) == sizeof(T) * kPerWord<Word> && words * kPerWord<Word> == plan.dim;
  for (int64_t r = 0; r < plan.rows; ++r) {
    const T* row = from.row(plan.token(group.index, r));
    if (in_place) {
      rows[r] = reinterpret_cast<const Word*>(row);
    } else {
      pack_row(row, plan.dim, copies + r * words);
      rows[r] = copies + r * words;
    }
  }
}

// Asks for rows of the next group in one tensor: they lie in as many places as there are tokens, over time more than
// the processor's own prefetchers follow. Into the second cache; in the first, rows whole pages apart would push out
// those being worked on. A few at a time, because the core has room for a few that are on their way. Inlined, because
// GCC drops calls of a function that does nothing but prefetch.
template <typename T>
inline __attribute__((always_inline)) void prefetch_next(const Group<T>& group, const Rows<T>& from, int64_t first,
                                                         int64_t count) {
  const Plan& plan = group.plan;
  if (group.index + 1 == plan.groups) return;
  for (int64_t r = first; r < first + count; ++r) {
    const char* row = reinterpret_cast<const char*>(from.row(plan.token(group.index + 1, r)));
    for (int64_t byte = 0; byte < plan.dim * int64_t(sizeof(T)); byte += 64) __builtin_prefetch(row + byte, 0, 2);
  }
}

// Rows as the terms of a sum over rows: as they are, or for pairs two rows interleaved.
static inline const float* const* as_terms(const float* const* rows, const Plan&, float*, const float**) {
  return rows;
}
#ifdef __AVX512BF16__
static inline const Pair* const* as_terms(const Pair* const* rows, const Plan& plan, Pair* copies, const Pair** terms) {
  for (int64_t r = 0; r < plan.rows; r += 2, copies += plan.dim_padded) {
    interleave_rows(rows[r], r + 1 < plan.rows ? rows[r + 1] : nullptr, plan.dim_padded, copies);
    terms[r / 2] = copies;
  }
  return terms;
}
#endif

// A tile of weights in memory: for sums over its keys and for sums over its queries.
template <typename Word>
struct WeightTile;
template <>
struct WeightTile<float> {
  static constexpr int kFloats = kLanes, kKeysPerOuter = kTileKeys, kQueriesPerOuter = kTileQueries;
  static constexpr Weights over_keys() { return {kLanes, 1, 4}; }
  static constexpr Weights over_queries(int64_t key_tiles) { return {key_tiles * kLanes, 4, 1}; }
  static void store_over_keys(float* to, Vec tile) { store(to, tile); }
  static void store_over_queries(float* to, Vec tile) { store(to, tile); }
};
#ifdef __AVX512BF16__
template <>
struct WeightTile<Pair> {
  static constexpr int kFloats = kLanes / 2, kKeysPerOuter = kTileKeys / 2, kQueriesPerOuter = kTileQueries / 2;
  static constexpr Weights over_keys() { return {kLanes / 2, 1, 2}; }
  static constexpr Weights over_queries(int64_t key_tiles) { return {key_tiles * kLanes / 2, 4, 1}; }
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

template <typename T>
struct SmallGroups {
  using Word = typename WordOf<T>::type;
  using Tile = WeightTile<Word>;
  static constexpr int64_t kTiles = kMaxQueryTiles * kMaxKeyTiles;

  const Plan& plan;
  const ScoreScale scale;
  const int64_t words, key_tiles, query_tiles;
  IntVec query_of_lane, key_of_lane;

  explicit SmallGroups(const Plan& plan, const SpaceTimeAttention& op)
      : plan(plan),
        scale(op.scale),
        words(row_words<Word>(plan.dim)),
        key_tiles((plan.rows + kTileKeys - 1) / kTileKeys),
        query_tiles((plan.rows + kTileQueries - 1) / kTileQueries) {
    for (int lane = 0; lane < kLanes; ++lane) query_of_lane[lane] = lane / 4, key_of_lane[lane] = lane % 4;
  }

  int64_t scratch_floats() const { return 8 * plan.rows * words + 4 * plan.rows * plan.dim_padded + 16 * words; }

  // Scores of a row of tiles, base 2; -inf where the query does not look.
  void scores(int64_t group, int64_t first, int64_t queries, const Word* const* q, const Word* const* k, Vec* s) const {
    score_tiles(q + first, queries, k, plan.rows, words, s);
    for (int64_t t = 0; t < key_tiles; ++t) s[t] = scale(s[t]);
    if (plan.rows % kTileKeys) {
      const Vec minus_infinity = broadcast(-INFINITY);
      s[key_tiles - 1] = key_of_lane >= int(plan.rows % kTileKeys) - IntVec{} ? minus_infinity : s[key_tiles - 1];
    }
    if (group > 0 && first < plan.prefix)
      for (int64_t t = 0; t * kTileKeys < plan.prefix; ++t)
        s[t] = (query_of_lane < int(plan.prefix - first) - IntVec{}) &
                       (key_of_lane < int(plan.prefix - t * kTileKeys) - IntVec{})
                   ? broadcast(-INFINITY)
                   : s[t];
  }

  Vec row_max(const Vec* s) const {
    Vec top = s[0];
    for (int64_t t = 1; t < key_tiles; ++t) top = max(top, s[t]);
    return max_in_fours(top);
  }

  // merge(head, prefix row, max2, sum, values) takes in what a group gives to a prefix query.
  template <typename Merge>
  void forward(const Group<T>& group, float* buffer, const Merge& merge) const {
    Arena arena{buffer};
    const Word *q[kMaxSmallRows], *k[kMaxSmallRows], *v[kMaxSmallRows], *terms_of_v[kMaxSmallRows];
    take_rows(group, group.part(0), arena.take<Word>(plan.rows * words), q);
    take_rows(group, group.part(1), arena.take<Word>(plan.rows * words), k);
    take_rows(group, group.part(2), arena.take<Word>(plan.rows * words), v);
    const Word* const* terms = as_terms(v, plan, arena.take<Word>(plan.rows * plan.dim_padded), terms_of_v);
    float* values = arena.take<float>(kTileQueries * plan.dim_padded);

    // Step by step for all queries: the steps of one query wait for each other, those of many do not.
    Vec s[kTiles], top[kMaxQueryTiles], sum[kMaxQueryTiles];
    Word weights[kTiles * Tile::kFloats];
    for (int64_t i = 0, first = 0; first < plan.rows; ++i, first += kTileQueries) {
      const int64_t queries = min(kTileQueries, plan.rows - first);
      scores(group.index, first, queries, q, k, s + i * key_tiles);
      top[i] = row_max(s + i * key_tiles);
      prefetch_next(group, group.part(0), first, queries);
    }
    for (int64_t i = 0, first = 0; first < plan.rows; ++i, first += kTileQueries) {
      sum[i] = Vec{};
      for (int64_t t = i * key_tiles; t < (i + 1) * key_tiles; ++t) {
        const Vec p = exp2(s[t] - top[i]);
        sum[i] += p;
        Tile::store_over_keys(weights + t * Tile::kFloats, p);
      }
      sum[i] = add_in_fours(sum[i]);
      prefetch_next(group, group.part(1), first, min(kTileQueries, plan.rows - first));
    }
    for (int64_t i = 0, first = 0; first < plan.rows; ++i, first += kTileQueries) {
      const int64_t queries = min(kTileQueries, plan.rows - first);
      weighted_sum<Tile::kKeysPerOuter>(queries, weights + i * key_tiles * Tile::kFloats, Tile::over_keys(), terms,
                                        depth_words<Word>(plan.rows), plan.dim_padded, values);
      prefetch_next(group, group.part(2), first, queries);
      for (int64_t r = 0; r < queries; ++r) {
        float* row = values + r * plan.dim_padded;
        if (first + r < plan.prefix)
          merge(first + r, top[i][4 * r], sum[i][4 * r], row);
        else
          write_output(group, plan.token(group.index, first + r), sum[i][4 * r], row);
      }
    }
  }

  // Probabilities are recomputed from the scores; a prefix query's maximum and sum, which span all groups, come from
  // the forward pass, and its delta = sum_j p_j dp_j from the output. add(part, prefix row, values) takes in what a
  // group gives to a prefix token's gradients.
  template <typename Add>
  void backward(const Group<T>& group, float* buffer, const Add& add) const {
    Arena arena{buffer};
    const Word *q[kMaxSmallRows], *k[kMaxSmallRows], *v[kMaxSmallRows], *grad_out[kMaxSmallRows];
    const Word* term_rows[3][kMaxSmallRows];
    take_rows(group, group.part(0), arena.take<Word>(plan.rows * words), q);
    take_rows(group, group.part(1), arena.take<Word>(plan.rows * words), k);
    take_rows(group, group.part(2), arena.take<Word>(plan.rows * words), v);
    take_rows(group, group.grad_out(), arena.take<Word>(plan.rows * words), grad_out);
    const Word* const* terms_of_q = as_terms(q, plan, arena.take<Word>(plan.rows * plan.dim_padded), term_rows[0]);
    const Word* const* terms_of_k = as_terms(k, plan, arena.take<Word>(plan.rows * plan.dim_padded), term_rows[1]);
    const Word* const* terms_of_g =
        as_terms(grad_out, plan, arena.take<Word>(plan.rows * plan.dim_padded), term_rows[2]);
    float* values = arena.take<float>(kTileQueries * plan.dim_padded);
    Word* out_row = arena.take<Word>(words);

    Word probs[kTiles * Tile::kFloats], grad_scores[kTiles * Tile::kFloats];
    for (int64_t first = 0; first < plan.rows; first += kTileQueries) {
      const int64_t queries = min(kTileQueries, plan.rows - first);
      const int64_t tile_row = first / kTileQueries * key_tiles * Tile::kFloats;
      Vec s[kMaxKeyTiles], dp[kMaxKeyTiles];
      Word weights[kMaxKeyTiles * Tile::kFloats];
      scores(group.index, first, queries, q, k, s);
      prefetch_next(group, group.part(0), first, queries);
      score_tiles(grad_out + first, queries, v, plan.rows, words, dp);
      prefetch_next(group, group.part(1), first, queries);
      Vec top = row_max(s);
      for (int64_t i = 0; first + i < plan.prefix && i < queries; ++i)
        top = query_of_lane == int(i) - IntVec{} ? broadcast(group.stats(first + i)[0]) : top;
      Vec sum{}, delta{};
      for (int64_t t = 0; t < key_tiles; ++t) {
        s[t] = exp2(s[t] - top);
        sum += s[t];
        delta += s[t] * dp[t];
      }
      Vec inverse = 1.0f / add_in_fours(sum);
      delta = add_in_fours(delta) * inverse;
      for (int64_t i = 0; first + i < plan.prefix && i < queries; ++i) {
        pack_row(group.out(first + i), plan.dim, out_row);
        const Word* rows[1] = {out_row};
        const Vec product = score_tile<1, 1>(grad_out + first + i, rows, words);
        inverse = query_of_lane == int(i) - IntVec{} ? broadcast(1.0f / group.stats(first + i)[1]) : inverse;
        delta = query_of_lane == int(i) - IntVec{} ? broadcast(product[0]) : delta;
      }
      // Lanes of queries past the last repeat the first one's and must not count in the sums over queries.
      inverse = query_of_lane < int(queries) - IntVec{} ? inverse : Vec{};
      for (int64_t t = 0; t < key_tiles; ++t) {
        const Vec p = s[t] * inverse, ds = p * (dp[t] - delta);
        Tile::store_over_queries(probs + tile_row + t * Tile::kFloats, p);
        Tile::store_over_queries(grad_scores + tile_row + t * Tile::kFloats, ds);
        Tile::store_over_keys(weights + t * Tile::kFloats, ds);
      }
      weighted_sum<Tile::kKeysPerOuter>(queries, weights, Tile::over_keys(), terms_of_k, depth_words<Word>(plan.rows),
                                        plan.dim_padded, values);
      write(group, first, queries, 0, values, add);
    }

    // Keys in runs no longer than kTileQueries, which divides the keys of a tile.
    for (int64_t first = 0; first < plan.rows; first += kTileQueries) {
      const int64_t keys = min(kTileQueries, plan.rows - first);
      const int64_t at = first / kTileKeys * Tile::kFloats + first % kTileKeys;
      const Weights over_queries = Tile::over_queries(key_tiles);
      weighted_sum<Tile::kQueriesPerOuter>(keys, grad_scores + at, over_queries, terms_of_q,
                                           depth_words<Word>(plan.rows), plan.dim_padded, values);
      write(group, first, keys, 1, values, add);
      prefetch_next(group, group.part(2), first, keys);
      weighted_sum<Tile::kQueriesPerOuter>(keys, probs + at, over_queries, terms_of_g, depth_words<Word>(plan.rows),
                                           plan.dim_padded, values);
      write(group, first, keys, 2, values, add);
      prefetch_next(group, group.grad_out(), first, keys);
    }
  }

  template <typename Add>
  void write(const Group<T>& group, int64_t first, int64_t count, int part, float* values, const Add& add) const {
    for (int64_t i = 0; i < count; ++i) {
      float* row = values + i * plan.dim_padded;
      if (first + i < plan.prefix)
        add(part, first + i, row);
      else
        write_gradient(group, plan.token(group.index, first + i), part, row);
    }
  }
};

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta
