// Attention within a group of few tokens, one head: what attention over time is made of.
//
// Scores are a matrix of tiles (small_tiles.h). The prefix tokens are rows of it like others (prefix_in_tiles.h), or a
// border around the matrix of the patches (prefix_border.h): where patches alone fill whole tiles, prefix tokens would
// begin a row and a column of nearly empty ones. Those files have the steps that differ, this one has the algorithm.
// Rows are read where they lie when their memory layout is that of the words. Vectors of eight lanes are too short for
// tiles to pay where patches fill them: query_lanes.h has these groups. Dropout is for tiles without a border alone.
#pragma once

#include "attention_dropout.h"
#include "attention_groups.h"
#include "prefix_border.h"
#include "prefix_in_tiles.h"
#include "query_lanes.h"
#include "small_tiles.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

// Pointers to the rows of a group as words: the tensor's own memory where that will do, else copies.
template <typename T, typename Word>
void take_rows(const Group<T>& group, const Rows<T>& from, Word* copies, const Word** rows) {
  const Plan& plan = group.plan;
  const int64_t words = row_words<Word>(plan.dim);
  const bool in_place = sizeof(Word) == sizeof(T) * kPerWord<Word> && words * kPerWord<Word> == plan.dim && !from.map;
  const auto take = [&](int64_t r, const T* row) {
    if (in_place) {
      rows[r] = reinterpret_cast<const Word*>(row);
    } else {
      from.map ? from.map->pack_row(row, plan.token(group.index, r), copies + r * words)
               : pack_row(row, plan.dim, copies + r * words);
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
  using OverKeys = typename Tile::OverKeys;
  using OverQueries = typename Tile::OverQueries;
  static constexpr int64_t kTiles = kMaxQueryTiles * kMaxKeyTiles;

  const Plan& plan;
  const ScoreScale scale;
  const AttentionDropout dropout;
  const int64_t words;

  explicit SmallGroups(const Plan& plan, const SpaceTimeAttention& op)
      : plan(plan), scale(op.scale), dropout(plan, op), words(row_words<Word>(plan.dim)) {}

  // What rows are copied to where they do not serve as they lie, and room for what is computed from them.
  struct Buffers {
    Word *q, *k, *v, *grad_out;
    Word *prefix_deep[3], *deep[3];  // copies of prefix rows and of all rows, see deep_rows
    float *values, *kept;

    Buffers(Arena& arena, const SmallGroups& groups, bool backward) {
      const Plan& plan = groups.plan;
      const int64_t rows = plan.rows * groups.words, sums = backward ? 3 : 1;
      q = arena.take<Word>(rows), k = arena.take<Word>(rows), v = arena.take<Word>(rows);
      grad_out = backward ? arena.take<Word>(rows) : nullptr;
      for (int i = 0; i < sums; ++i) prefix_deep[i] = arena.take<Word>(deep_words(kMaxBorderTokens, plan.dim_padded));
      for (int i = 0; i < sums; ++i) deep[i] = arena.take<Word>(deep_words(plan.rows, plan.dim_padded));
      values = arena.take<float>(kTileQueries * plan.dim_padded);
      kept = arena.take<float>(groups.dropout.floats(round_up(plan.rows, kTileQueries)));
    }
  };

  int64_t scratch_floats(bool backward) const {
    if constexpr (kLanes == 8)
      if (in_lanes()) return QueryLanes<T>(plan, scale).scratch_floats(backward);
    return floats_of<Buffers>(*this, backward);
  }

  // Whether query_lanes.h has the groups.
  bool in_lanes() const { return plan.rows - plan.prefix >= kLanes && !dropout.drops(); }

  // A group where prefix tokens look at each other has all rows in its tiles.
  bool has_border(const Group<T>& group) const {
    return plan.hides_prefix(group.index) && plan.prefix > 0 && plan.prefix <= kMaxBorderTokens &&
           (plan.rows - plan.prefix) % kTileKeys == 0;
  }

  // merge(prefix row, max2, sum, values) takes in what a group gives to a prefix query.
  template <typename Merge>
  void forward(const Group<T>& group, float* buffer, const Merge& merge) const {
    if constexpr (kLanes == 8)
      if (in_lanes()) return QueryLanes<T>(plan, scale).forward(group, buffer, merge);
    if (dropout.drops()) return forward_with<true, PrefixInTilesForward<T>>(group, buffer, merge);
    has_border(group) ? forward_with<false, PrefixBorderForward<T>>(group, buffer, merge)
                      : forward_with<false, PrefixInTilesForward<T>>(group, buffer, merge);
  }

  // delta of a prefix query, in the order of the products of its whole row.
  float prefix_delta(const Group<T>& group, int64_t query, float* buffer) const {
    if constexpr (kLanes == 8)
      if (in_lanes()) return QueryLanes<T>(plan, scale).prefix_delta(group, query, buffer);
    const auto b = pieces_in<Buffers>(buffer, *this, true);
    pack_row(group.grad_out().row(query), plan.dim, b.grad_out);
    pack_row(group.out(query), plan.dim, b.q);
    const Word *q[1] = {b.grad_out}, *k[1] = {b.q};
    return score_tile<1, 1>(q, k, words)[0];
  }

  // Probabilities are recomputed from the scores. add(part, prefix row, values) takes in what a group gives to a prefix
  // token's gradients.
  template <typename Add>
  void backward(const Group<T>& group, float* buffer, const Add& add) const {
    if constexpr (kLanes == 8)
      if (in_lanes()) return QueryLanes<T>(plan, scale).backward(group, buffer, add);
    if (dropout.drops()) return backward_with<true, PrefixInTilesBackward<T>>(group, buffer, add);
    has_border(group) ? backward_with<false, PrefixBorderBackward<T>>(group, buffer, add)
                      : backward_with<false, PrefixInTilesBackward<T>>(group, buffer, add);
  }

 private:
  SmallRows<Word> take_qkv(const Group<T>& group, const Buffers& b) const {
    SmallRows<Word> rows(words);
    take_rows(group, group.part(kQuery), b.q, rows.q);
    take_rows(group, group.part(kKey), b.k, rows.k);
    take_rows(group, group.part(kValue), b.v, rows.v);
    return rows;
  }

  // Scores of row of tiles i, base 2, with padding of -inf. Inlined: GCC, left to itself, would not any more where
  // dropout calls it too, and T = 3 takes 1.5 % more instructions backward.
  HSTA_INLINE void scores(const TileMatrix& matrix, int64_t i, const SmallRows<Word>& rows, Vec* s) const {
    score_tiles(rows.q + matrix.row(i), matrix.queries(i), rows.k + matrix.first_row, matrix.rows, words, s);
    for (int64_t t = 0; t < matrix.key_tiles; ++t) s[t] = scaled(s[t], scale);
    matrix.pad(s, broadcast(-INFINITY));
  }

  template <bool kDrops, typename Prefix, typename Merge>
  void forward_with(const Group<T>& group, float* buffer, const Merge& merge) const {
    const auto b = pieces_in<Buffers>(buffer, *this, false);
    const SmallRows<Word> rows = take_qkv(group, b);
    Prefix prefix(group, rows, scale, b.prefix_deep);
    const TileMatrix matrix = prefix.matrix;
    const int64_t key_tiles = matrix.key_tiles, depth = depth_words<Word>(matrix.rows);
    const Word* deep[kMaxSmallRows];
    const Word* const* deep_v = deep_rows(rows.v + matrix.first_row, matrix.rows, plan.dim_padded, b.deep[0], deep);
    float* values = b.values;

    if constexpr (kDrops) dropout.draw(group, 0, plan.rows, b.kept);

    // Step by step for all queries: the steps of one query wait for each other, those of many do not.
    Vec s[kTiles], row_max[kMaxQueryTiles], sum[kMaxQueryTiles];
    Word weights[kTiles * Tile::kFloats];
    for (int64_t i = 0; i < matrix.query_tiles; ++i) {
      scores(matrix, i, rows, s + i * key_tiles);
      row_max[i] = prefix.row_max(i, s + i * key_tiles);
      prefetch_next(group, group.part(kQuery), matrix.row(i), matrix.queries(i));
    }
    prefix.end_scores();
    for (int64_t i = 0; i < matrix.query_tiles; ++i) {
      sum[i] = Vec{};
      for (int64_t t = i * key_tiles; t < (i + 1) * key_tiles; ++t) {
        Vec p = exp2(s[t] - row_max[i]);
        sum[i] += p;
        if constexpr (kDrops)
          p = dropout.apply(p, dropout.tile(b.kept, i * kTileQueries, (t - i * key_tiles) * kTileKeys));
        Tile::store_over_keys(weights + t * Tile::kFloats, p);
      }
      prefix.add_weights(i, row_max[i], sum[i]);
      sum[i] = add_in_fours(sum[i]);
      prefetch_next(group, group.part(kKey), matrix.row(i), matrix.queries(i));
    }
    for (int64_t i = 0; i < matrix.query_tiles; ++i) {
      const int64_t row = matrix.row(i), queries = matrix.queries(i);
      prefix.sum_values(i, OverKeys{weights + i * key_tiles * Tile::kFloats, Tile::over_keys(), deep_v, depth}, values);
      prefetch_next(group, group.part(kValue), row, queries);
      for (int64_t r = 0; r < queries; ++r) {
        const float* value = values + r * plan.dim_padded;
        if (row + r < plan.prefix)
          merge(row + r, row_max[i][4 * r], sum[i][4 * r], value);
        else
          write_output(group, plan.token(group.index, row + r), sum[i][4 * r], value);
      }
    }
    prefix.finish(deep_v, values, merge);
  }

  template <bool kDrops, typename Prefix, typename Add>
  void backward_with(const Group<T>& group, float* buffer, const Add& add) const {
    const auto b = pieces_in<Buffers>(buffer, *this, true);
    SmallRows<Word> rows = take_qkv(group, b);
    take_rows(group, group.grad_out(), b.grad_out, rows.grad_out);
    Prefix prefix(group, rows, scale, b.prefix_deep);
    const TileMatrix matrix = prefix.matrix;
    const int64_t key_tiles = matrix.key_tiles, depth = depth_words<Word>(matrix.rows);
    const Word* pointers[3][kMaxSmallRows];
    const auto take_deep = [&](const Word* const* rows, int i) {
      return deep_rows(rows + matrix.first_row, matrix.rows, plan.dim_padded, b.deep[i], pointers[i]);
    };
    const DeepRows<Word> deep{take_deep(rows.q, 0), take_deep(rows.k, 1), take_deep(rows.grad_out, 2)};
    float* values = b.values;

    if constexpr (kDrops) dropout.draw(group, 0, plan.rows, b.kept);
    Word probs[kTiles * Tile::kFloats], grad_scores[kTiles * Tile::kFloats];
    for (int64_t i = 0; i < matrix.query_tiles; ++i) {
      const int64_t row = matrix.row(i), queries = matrix.queries(i);
      Vec s[kMaxKeyTiles], dp[kMaxKeyTiles];
      Word weights[kMaxKeyTiles * Tile::kFloats];
      scores(matrix, i, rows, s);
      prefetch_next(group, group.part(kQuery), row, queries);
      score_tiles(rows.grad_out + row, queries, rows.v + matrix.first_row, matrix.rows, words, dp);
      prefetch_next(group, group.part(kKey), row, queries);
      // Lanes of absent keys and queries hold copies. Their weights are zeros, and zero times infinity is NaN.
      matrix.pad(dp, Vec{});
      Vec kept[kMaxKeyTiles];
      if constexpr (kDrops)
        for (int64_t t = 0; t < key_tiles; ++t) {
          kept[t] = dropout.tile(b.kept, i * kTileQueries, t * kTileKeys);
          dp[t] = dropout.apply(dp[t], kept[t]);
        }
      const Vec row_max = prefix.row_max(i, s);
      Vec sum{}, delta{};
      for (int64_t t = 0; t < key_tiles; ++t) {
        s[t] = exp2(s[t] - row_max);
        sum += s[t];
        delta += s[t] * dp[t];
      }
      Vec inverse;
      prefix.normalize(i, row_max, sum, inverse, delta);
      if (queries < kTileQueries) {
        const IntVec present = is_below(query_of_lane(), queries);
        inverse = present ? inverse : Vec{}, delta = present ? delta : Vec{};
        for (int64_t t = 0; t < key_tiles; ++t) s[t] = present ? s[t] : Vec{}, dp[t] = present ? dp[t] : Vec{};
      }
      for (int64_t t = 0; t < key_tiles; ++t) {
        const Vec p = s[t] * inverse;
        dp[t] = p * (dp[t] - delta);
        Tile::store_over_queries(probs + (i * key_tiles + t) * Tile::kFloats, kDrops ? dropout.apply(p, kept[t]) : p);
      }
      prefix.score_gradients(i, inverse, delta, dp);
      for (int64_t t = 0; t < key_tiles; ++t) {
        Tile::store_over_queries(grad_scores + (i * key_tiles + t) * Tile::kFloats, dp[t]);
        Tile::store_over_keys(weights + t * Tile::kFloats, dp[t]);
      }
      prefix.sum_keys(i, OverKeys{weights, Tile::over_keys(), deep.k, depth}, values);
      write_gradients(group, row, queries, kQuery, values, add);
    }

    // Keys in runs no longer than kTileQueries, which divides the keys of a tile.
    const auto over_queries = Tile::over_queries(key_tiles);
    for (int64_t i = 0; i < matrix.query_tiles; ++i) {
      const int64_t row = matrix.row(i), keys = matrix.queries(i);
      const int64_t at = i * kTileQueries / kTileKeys * Tile::kFloats + i * kTileQueries % kTileKeys;
      prefix.sum_queries(i, OverQueries{grad_scores + at, over_queries, deep.q, depth}, values);
      write_gradients(group, row, keys, kKey, values, add);
      prefetch_next(group, group.part(kValue), row, keys);
      prefix.sum_grad_out(i, OverQueries{probs + at, over_queries, deep.grad_out, depth}, values);
      write_gradients(group, row, keys, kValue, values, add);
      prefetch_next(group, group.grad_out(), row, keys);
    }
    prefix.finish(deep, values, add);
  }

  // Of the group's rows from `first` on; add(part, prefix row, values) takes in the prefix tokens'.
  template <typename Add>
  void write_gradients(const Group<T>& group, int64_t first, int64_t count, Part part, float* values,
                       const Add& add) const {
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
