// Prefix tokens as the first rows of a small group's score matrix: keys in every group, and queries that every group
// adds to. small_groups.h calls these, or those of prefix_border.h.
#pragma once

#include "small_tiles.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

// Puts `value` where prefix queries of row of tiles i meet prefix keys that they do not see.
template <typename T>
void mask_prefix(const Group<T>& group, const TileMatrix& matrix, int64_t i, Vec value, Vec* tiles) {
  const int64_t prefix = group.plan.prefix, queries = prefix - matrix.row(i);
  if (!group.plan.hides_prefix(group.index) || queries <= 0) return;
  for (int64_t t = 0; t * kTileKeys < prefix; ++t)
    tiles[t] = is_below(query_of_lane(), queries) & is_below(key_of_lane(), prefix - t * kTileKeys) ? value : tiles[t];
}

template <typename T>
struct PrefixInTilesForward {
  using Word = typename WordOf<T>::type;
  using OverKeys = typename WeightTile<Word>::OverKeys;

  const Group<T>& group;
  const TileMatrix matrix;

  PrefixInTilesForward(const Group<T>& group, const SmallRows<Word>&, const ScoreScale&, Word* const*)
      : group(group), matrix(0, group.plan.rows) {}

  Vec row_max(int64_t i, Vec* s) const {
    mask_prefix(group, matrix, i, broadcast(-INFINITY), s);
    const Vec found = max_in_fours(matrix.row_max(s));
    const int64_t queries = group.plan.prefix - matrix.row(i);
    return queries > 0 && is_below(query_of_lane(), queries) ? max(found, broadcast(group.plan.lowest(0))) : found;
  }
  void end_scores() const {}
  void add_weights(int64_t, Vec, Vec&) const {}
  void sum_values(int64_t i, const OverKeys& rows, float* to) const {
    weighted_sum(matrix.queries(i), group.plan.dim_padded, to, rows);
  }
  template <typename Merge>
  void finish(const Word* const*, float*, const Merge&) const {}
};

template <typename T>
struct PrefixInTilesBackward {
  using Word = typename WordOf<T>::type;
  using OverKeys = typename WeightTile<Word>::OverKeys;
  using OverQueries = typename WeightTile<Word>::OverQueries;

  const Group<T>& group;
  const TileMatrix matrix;

  PrefixInTilesBackward(const Group<T>& group, const SmallRows<Word>&, const ScoreScale&, Word* const*)
      : group(group), matrix(0, group.plan.rows) {}

  Vec row_max(int64_t i, Vec* s) const {
    mask_prefix(group, matrix, i, broadcast(-INFINITY), s);
    Vec found = max_in_fours(matrix.row_max(s));
    for_prefix_queries(i, [&](int64_t p, IntVec lanes) {
      if (group.plan.spans_groups(p)) found = lanes ? broadcast(group.stats(p)[0]) : found;
    });
    return found;
  }
  // What weights are multiplied by, and delta, from the rows' sums; a prefix query's softmax may span all groups.
  void normalize(int64_t i, Vec, Vec sum, Vec& inverse, Vec& delta) const {
    inverse = 1.0f / add_in_fours(sum);
    delta = add_in_fours(delta) * inverse;
    for_prefix_queries(i, [&](int64_t p, IntVec lanes) {
      if (group.plan.spans_groups(p)) {
        inverse = lanes ? broadcast(1.0f / group.stats(p)[1]) : inverse;
        delta = lanes ? broadcast(group.delta(p)) : delta;
      } else {
        inverse = lanes ? inverse * broadcast(group.plan.share(p)) : inverse;
      }
    });
  }
  void score_gradients(int64_t i, Vec, Vec, Vec* ds) const { mask_prefix(group, matrix, i, Vec{}, ds); }

  void sum_keys(int64_t i, const OverKeys& rows, float* to) const { sum(i, rows, to); }
  void sum_queries(int64_t i, const OverQueries& rows, float* to) const { sum(i, rows, to); }
  void sum_grad_out(int64_t i, const OverQueries& rows, float* to) const { sum(i, rows, to); }
  template <typename Add>
  void finish(const DeepRows<Word>&, float*, const Add&) const {}

 private:
  // f(prefix query, mask of its lanes) for those of row of tiles i.
  template <typename F>
  void for_prefix_queries(int64_t i, const F& f) const {
    const int64_t first = matrix.row(i), last = min(first + matrix.queries(i), group.plan.prefix);
    for (int64_t p = first; p < last; ++p) f(p, is_equal(query_of_lane(), p - first));
  }
  template <typename Weighted>
  void sum(int64_t i, const Weighted& rows, float* to) const {
    weighted_sum(matrix.queries(i), group.plan.dim_padded, to, rows);
  }
};

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta
