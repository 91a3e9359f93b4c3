// Factorized space-time attention on the CPU, forward and backward: the driver over groups of tokens.
//
// One work item is a run of groups of one sample and a run of heads; items are independent and their arithmetic does
// not depend on how threads share them, nor on the batch: results are the same bit for bit however they are run.
//
// Softmax works in base 2: scores are multiplied by scale * log2(e), so a score is an exponent of 2. Forward and
// backward pass compute it by the same operations, to the same bits, so that a probability of one is recovered as
// exactly one, however large the scores.
#include <cstring>

#include "attention_bias.h"
#include "attention_dropout.h"
#include "attention_groups.h"
#include "large_groups.h"
#include "memory.h"
#include "row_vectors.h"
#include "small_groups.h"
#include "tile_groups.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

// Where bfloat16 has tile registers, they take groups of many tokens, but drop nothing and add no bias.
template <typename T, bool kPlain>
struct LargeGroupsOf {
  using type = LargeGroups<T>;
};
#ifdef __AMX_BF16__
template <>
struct LargeGroupsOf<BFloat16, true> {
  using type = TileGroups;
};
#endif

template <typename T>
int64_t tokens_bytes(const SpaceTimeAttention& op) {
  return op.batch * (op.prefix + op.frames * op.patches) * op.heads * op.head_dim * int64_t(sizeof(T));
}

// A prefix query does not look at prefix tokens but in group 0. In the other groups their weights are zeros, and zero
// times an infinite value is NaN: columns that are NaN are summed anew, over all tokens.
template <typename T>
void sum_nan_columns(const Group<T>& of, int64_t query, const ScoreScale& scale, float max2, float* values) {
  const Plan& plan = of.plan;
  const AttentionDropout dropout(plan, of.op);
  const AttentionBias bias(of.op);
  const Rows<T> queries = of.part(kQuery), keys = of.part(kKey);
  float* query_row = scratch(Scratch::kThread, 2 * plan.dim_padded + plan.dim + dropout.floats(1));
  float *key_row = query_row + plan.dim_padded, *sums = key_row + plan.dim_padded, *kept = sums + plan.dim;
  queries.pack(query, plan.dim, query_row);
  for (int64_t d = 0; d < plan.dim; ++d) sums[d] = 0;
  for (int64_t g = 0; g < plan.groups; ++g) {
    const Group<T> group{plan, of.op, of.sample, g, of.head};
    if (dropout.drops()) dropout.draw(group, query, 1, kept);
    for (int64_t row = plan.first_visible(g, query); row < plan.rows; ++row) {
      const int64_t token = plan.token(g, row);
      keys.pack(token, plan.dim, key_row);
      const float score = dot(plan.dim, query_row, key_row);
      Vec exponent = scaled(broadcast(score), scale);
      if (bias.adds()) exponent = bias.add(exponent, bias.row(of.head, query), row);
      Vec weight = exp2(exponent - broadcast(max2));
      if (dropout.drops()) weight = dropout.apply(weight, dropout.row(kept, 0, row));
      const T* value = group.part(kValue).row(token);
      for (int64_t d = 0; d < plan.dim; ++d) sums[d] += weight[0] * to_float(value[d]);
    }
  }
  for (int64_t d = 0; d < plan.dim; ++d)
    if (std::isnan(values[d])) values[d] = sums[d];
}

// f(group, token) for the prefix tokens of all samples and heads that are in no group: each sees itself alone.
template <typename T, typename F>
void for_tokens_alone(const Plan& plan, const SpaceTimeAttention& op, const F& f) {
  if (op.prefix_attention != PrefixAttention::kNone) return;
  for (int64_t b = 0; b < op.batch; ++b)
    for (int64_t p = 0; p < op.prefix; ++p)
      for (int64_t h = 0; h < op.heads; ++h) f(Group<T>{plan, op, b, 0, h}, p);
}

template <typename T>
void copy_row(const Plan& plan, const T* from, T* to) {
  std::memcpy(static_cast<void*>(to), from, size_t(plan.dim) * sizeof(T));
}

// Of the gradients: of one tensor that packs all three, or of each.
template <typename T>
Writer gradient_writer(const SpaceTimeAttention& op) {
  const auto& grad = op.grad_qkv;
  const int64_t bytes = tokens_bytes<T>(op), run = op.head_dim * int64_t(sizeof(T));
  if (grad[kQuery].stride[1] == 3 * op.heads * op.head_dim) return Writer(grad[kQuery].data, 3 * bytes, run);
  return Writer({grad[kQuery].data, grad[kKey].data, grad[kValue].data}, bytes, run);
}

template <typename T, typename Large>
void forward(const SpaceTimeAttention& op) {
  const Plan plan(op, true, Writer(op.out.data, tokens_bytes<T>(op), op.head_dim * int64_t(sizeof(T))));
  const SmallGroups<T> small(plan, op);
  const Large large(plan, op);
  const auto partials = pieces<Partials>(Scratch::kShared, plan, op);
  const int64_t buffer_floats = plan.small ? small.scratch_floats(false) : large.scratch_floats(false);

  for_each_item(plan, buffer_floats, [&](Item item, float* buffer) {
    for (int64_t h = item.first_head; h < item.last_head; ++h)
      for (int64_t p = item.first_query; p < min(plan.prefix, item.last_query); ++p)
        partials.of(item.sample, item.split, h, p).clear(plan);
    for (int64_t g = item.first_group; g < item.last_group; ++g)
      for (int64_t h = item.first_head; h < item.last_head; ++h) {
        const Group<T> group{plan, op, item.sample, g, h};
        const auto merge = [&](int64_t p, float max2, float sum, const float* values) {
          const Partial partial = partials.of(item.sample, item.split, h, p);
          plan.mean ? partial.add_mean(plan, sum, values) : partial.merge(plan, max2, sum, values);
        };
        if (plan.small)
          small.forward(group, buffer, merge);
        else
          large.forward(group, item.first_query, item.last_query, buffer, merge);
      }
  });

#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < op.batch * op.heads * plan.prefix; ++row) {
    const int64_t p = row % plan.prefix, h = row / plan.prefix % op.heads, b = row / plan.prefix / op.heads;
    const Partial total = partials.of(b, 0, h, p);
    for (int64_t split = 1; split < plan.splits; ++split) {
      const Partial partial = partials.of(b, split, h, p);
      total.merge(plan, *partial.max2, *partial.sum, partial.values);
    }
    const Group<T> group{plan, op, b, 0, h};
    if (!plan.mean) {
      group.stats(p)[0] = *total.max2, group.stats(p)[1] = *total.sum;
      if (std::isnan(reduce_add(sum_vectors(plan.dim_padded, [&](int64_t d) { return load(total.values + d); }))))
        sum_nan_columns(group, p, small.scale, *total.max2, total.values);
    }
    write_output(group, p, *total.sum, total.values);
  }

  for_tokens_alone<T>(plan, op, [&](const Group<T>& group, int64_t token) {
    copy_row(plan, group.part(kValue).row(token), group.out(token));
  });
}

// What gradients are summed of.
struct Shares {
  float* prefix;                // (batch, splits, heads, 3, prefix, dim_padded): what each split gives to prefix tokens
  float *deltas, *bias_shares;  // as Plan has them
  // (items and then batch * heads, 2, AffineSums::kRows, affine_padded): what each item gives to the weights and biases
  // of the norms of q and k, and what the prefix tokens of each head do.
  float* affine;
  int64_t count_of_affine, affine_padded;

  Shares(Arena& arena, const Plan& plan, const SpaceTimeAttention& op)
      : prefix(arena.take(op.batch * plan.splits * op.heads * 3 * plan.prefix * plan.dim_padded)),
        deltas(arena.take(op.batch * op.heads * plan.prefix)),
        bias_shares(op.grad_bias.data ? arena.take(plan.shares() * bias_share_floats(plan, op)) : nullptr),
        count_of_affine(plan.items + op.batch * op.heads),
        affine_padded(op.affine.data ? plan.dim_padded : 0) {
    affine = arena.take(count_of_affine * stride_of_affine());
  }

  int64_t stride_of_affine() const { return 2 * AffineSums::kRows * affine_padded; }
  AffineSums affine_of(int64_t share, Part part) const {
    return {affine + share * stride_of_affine() + part * AffineSums::kRows * affine_padded, affine_padded};
  }
};

// Gradients of the norms' weights and biases.
inline void write_affine_gradients(const SpaceTimeAttention& op, const Shares& shares) {
  for (int64_t row = 0; row < 4; ++row) {  // of q and of k, weight and bias
    const float* first = shares.affine + (row / 2 * AffineSums::kRows + row % 2) * shares.affine_padded;
    float* to = op.grad_affine.as<float>() + row * op.head_dim;
    for_vectors(op.head_dim, [&](int64_t d, auto count) {
      const Vec sum = sum_shares(first + d, shares.count_of_affine, shares.stride_of_affine());
      store_floats(sum * broadcast(float(op.scale)), to + d, count);
    });
  }
}

template <typename T, typename Large>
void backward(const SpaceTimeAttention& op) {
  Plan plan(op, false, gradient_writer<T>(op));
  const SmallGroups<T> small(plan, op);
  const Large large(plan, op);
  const int64_t prefix_floats = plan.prefix * plan.dim_padded;
  const auto shared = pieces<Shares>(Scratch::kShared, plan, op);
  plan.deltas = shared.deltas, plan.bias_shares = shared.bias_shares;
  const auto share_of = [&](int64_t sample, int64_t split, int64_t head) {
    return shared.prefix + ((sample * plan.splits + split) * op.heads + head) * 3 * prefix_floats;
  };

  const int64_t buffer_floats = plan.small ? small.scratch_floats(true) : large.scratch_floats(true);
  const int64_t spread_rows = plan.mean ? 0 : op.batch * op.heads * plan.prefix;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < spread_rows; ++row) {
    const int64_t p = row % plan.prefix, h = row / plan.prefix % op.heads, b = row / plan.prefix / op.heads;
    const Group<T> group{plan, op, b, 0, h};
    float* buffer = scratch(Scratch::kThread, buffer_floats);
    plan.deltas[row] = plan.small ? small.prefix_delta(group, p, buffer) : large.prefix_delta(group, p, buffer);
  }

  for_each_item(plan, buffer_floats, [&](Item item, float* buffer) {
    AffineSums affine[] = {shared.affine_of(item.number, kQuery), shared.affine_of(item.number, kKey)};
    for (int64_t h = item.first_head; h < item.last_head; ++h) {
      float* share = share_of(item.sample, item.split, h);
      for (int64_t i = 0; i < 3 * prefix_floats; ++i) share[i] = 0;
      if (plan.bias_shares && plan.begins_share(item.sample, item.split))
        std::memset(plan.bias_share(item.sample, item.split, h), 0,
                    size_t(plan.rows * plan.rows_padded) * sizeof(float));
    }
    for (int64_t g = item.first_group; g < item.last_group; ++g)
      for (int64_t h = item.first_head; h < item.last_head; ++h) {
        const Group<T> group{plan, op, item.sample, g, h, affine};
        float* share = share_of(item.sample, item.split, h);
        const auto add = [&](Part part, int64_t p, const float* values) {
          float* to = share + (part * plan.prefix + p) * plan.dim_padded;
          for (int64_t d = 0; d < plan.dim_padded; d += kLanes) store(to + d, load(to + d) + load(values + d));
        };
        if (plan.small)
          small.backward(group, buffer, add);
        else
          large.backward(group, buffer, add);
      }
    for (AffineSums& sums : affine) sums.finish();
  });

#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < op.batch * op.heads; ++row) {
    const int64_t b = row / op.heads, h = row % op.heads;
    float* total = share_of(b, 0, h);
    for (int64_t split = 1; split < plan.splits; ++split) {
      const float* share = share_of(b, split, h);
      for (int64_t i = 0; i < 3 * prefix_floats; ++i) total[i] += share[i];
    }
    AffineSums affine[] = {shared.affine_of(plan.items + row, kQuery), shared.affine_of(plan.items + row, kKey)};
    const Group<T> group{plan, op, b, 0, h, affine};
    for (const Part part : {kQuery, kKey, kValue})
      for (int64_t p = 0; p < plan.prefix; ++p)
        write_gradient(group, p, part, total + (part * plan.prefix + p) * plan.dim_padded);
    for (AffineSums& sums : affine) sums.finish();
  }
  if (op.grad_affine.data) write_affine_gradients(op, shared);

  if (plan.bias_shares) add_bias_shares(plan, op);

  for_tokens_alone<T>(plan, op, [&](const Group<T>& group, int64_t token) {
    for (const Part part : {kQuery, kKey})
      std::memset(static_cast<void*>(group.grad(token, part)), 0, size_t(plan.dim) * sizeof(T));
    copy_row(plan, group.grad_out().row(token), group.grad(token, kValue));
  });
}

// run(element, groups of many tokens) with the types for `op`.
template <typename Run>
void with_types(const SpaceTimeAttention& op, const Run& run) {
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    if (op.dropout_rate > 0 || op.bias.data)
      run(element, LargeGroupsOf<T, false>());
    else
      run(element, LargeGroupsOf<T, true>());
  });
}

}  // namespace

void space_time_attention_forward(const SpaceTimeAttention& op) {
  with_types(op, [&](auto element, auto large) { forward<decltype(element), typename decltype(large)::type>(op); });
}

void space_time_attention_backward(const SpaceTimeAttention& op) {
  with_types(op, [&](auto element, auto large) { backward<decltype(element), typename decltype(large)::type>(op); });
}

}  // namespace HSTA_ISA
}  // namespace hsta
