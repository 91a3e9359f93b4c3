// Attention within a group of few tokens, one head: what attention over time is made of.
//
// Scores are a grid of tiles (small_tiles.h). Prefix tokens are rows of the grid like others: keys in every group, and
// queries that every group adds to. Only where patches alone fill whole tiles, prefix tokens would begin a row and a
// column of nearly empty ones; there a tile beside each row of tiles has both. Rows are read where they lie when their
// memory layout is that of the words.
#pragma once

#include "attention_groups.h"
#include "small_tiles.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

// Pointers to the rows of a group as words: the tensor's own memory where that will do, else copies.
template <typename T, typename Word>
void take_rows(const Group<T>& group, const Rows<T>& from, Word* copies, const Word** rows) {
  const Plan& plan = group.plan;
  const int64_t words = row_words<Word>(plan.dim);
  const bool in_place = sizeof(Word) == sizeof(T) * kPerWord<Word> && words * kPerWord<Word> == plan.dim;
  const auto take = [&](int64_t r, const T* row) {
    if (in_place) {
      rows[r] = reinterpret_cast<const Word*>(row);
    } else {
      pack_row(row, plan.dim, copies + r * words);
      rows[r] = copies + r * words;
    }
  };
  for (int64_t r = 0; r < plan.prefix; ++r) take(r, from.row(r));
  const T* row = from.row(plan.token(group.index, plan.prefix));
  for (int64_t r = plan.prefix; r < plan.rows; ++r, row += plan.patch_step * from.stride_token) take(r, row);
}

// Asks for rows of the next group in one tensor: they lie in as many places as there are tokens, over time more than
// the processor's own prefetchers follow. Not into the first cache: rows whole pages apart would push out those being
// worked on. A few at a time, because the core has room for a few that are on their way.
template <typename T>
inline __attribute__((always_inline)) void prefetch_next(const Group<T>& group, const Rows<T>& from, int64_t first,
                                                         int64_t count) {
  const Plan& plan = group.plan;
  if (group.index + 1 == plan.groups) return;
  int64_t r = first < plan.prefix ? plan.prefix : first;  // the prefix is the same in all groups
  const T* row = from.row(plan.token(group.index + 1, r));
  for (; r < first + count; ++r, row += plan.patch_step * from.stride_token) prefetch(row, plan.dim);
}

template <typename T>
struct SmallGroups {
  using Word = typename WordOf<T>::type;
  using Tile = WeightTile<Word>;
  using OverKeys = Terms<Word, Tile::kKeysPerOuter>;
  using OverQueries = Terms<Word, Tile::kQueriesPerOuter>;
  static constexpr int64_t kTiles = kMaxQueryTiles * kMaxKeyTiles;

  struct Grid {
    int64_t rows, query_tiles, key_tiles;
    explicit Grid(int64_t rows)
        : rows(rows),
          query_tiles((rows + kTileQueries - 1) / kTileQueries),
          key_tiles((rows + kTileKeys - 1) / kTileKeys) {}
  };

  // Weights in the tiles beside the grid, as parts of weighted sums.
  struct Beside {
    Word over_columns[kMaxQueryTiles * Tile::kFloats], over_rows[kMaxQueryTiles * Tile::kFloats];

    void store(int64_t tile, Vec weights) {
      Tile::store_over_keys(over_columns + tile * Tile::kFloats, weights);
      Tile::store_over_queries(over_rows + tile * Tile::kFloats, weights);
    }
    // What a tile's rows take from prefix tokens as keys, and as queries.
    OverKeys from_keys(int64_t tile, const Word* const* prefix, int64_t count) const {
      return {over_columns + tile * Tile::kFloats, Tile::over_keys(), prefix, depth_words<Word>(count)};
    }
    OverKeys from_queries(int64_t tile, const Word* const* prefix, int64_t count) const {
      return {over_columns + tile * Tile::kFloats + Tile::kToColumn2, Tile::over_keys(), prefix,
              depth_words<Word>(count)};
    }
    // What prefix tokens take from all rows of the grid, as keys and as queries.
    OverQueries to_keys(const Word* const* rows, int64_t count) const {
      return {over_rows, Tile::over_queries(1), rows, depth_words<Word>(count)};
    }
    OverQueries to_queries(const Word* const* rows, int64_t count) const {
      return {over_rows + 2, Tile::over_queries(1), rows, depth_words<Word>(count)};
    }
  };

  const Plan& plan;
  const ScoreScale scale;
  const int64_t words;
  IntVec query_of_lane, key_of_lane, prefix_is_key, prefix_is_there;  // the latter two of lanes beside the grid

  explicit SmallGroups(const Plan& plan, const SpaceTimeAttention& op)
      : plan(plan), scale(op.scale), words(row_words<Word>(plan.dim)) {
    for (int lane = 0; lane < kLanes; ++lane) {
      query_of_lane[lane] = lane / 4, key_of_lane[lane] = lane % 4;
      prefix_is_key[lane] = lane % 4 < 2 ? -1 : 0;
      prefix_is_there[lane] = lane % 2 < plan.prefix ? -1 : 0;
    }
  }

  int64_t scratch_floats() const { return 8 * plan.rows * words + 4 * plan.rows * plan.dim_padded + 16 * words; }

  // Whether prefix tokens are beside the grid. Group 0 has all rows in it: there prefix tokens look at each other.
  bool beside(int64_t group) const {
    return group > 0 && plan.prefix > 0 && plan.prefix <= kMaxPrefixBeside &&
           (plan.rows - plan.prefix) % kTileKeys == 0;
  }

  // delta of a prefix query, in the order of the products of its whole row.
  float prefix_delta(const Group<T>& group, int64_t query, float* buffer) const {
    Word *grad_out = reinterpret_cast<Word*>(buffer), *out = grad_out + words;
    pack_row(group.grad_out().row(query), plan.dim, grad_out);
    pack_row(group.out(query), plan.dim, out);
    const Word *q[1] = {grad_out}, *k[1] = {out};
    return score_tile<1, 1>(q, k, words)[0];
  }

  template <typename Merge>
  void forward(const Group<T>& group, float* buffer, const Merge& merge) const {
    beside(group.index) ? forward_with<true>(group, buffer, merge) : forward_with<false>(group, buffer, merge);
  }
  template <typename Add>
  void backward(const Group<T>& group, float* buffer, const Add& add) const {
    beside(group.index) ? backward_with<true>(group, buffer, add) : backward_with<false>(group, buffer, add);
  }

 private:
  // Scores of a row of tiles, base 2; -inf where the query does not look.
  template <bool kBeside>
  void scores(int64_t group, const Grid& grid, int64_t first, int64_t queries, const Word* const* q,
              const Word* const* k, Vec* s) const {
    score_tiles(q + first, queries, k, grid.rows, words, s);
    for (int64_t t = 0; t < grid.key_tiles; ++t) s[t] = scaled(s[t], scale);
    if (grid.rows % kTileKeys) {
      Vec& last = s[grid.key_tiles - 1];
      last = key_of_lane >= int(grid.rows % kTileKeys) - IntVec{} ? broadcast(-INFINITY) : last;
    }
    hide<kBeside>(group, first, broadcast(-INFINITY), s);
  }

  // Puts `value` where a row of tiles has prefix queries and prefix keys, which see each other in group 0 alone.
  template <bool kBeside>
  void hide(int64_t group, int64_t first, Vec value, Vec* tiles) const {
    if (kBeside || group == 0 || first >= plan.prefix) return;
    for (int64_t t = 0; t * kTileKeys < plan.prefix; ++t)
      tiles[t] = (query_of_lane < int(plan.prefix - first) - IntVec{}) &
                         (key_of_lane < int(plan.prefix - t * kTileKeys) - IntVec{})
                     ? value
                     : tiles[t];
  }

  static Vec row_max(const Grid& grid, const Vec* s) {
    Vec top = s[0];
    for (int64_t t = 1; t < grid.key_tiles; ++t) top = max(top, s[t]);
    return top;
  }

  // to[r] = sum of what row r takes from the grid and from the tiles beside it.
  template <bool kBeside, typename Part>
  void sum_rows(int64_t rows, const Part& from_grid, const OverKeys& from_beside, float* to) const {
    if constexpr (kBeside)
      weighted_sum(rows, plan.dim_padded, to, from_grid, from_beside);
    else
      weighted_sum(rows, plan.dim_padded, to, from_grid);
  }

  // `count` rows as terms.
  const Word* const* terms(const Word* const* rows, int64_t count, Arena& arena, const Word** to) const {
    return as_terms(rows, count, plan.dim_padded, arena.take<Word>((count + 1) / 2 * plan.dim_padded), to);
  }

  // merge(prefix row, max2, sum, values) takes in what a group gives to a prefix query.
  template <bool kBeside, typename Merge>
  void forward_with(const Group<T>& group, float* buffer, const Merge& merge) const {
    const int64_t beside = kBeside ? plan.prefix : 0;
    const Grid grid(plan.rows - beside);
    const int64_t key_tiles = grid.key_tiles;
    Arena arena{buffer};
    const Word *q[kMaxSmallRows], *k[kMaxSmallRows], *v[kMaxSmallRows];
    const Word *grid_terms[kMaxSmallRows], *prefix_terms[kMaxPrefixBeside];
    take_rows(group, group.part(0), arena.take<Word>(plan.rows * words), q);
    take_rows(group, group.part(1), arena.take<Word>(plan.rows * words), k);
    take_rows(group, group.part(2), arena.take<Word>(plan.rows * words), v);
    const Word* const* grid_v = terms(v + beside, grid.rows, arena, grid_terms);
    const Word* const* prefix_v = terms(v, beside, arena, prefix_terms);
    float* values = arena.take<float>(kTileQueries * plan.dim_padded);

    // Step by step for all queries: the steps of one query wait for each other, those of many do not.
    Vec s[kTiles], s_beside[kMaxQueryTiles], top[kMaxQueryTiles], sum[kMaxQueryTiles];
    Vec prefix_top = broadcast(kLowest), prefix_sum{};
    Word weights[kTiles * Tile::kFloats];
    Beside weights_beside;
    for (int64_t i = 0, first = 0; first < grid.rows; ++i, first += kTileQueries) {
      const int64_t queries = min(kTileQueries, grid.rows - first), row = beside + first;
      scores<kBeside>(group.index, grid, first, queries, q + beside, k + beside, s + i * key_tiles);
      top[i] = row_max(grid, s + i * key_tiles);
      if constexpr (kBeside) {
        s_beside[i] = scaled(score_beside(q + row, k + row, q, k, beside, words), scale);
        top[i] = max(top[i], prefix_is_key ? s_beside[i] : top[i]);
        prefix_top = max(prefix_top, s_beside[i]);
      }
      top[i] = max_in_fours(top[i]);
      if (!kBeside && first < plan.prefix)
        top[i] = query_of_lane < int(plan.prefix - first) - IntVec{} ? max(top[i], broadcast(kLowest)) : top[i];
      prefetch_next(group, group.part(0), row, queries);
    }
    prefix_top = max_over_fours(prefix_top);
    for (int64_t i = 0; i < grid.query_tiles; ++i) {
      sum[i] = Vec{};
      for (int64_t t = i * key_tiles; t < (i + 1) * key_tiles; ++t) {
        const Vec p = exp2(s[t] - top[i]);
        sum[i] += p;
        Tile::store_over_keys(weights + t * Tile::kFloats, p);
      }
      if constexpr (kBeside) {
        const Vec p = prefix_is_there ? exp2(s_beside[i] - (prefix_is_key ? top[i] : prefix_top)) : Vec{};
        sum[i] += prefix_is_key ? p : Vec{};
        prefix_sum += p;
        weights_beside.store(i, p);
      }
      sum[i] = add_in_fours(sum[i]);
      prefetch_next(group, group.part(1), beside + i * kTileQueries, min(kTileQueries, grid.rows - i * kTileQueries));
    }
    for (int64_t i = 0, first = 0; first < grid.rows; ++i, first += kTileQueries) {
      const int64_t queries = min(kTileQueries, grid.rows - first), row = beside + first;
      sum_rows<kBeside>(
          queries,
          OverKeys{weights + i * key_tiles * Tile::kFloats, Tile::over_keys(), grid_v, depth_words<Word>(grid.rows)},
          weights_beside.from_keys(i, prefix_v, beside), values);
      prefetch_next(group, group.part(2), row, queries);
      for (int64_t r = 0; r < queries; ++r) {
        const float* value = values + r * plan.dim_padded;
        if (row + r < plan.prefix)
          merge(row + r, top[i][4 * r], sum[i][4 * r], value);
        else
          write_output(group, plan.token(group.index, row + r), sum[i][4 * r], value);
      }
    }
    if constexpr (!kBeside) return;
    prefix_sum = add_over_fours(prefix_sum);
    weighted_sum(beside, plan.dim_padded, values, weights_beside.to_queries(grid_v, grid.rows));
    for (int64_t p = 0; p < beside; ++p) merge(p, prefix_top[2 + p], prefix_sum[2 + p], values + p * plan.dim_padded);
  }

