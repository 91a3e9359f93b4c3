// Prefix tokens as a border around a small group's score matrix, which has the patches alone: a tile beside each row of
// tiles has the scores of its rows with the prefix tokens, both ways (small_tiles.h: border_score_tile). It is not for
// group 0, where prefix tokens see each other. small_groups.h calls these, or those of prefix_in_tiles.h.
#pragma once

#include "small_tiles.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

// Lanes of a border tile in which the prefix token is the key; in the others it is the query.
static inline IntVec prefix_is_key() { return is_below(key_of_lane(), 2); }
// Lanes of prefix tokens that exist.
static inline IntVec prefix_exists(int64_t prefix) { return is_below(key_of_lane() % 2, prefix); }

// The weights in the border tiles, as weights of sums.
template <typename Word>
struct BorderWeights {
  using Tile = WeightTile<Word>;
  using OverKeys = typename Tile::OverKeys;
  using OverQueries = typename Tile::OverQueries;
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
  // What prefix tokens take from all rows of the matrix, as keys and as queries.
  OverQueries to_keys(const Word* const* rows, int64_t count) const {
    return {over_rows, Tile::over_queries(1), rows, depth_words<Word>(count)};
  }
  OverQueries to_queries(const Word* const* rows, int64_t count) const {
    return {over_rows + 2, Tile::over_queries(1), rows, depth_words<Word>(count)};
  }
};

template <typename T>
struct PrefixBorderForward {
  using Word = typename WordOf<T>::type;
  using OverKeys = typename WeightTile<Word>::OverKeys;

  const Group<T>& group;
  const TileMatrix matrix;

  PrefixBorderForward(const Group<T>& group, const SmallRows<Word>& rows, const ScoreScale& scale, Word* const* copies)
      : group(group), matrix(group.plan.prefix, group.plan.rows), rows_(rows), scale_(scale) {
    prefix_v_ = deep_rows(rows.v, prefix_, group.plan.dim_padded, copies[0], deep_);
  }

  Vec row_max(int64_t i, const Vec* s) {
    border_[i] = scaled(border_score_tile(rows_.q, rows_.k, matrix.row(i), prefix_, rows_.words), scale_);
    prefix_max_ = max(prefix_max_, border_[i]);
    const Vec found = matrix.row_max(s);
    return max_in_fours(max(found, prefix_is_key() ? border_[i] : found));
  }
  void end_scores() { prefix_max_ = max_over_fours(prefix_max_); }
  // To the row's sum, and to the prefix queries'.
  void add_weights(int64_t i, Vec row_max, Vec& sum) {
    const Vec max2 = prefix_is_key() ? row_max : prefix_max_;
    const Vec p = prefix_exists(prefix_) ? exp2(border_[i] - max2) : Vec{};
    sum += prefix_is_key() ? p : Vec{};
    prefix_sum_ += p;
    weights_.store(i, p);
  }
  void sum_values(int64_t i, const OverKeys& rows, float* to) const {
    weighted_sum(matrix.queries(i), group.plan.dim_padded, to, rows, weights_.from_keys(i, prefix_v_, prefix_));
  }
  template <typename Merge>
  void finish(const Word* const* v, float* values, const Merge& merge) const {
    const int64_t dim_padded = group.plan.dim_padded;
    const Vec sum = add_over_fours(prefix_sum_);
    weighted_sum(prefix_, dim_padded, values, weights_.to_queries(v, matrix.rows));
    for (int64_t p = 0; p < prefix_; ++p) merge(p, prefix_max_[2 + p], sum[2 + p], values + p * dim_padded);
  }

 private:
  const SmallRows<Word>& rows_;
  const ScoreScale& scale_;
  const int64_t prefix_ = group.plan.prefix;
  const Word* deep_[kMaxBorderTokens];
  const Word* const* prefix_v_;
  Vec border_[kMaxQueryTiles], prefix_max_ = broadcast(kLowest), prefix_sum_{};
  BorderWeights<Word> weights_;
};

template <typename T>
struct PrefixBorderBackward {
  using Word = typename WordOf<T>::type;
  using OverKeys = typename WeightTile<Word>::OverKeys;
  using OverQueries = typename WeightTile<Word>::OverQueries;

  const Group<T>& group;
  const TileMatrix matrix;

  PrefixBorderBackward(const Group<T>& group, const SmallRows<Word>& rows, const ScoreScale& scale, Word* const* copies)
      : group(group), matrix(group.plan.prefix, group.plan.rows), rows_(rows), scale_(scale) {
    const int64_t dim_padded = group.plan.dim_padded;
    deep_.q = deep_rows(rows.q, prefix_, dim_padded, copies[0], deep_rows_[0]);
    deep_.k = deep_rows(rows.k, prefix_, dim_padded, copies[1], deep_rows_[1]);
    deep_.grad_out = deep_rows(rows.grad_out, prefix_, dim_padded, copies[2], deep_rows_[2]);
    for (int64_t p = 0; p < prefix_; ++p) {
      const IntVec lanes = is_equal(key_of_lane(), 2 + p);
      prefix_max_ = lanes ? broadcast(group.stats(p)[0]) : prefix_max_;
      prefix_inverse_ = lanes ? broadcast(1.0f / group.stats(p)[1]) : prefix_inverse_;
      prefix_delta_ = lanes ? broadcast(group.delta(p)) : prefix_delta_;
    }
  }

  Vec row_max(int64_t i, const Vec* s) {
    const int64_t row = matrix.row(i);
    border_ = scaled(border_score_tile(rows_.q, rows_.k, row, prefix_, rows_.words), scale_);
    const Vec dp = border_score_tile(rows_.grad_out, rows_.v, row, prefix_, rows_.words);
    border_dp_ = prefix_exists(prefix_) ? dp : Vec{};
    const Vec found = matrix.row_max(s);
    return max_in_fours(max(found, prefix_is_key() ? border_ : found));
  }
  void normalize(int64_t, Vec row_max, Vec sum, Vec& inverse, Vec& delta) {
    const Vec max2 = prefix_is_key() ? row_max : prefix_max_;
    border_ = prefix_exists(prefix_) ? exp2(border_ - max2) : Vec{};
    inverse = 1.0f / add_in_fours(sum + (prefix_is_key() ? border_ : Vec{}));
    delta = add_in_fours(delta + (prefix_is_key() ? border_ * border_dp_ : Vec{})) * inverse;
  }
  void score_gradients(int64_t i, Vec inverse, Vec delta, const Vec*) {
    const Vec p = border_ * (prefix_is_key() ? inverse : prefix_inverse_);
    probs_.store(i, p);
    const Vec ds = p * (border_dp_ - (prefix_is_key() ? delta : prefix_delta_));
    grad_scores_.store(i, prefix_exists(prefix_) ? ds : Vec{});
  }

  void sum_keys(int64_t i, const OverKeys& rows, float* to) const {
    sum(i, rows, grad_scores_.from_keys(i, deep_.k, prefix_), to);
  }
  void sum_queries(int64_t i, const OverQueries& rows, float* to) const {
    sum(i, rows, grad_scores_.from_queries(i, deep_.q, prefix_), to);
  }
  void sum_grad_out(int64_t i, const OverQueries& rows, float* to) const {
    sum(i, rows, probs_.from_queries(i, deep_.grad_out, prefix_), to);
  }
  // add(part, prefix row, values): the prefix tokens' gradients from the matrix's rows.
  template <typename Add>
  void finish(const DeepRows<Word>& rows, float* values, const Add& add) const {
    const auto add_sums = [&](Part part, const OverQueries& weighted) {
      weighted_sum(prefix_, group.plan.dim_padded, values, weighted);
      for (int64_t p = 0; p < prefix_; ++p) add(part, p, values + p * group.plan.dim_padded);
    };
    add_sums(kQuery, grad_scores_.to_queries(rows.k, matrix.rows));
    add_sums(kKey, grad_scores_.to_keys(rows.q, matrix.rows));
    add_sums(kValue, probs_.to_keys(rows.grad_out, matrix.rows));
  }

 private:
  const SmallRows<Word>& rows_;
  const ScoreScale& scale_;
  const int64_t prefix_ = group.plan.prefix;
  const Word* deep_rows_[3][kMaxBorderTokens];
  DeepRows<Word> deep_;
  Vec prefix_max_{}, prefix_inverse_{}, prefix_delta_{};
  Vec border_{}, border_dp_{};  // scores, then weights, of the row of tiles at hand; dO·v
  BorderWeights<Word> probs_, grad_scores_;

  template <typename Weighted>
  void sum(int64_t i, const Weighted& rows, const OverKeys& prefix, float* to) const {
    weighted_sum(matrix.queries(i), group.plan.dim_padded, to, rows, prefix);
  }
};

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta
