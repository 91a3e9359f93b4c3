// Attention within a group of many tokens, one head: attention over space and over everything.
//
// Whole rows of scores are held for a block of queries at a time, as products of small matrices (gemm.h), and their
// softmax is taken at once: below some thousand keys that costs less than the corrections of an online softmax.
#pragma once

#include "attention_bias.h"
#include "attention_dropout.h"
#include "attention_groups.h"
#include "gemm.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

constexpr int64_t kBlockRows = 8 * kTileRows;  // queries whose scores are held at a time

constexpr int64_t kMostAhead = 96 << 10;  // bytes of each part of the next head that are asked for

// `s`, the scores from key j on, with `hidden` where the key is before `first` or not before `count`.
inline Vec where_visible(Vec s, int64_t j, int64_t first, int64_t count, float hidden) {
  const IntVec key = lane_numbers() + broadcast(int32_t(j));
  return is_below(key, first) | ~is_below(key, count) ? broadcast(hidden) : s;
}

// Scales scores to base 2, makes add(score, key) of them, masks the keys that the query does not see (before `first`,
// from `count` on); returns the largest score, or `lowest`.
template <typename Add>
float prepare_scores(float* scores, int64_t first, int64_t count, int64_t padded, const ScoreScale& scale,
                     const Add& add, float lowest) {
  const ScoreScale factors = scale;  // a copy, which no store can change
  Vec tops[2] = {broadcast(lowest), broadcast(lowest)};
  int64_t j = 0;
  const auto take = [&](Vec s, int64_t at, Vec& top) {
    store(scores + at, s);
    top = max(top, s);
  };
  const auto take_some = [&](int64_t end) {
    for (; j < end; j += kLanes)
      take(where_visible(add(scaled(load(scores + j), factors), j), j, first, count, -INFINITY), j, tops[0]);
  };
  take_some(first);
  for (; j + 2 * kLanes <= count; j += 2 * kLanes) {
    take(add(scaled(load(scores + j), factors), j), j, tops[0]);
    take(add(scaled(load(scores + j + kLanes), factors), j + kLanes), j + kLanes, tops[1]);
  }
  take_some(padded);
  return reduce_max(max(tops[0], tops[1]));
}

// Weights of a row, as the products read them, in place of scores or beside them.
inline void store_weights(float* to, Vec p) { store(to, p); }
#ifdef __AVX512BF16__
inline void store_weights(Pair* to, Vec p) { store_pairs(to, p); }
#endif

// Writes drop(2^(score - max2), key); returns the sum of what is not dropped yet.
template <typename Word, typename Drop>
float exponentiate(const float* scores, int64_t padded, float max2, Word* weights, const Drop& drop) {
  const auto weigh = [=](int64_t j) {
    const Vec p = exp2(load(scores + j) - broadcast(max2));
    store_weights(weights + j / kPerWord<Word>, drop(p, j));
    return p;
  };
  Vec even{}, odd{};
  int64_t j = 0;
  for (; j + 2 * kLanes <= padded; j += 2 * kLanes) {
    even += weigh(j);
    odd += weigh(j + kLanes);
  }
  if (j < padded) even += weigh(j);
  return reduce_add(even + odd);
}

template <typename T>
struct LargeGroups {
  using Word = typename WordOf<T>::type;
  static constexpr bool kPairs = kPerWord<Word> == 2;
  static constexpr int64_t kBlockDepth = depth_words<Word>(kBlockRows);

  const Plan& plan;
  const ScoreScale scale;
  const AttentionDropout dropout;
  const AttentionBias bias;
  const int64_t words, padded_words;  // of a row of the tensors, of a row of weights
  const int64_t depth;                // of products that sum over the group's rows
  const bool ask_ahead;

  LargeGroups(const Plan& plan, const SpaceTimeAttention& op)
      : plan(plan),
        scale(op.scale),
        dropout(plan, op),
        bias(op),
        words(row_words<Word>(plan.dim)),
        padded_words(plan.rows_padded / kPerWord<Word>),
        depth(depth_words<Word>(plan.rows)),
        ask_ahead(plan.rows * plan.dim * int64_t(sizeof(T)) <= kMostAhead) {}

  // Operands of a group and of a block of its queries, and room for what is computed from them.
  struct Buffers {
    Word *rows, *kt, *v_deep;
    float *scores, *values, *kept;
    Word* weights;
    // Backward pass only.
    Word *grad_out, *vt, *q_deep, *k_deep, *grad_out_deep, *grad_weights, *probs_by_key, *grad_by_key;
    float *grad_scores, *grad_k, *grad_v;

    Buffers(Arena& arena, const LargeGroups& groups, bool backward) {
      const Plan& plan = groups.plan;
      const int64_t block = kBlockRows * plan.rows_padded, block_deep = panel_words(kBlockDepth, plan.dim_padded);
      rows = arena.take<Word>(kBlockRows * groups.words);
      kt = arena.take<Word>(panel_words(groups.words, plan.rows_padded));
      v_deep = arena.take<Word>(panel_words(groups.depth, plan.dim_padded));
      scores = arena.take<float>(block);
      values = arena.take<float>(kBlockRows * plan.dim_padded);
      kept = arena.take<float>(groups.dropout.floats(kBlockRows));
      weights = kPairs ? arena.take<Word>(block / 2) : reinterpret_cast<Word*>(scores);
      if (!backward) return;
      grad_out = arena.take<Word>(kBlockRows * groups.words);
      vt = arena.take<Word>(panel_words(groups.words, plan.rows_padded));
      q_deep = arena.take<Word>(block_deep);
      k_deep = v_deep;
      grad_out_deep = arena.take<Word>(block_deep);
      grad_scores = arena.take<float>(block);
      grad_weights = kPairs ? weights : reinterpret_cast<Word*>(grad_scores);
      probs_by_key = kPairs ? arena.take<Word>(block / 2) : reinterpret_cast<Word*>(scores);
      grad_by_key = kPairs ? arena.take<Word>(block / 2) : reinterpret_cast<Word*>(grad_scores);
      grad_k = arena.take<float>(plan.rows * plan.dim_padded);
      grad_v = arena.take<float>(plan.rows * plan.dim_padded);
    }
  };

  int64_t scratch_floats(bool backward) const { return floats_of<Buffers>(*this, backward); }

  void pack(const Group<T>& group, const Rows<T>& from, int64_t first, int64_t count, Word* to) const {
    for (int64_t r = 0; r < count; ++r) from.pack(plan.token(group.index, first + r), plan.dim, to + r * words);
  }

  // Asks for a token's rows of the next head, which lie behind those of this one: in the midst of computing, when
  // nothing else waits for memory. Not where they would not stay in the second cache.
  inline __attribute__((always_inline)) void ask_for_next(const Group<T>& group, int64_t row, bool backward) const {
    if (!ask_ahead) return;
    const int64_t token = plan.token(group.index, row);
    for (const Part part : {kQuery, kKey, kValue}) prefetch(group.part(part).row(token) + plan.dim, plan.dim);
    if (backward) prefetch(group.grad_out().row(token) + plan.dim, plan.dim);
  }

  // All rows, some at a time, so that they are still in the first cache when use(first, count, rows) reads them.
  template <typename Use>
  void pack_all(const Group<T>& group, Part part, Word* rows, const Use& use) const {
    for (int64_t first = 0; first < plan.rows; first += kLanes) {
      const int64_t count = min(kLanes, plan.rows - first);
      pack(group, group.part(part), first, count, rows);
      use(first, count, rows);
    }
  }

  // Rows as a product reads them that sums over rows: as rows from `first` on of panels of `depth` rows, two of them
  // interleaved where words are pairs.
  void pack_deep(const Word* rows, int64_t count, Word* panels, int64_t first, int64_t depth) const {
    for (int64_t r = 0; r < count; r += kPerWord<Word>, rows += kPerWord<Word> * words)
      for (int64_t d = 0; d < plan.dim_padded; d += kPanel) {
        Word* to = panels + in_panels((first + r) / kPerWord<Word>, d, depth);
        const int64_t columns = min(kPanel, plan.dim_padded - d);
        if constexpr (kPairs)
          interleave_rows(rows + d / 2, r + 1 < count ? rows + words + d / 2 : nullptr, columns, to);
        else
          for (int64_t c = 0; c < columns; c += kLanes) store(to + c, load(rows + d + c));
      }
  }

  // Queries first to last of the group. merge(prefix row, max2, sum, values) takes in what it gives to a prefix query.
  template <typename Merge>
  void forward(const Group<T>& group, int64_t first_query, int64_t last_query, float* base, const Merge& merge) const {
    const auto b = pieces_in<Buffers>(base, *this, false);
    pack_all(group, kKey, b.rows,
             [&](int64_t first, int64_t count, const Word* rows) { transpose_into(b.kt, first, count, rows, words); });
    pack_all(group, kValue, b.rows,
             [&](int64_t first, int64_t count, const Word* rows) { pack_deep(rows, count, b.v_deep, first, depth); });

    for (int64_t first = first_query; first < last_query; first += kBlockRows) {
      const int64_t count = min(kBlockRows, last_query - first);
      float row_max2[kBlockRows], row_sum[kBlockRows];
      pack(group, group.part(kQuery), first, count, b.rows);
      gemm<Word>(count, plan.rows_padded, words, {b.rows, words, 1}, panels_of(b.kt, words), b.scores, plan.rows_padded,
                 false);
      if (dropout.drops()) dropout.draw(group, first, count, b.kept);
      for (int64_t i = 0; i < count; ++i) {
        ask_for_next(group, first + i, false);
        float* row = b.scores + i * plan.rows_padded;
        row_max2[i] = prepare(group, first + i, row, plan.lowest(first + i));
        const auto weigh = [&](auto drop) {
          return exponentiate(row, plan.rows_padded, row_max2[i], b.weights + i * padded_words, drop);
        };
        row_sum[i] = dropout.drops()
                         ? weigh([&, i](Vec p, int64_t j) { return dropout.apply(p, dropout.row(b.kept, i, j)); })
                         : weigh([](Vec p, int64_t) { return p; });
      }
      gemm<Word>(count, plan.dim_padded, depth, {b.weights, padded_words, 1}, panels_of(b.v_deep, depth), b.values,
                 plan.dim_padded, false);
      for (int64_t i = 0; i < count; ++i) {
        float* row = b.values + i * plan.dim_padded;
        if (first + i < plan.prefix)
          merge(first + i, row_max2[i], row_sum[i], row);
        else
          write_output(group, plan.token(group.index, first + i), row_sum[i], row);
      }
    }
  }

  // Of a prefix query, in the order of the products of its whole row.
  float prefix_delta(const Group<T>& group, int64_t query, float* base) const {
    const auto b = pieces_in<Buffers>(base, *this, true);
    pack_row(group.grad_out().row(query), plan.dim, b.rows);
    return dot(plan.dim, b.rows, group.out(query));
  }

  // Probabilities are recomputed, and a row's delta = sum_j p_j dp_j with them. Where a prefix query's row is spread
  // over the groups, its maximum, sum and delta come from elsewhere. add(part, prefix row, values) takes in what the
  // group gives to a prefix token's gradients.
  template <typename Add>
  void backward(const Group<T>& group, float* base, const Add& add) const {
    const auto b = pieces_in<Buffers>(base, *this, true);
    pack_all(group, kValue, b.rows,
             [&](int64_t first, int64_t count, const Word* rows) { transpose_into(b.vt, first, count, rows, words); });
    pack_all(group, kKey, b.rows, [&](int64_t first, int64_t count, const Word* rows) {
      transpose_into(b.kt, first, count, rows, words);
      pack_deep(rows, count, b.k_deep, first, depth);
    });

    for (int64_t first = 0; first < plan.rows; first += kBlockRows) {
      const int64_t count = min(kBlockRows, plan.rows - first), count_depth = depth_words<Word>(count);
      pack(group, group.part(kQuery), first, count, b.rows);
      pack_deep(b.rows, count, b.q_deep, 0, kBlockDepth);
      pack(group, group.grad_out(), first, count, b.grad_out);
      pack_deep(b.grad_out, count, b.grad_out_deep, 0, kBlockDepth);
      gemm<Word>(count, plan.rows_padded, words, {b.rows, words, 1}, panels_of(b.kt, words), b.scores, plan.rows_padded,
                 false);
      gemm<Word>(count, plan.rows_padded, words, {b.grad_out, words, 1}, panels_of(b.vt, words), b.grad_scores,
                 plan.rows_padded, false);
      if (dropout.drops()) {
        dropout.draw(group, first, count, b.kept);
        drop_rows(count, b.kept, b.grad_scores);
      }
      for (int64_t i = 0; i < count; ++i) {
        ask_for_next(group, first + i, true);
        score_gradients(group, first + i, b, i);
        if (plan.bias_shares) add_to_share(group, first + i, b.grad_scores + i * plan.rows_padded);
      }
      if (dropout.drops()) drop_rows(count, b.kept, b.scores);
      if constexpr (kPairs) pair_up_rows(count, b);

      gemm<Word>(count, plan.dim_padded, depth, {b.grad_weights, padded_words, 1}, panels_of(b.k_deep, depth), b.values,
                 plan.dim_padded, false);
      gemm<Word>(plan.rows, plan.dim_padded, count_depth, {b.grad_by_key, 1, plan.rows_padded},
                 panels_of(b.q_deep, kBlockDepth), b.grad_k, plan.dim_padded, first > 0);
      gemm<Word>(plan.rows, plan.dim_padded, count_depth, {b.probs_by_key, 1, plan.rows_padded},
                 panels_of(b.grad_out_deep, kBlockDepth), b.grad_v, plan.dim_padded, first > 0);
      write_gradients(group, first, count, kQuery, b.values, plan.dim_padded, add);
    }
    write_gradients(group, 0, plan.rows, kKey, b.grad_k, plan.dim_padded, add);
    write_gradients(group, 0, plan.rows, kValue, b.grad_v, plan.dim_padded, add);
  }

  // Of a query's row of products; returns the largest score, or `lowest`.
  float prepare(const Group<T>& group, int64_t query, float* scores, float lowest) const {
    const int64_t visible = plan.first_visible(group.index, query);
    const auto with = [&](auto add) {
      return prepare_scores(scores, visible, plan.rows, plan.rows_padded, scale, add, lowest);
    };
    if (!bias.adds()) return with([](Vec s, int64_t) { return s; });
    const AttentionBias of = bias;  // a copy, which no store can change
    const float* row = of.row(group.head, query);
    return with([=](Vec s, int64_t j) __attribute__((always_inline)) { return of.add(s, row, j); });
  }

  // A query's gradients of scores, which are those of the bias.
  void add_to_share(const Group<T>& group, int64_t query, const float* grad_scores) const {
    float* to = plan.bias_share(group.sample, group.index, group.head) + query * plan.rows_padded;
    for (int64_t j = 0; j < plan.rows_padded; j += kLanes) store(to + j, load(to + j) + load(grad_scores + j));
  }

  // Of the block's probabilities, or of their gradients.
  void drop_rows(int64_t count, const float* kept, float* rows) const {
    for (int64_t i = 0; i < count; ++i, rows += plan.rows_padded)
      for (int64_t j = 0; j < plan.rows_padded; j += kLanes)
        store(rows + j, dropout.apply(load(rows + j), dropout.row(kept, i, j)));
  }

  // Row i of the block: scores become probabilities, grad_scores (now dp) become p * (dp - delta).
  void score_gradients(const Group<T>& group, int64_t query, const Buffers& b, int64_t i) const {
    float *p = b.scores + i * plan.rows_padded, *dp = b.grad_scores + i * plan.rows_padded;
    const bool spread = plan.spans_groups(query);
    const int64_t visible = plan.first_visible(group.index, query);
    const float own_max2 = prepare(group, query, p, -INFINITY);
    const Vec max2 = broadcast(spread ? group.stats(query)[0] : own_max2);
    Vec sum{}, sum_dp{};
    for (int64_t j = 0; j < plan.rows_padded; j += kLanes) {
      const Vec e = exp2(load(p + j) - max2);
      store(p + j, e);
      sum += e;
      sum_dp += e * load(dp + j);
    }
    const float inverse = 1 / (spread ? group.stats(query)[1] : reduce_add(sum));
    const float delta = spread ? group.delta(query) : reduce_add(sum_dp) * inverse;
    const Vec factor = broadcast(inverse * plan.share(query));
    for (int64_t j = 0; j < plan.rows_padded; j += kLanes) {
      const Vec prob = load(p + j) * factor;
      Vec ds = prob * (load(dp + j) - broadcast(delta));
      if (j < visible)  // delta may be infinite, and zero times infinity is NaN
        ds = where_visible(ds, j, visible, plan.rows, 0);
      store(p + j, prob);
      store(dp + j, ds);
      if constexpr (kPairs) store_pairs(b.grad_weights + i * padded_words + j / 2, ds);
    }
  }

#ifdef __AVX512BF16__
  // Words of two neighbouring queries' weights of a key; the row after an odd last one counts as zeros.
  void pair_up_rows(int64_t count, const Buffers& b) const {
    const int64_t padded = plan.rows_padded;
    for (int64_t i = 0; i < count; i += 2)
      for (int64_t j = 0; j < padded; j += kLanes) {
        const float *p = b.scores + i * padded + j, *ds = b.grad_scores + i * padded + j;
        const bool alone = i + 1 == count;
        store(b.probs_by_key + i / 2 * padded + j, pair_up(load(p), alone ? Vec{} : load(p + padded)));
        store(b.grad_by_key + i / 2 * padded + j, pair_up(load(ds), alone ? Vec{} : load(ds + padded)));
      }
  }
#endif
};

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta
