// Attention within a group of many tokens, one head: attention over space and over everything.
//
// Whole rows of scores are held for a block of queries at a time, as products of small matrices (gemm.h), and their
// softmax is taken at once: below some thousand keys that costs less than the corrections of an online softmax.
#pragma once

#include "attention_groups.h"
#include "gemm.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

constexpr int64_t kBlockRows = 8 * kTileRows;  // queries whose scores are held at a time

// Scales scores to base 2, masks the keys that the query does not see (before `first`, from `count` on); returns the
// largest score, or `lowest`.
inline float prepare_scores(float* scores, int64_t first, int64_t count, int64_t padded, const ScoreScale& scale,
                            float lowest = -INFINITY) {
  Vec row_max = broadcast(lowest);
  for (int64_t j = 0; j < padded; j += kLanes) {
    Vec s = scaled(load(scores + j), scale);
    if (j < first || j + kLanes > count)
      for (int lane = 0; lane < kLanes; ++lane) s[lane] = j + lane < first || j + lane >= count ? -INFINITY : s[lane];
    store(scores + j, s);
    row_max = max(row_max, s);
  }
  return reduce_max(row_max);
}

// Weights of a row, as the products read them, in place of scores or beside them.
inline void store_weights(float* to, Vec p) { store(to, p); }
#ifdef __AVX512BF16__
inline void store_weights(Pair* to, Vec p) { store_pairs(to, p); }
#endif

// Writes 2^(score - max2); returns the sum.
template <typename Word>
float exponentiate(const float* scores, int64_t padded, float max2, Word* weights) {
  Vec sum[2] = {};
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec p = exp2(load(scores + j) - broadcast(max2));
    store_weights(weights + j / kPerWord<Word>, p);
    sum[j / kLanes % 2] += p;
  }
  return reduce_add(sum[0] + sum[1]);
}

template <typename T>
struct LargeGroups {
  using Word = typename WordOf<T>::type;
  static constexpr bool kPairs = kPerWord<Word> == 2;

  const Plan& plan;
  const ScoreScale scale;
  const int64_t words, padded_words;  // of a row of the tensors, of a row of weights

  LargeGroups(const Plan& plan, const SpaceTimeAttention& op)
      : plan(plan),
        scale(op.scale),
        words(row_words<Word>(plan.dim)),
        padded_words(plan.rows_padded / kPerWord<Word>) {}

  // Operands of a group, and room for what is computed from them.
  struct Buffers {
    Word *rows, *kt, *v_deep;
    float *scores, *values;
    Word* weights;
    // Backward pass only.
    Word *grad_out, *vt, *q_deep, *k_deep, *grad_out_deep, *grad_weights, *probs_by_key, *grad_by_key;
    float *grad_scores, *grad_k, *grad_v;

    Buffers(Arena& arena, const LargeGroups& groups, bool backward) {
      const Plan& plan = groups.plan;
      const int64_t panel = plan.rows * groups.words, deep = depth_words<Word>(plan.rows) * plan.dim_padded;
      const int64_t block = kBlockRows * plan.rows_padded;
      rows = arena.take<Word>(panel);
      kt = arena.take<Word>(groups.words * plan.rows_padded);
      v_deep = arena.take<Word>(deep);
      scores = arena.take<float>(block);
      values = arena.take<float>(kBlockRows * plan.dim_padded);
      weights = kPairs ? arena.take<Word>(block / 2) : reinterpret_cast<Word*>(scores);
      if (!backward) return;
      grad_out = arena.take<Word>(panel);
      vt = arena.take<Word>(groups.words * plan.rows_padded);
      q_deep = kPairs ? arena.take<Word>(deep) : rows;
      k_deep = v_deep;
      grad_out_deep = kPairs ? arena.take<Word>(deep) : grad_out;
      grad_scores = arena.take<float>(block);
      grad_weights = kPairs ? weights : reinterpret_cast<Word*>(grad_scores);
      probs_by_key = kPairs ? arena.take<Word>(block / 2) : reinterpret_cast<Word*>(scores);
      grad_by_key = kPairs ? arena.take<Word>(block / 2) : reinterpret_cast<Word*>(grad_scores);
      grad_k = arena.take<float>(plan.rows * plan.dim_padded);
      grad_v = arena.take<float>(plan.rows * plan.dim_padded);
    }
  };

  int64_t scratch_floats(bool backward) const { return floats_of<Buffers>(*this, backward); }

  void pack(const Group<T>& group, const Rows<T>& from, Word* to) const {
    for (int64_t r = 0; r < plan.rows; ++r) pack_row(from.row(plan.token(group.index, r)), plan.dim, to + r * words);
  }

  // Rows as a product reads them that sums over rows: two interleaved where words are pairs.
  void pack_deep(const Word* rows, Word* to) const {
    if constexpr (kPairs) {
      for (int64_t r = 0; r < plan.rows; r += 2, to += plan.dim_padded)
        interleave_rows(rows + r * words, r + 1 < plan.rows ? rows + (r + 1) * words : nullptr, plan.dim_padded, to);
    } else if (to != rows) {
      std::memcpy(to, rows, plan.rows * words * sizeof(Word));
    }
  }

  // Queries first to last of the group. merge(prefix row, max2, sum, values) takes in what it gives to a prefix query.
  template <typename Merge>
  void forward(const Group<T>& group, int64_t first_query, int64_t last_query, float* base, const Merge& merge) const {
    const auto b = pieces_in<Buffers>(base, *this, false);
    pack(group, group.part(kKey), b.rows);
    transpose(b.rows, plan.rows, words, b.kt, plan.rows_padded);
    pack(group, group.part(kValue), b.rows);
    pack_deep(b.rows, b.v_deep);
    pack(group, group.part(kQuery), b.rows);

    for (int64_t first = first_query; first < last_query; first += kBlockRows) {
      const int64_t count = min(kBlockRows, last_query - first);
      float row_max2[kBlockRows], row_sum[kBlockRows];
      gemm<Word>(count, plan.rows_padded, words, {b.rows + first * words, words, 1}, b.kt, plan.rows_padded, b.scores,
                 plan.rows_padded, false);
      for (int64_t i = 0; i < count; ++i) {
        float* row = b.scores + i * plan.rows_padded;
        const int64_t visible = plan.first_visible(group.index, first + i);
        const float lowest = first + i < plan.prefix ? kLowest : -INFINITY;
        row_max2[i] = prepare_scores(row, visible, plan.rows, plan.rows_padded, scale, lowest);
        row_sum[i] = exponentiate(row, plan.rows_padded, row_max2[i], b.weights + i * padded_words);
      }
      gemm<Word>(count, plan.dim_padded, depth_words<Word>(plan.rows), {b.weights, padded_words, 1}, b.v_deep,
                 plan.dim_padded, b.values, plan.dim_padded, false);
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

  // Probabilities are recomputed, and a patch's delta = sum_j p_j dp_j with them: its whole row is at hand. A prefix
  // query's row is spread over the groups, so its maximum, sum and delta come from elsewhere.
  // add(part, prefix row, values) takes in what the group gives to a prefix token's gradients.
  template <typename Add>
  void backward(const Group<T>& group, float* base, const Add& add) const {
    const auto b = pieces_in<Buffers>(base, *this, true);
    pack(group, group.part(kValue), b.rows);
    transpose(b.rows, plan.rows, words, b.vt, plan.rows_padded);
    pack(group, group.part(kKey), b.rows);
    transpose(b.rows, plan.rows, words, b.kt, plan.rows_padded);
    pack_deep(b.rows, b.k_deep);
    pack(group, group.part(kQuery), b.rows);
    pack_deep(b.rows, b.q_deep);
    pack(group, group.grad_out(), b.grad_out);
    pack_deep(b.grad_out, b.grad_out_deep);

    for (int64_t first = 0; first < plan.rows; first += kBlockRows) {
      const int64_t count = min(kBlockRows, plan.rows - first), depth = depth_words<Word>(count);
      gemm<Word>(count, plan.rows_padded, words, {b.rows + first * words, words, 1}, b.kt, plan.rows_padded, b.scores,
                 plan.rows_padded, false);
      gemm<Word>(count, plan.rows_padded, words, {b.grad_out + first * words, words, 1}, b.vt, plan.rows_padded,
                 b.grad_scores, plan.rows_padded, false);
      for (int64_t i = 0; i < count; ++i) score_gradients(group, first + i, b, i);
      if constexpr (kPairs) pair_up_rows(count, b);

      const int64_t deep_at = first / kPerWord<Word> * plan.dim_padded;
      gemm<Word>(count, plan.dim_padded, depth_words<Word>(plan.rows), {b.grad_weights, padded_words, 1}, b.k_deep,
                 plan.dim_padded, b.values, plan.dim_padded, false);
      gemm<Word>(plan.rows, plan.dim_padded, depth, {b.grad_by_key, 1, plan.rows_padded}, b.q_deep + deep_at,
                 plan.dim_padded, b.grad_k, plan.dim_padded, first > 0);
      gemm<Word>(plan.rows, plan.dim_padded, depth, {b.probs_by_key, 1, plan.rows_padded}, b.grad_out_deep + deep_at,
                 plan.dim_padded, b.grad_v, plan.dim_padded, first > 0);
      write(group, first, count, kQuery, b.values, add);
    }
    write(group, 0, plan.rows, kKey, b.grad_k, add);
    write(group, 0, plan.rows, kValue, b.grad_v, add);
  }

  // Row i of the block: scores become probabilities, grad_scores (now dp) become p * (dp - delta).
  void score_gradients(const Group<T>& group, int64_t query, const Buffers& b, int64_t i) const {
    float *p = b.scores + i * plan.rows_padded, *dp = b.grad_scores + i * plan.rows_padded;
    const bool prefix = query < plan.prefix;
    const int64_t visible = plan.first_visible(group.index, query);
    const float own_max2 = prepare_scores(p, visible, plan.rows, plan.rows_padded, scale);
    const Vec max2 = broadcast(prefix ? group.stats(query)[0] : own_max2);
    Vec sum{}, sum_dp{};
    for (int64_t j = 0; j < plan.rows_padded; j += kLanes) {
      const Vec e = exp2(load(p + j) - max2);
      store(p + j, e);
      sum += e;
      sum_dp += e * load(dp + j);
    }
    const float inverse = 1 / (prefix ? group.stats(query)[1] : reduce_add(sum));
    const float delta = prefix ? group.delta(query) : reduce_add(sum_dp) * inverse;
    for (int64_t j = 0; j < plan.rows_padded; j += kLanes) {
      const Vec prob = load(p + j) * broadcast(inverse);
      Vec ds = prob * (load(dp + j) - broadcast(delta));
      if (j < visible)  // delta may be infinite, and zero times infinity is NaN
        for (int lane = 0; lane < kLanes; ++lane) ds[lane] = j + lane < visible ? 0 : ds[lane];
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

  template <typename Add>
  void write(const Group<T>& group, int64_t first, int64_t count, Part part, float* values, const Add& add) const {
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