  // Of prefix queries, whose softmax spans all groups. Query first + i has the lanes that are `is` + i.
  struct PrefixRows {
    Vec top{}, inverse{}, delta{};
  };
  static inline __attribute__((always_inline)) PrefixRows prefix_rows(const Group<T>& group, IntVec lanes, int is,
                                                                      int64_t first, int64_t last) {
    PrefixRows rows;
    for (int64_t p = first; p < last; ++p) {
      const IntVec mine = lanes == is + int(p - first) - IntVec{};
      rows.top = mine ? broadcast(group.stats(p)[0]) : rows.top;
      rows.inverse = mine ? broadcast(1.0f / group.stats(p)[1]) : rows.inverse;
      rows.delta = mine ? broadcast(group.delta(p)) : rows.delta;
    }
    return rows;
  }

  // Probabilities are recomputed from the scores. add(part, prefix row, values) takes in what a group gives to a prefix
  // token's gradients.
  template <bool kBeside, typename Add>
  void backward_with(const Group<T>& group, float* buffer, const Add& add) const {
    const int64_t beside = kBeside ? plan.prefix : 0;
    const Grid grid(plan.rows - beside);
    const int64_t key_tiles = grid.key_tiles, depth = depth_words<Word>(grid.rows);
    Arena arena{buffer};
    const Word *q[kMaxSmallRows], *k[kMaxSmallRows], *v[kMaxSmallRows], *grad_out[kMaxSmallRows];
    const Word *grid_terms[3][kMaxSmallRows], *prefix_terms[3][kMaxPrefixBeside];
    take_rows(group, group.part(0), arena.take<Word>(plan.rows * words), q);
    take_rows(group, group.part(1), arena.take<Word>(plan.rows * words), k);
    take_rows(group, group.part(2), arena.take<Word>(plan.rows * words), v);
    take_rows(group, group.grad_out(), arena.take<Word>(plan.rows * words), grad_out);
    const Word* const* grid_q = terms(q + beside, grid.rows, arena, grid_terms[0]);
    const Word* const* grid_k = terms(k + beside, grid.rows, arena, grid_terms[1]);
    const Word* const* grid_g = terms(grad_out + beside, grid.rows, arena, grid_terms[2]);
    const Word* const* prefix_q = terms(q, beside, arena, prefix_terms[0]);
    const Word* const* prefix_k = terms(k, beside, arena, prefix_terms[1]);
    const Word* const* prefix_g = terms(grad_out, beside, arena, prefix_terms[2]);
    float* values = arena.take<float>(kTileQueries * plan.dim_padded);
    const PrefixRows prefix = prefix_rows(group, key_of_lane, 2, 0, beside);

    Word probs[kTiles * Tile::kFloats], grad_scores[kTiles * Tile::kFloats];
    Beside probs_beside, grad_scores_beside;
    for (int64_t i = 0, first = 0; first < grid.rows; ++i, first += kTileQueries) {
      const int64_t queries = min(kTileQueries, grid.rows - first), row = beside + first;
      Vec s[kMaxKeyTiles], dp[kMaxKeyTiles], s_beside{}, dp_beside{};
      Word weights[kMaxKeyTiles * Tile::kFloats];
      scores<kBeside>(group.index, grid, first, queries, q + beside, k + beside, s);
      prefetch_next(group, group.part(0), row, queries);
      score_tiles(grad_out + row, queries, v + beside, grid.rows, words, dp);
      prefetch_next(group, group.part(1), row, queries);
      // Lanes of absent keys and queries hold copies. Their weights are zeros, and zero times infinity is NaN.
      if (grid.rows % kTileKeys) {
        Vec& last = dp[key_tiles - 1];
        last = key_of_lane >= int(grid.rows % kTileKeys) - IntVec{} ? Vec{} : last;
      }
      Vec top = row_max(grid, s);
      if constexpr (kBeside) {
        s_beside = scaled(score_beside(q + row, k + row, q, k, beside, words), scale);
        dp_beside = score_beside(grad_out + row, v + row, grad_out, v, beside, words);
        dp_beside = prefix_is_there ? dp_beside : Vec{};
        top = max(top, prefix_is_key ? s_beside : top);
      }
      top = max_in_fours(top);
      const int64_t in_grid = min(queries, plan.prefix - row);  // prefix queries of this row of tiles
      const PrefixRows own = prefix_rows(group, query_of_lane, 0, row, row + in_grid);
      const IntVec is_prefix = query_of_lane < int(in_grid) - IntVec{};
      top = is_prefix ? own.top : top;
      Vec sum{}, delta{};
      for (int64_t t = 0; t < key_tiles; ++t) {
        s[t] = exp2(s[t] - top);
        sum += s[t];
        delta += s[t] * dp[t];
      }
      if constexpr (kBeside) {
        s_beside = prefix_is_there ? exp2(s_beside - (prefix_is_key ? top : prefix.top)) : Vec{};
        sum += prefix_is_key ? s_beside : Vec{};
        delta += prefix_is_key ? s_beside * dp_beside : Vec{};
      }
      Vec inverse = 1.0f / add_in_fours(sum);
      delta = is_prefix ? own.delta : add_in_fours(delta) * inverse;
      inverse = is_prefix ? own.inverse : inverse;
      if (queries < kTileQueries) {
        const IntVec present = query_of_lane < int(queries) - IntVec{};
        inverse = present ? inverse : Vec{}, delta = present ? delta : Vec{};
        for (int64_t t = 0; t < key_tiles; ++t) s[t] = present ? s[t] : Vec{}, dp[t] = present ? dp[t] : Vec{};
      }
      for (int64_t t = 0; t < key_tiles; ++t) {
        const Vec p = s[t] * inverse;
        dp[t] = p * (dp[t] - delta);
        Tile::store_over_queries(probs + (i * key_tiles + t) * Tile::kFloats, p);
      }
      hide<kBeside>(group.index, first, Vec{}, dp);
      for (int64_t t = 0; t < key_tiles; ++t) {
        Tile::store_over_queries(grad_scores + (i * key_tiles + t) * Tile::kFloats, dp[t]);
        Tile::store_over_keys(weights + t * Tile::kFloats, dp[t]);
      }
      if constexpr (kBeside) {
        const Vec p = s_beside * (prefix_is_key ? inverse : prefix.inverse);
        probs_beside.store(i, p);
        const Vec ds = p * (dp_beside - (prefix_is_key ? delta : prefix.delta));
        grad_scores_beside.store(i, prefix_is_there ? ds : Vec{});
      }
      sum_rows<kBeside>(queries, OverKeys{weights, Tile::over_keys(), grid_k, depth},
                        grad_scores_beside.from_keys(i, prefix_k, beside), values);
      write(group, row, queries, 0, values, add);
    }

    // Keys in runs no longer than kTileQueries, which divides the keys of a tile.
    const auto over_queries = Tile::over_queries(key_tiles);
    for (int64_t i = 0, first = 0; first < grid.rows; ++i, first += kTileQueries) {
      const int64_t keys = min(kTileQueries, grid.rows - first), row = beside + first;
      const int64_t at = first / kTileKeys * Tile::kFloats + first % kTileKeys;
      sum_rows<kBeside>(keys, OverQueries{grad_scores + at, over_queries, grid_q, depth},
                        grad_scores_beside.from_queries(i, prefix_q, beside), values);
      write(group, row, keys, 1, values, add);
      prefetch_next(group, group.part(2), row, keys);
      sum_rows<kBeside>(keys, OverQueries{probs + at, over_queries, grid_g, depth},
                        probs_beside.from_queries(i, prefix_g, beside), values);
      write(group, row, keys, 2, values, add);
      prefetch_next(group, group.grad_out(), row, keys);
    }
    if constexpr (!kBeside) return;
    weighted_sum(beside, plan.dim_padded, values, grad_scores_beside.to_queries(grid_k, grid.rows));
    write(group, 0, beside, 0, values, add);
    weighted_sum(beside, plan.dim_padded, values, grad_scores_beside.to_keys(grid_q, grid.rows));
    write(group, 0, beside, 1, values, add);
    weighted_sum(beside, plan.dim_padded, values, probs_beside.to_keys(grid_g, grid.rows));
    write(group, 0, beside, 2, values, add);
  }

  template <typename Add>
  void write(const Group<T>& group, int64_t first, int64_t count, int part, const float* values, const Add& add) const {
    for (int64_t row = first; row < first + count; ++row, values += plan.dim_padded)
      if (row < plan.prefix)
        add(part, row, values);
      else
        write_gradient(group, plan.token(group.index, row), part, values);
  }
};

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta
