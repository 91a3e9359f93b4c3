// Attention within a group of many tokens, one head, bfloat16 on a processor with tile registers: as large_groups.h, by
// products of tiles.
//
// Scores are computed with keys in the rows and queries in the lanes, some keys at a time, so that they stay in the
// first cache: maxima and sums are then of whole vectors, keys past the last are rows that nobody reads, and weights
// are in the order in which the next products take them.
#pragma once

#include "attention_groups.h"
#include "tiles.h"

#ifdef __AMX_BF16__

namespace hsta {
namespace HSTA_ISA {
namespace {

// A vector for each 16 of a block's queries.
template <int kVecs>
struct Lanes {
  Vec of[kVecs];

  static Lanes all(float x) {
    Lanes lanes;
    for (Vec& v : lanes.of) v = broadcast(x);
    return lanes;
  }
  float* floats() { return reinterpret_cast<float*>(of); }
};

// Lane numbers of vector v of a block's.
inline IntVec query_of_lane(int v) { return lane_numbers() + broadcast(int32_t(v * kLanes)); }

class TileGroups {
  // Queries of a block, and keys whose scores are held at a time.
  static constexpr int kForwardVecs = 2, kBackwardVecs = 4;
  static constexpr int64_t kForwardKeys = 64, kBackwardKeys = 64;

  const Plan& plan;
  const ScoreScale scale;
  const int64_t words;                   // of a row
  const int64_t dim_panels, key_panels;  // head_dim and the group's rows in panels, or in tiles where summed over
  const int64_t columns;                 // floats of a row of results

 public:
  TileGroups(const Plan& plan, const SpaceTimeAttention& op)
      : plan(plan),
        scale(op.scale),
        words(row_words<Pair>(plan.dim)),
        dim_panels(divide_up(plan.dim, kTilePanel)),
        key_panels(divide_up(plan.rows, kTilePanel)),
        columns(2 * words) {}

  int64_t scratch_floats(bool backward) const {
    return backward ? floats_of<Backward>(*this) : floats_of<Forward>(*this);
  }

  // Queries first to last of the group. merge(prefix row, max2, sum, values) takes in what it gives to a prefix query.
  template <typename Merge>
  void forward(const Group<BFloat16>& group, int64_t first_query, int64_t last_query, float* base,
               const Merge& merge) const {
    constexpr int kVecs = kForwardVecs;
    constexpr int64_t kQueries = kVecs * kLanes;
    const TileRegisters registers;
    const auto b = pieces_in<Forward>(base, *this);
    pack_keys(group, kKey, b.rows, b.keys);
    pack_keys_deep(group, kValue, b.rows, b.values_deep);

    for (int64_t first = first_query; first < last_query; first += kQueries) {
      const int64_t count = min(kQueries, last_query - first);
      pack_queries<kVecs>(group.part(kQuery), group, first, count, b.rows, b.queries, nullptr);
      Lanes<kVecs> max2 = Lanes<kVecs>::all(kLowest), sum{};
      for (int64_t key = 0; key < plan.rows; key += kForwardKeys) {
        const int64_t keys = min(kForwardKeys, plan.rows - key);
        multiply_keys<kVecs>(b.keys, key, keys, b.queries, b.scores);
        const Lanes<kVecs> shrink = prepare_scores<kVecs>(group, first, key, keys, b.scores, max2);
        if (key > 0) rescale<kVecs>(shrink, b.out, columns, sum);
        exponentiate<kVecs>(b.scores, keys, max2, sum, b.weights);
        tile_product(keys_deep(b.values_deep, key), {b.weights, 0, 1}, divide_up(keys, kTileDepth), b.out, kQueries,
                     key > 0);
      }
      to_rows<kVecs>(b.out, b.out_rows);
      for (int64_t i = 0; i < count; ++i) {
        float* row = b.out_rows + i * columns;
        if (first + i < plan.prefix)
          merge(first + i, max2.floats()[i], sum.floats()[i], row);
        else
          write_output(group, plan.token(group.index, first + i), sum.floats()[i], row);
      }
    }
  }

  // Of a prefix query, as the products of its whole row have it.
  float prefix_delta(const Group<BFloat16>& group, int64_t query, float* base) const {
    const TileRegisters registers;
    const auto b = pieces_in<Backward>(base, *this);
    const Rows<BFloat16> out{group.out(0), group.out(1) - group.out(0)};
    pack(out, group, query, 1, b.rows);
    pack_panel(b.rows, b.keys);
    pack_queries<2>(group.grad_out(), group, query, 1, b.rows, b.queries, nullptr);
    multiply_keys<2>(b.keys, 0, 1, b.queries, b.scores);
    return b.scores[0];
  }

  // Two passes over a block's keys: the first one finds maxima, sums and deltas = sum_j p_j dp_j, and keeps weights
  // relative to the maximum so far; dp is computed once more in the second, which takes less time than to keep it.
  // Where a prefix query's row is spread over the groups, its maximum, sum and delta come from elsewhere. add(part,
  // prefix row, values) takes in what the group gives to a prefix token's gradients.
  template <typename Add>
  void backward(const Group<BFloat16>& group, float* base, const Add& add) const {
    constexpr int kVecs = kBackwardVecs;
    constexpr int64_t kQueries = kVecs * kLanes;
    const TileRegisters registers;
    const auto b = pieces_in<Backward>(base, *this);
    pack_keys(group, kKey, b.rows, b.keys);
    pack_keys_deep(group, kKey, b.rows, b.keys_deep);
    pack_keys(group, kValue, b.rows, b.values);

    for (int64_t first = 0; first < plan.rows; first += kQueries) {
      const int64_t count = min(kQueries, plan.rows - first);
      pack_queries<kVecs>(group.part(kQuery), group, first, count, b.rows, b.queries, b.queries_deep);
      pack_queries<kVecs>(group.grad_out(), group, first, count, b.rows, b.grad_out, b.grad_out_deep);
      Lanes<kVecs> max2 = Lanes<kVecs>::all(kLowest), sum{}, delta{};
      for (int64_t key = 0; key < plan.rows; key += kBackwardKeys) {
        const int64_t keys = min(kBackwardKeys, plan.rows - key);
        float* scores = b.scores + key * kQueries;
        multiply_keys<kVecs>(b.keys, key, keys, b.queries, scores);
        multiply_keys<kVecs>(b.values, key, keys, b.grad_out, b.grad_probs);
        const Lanes<kVecs> shrink = prepare_scores<kVecs>(group, first, key, keys, scores, max2);
        for (int v = 0; v < kVecs; ++v) sum.of[v] *= shrink.of[v], delta.of[v] *= shrink.of[v];
        weigh<kVecs>(scores, b.grad_probs, keys, max2, sum, delta);
        b.max2[key / kBackwardKeys] = max2;
      }
      normalize<kVecs>(group, first, max2, sum, delta);

      for (int64_t key = 0; key < plan.rows; key += kBackwardKeys) {
        const int64_t keys = min(kBackwardKeys, plan.rows - key), panels = divide_up(keys, kTilePanel);
        multiply_keys<kVecs>(b.values, key, keys, b.grad_out, b.grad_probs);
        Lanes<kVecs> factor;
        for (int v = 0; v < kVecs; ++v) factor.of[v] = exp2(b.max2[key / kBackwardKeys].of[v] - max2.of[v]) * sum.of[v];
        score_gradients<kVecs>(group, first, count, key, keys, b, factor, delta);
        constexpr int64_t kDepth = kQueries / kTileDepth, kDeepWords = tile_panel_words(kTilePanel, kQueries);
        tile_product({b.probs, kDeepWords, panels}, {b.grad_out_deep, kDeepWords, dim_panels}, kDepth,
                     b.grad_v + key * columns, columns, first > 0);
        tile_product({b.grad_by_key, kDeepWords, panels}, {b.queries_deep, kDeepWords, dim_panels}, kDepth,
                     b.grad_k + key * columns, columns, first > 0);
        tile_product(keys_deep(b.keys_deep, key),
                     {b.grad_by_query, tile_panel_words(kTilePanel, kBackwardKeys), kVecs / 2}, panels, b.grad_q,
                     kQueries, key > 0);
      }
      to_rows<kVecs>(b.grad_q, b.grad_q_rows);
      write_gradients(group, first, count, kQuery, b.grad_q_rows, columns, add);
    }
    write_gradients(group, 0, plan.rows, kKey, b.grad_k, columns, add);
    write_gradients(group, 0, plan.rows, kValue, b.grad_v, columns, add);
  }

 private:
  // Operands of a group and of a block of its queries, and room for what is computed from them.
  struct Forward {
    static constexpr int64_t kQueries = kForwardVecs * kLanes;
    Pair *rows, *keys, *values_deep, *queries, *weights;
    float *scores, *out, *out_rows;

    Forward(Arena& arena, const TileGroups& groups) {
      const int64_t group_words = tile_panel_words(groups.plan.rows, groups.plan.dim);
      rows = arena.take<Pair>(kTilePanel * groups.words);
      keys = arena.take<Pair>(group_words);
      values_deep = arena.take<Pair>(group_words);
      queries = arena.take<Pair>(tile_panel_words(kQueries, groups.plan.dim));
      weights = arena.take<Pair>(tile_panel_words(kQueries, kForwardKeys));
      scores = arena.take(kForwardKeys * kQueries);
      out = arena.take(groups.columns * kQueries);
      out_rows = arena.take(groups.columns * kQueries);
    }
  };

  struct Backward {
    static constexpr int64_t kQueries = kBackwardVecs * kLanes;
    Pair *rows, *keys, *keys_deep, *values, *queries, *queries_deep, *grad_out, *grad_out_deep;
    Pair *probs, *grad_by_key, *grad_by_query;  // the scores' gradients as operands of the sums over queries, over keys
    float *scores, *grad_probs, *grad_q, *grad_q_rows, *grad_k, *grad_v;
    Lanes<kBackwardVecs>* max2;

    Backward(Arena& arena, const TileGroups& groups) {
      const int64_t group_words = tile_panel_words(groups.plan.rows, groups.plan.dim);
      const int64_t blocks = divide_up(groups.plan.rows, kBackwardKeys);
      rows = arena.take<Pair>(kTilePanel * groups.words);
      for (Pair** operand : {&keys, &keys_deep, &values}) *operand = arena.take<Pair>(group_words);
      for (Pair** operand : {&queries, &queries_deep, &grad_out, &grad_out_deep})
        *operand = arena.take<Pair>(tile_panel_words(kQueries, groups.plan.dim));
      for (Pair** operand : {&probs, &grad_by_key, &grad_by_query})
        *operand = arena.take<Pair>(tile_panel_words(kQueries, kBackwardKeys));
      scores = arena.take(blocks * kBackwardKeys * kQueries);
      grad_probs = arena.take(kBackwardKeys * kQueries);
      for (float** result : {&grad_q, &grad_q_rows}) *result = arena.take(groups.columns * kQueries);
      for (float** result : {&grad_k, &grad_v}) *result = arena.take(groups.key_panels * kTilePanel * groups.columns);
      max2 = reinterpret_cast<Lanes<kBackwardVecs>*>(arena.take(blocks * kQueries));
    }
  };

  // Products of keys first, first + 1, ... with a block's queries, a key in each row.
  template <int kVecs>
  void multiply_keys(const Pair* keys, int64_t first, int64_t count, const Pair* queries, float* to) const {
    const int64_t panel_words = tile_panel_words(kTilePanel, plan.dim);
    tile_product({keys + first / kTilePanel * panel_words, panel_words, divide_up(count, kTilePanel)},
                 {queries, panel_words, kVecs / 2}, dim_panels, to, kVecs * kLanes, false);
  }

  // Panels that are summed over the group's rows, from row `first` on.
  TilePanels keys_deep(const Pair* panels, int64_t first) const {
    return {panels + first / kTileDepth * 2 * kTileWords, key_panels * 2 * kTileWords, dim_panels};
  }

  // Up to 32 rows, those past `count` zeros.
  void pack(const Rows<BFloat16>& from, const Group<BFloat16>& group, int64_t first, int64_t count, Pair* rows) const {
    for (int64_t r = 0; r < count; ++r) from.pack(plan.token(group.index, first + r), plan.dim, rows + r * words);
    std::memset(static_cast<void*>(rows + count * words), 0, size_t((kTilePanel - count) * words) * sizeof(Pair));
  }

  // The group's rows as panels of A that are summed over head_dim ...
  void pack_keys(const Group<BFloat16>& group, Part part, Pair* rows, Pair* panels) const {
    for (int64_t first = 0; first < plan.rows; first += kTilePanel) {
      pack(group.part(part), group, first, min(kTilePanel, plan.rows - first), rows);
      pack_panel(rows, panels + first * words);
    }
  }
  void pack_panel(const Pair* rows, Pair* tiles) const {
    for (int64_t k = 0; k < dim_panels; ++k)
      for (int64_t i = 0; i < 2; ++i, tiles += kTileWords)
        copy_tile(rows + i * kTile * words + k * kLanes, words, tiles);
  }

  // ... and, head_dim in the rows, as panels of A that are summed over the group's rows.
  void pack_keys_deep(const Group<BFloat16>& group, Part part, Pair* rows, Pair* panels) const {
    for (int64_t k = 0; k < key_panels; ++k) {
      const int64_t first = k * kTileDepth;
      pack(group.part(part), group, first, min(kTileDepth, plan.rows - first), rows);
      for (int64_t d = 0; d < dim_panels; ++d) {
        Pair* tiles = panels + (d * key_panels + k) * 2 * kTileWords;
        interleave_tiles(rows + d * kLanes, words, tiles);
        for (int64_t i = 0; i < 2; ++i) transpose_tile(tiles + i * kTileWords, kLanes, tiles + i * kTileWords);
      }
    }
  }

  // A block's rows as panels of B that are summed over head_dim, and, if wanted, as those that are summed over rows.
  template <int kVecs>
  void pack_queries(const Rows<BFloat16>& from, const Group<BFloat16>& group, int64_t first, int64_t count, Pair* rows,
                    Pair* panels, Pair* deep) const {
    for (int64_t p = 0; p < kVecs / 2; ++p) {
      const int64_t r = p * kTilePanel;
      pack(from, group, first + r, count <= r ? 0 : min(kTilePanel, count - r), rows);
      for (int64_t k = 0; k < dim_panels; ++k)
        for (int64_t i = 0; i < 2; ++i, panels += kTileWords)
          transpose_tile(rows + i * kTile * words + k * kLanes, words, panels);
      for (int64_t d = 0; deep && d < dim_panels; ++d)
        interleave_tiles(rows + d * kLanes, words, deep + (d * kVecs / 2 + p) * 2 * kTileWords);
    }
  }

  // Of a block of queries from `first` on, how many see nothing of the group's prefix tokens.
  int64_t hidden_from(const Group<BFloat16>& group, int64_t first) const {
    return plan.hides_prefix(group.index) && first < plan.prefix ? plan.prefix - first : 0;
  }

  // Scales scores of keys key, key + 1, ... to base 2, those that a query does not see to -inf, and takes them into the
  // maxima; returns what earlier weights are multiplied by.
  template <int kVecs>
  Lanes<kVecs> prepare_scores(const Group<BFloat16>& group, int64_t first, int64_t key, int64_t keys, float* scores,
                              Lanes<kVecs>& max2) const {
    Lanes<kVecs> tops[2] = {max2, max2};
    const Vec factor = broadcast(scale.high);
    const auto take = [&](int64_t j, Lanes<kVecs>& top, auto finish) __attribute__((always_inline)) {
      for (int v = 0; v < kVecs; ++v) {
        float* at = scores + j * kVecs * kLanes + v * kLanes;
        const Vec s = finish(rounded(load(at) * factor), v);
        store(at, s);
        top.of[v] = max(top.of[v], s);
      }
    };
    const auto all_see = [](Vec s, int) { return s; };
    const int64_t hidden = hidden_from(group, first);
    int64_t j = 0;
    for (; hidden > 0 && j < keys && key + j < plan.prefix; ++j)
      take(j, tops[0], [&](Vec s, int v) { return is_below(query_of_lane(v), hidden) ? broadcast(-INFINITY) : s; });
    for (; j + 2 <= keys; j += 2) take(j, tops[0], all_see), take(j + 1, tops[1], all_see);
    if (j < keys) take(j, tops[0], all_see);
    Lanes<kVecs> shrink;
    for (int v = 0; v < kVecs; ++v) {
      const Vec top = max(tops[0].of[v], tops[1].of[v]);
      shrink.of[v] = exp2(max2.of[v] - top);
      max2.of[v] = top;
    }
    return shrink;
  }

  template <int kVecs>
  static void rescale(const Lanes<kVecs>& shrink, float* rows, int64_t count, Lanes<kVecs>& sum) {
    bool shrinks = false;
    for (int v = 0; v < kVecs; ++v)
      shrinks |= _mm512_cmp_ps_mask((__m512)shrink.of[v], _mm512_set1_ps(1), _CMP_NEQ_UQ) != 0;
    if (!shrinks) return;
    for (int v = 0; v < kVecs; ++v) sum.of[v] *= shrink.of[v];
    for (int64_t r = 0; r < count; ++r)
      for (int v = 0; v < kVecs; ++v) {
        float* at = rows + r * kVecs * kLanes + v * kLanes;
        store(at, load(at) * shrink.of[v]);
      }
  }

  // Weights of two neighbouring keys a row, as a panel of B.
  template <int kVecs>
  void exponentiate(const float* scores, int64_t keys, const Lanes<kVecs>& max2, Lanes<kVecs>& sum, Pair* panel) const {
    const Lanes<kVecs> tops = max2;  // copies, which no store can change
    Lanes<kVecs> sums[2] = {sum, {}};
    const auto weigh = [=](int64_t j, int v) {
      return exp2_for_bfloat16(load(scores + j * kVecs * kLanes + v * kLanes) - tops.of[v]);
    };
    int64_t i = 0;
    for (; i < keys / 2; ++i)
      for (int v = 0; v < kVecs; ++v) {
        const Vec low = weigh(2 * i, v), high = weigh(2 * i + 1, v);
        sums[0].of[v] += low;
        sums[1].of[v] += high;
        store(by_query<kForwardKeys>(panel, i, v), pair_up(low, high));
      }
    if (keys % 2 == 1) {
      for (int v = 0; v < kVecs; ++v) {
        const Vec low = weigh(2 * i, v);
        sums[0].of[v] += low;
        store(by_query<kForwardKeys>(panel, i, v), pair_up(low, Vec{}));
      }
      ++i;
    }
    for (; i % kTile != 0; ++i)
      for (int v = 0; v < kVecs; ++v) store(by_query<kForwardKeys>(panel, i, v), PairVec{});
    for (int v = 0; v < kVecs; ++v) sum.of[v] = sums[0].of[v] + sums[1].of[v];
  }

  // In panels of B that are summed over kKeys keys: the i-th two of these, vector v of a block's queries.
  template <int64_t kKeys>
  static Pair* by_query(Pair* panels, int64_t i, int v) {
    return panels + v / 2 * tile_panel_words(kTilePanel, kKeys) + (i / kTile * 2 + v % 2) * kTileWords +
           i % kTile * kLanes;
  }

  // In panels of A that are summed over a block's queries: key j, queries from vector v on.
  template <int kVecs>
  static Pair* by_key(Pair* panels, int64_t j, int v) {
    return panels + j / kTilePanel * kVecs * kTileWords + (v + j % kTilePanel / kTile) * kTileWords +
           j % kTile * kLanes;
  }

  // Scores become weights; adds to their sums, and to those of their products with `grad_probs`.
  template <int kVecs>
  void weigh(float* scores, const float* grad_probs, int64_t keys, const Lanes<kVecs>& max2, Lanes<kVecs>& sum,
             Lanes<kVecs>& delta) const {
    const Lanes<kVecs> tops = max2;
    Lanes<kVecs> sums = sum, deltas = delta;
    for (int64_t j = 0; j < keys; ++j)
      for (int v = 0; v < kVecs; ++v) {
        const int64_t at = j * kVecs * kLanes + v * kLanes;
        const Vec e = exp2_for_bfloat16(load(scores + at) - tops.of[v]);
        store(scores + at, e);
        sums.of[v] += e;
        deltas.of[v] += e * load(grad_probs + at);
      }
    sum = sums, delta = deltas;
  }

  // From sums of weights to what weights are multiplied by, and delta; a prefix query's softmax may span all groups.
  template <int kVecs>
  void normalize(const Group<BFloat16>& group, int64_t first, Lanes<kVecs>& max2, Lanes<kVecs>& sum,
                 Lanes<kVecs>& delta) const {
    for (int v = 0; v < kVecs; ++v) {
      sum.of[v] = 1.0f / sum.of[v];
      delta.of[v] *= sum.of[v];
    }
    for (int64_t i = 0; i < kVecs * kLanes && first + i < plan.prefix; ++i) {
      if (plan.spans_groups(first + i)) {
        max2.floats()[i] = group.stats(first + i)[0];
        sum.floats()[i] = 1.0f / group.stats(first + i)[1];
        delta.floats()[i] = group.delta(first + i);
      } else {
        sum.floats()[i] *= plan.share(first + i);
      }
    }
  }

  // Of keys key, key + 1, ...: weights become probabilities, and grad_probs p * (grad_probs - delta); both as operands.
  template <int kVecs>
  void score_gradients(const Group<BFloat16>& group, int64_t first, int64_t count, int64_t key, int64_t keys,
                       const Backward& b, const Lanes<kVecs>& factor, const Lanes<kVecs>& delta) const {
    const float *weights = b.scores + key * kVecs * kLanes, *grad_probs = b.grad_probs;
    const Backward to = b;
    const Lanes<kVecs> factors = factor, deltas = delta;
    // Of key j: 32 queries from vector v on. Of these count those from `low` to `high`: others' delta may be infinite,
    // and zero times infinity is NaN.
    const auto take = [=](int64_t j, int v, auto masked, int64_t low, int64_t high) __attribute__((always_inline)) {
      Vec p[2], ds[2];
      for (int w = 0; w < 2; ++w) {
        const int64_t at = j * kVecs * kLanes + (v + w) * kLanes;
        p[w] = load(weights + at) * factors.of[v + w];
        ds[w] = p[w] * (load(grad_probs + at) - deltas.of[v + w]);
        if constexpr (masked) {
          const IntVec query = query_of_lane(v + w), counts = ~is_below(query, low) & is_below(query, high);
          p[w] = counts ? p[w] : Vec{};
          ds[w] = counts ? ds[w] : Vec{};
        }
      }
      const PairVec grad = (PairVec)_mm512_cvtne2ps_pbh((__m512)ds[1], (__m512)ds[0]);
      store(by_key<kVecs>(to.probs, j, v), (PairVec)_mm512_cvtne2ps_pbh((__m512)p[1], (__m512)p[0]));
      store(by_key<kVecs>(to.grad_by_key, j, v), grad);
      return grad;
    };
    const auto store_two = [=](int64_t i, int v, PairVec low, PairVec high) __attribute__((always_inline)) {
      store(by_query<kBackwardKeys>(to.grad_by_query, i, v), shuffle<Interleaved<0>>(low, high));
      store(by_query<kBackwardKeys>(to.grad_by_query, i, v + 1), shuffle<Interleaved<kLanes>>(low, high));
    };
    const int64_t hidden = hidden_from(group, first);
    int64_t i = 0;
    if (count == kVecs * kLanes && (hidden == 0 || key >= plan.prefix))
      for (; i < keys / 2; ++i)
        for (int v = 0; v < kVecs; v += 2) {
          const PairVec low = take(2 * i, v, std::false_type{}, 0, 0),
                        high = take(2 * i + 1, v, std::false_type{}, 0, 0);
          store_two(i, v, low, high);
        }
    for (; i % kTile != 0 || 2 * i < keys; ++i)
      for (int v = 0; v < kVecs; v += 2) {
        PairVec grad[2];
        for (int64_t j = 2 * i; j < 2 * i + 2; ++j)
          grad[j % 2] = take(j, v, std::true_type{}, key + j < plan.prefix ? hidden : 0, j < keys ? count : 0);
        store_two(i, v, grad[0], grad[1]);
      }
  }

  // head_dim in the rows and queries in the lanes, to rows of queries.
  template <int kVecs>
  void to_rows(const float* from, float* to) const {
    for (int64_t d = 0; d < columns; d += kLanes)
      for (int v = 0; v < kVecs; ++v) {
        Vec block[kLanes];
        for (int i = 0; i < kLanes; ++i) block[i] = load(from + (d + i) * kVecs * kLanes + v * kLanes);
        transpose_block(block);
        for (int i = 0; i < kLanes; ++i) store(to + (v * kLanes + i) * columns + d, block[i]);
      }
  }
};

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta

#endif
