// Attention within a group of few tokens, one head, with the patches' queries in the lanes of vectors: for vectors of
// eight lanes and groups with more patches than a tile of small_tiles.h has keys.
//
// Queries are transposed once; a score is then a chain of products of a vector of queries and one broadcast element of
// a key, and softmax goes from vector to vector, with no sum along one. Prefix tokens are keys like others. As queries
// they would fill vectors alone, so their rows of scores are computed one by one, with the keys in the lanes.
#pragma once

#include <tuple>

#include "attention_groups.h"
#include "row_vectors.h"
#include "small_tiles.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

// The size of the next of as few runs as can be of at most `most`, as even as can be.
inline int64_t even_run(int64_t left, int64_t most) { return divide_up(left, divide_up(left, most)); }

// The patches' rows of the next group, asked for a few at a time, because the core has room for a few that are on their
// way, and not into the first cache, where those being worked on are.
class NextRows {
 public:
  template <typename T>
  NextRows(const Group<T>& group, bool backward) {
    const Plan& plan = group.plan;
    rows_ = plan.group_patches, bytes_ = plan.dim * int64_t(sizeof(T));
    if (group.index + 1 == plan.groups) return;
    parts_ = backward ? 4 : 3;
    for (int i = 0; i < parts_; ++i) {
      const Rows<T> from = i == 3 ? group.grad_out() : group.part(Part(i));
      first_[i] = reinterpret_cast<const char*>(from.row(plan.token(group.index + 1, plan.prefix)));
      step_[i] = plan.patch_step * from.stride_token * int64_t(sizeof(T));
    }
  }

  void ask(int64_t count) {
    for (; count > 0 && part_ < parts_; --count) {
      const char* row = first_[part_] + row_ * step_[part_];
      for (int64_t i = 0; i < bytes_; i += 64) __builtin_prefetch(row + i, 0, 2);
      if (++row_ == rows_) row_ = 0, ++part_;
    }
  }

 private:
  int parts_ = 0, part_ = 0;
  int64_t rows_, row_ = 0, bytes_, step_[4];
  const char* first_[4];
};

// A weight of each key and query is a matrix: that of key k and query c at k * kColumns + c.
constexpr int64_t kColumns = kMaxSmallRows;

// to[k * kColumns + c] = products of kVecs vectors of queries, element d of which are at d * lanes, and kKeys keys.
template <int kVecs, int kKeys>
inline __attribute__((always_inline)) void multiply_tile(const float* queries, int64_t lanes, const float* const* keys,
                                                         int64_t dim, float* to) {
  Vec sum[kKeys][kVecs] = {};
  const float* key[kKeys];
#pragma GCC unroll 12
  for (int j = 0; j < kKeys; ++j) key[j] = keys[j];
#pragma GCC unroll 2
  for (int64_t d = 0; d < dim; ++d, queries += lanes) {
    Vec query[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) query[v] = load(queries + v * kLanes);
#pragma GCC unroll 12
    for (int j = 0; j < kKeys; ++j) {
      const Vec element = broadcast(key[j][d]);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) sum[j][v] = multiply_add(sum[j][v], query[v], element);
    }
  }
#pragma GCC unroll 12
  for (int j = 0; j < kKeys; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) store(to + j * kColumns + v * kLanes, sum[j][v]);
}

// The same of all vectors and keys, twelve sums at a time.
template <int kVecs>
inline void multiply_vectors(const float* queries, int64_t lanes, const float* const* keys, int64_t count, int64_t dim,
                             float* to, NextRows& next) {
  constexpr int kKeys = 12 / kVecs;
  for (int64_t n; count > 0; count -= n, keys += n, to += n * kColumns) {
    n = even_run(count, kKeys);
    with_constant<kKeys>(n, [&](auto n) { multiply_tile<kVecs, n()>(queries, lanes, keys, dim, to); });
    next.ask(n);
  }
}

// to[j] = product of one row and the j-th other; those past the last are copies of its.
inline void multiply_row(const float* row, const float* const* others, int64_t count, int64_t words, float* to) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const float* other[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) other[i] = others[min(j + i, count - 1)];
    Vec sum[kLanes] = {};
    for (int64_t d = 0; d < words; d += kLanes) {
      const Vec mine = load(row + d);
#pragma GCC unroll 8
      for (int i = 0; i < kLanes; ++i) sum[i] = multiply_add(sum[i], mine, load(other[i] + d));
    }
    store(to + j, sums_of_lanes(sum));
  }
}

// Weights of sums of rows: that of row k in sum r is at k * kRow + r * kSum.
template <int64_t kRow, int64_t kSum>
struct SumWeights {
  const float* first;
};
using OfQueries = SumWeights<kColumns, 1>;
using OfKeys = SumWeights<1, kColumns>;

template <int kSums, int kVecs, int64_t kRow, int64_t kSum>
inline __attribute__((always_inline)) void sum_tile(SumWeights<kRow, kSum> weights, const float* const* rows,
                                                    int64_t count, int64_t words, float* to, int64_t d) {
  Vec sum[kSums][kVecs] = {};
  const float* weight = weights.first;
#pragma GCC unroll 2
  for (int64_t k = 0; k < count; ++k, weight += kRow) {
    Vec value[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) value[v] = load(rows[k] + d + v * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < kSums; ++r) {
      const Vec factor = broadcast(weight[r * kSum]);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) sum[r][v] = multiply_add(sum[r][v], factor, value[v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kSums; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) store(to + r * words + d + v * kLanes, sum[r][v]);
}

// Up to kMaxSums weighted sums of rows, in `to`.
constexpr int kMaxSums = 6;
template <typename Weights>
void sum_rows(int64_t sums, Weights weights, const float* const* rows, int64_t count, int64_t words, float* to,
              NextRows& next) {
  with_constant<kMaxSums>(sums, [&](auto n) {
    int64_t d = 0;
    for (; d + 2 * kLanes <= words; d += 2 * kLanes) {
      sum_tile<n(), 2>(weights, rows, count, words, to, d);
      next.ask(2);
    }
    if (d < words) sum_tile<n(), 1>(weights, rows, count, words, to, d);
  });
}

template <typename T>
struct QueryLanes {
  // Rows that lie in the same place of their pages, as those of frames do, share sets of the first cache. With more
  // than it has ways they would push each other out, and are copied.
  static constexpr int64_t kWays = 8;

  const Plan& plan;
  const ScoreScale scale;
  const int64_t dim, words, prefix, rows, patches, lanes;

  QueryLanes(const Plan& plan, const ScoreScale& scale)
      : plan(plan),
        scale(scale),
        dim(plan.dim),
        words(plan.dim_padded),
        prefix(plan.prefix),
        rows(plan.rows),
        patches(plan.rows - plan.prefix),
        lanes(round_up(patches, kLanes)) {}

  // Copies of rows, rows across, scores and products of gradients and values, and sums on their way out.
  struct Buffers {
    float *q, *k, *v, *grad_out, *across, *grad_across, *scores, *products, *values;

    Buffers(Arena& arena, const QueryLanes& groups, bool backward) {
      const int64_t copies = groups.rows * groups.words, across_floats = groups.words * groups.lanes;
      q = arena.take(copies), k = arena.take(copies), v = arena.take(copies), across = arena.take(across_floats);
      grad_out = backward ? arena.take(copies) : nullptr;
      grad_across = backward ? arena.take(across_floats) : nullptr;
      scores = arena.take(kColumns * kColumns);
      products = backward ? arena.take(kColumns * kColumns) : nullptr;
      values = arena.take(kMaxSums * groups.words);
    }
  };

  int64_t scratch_floats(bool backward) const { return floats_of<Buffers>(*this, backward); }

  // merge(prefix row, max2, sum, values) takes in what a group gives to a prefix query.
  template <typename Merge>
  void forward(const Group<T>& group, float* buffer, const Merge& merge) const {
    const auto b = pieces_in<Buffers>(buffer, *this, false);
    NextRows next(group, false);
    const float *q[kMaxSmallRows], *k[kMaxSmallRows], *v[kMaxSmallRows];
    if (plan.maps[kQuery].changes_rows()) take_rows(group, group.part(kQuery), b.q, q);
    take_rows(group, group.part(kKey), b.k, k);
    take_rows(group, group.part(kValue), b.v, v);
    put_queries_across(group, q, b.across);
    multiply(b.across, k, b.scores, next);
    float sums[kMaxSmallRows];
    for (int64_t c = 0; c < patches; c += kLanes) {
      float* s = b.scores + c;
      const Vec row_max = scale_and_find_max(s);
      Vec sum{};
      for (int64_t j = 0; j < rows; ++j) {
        const Vec p = exp2(load(s + j * kColumns) - row_max);
        sum += p;
        store(s + j * kColumns, p);
      }
      store(sums + c, sum);
    }
    weighted_sums(patches, OfQueries{b.scores}, v, rows, b.values, next, [&](int64_t c, const float* value) {
      write_output(group, plan.token(group.index, prefix + c), sums[c], value);
    });
    for (int64_t p = 0; p < prefix; ++p) {
      const int64_t first = plan.first_visible(group.index, p), keys = rows - first;
      float weights[kMaxSmallRows];
      group.part(kQuery).pack(p, dim, b.q);
      multiply_row(b.q, k + first, keys, words, weights);
      Vec row_max = broadcast(plan.lowest(p)), sum{};
      for_lanes(keys, weights, [&](Vec s, IntVec present) {
        const Vec score = present ? scaled(s, scale) : broadcast(-INFINITY);
        row_max = max(row_max, score);
        return score;
      });
      row_max = broadcast(reduce_max(row_max));
      for_lanes(keys, weights, [&](Vec s, IntVec) {
        const Vec weight = exp2(s - row_max);
        sum += weight;
        return weight;
      });
      weighted_sums(1, OfKeys{weights}, v + first, keys, b.values, next,
                    [&](int64_t, const float* value) { merge(p, row_max[0], reduce_add(sum), value); });
    }
  }

  // delta of a prefix query, in the order of the products of its whole row.
  float prefix_delta(const Group<T>& group, int64_t query, float* buffer) const {
    const auto b = pieces_in<Buffers>(buffer, *this, true);
    pack_row(group.grad_out().row(query), dim, b.grad_out);
    pack_row(group.out(query), dim, b.q);
    float delta[kLanes];
    const float* out[1] = {b.q};
    multiply_row(b.grad_out, out, 1, words, delta);
    return delta[0];
  }

  // Probabilities are recomputed from the scores. add(part, prefix row, values) takes in what a group gives to a prefix
  // token's gradients.
  template <typename Add>
  void backward(const Group<T>& group, float* buffer, const Add& add) const {
    const auto b = pieces_in<Buffers>(buffer, *this, true);
    NextRows next(group, true);
    const float *q[kMaxSmallRows], *k[kMaxSmallRows], *v[kMaxSmallRows], *grad_out[kMaxSmallRows];
    take_rows(group, group.part(kQuery), b.q, q);
    take_rows(group, group.part(kKey), b.k, k);
    take_rows(group, group.part(kValue), b.v, v);
    take_rows(group, group.grad_out(), b.grad_out, grad_out);
    put_queries_across(group, q, b.across);
    put_across(group, group.grad_out(), b.grad_across);
    multiply(b.across, k, b.scores, next);
    multiply(b.grad_across, v, b.products, next);
    for (int64_t c = 0; c < patches; c += kLanes) {
      float *s = b.scores + c, *dp = b.products + c;
      const Vec row_max = scale_and_find_max(s);
      Vec sum{}, delta{};
      for (int64_t j = 0; j < rows * kColumns; j += kColumns) {
        const Vec weight = exp2(load(s + j) - row_max);
        sum += weight;
        delta += weight * load(dp + j);
        store(s + j, weight);
      }
      const Vec inverse = 1.0f / sum;
      delta *= inverse;
      for (int64_t j = 0; j < rows * kColumns; j += kColumns) {
        const Vec p = load(s + j) * inverse;
        store(s + j, p);
        store(dp + j, p * (load(dp + j) - delta));
      }
    }
    for (int64_t p = 0; p < prefix; ++p) add_prefix_column(group, p, q[p], grad_out[p], k, v, b);

    const float* probs = b.scores;
    const float* grad_scores = b.products;
    weighted_sums(patches, OfQueries{grad_scores}, k, rows, b.values, next, [&](int64_t c, float* values) {
      write_gradient(group, plan.token(group.index, prefix + c), kQuery, values);
    });
    for (int64_t p = 0; p < prefix; ++p) {
      const int64_t first = plan.first_visible(group.index, p);
      weighted_sums(1, OfQueries{grad_scores + first * kColumns + patches + p}, k + first, rows - first, b.values, next,
                    [&](int64_t, const float* values) { add(kQuery, p, values); });
    }
    sum_over_queries(group, grad_scores, q, kKey, b.values, next, add);
    sum_over_queries(group, probs, grad_out, kValue, b.values, next, add);
  }

 private:
  // Pointers to a group's rows as floats: the tensor's own memory where that will do, else copies.
  void take_rows(const Group<T>& group, const Rows<T>& from, float* copies, const float** to) const {
    const bool in_place = std::is_same_v<T, float> && patches <= kWays && dim == words && !from.map;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = plan.token(group.index, r);
      if constexpr (std::is_same_v<T, float>)
        if (in_place) {
          to[r] = from.row(token);
          continue;
        }
      from.pack(token, dim, copies);
      to[r] = copies, copies += words;
    }
  }

  // Element d of patch c to d * lanes + c; the lanes of absent patches have copies of the last. Rows that change are
  // those that were taken.
  void put_queries_across(const Group<T>& group, const float* const* taken, float* to) const {
    plan.maps[kQuery].changes_rows() ? put_across(taken[prefix], words, to) : put_across(group, group.part(kQuery), to);
  }
  void put_across(const Group<T>& group, const Rows<T>& from, float* to) const {
    put_across(from.row(plan.token(group.index, prefix)), plan.patch_step * from.stride_token, to);
  }
  template <typename Element>
  void put_across(const Element* first, int64_t step, float* to) const {
    const int64_t lanes = this->lanes;
    for (int64_t c = 0; c < patches; c += kLanes) {
      const Element* row[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) row[i] = first + min(c + i, patches - 1) * step;
      float* column = to + c;
      for_vectors(int64_t(dim), [&](int64_t d, auto count) {
        Vec block[kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kLanes; ++i) block[i] = load_floats(row[i] + d, count);
        transpose_block(block);
#pragma GCC unroll 8
        for (int i = 0; i < kLanes; ++i, column += lanes) store(column, block[i]);
      });
    }
  }

  // Products of the patches across with all keys.
  void multiply(const float* across, const float* const* keys, float* to, NextRows& next) const {
    int64_t c = 0;
    for (; c + kLanes < lanes; c += 2 * kLanes) multiply_vectors<2>(across + c, lanes, keys, rows, dim, to + c, next);
    if (c < lanes) multiply_vectors<1>(across + c, lanes, keys, rows, dim, to + c, next);
  }

  // Replaces vectors of `values` by step(vector, mask of its lanes below `count`).
  template <typename Step>
  static void for_lanes(int64_t count, float* values, const Step& step) {
    for (int64_t j = 0; j < count; j += kLanes)
      store(values + j, step(load(values + j), is_below(lane_numbers(), count - j)));
  }

  // Scales a vector of queries' scores and returns their maximum.
  Vec scale_and_find_max(float* s) const {
    Vec found = broadcast(-INFINITY);
    for (int64_t j = 0; j < rows * kColumns; j += kColumns) {
      const Vec score = scaled(load(s + j), scale);
      store(s + j, score);
      found = max(score, found);
    }
    return found;
  }

  // Maximum, 1 / sum and delta of a row of `count` products, and those of its gradient with the values.
  std::tuple<float, float, float> own_softmax(const float* s, const float* dp, int64_t count) const {
    const auto score = [&](int64_t j) {
      return is_below(lane_numbers(), count - j) ? scaled(load(s + j), scale) : broadcast(-INFINITY);
    };
    Vec found = broadcast(-INFINITY), sum{}, delta{};
    for (int64_t j = 0; j < count; j += kLanes) found = max(found, score(j));
    const float max2 = reduce_max(found);
    for (int64_t j = 0; j < count; j += kLanes) {
      const Vec weight = exp2(score(j) - broadcast(max2));
      sum += weight;
      // Products past the last are those of a copy: zero times infinity is NaN.
      delta += is_below(lane_numbers(), count - j) ? weight * load(dp + j) : Vec{};
    }
    const float inverse = 1.0f / reduce_add(sum);
    return {max2, inverse, reduce_add(delta) * inverse};
  }

  // A prefix query's probabilities and gradients of scores, into its column.
  void add_prefix_column(const Group<T>& group, int64_t p, const float* q, const float* grad_out, const float* const* k,
                         const float* const* v, const Buffers& b) const {
    const int64_t first = plan.first_visible(group.index, p), keys = rows - first;
    float s[kMaxSmallRows], dp[kMaxSmallRows];
    multiply_row(q, k + first, keys, words, s);
    multiply_row(grad_out, v + first, keys, words, dp);
    float max2, inverse, delta;
    if (plan.spans_groups(p)) {
      max2 = group.stats(p)[0], inverse = 1.0f / group.stats(p)[1], delta = group.delta(p);
    } else {
      std::tie(max2, inverse, delta) = own_softmax(s, dp, keys);
    }
    for (int64_t j = 0; j < keys; j += kLanes) {
      const Vec weight = exp2(scaled(load(s + j), scale) - broadcast(max2));
      const Vec probs = weight * broadcast(inverse * plan.share(p));
      store(s + j, probs);
      store(dp + j, probs * (load(dp + j) - broadcast(delta)));
    }
    const int64_t column = first * kColumns + patches + p;
    for (int64_t j = 0; j < keys; ++j)
      b.scores[column + j * kColumns] = s[j], b.products[column + j * kColumns] = dp[j];
  }

  // Gradients of keys or values: sums over queries' rows, which come in the order of the columns.
  template <typename Add>
  void sum_over_queries(const Group<T>& group, const float* weights, const float* const* rows_of, Part part,
                        float* values, NextRows& next, const Add& add) const {
    const float* queries[kMaxSmallRows];
    for (int64_t c = 0; c < rows; ++c) queries[c] = rows_of[c < patches ? prefix + c : c - patches];
    const int64_t seen_by = plan.hides_prefix(group.index) ? patches : rows;
    weighted_sums(prefix, OfKeys{weights}, queries, seen_by, values, next,
                  [&](int64_t p, const float* sums) { add(part, p, sums); });
    weighted_sums(
        patches, OfKeys{weights + prefix * kColumns}, queries, rows, values, next,
        [&](int64_t c, float* sums) { write_gradient(group, plan.token(group.index, prefix + c), part, sums); });
  }

  // take(r, sum) for each of `sums` weighted sums of rows.
  template <int64_t kRow, int64_t kSum, typename Take>
  void weighted_sums(int64_t sums, SumWeights<kRow, kSum> weights, const float* const* rows, int64_t count,
                     float* values, NextRows& next, const Take& take) const {
    for (int64_t first = 0, n; first < sums; first += n) {
      n = even_run(sums - first, kMaxSums);
      sum_rows(n, SumWeights<kRow, kSum>{weights.first + first * kSum}, rows, count, words, values, next);
      for (int64_t r = 0; r < n; ++r) take(first + r, values + r * words);
    }
  }
};

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta
