// What small_groups.h and large_groups.h share: who attends to whom, how the work is dealt out, how prefix queries are
// put together from the groups, how results are written.
//
// Patches fall into groups that attend among themselves: a group is one position over all frames (time) or all
// positions of one frame (space). Prefix tokens belong to every group, as its first rows. As keys they are simply
// there; as queries they see all groups, which are dealt out in splits: every split contributes a partial softmax for
// them, and a second stage merges the partials in a fixed order. With PrefixAttention::kFrameMean a prefix query is one
// in each group by itself, and what is merged are its results, to their mean. With `joint` there is one group of all
// tokens and nothing to merge; with PrefixAttention::kNone the prefix is in no group.
#pragma once

#include <cfloat>
#include <cmath>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "../common/score_scale.h"
#include "kernels.h"
#include "memory.h"
#include "panels.h"
#include "row_map.h"
#include "row_vectors.h"
#include "writer.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

constexpr int64_t kMaxSmallRows = 32;     // tokens of a group that small_groups.h takes
constexpr int64_t kQueriesPerItem = 384;  // a larger group's queries may be dealt out to several items
constexpr int64_t kQueryStep = 96;        // whole blocks of large_groups.h, whatever the instruction set
constexpr int64_t kRowsAhead = 8;         // that are asked for where rows are read once more
constexpr float kLowest = -FLT_MAX;       // of a maximum that others are merged with

// Shares of a bias's gradient, at most, and how many floats those after the first may take.
constexpr int64_t kBiasShares = 8, kBiasShareFloats = 1 << 24;

// Which of a token's three vectors, in qkv and in its gradient.
enum Part : int { kQuery, kKey, kValue };

inline int64_t thread_count() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// Rows of one part (q, k, v, ...), sample and head, a token's row at a time.
template <typename T>
struct Rows {
  const T* base;
  int64_t stride_token;
  const RowMap* map = nullptr;  // of rows that are not used as they lie

  const T* row(int64_t token) const { return base + token * stride_token; }

  // As words of what they become.
  template <typename Word>
  void pack(int64_t token, int64_t dim, Word* to) const {
    map ? map->pack_row(row(token), token, to) : pack_row(row(token), dim, to);
  }
};

// In how many runs to deal out a group's `rows` queries, with `items` to do in each: every run packs the group's keys
// and values for itself, so as few as leave at most a tenth of the threads' time idle.
inline int64_t query_runs_of(int64_t rows, int64_t items) {
  const int64_t threads = thread_count();
  const auto idle = [&](int64_t runs) {
    const int64_t places = round_up(items * runs, threads);
    return 10 * (places - items * runs) > places;
  };
  int64_t runs = 1;
  while (runs < divide_up(rows, kQueriesPerItem) && idle(runs)) ++runs;
  return runs;
}

// Which tokens form a group, and how groups, heads and queries are dealt out to work items.
struct Plan {
  int64_t tokens, prefix, first_patch, groups, group_patches, group_step, patch_step;
  bool mean;  // PrefixAttention::kFrameMean
  int64_t rows, rows_padded, dim, dim_padded;
  bool small;
  int64_t groups_per_item, heads_per_item, queries_per_item, splits, head_runs, query_runs, items;
  int64_t items_per_share = 1;   // of a head: one thread takes them in order (attention_bias.h)
  RowMap maps[2];                // of q and of k
  Writer writer;                 // of the output, or of the gradient
  float* deltas = nullptr;       // (batch, heads, prefix), in the backward pass: sum_j p_j dp_j of a prefix query
  float* bias_shares = nullptr;  // (shares, heads, rows, rows_padded), where a bias has a gradient

  Plan(const SpaceTimeAttention& op, bool split_queries, Writer writer)
      : maps{RowMap(op, kQuery), RowMap(op, kKey)}, writer(writer) {
    const bool time_major = op.order == TokenOrder::kTimeMajor, joint = op.axis == Axis::kJoint;
    const int64_t frame_step = time_major ? op.patches : 1, position_step = time_major ? 1 : op.frames;
    tokens = op.prefix + op.frames * op.patches;
    prefix = joint || op.prefix_attention == PrefixAttention::kNone ? 0 : op.prefix;
    first_patch = joint && op.prefix_attention == PrefixAttention::kAll ? 0 : op.prefix;
    mean = op.prefix_attention == PrefixAttention::kFrameMean;
    groups = op.axis == Axis::kTime ? op.patches : op.axis == Axis::kSpace ? op.frames : 1;
    group_patches = op.axis == Axis::kTime ? op.frames : op.axis == Axis::kSpace ? op.patches : tokens - first_patch;
    group_step = op.axis == Axis::kTime ? position_step : frame_step;
    patch_step = joint ? 1 : op.axis == Axis::kTime ? frame_step : position_step;
    rows = prefix + group_patches;
    rows_padded = round_up(rows, kLanes);
    dim = op.head_dim;
    dim_padded = round_up(dim, kLanes);
    small = rows <= kMaxSmallRows && !op.bias.data;
    // Groups over time are neighbours in memory: take all heads of a few small ones at a time, in the order they lie.
    groups_per_item = small ? 8 : 1;
    heads_per_item = small ? op.heads : 1;
    splits = divide_up(groups, groups_per_item);
    head_runs = op.heads / heads_per_item;
    const int64_t runs = split_queries && !small ? query_runs_of(rows, op.batch * splits * head_runs) : 1;
    queries_per_item = runs > 1 ? round_up(divide_up(rows, runs), kQueryStep) : rows;
    query_runs = divide_up(rows, queries_per_item);
    items = op.batch * splits * head_runs * query_runs;
    if (op.grad_bias.data) {
      // A function of sizes alone, as the order of every sum.
      const int64_t most = min(kBiasShares, 1 + kBiasShareFloats / (op.heads * rows * rows_padded));
      items_per_share = divide_up(op.batch * splits, most);
    }
  }

  // Items of a head that follow each other share what they add to a bias's gradient.
  int64_t shares() const { return divide_up(items / (head_runs * query_runs), items_per_share); }
  float* bias_share(int64_t sample, int64_t split, int64_t head) const {
    return bias_shares + ((sample * splits + split) / items_per_share * head_runs + head) * rows * rows_padded;
  }
  bool begins_share(int64_t sample, int64_t split) const { return (sample * splits + split) % items_per_share == 0; }

  // Row r of group g: the prefix tokens come first.
  int64_t token(int64_t g, int64_t r) const {
    return r < prefix ? r : first_patch + g * group_step + (r - prefix) * patch_step;
  }

  // Of a prefix query whose softmax is over all groups the keys are the group's patches; the prefix itself counts once,
  // in group 0.
  bool hides_prefix(int64_t g) const { return g > 0 && !mean; }
  int64_t first_visible(int64_t g, int64_t row) const { return row < prefix && hides_prefix(g) ? prefix : 0; }

  // Whether a row's softmax is over several groups.
  bool spans_groups(int64_t row) const { return row < prefix && !mean; }

  // The maximum of a row's scores is no lower than this. A group may have no score above -inf while others have: its
  // weights are then zeros and not, as in a whole row of -inf, NaN.
  float lowest(int64_t row) const { return spans_groups(row) ? kLowest : -INFINITY; }

  // What a group's gradients of a row's query count.
  float share(int64_t row) const { return row < prefix && mean ? 1.0f / float(groups) : 1.0f; }
};

struct Item {
  int64_t number, sample, split, first_group, last_group, first_head, last_head, first_query, last_query;

  Item(const Plan& plan, int64_t index) : number(index) {
    first_query = index % plan.query_runs * plan.queries_per_item;
    last_query = min(first_query + plan.queries_per_item, plan.rows);
    index /= plan.query_runs;
    first_head = index % plan.head_runs * plan.heads_per_item;
    last_head = first_head + plan.heads_per_item;
    index /= plan.head_runs;
    split = index % plan.splits;
    sample = index / plan.splits;
    first_group = split * plan.groups_per_item;
    last_group = min(first_group + plan.groups_per_item, plan.groups);
  }
};

// Runs body(item, scratch of this thread) over all items.
template <typename Body>
void for_each_item(const Plan& plan, int64_t scratch_floats, const Body& body) {
#pragma omp parallel
  {
    float* buffer = scratch(Scratch::kThread, scratch_floats);
    const int64_t per_split = plan.head_runs * plan.query_runs;
#pragma omp for schedule(static)
    for (int64_t run = 0; run < plan.shares() * per_split; ++run)
      for (int64_t k = 0; k < plan.items_per_share; ++k) {
        const int64_t i = (run / per_split * plan.items_per_share + k) * per_split + run % per_split;
        if (i < plan.items) body(Item(plan, i), buffer);
      }
    plan.writer.finish();
  }
}

// One group and head of a sample: its tokens' rows in every tensor.
template <typename T>
struct Group {
  const Plan& plan;
  const SpaceTimeAttention& op;
  int64_t sample, index, head;
  AffineSums* affine = nullptr;  // of q and of k, where gradients of normalized rows are written

  Rows<T> part(Part part) const {
    const RowMap* map = part != kValue && plan.maps[part].changes_rows() ? &plan.maps[part] : nullptr;
    return {op.qkv[part].at<const T>(sample, 0, head), op.qkv[part].stride[1], map};
  }
  Rows<T> grad_out() const { return {op.grad_out.at<const T>(sample, 0, head), op.grad_out.stride[1]}; }
  T* out(int64_t token) const { return op.out.as<T>() + ((sample * plan.tokens + token) * op.heads + head) * plan.dim; }
  float* stats(int64_t p) const { return op.stats.as<float>() + prefix_row(p) * 2; }
  float& delta(int64_t p) const { return plan.deltas[prefix_row(p)]; }
  T* grad(int64_t token, Part part) const { return op.grad_qkv[part].at<T>(sample, token, head); }

 private:
  int64_t prefix_row(int64_t p) const { return (sample * op.heads + head) * plan.prefix + p; }
};

// to[d] = factor * values[d]; `values` has room for whole vectors.
template <typename T>
void write_scaled(const Plan& plan, const float* values, float factor, T* to) {
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, BFloat16>)
    if (plan.dim % (2 * kLanes) == 0) {
      for (int64_t d = 0; d < plan.dim; d += 2 * kLanes)
        plan.writer.store(load(values + d) * broadcast(factor), load(values + d + kLanes) * broadcast(factor), to + d);
      return;
    }
#endif
  // Copies, which no store can change: what the plan has would be read again after each.
  const Writer writer = plan.writer;
  for_vectors(int64_t(plan.dim),
              [=](int64_t d, auto count) { writer.store(load(values + d) * broadcast(factor), to + d, count); });
}

// `values` is the sum weighted by 2^(score - max2), `sum` the weights' sum.
template <typename T>
void write_output(const Group<T>& group, int64_t token, float sum, const float* values) {
  write_scaled(group.plan, values, 1.0f / sum, group.out(token));
}

// `values`, of what rows of q and k became, become those of the rows.
template <typename T>
void write_gradient(const Group<T>& group, int64_t token, Part part, float* values) {
  if (part != kValue && group.plan.maps[part].changes_rows())
    group.plan.maps[part].pull_back(group.part(part).row(token), token, values, group.affine + part);
  write_scaled(group.plan, values, part == kValue ? 1.0f : float(group.op.scale), group.grad(token, part));
}

// Gradients of the group's rows first, first + 1, ..., so many floats each; add(part, prefix row, values) takes in what
// belongs to a prefix token's.
template <typename T, typename Add>
void write_gradients(const Group<T>& group, int64_t first, int64_t count, Part part, float* values, int64_t row_floats,
                     const Add& add) {
  const Plan& plan = group.plan;
  const bool reads_rows = part != kValue && plan.maps[part].normalizes();
  for (int64_t i = 0; i < count; ++i) {
    float* row = values + i * row_floats;
    // A group's rows were packed long ago, and may lie in pages of their own, which no prefetcher of the processor
    // finds.
    if (reads_rows && i + kRowsAhead < count)
      prefetch(group.part(part).row(plan.token(group.index, first + i + kRowsAhead)), plan.dim);
    if (first + i < plan.prefix)
      add(part, first + i, row);
    else
      write_gradient(group, plan.token(group.index, first + i), part, row);
  }
}

// A partial softmax of one prefix query, over some of its keys: maximum (base 2), sum, and weighted sum of values.
struct Partial {
  float *max2, *sum, *values;
  void clear(const Plan& plan) const {
    *max2 = kLowest;
    *sum = 0;
    for (int64_t d = 0; d < plan.dim_padded; ++d) values[d] = 0;
  }
  void merge(const Plan& plan, float other_max2, float other_sum, const float* other_values) const {
    const float new_max2 = other_max2 > *max2 ? other_max2 : *max2;
    Vec exponents{};
    exponents[0] = *max2 - new_max2, exponents[1] = other_max2 - new_max2;
    const Vec factors = exp2(exponents);
    const Vec mine = broadcast(factors[0]), theirs = broadcast(factors[1]);
    *sum = *sum * factors[0] + other_sum * factors[1];
    for (int64_t d = 0; d < plan.dim_padded; d += kLanes)
      store(values + d, load(values + d) * mine + load(other_values + d) * theirs);
    *max2 = new_max2;
  }
  // The results of one group more, of which the whole is the mean.
  void add_mean(const Plan& plan, float group_sum, const float* group_values) const {
    *max2 = 0, *sum += 1;
    const Vec factor = broadcast(1.0f / group_sum);
    for (int64_t d = 0; d < plan.dim_padded; d += kLanes)
      store(values + d, load(values + d) + load(group_values + d) * factor);
  }
};

// Those of all prefix queries and splits.
struct Partials {
  int64_t splits, heads, prefix, dim_padded;
  float *values, *stats;  // (batch, splits, heads, prefix, dim_padded) and (batch, splits, heads, prefix, 2)

  Partials(Arena& arena, const Plan& plan, const SpaceTimeAttention& op)
      : splits(plan.splits), heads(op.heads), prefix(plan.prefix), dim_padded(plan.dim_padded) {
    const int64_t rows = op.batch * splits * heads * prefix;
    values = arena.take(rows * dim_padded), stats = arena.take(rows * 2);
  }

  Partial of(int64_t sample, int64_t split, int64_t head, int64_t p) const {
    const int64_t row = ((sample * splits + split) * heads + head) * prefix + p;
    return {stats + row * 2, stats + row * 2 + 1, values + row * dim_padded};
  }
};

inline Vec scaled(Vec scores, const ScoreScale& scale) {
  return rounded(rounded(scores * broadcast(scale.low)) + scores * broadcast(scale.high));
}

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta
