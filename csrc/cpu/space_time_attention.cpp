// Factorized space-time attention on the CPU, forward and backward.
//
// Patches fall into groups that attend among themselves: a group is one place over all frames (time) or all places of
// one frame (space). Prefix tokens belong to every group. As keys they are simply there; as queries they see all
// groups, so every group contributes a partial result for them, and a second stage merges the partials in a fixed
// order. With `joint` there is one group of all tokens and nothing to merge.
//
// One work item is a run of groups of one sample and a run of heads; items are independent and their arithmetic does
// not depend on how threads share them, nor on the batch: results are the same bit for bit however they are run.
//
// Softmax works in base 2: queries are multiplied by scale * log2(e) as they are gathered, so a score is an exponent of
// 2 as it leaves the product. Forward and backward pass compute it by the same operations, to the same bits, so that a
// probability of one is recovered as exactly one, however large the scores.
#include <cmath>

#include "gemm.h"
#include "kernels.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr float kLn2 = 0.6931471805599453f;    // 1 / kLog2E
constexpr int64_t kBlockRows = 4 * kTileRows;  // query rows whose scores are held at a time

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Which tokens form a group, and how groups and heads are dealt out to work items.
struct Plan {
  int64_t tokens, prefix, groups, group_patches, group_step, patch_step;
  int64_t rows, rows_padded, dim, dim_padded;
  int64_t groups_per_item, heads_per_item, slots, items;

  explicit Plan(const SpaceTimeAttention& op) {
    tokens = op.prefix + op.frames * op.patches;
    prefix = op.axis == Axis::kJoint ? 0 : op.prefix;
    groups = op.axis == Axis::kTime ? op.patches : op.axis == Axis::kSpace ? op.frames : 1;
    group_patches = op.axis == Axis::kTime ? op.frames : op.axis == Axis::kSpace ? op.patches : tokens;
    group_step = op.axis == Axis::kTime ? 1 : op.patches;
    patch_step = op.axis == Axis::kTime ? op.patches : 1;
    rows = prefix + group_patches;
    rows_padded = round_up(rows, kLanes);
    dim = op.head_dim;
    dim_padded = round_up(dim, kLanes);
    // Time groups are small and neighbours in memory: take all heads of a few at a time, in the order they lie.
    groups_per_item = op.axis == Axis::kTime ? 8 : 1;
    heads_per_item = op.axis == Axis::kTime ? op.heads : 1;
    slots = (groups + groups_per_item - 1) / groups_per_item;
    items = op.batch * slots * (op.heads / heads_per_item);
  }

  // Row r of group g: the prefix tokens come first.
  int64_t token(int64_t g, int64_t r) const {
    return r < prefix ? r : prefix + g * group_step + (r - prefix) * patch_step;
  }
};

struct Item {
  int64_t sample, slot, first_group, last_group, first_head, last_head;

  Item(const Plan& plan, int64_t heads, int64_t index) {
    const int64_t head_runs = heads / plan.heads_per_item;
    first_head = index % head_runs * plan.heads_per_item;
    last_head = first_head + plan.heads_per_item;
    slot = index / head_runs % plan.slots;
    sample = index / head_runs / plan.slots;
    first_group = slot * plan.groups_per_item;
    last_group = min(first_group + plan.groups_per_item, plan.groups);
  }
};

// Runs body(item, scratch of this thread) over all items.
template <typename Body>
void for_each_item(const Plan& plan, int64_t heads, int64_t scratch_floats, const Body& body) {
#pragma omp parallel
  {
    float* buffer = scratch(Scratch::kThread, scratch_floats);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < plan.items; ++i) body(Item(plan, heads, i), buffer);
  }
}

// Rows of one group and head, gathered from strided memory and widened to float; padding is zeroed.
template <typename T>
struct Rows {
  const T* base;
  int64_t stride_token;

  const T* row(int64_t token) const { return base + token * stride_token; }

  void gather(const Plan& plan, int64_t g, float* to, double factor = 1) const {
    // In two parts: an error of the factor itself would scale every score of every row alike.
    const float high = float(factor), low = float(factor - high);
    for (int64_t r = 0; r < plan.rows; ++r) {
      float* row_to = to + r * plan.dim_padded;
      load_row(row(plan.token(g, r)), plan.dim, row_to);
      if (factor != 1)
        for (int64_t d = 0; d < plan.dim; ++d) row_to[d] = row_to[d] * high + row_to[d] * low;
      for (int64_t d = plan.dim; d < plan.dim_padded; ++d) row_to[d] = 0;
    }
  }
};

template <typename T>
Rows<T> part_rows(const SpaceTimeAttention& op, int64_t sample, int part, int64_t head) {
  return {static_cast<const T*>(op.qkv) + sample * op.qkv_stride_batch + part * op.qkv_stride_part +
              head * op.qkv_stride_head,
          op.qkv_stride_token};
}

// to[d][r] = from[r][d] for all rows of a group; columns past the last row are zeroed.
void transpose(const Plan& plan, const float* from, float* to) {
  for (int64_t r = 0; r < plan.rows_padded; ++r)
    for (int64_t d = 0; d < plan.dim; ++d)
      to[d * plan.rows_padded + r] = r < plan.rows ? from[r * plan.dim_padded + d] : 0.0f;
}

// A prefix query's keys are the group's patches; the prefix itself counts once, in group 0.
int64_t first_visible(const Plan& plan, int64_t g, int64_t row) { return row < plan.prefix && g > 0 ? plan.prefix : 0; }

// Turns a row of scores into exp2(score - offset), zero where the query does not look; returns the sum.
float exponentiate(float* scores, int64_t first, int64_t count, int64_t padded, float offset) {
  const Vec offset_vec = broadcast(offset);
  for (int64_t j = 0; j < padded; j += kLanes) store(scores + j, exp2(load(scores + j) - offset_vec));
  for (int64_t j = 0; j < first; ++j) scores[j] = 0;
  for (int64_t j = count; j < padded; ++j) scores[j] = 0;
  Vec sum{};
  for (int64_t j = 0; j < padded; j += kLanes) sum += load(scores + j);
  return reduce_add(sum);
}

// The largest score a query sees.
float row_max(const float* scores, int64_t first, int64_t count) {
  float best = scores[first];
  int64_t j = first + 1;
  if (count - j >= kLanes) {
    Vec best_vec = broadcast(best);
    for (; j + kLanes <= count; j += kLanes) best_vec = max(best_vec, load(scores + j));
    best = reduce_max(best_vec);
  }
  for (; j < count; ++j) best = scores[j] > best ? scores[j] : best;
  return best;
}

// The running softmax state of one prefix query: maximum (base 2), sum, and weighted sum of values.
// `parts` is laid out (batch, slots, heads, prefix, 2 + dim_padded).
struct Partial {
  float *max2, *sum, *values;
  Partial(const Plan& plan, float* parts, int64_t heads, int64_t sample, int64_t slot, int64_t head, int64_t p) {
    max2 = parts + (((sample * plan.slots + slot) * heads + head) * plan.prefix + p) * (2 + plan.dim_padded);
    sum = max2 + 1;
    values = max2 + 2;
  }
  void clear(const Plan& plan) {
    *max2 = -INFINITY;
    *sum = 0;
    for (int64_t d = 0; d < plan.dim_padded; ++d) values[d] = 0;
  }
  void merge(const Plan& plan, float other_max2, float other_sum, const float* other_values) {
    const float top = other_max2 > *max2 ? other_max2 : *max2;
    const float mine = std::exp2(*max2 - top), theirs = std::exp2(other_max2 - top);
    *sum = *sum * mine + other_sum * theirs;
    for (int64_t d = 0; d < plan.dim_padded; ++d) values[d] = values[d] * mine + other_values[d] * theirs;
    *max2 = top;
  }
};

template <typename T>
void write_output(const Plan& plan, const SpaceTimeAttention& op, int64_t sample, int64_t head, int64_t token,
                  float max2, float sum, float* values) {
  const float inverse = 1.0f / sum;
  for (int64_t d = 0; d < plan.dim; ++d) values[d] *= inverse;
  T* out = static_cast<T*>(op.out) + ((sample * plan.tokens + token) * op.heads + head) * plan.dim;
  store_row(values, plan.dim, out);
  float* stats = op.stats + ((sample * op.heads + head) * plan.tokens + token) * 2;
  stats[0] = max2, stats[1] = sum;
}

template <typename T>
void forward(const SpaceTimeAttention& op) {
  const Plan plan(op);
  const int64_t row_floats = plan.rows * plan.dim_padded, transposed_floats = plan.dim * plan.rows_padded;
  const int64_t need = 3 * row_floats + transposed_floats + kBlockRows * (plan.rows_padded + plan.dim_padded);
  float* parts = scratch(Scratch::kShared, op.batch * plan.slots * op.heads * plan.prefix * (2 + plan.dim_padded));

  for_each_item(plan, op.heads, need, [&](const Item& item, float* buffer) {
    float* q = buffer;
    float* k = q + row_floats;
    float* v = k + row_floats;
    float* kt = v + row_floats;
    float* scores = kt + transposed_floats;
    float* values = scores + kBlockRows * plan.rows_padded;

    for (int64_t h = item.first_head; h < item.last_head; ++h)
      for (int64_t p = 0; p < plan.prefix; ++p)
        Partial(plan, parts, op.heads, item.sample, item.slot, h, p).clear(plan);

    for (int64_t g = item.first_group; g < item.last_group; ++g)
      for (int64_t h = item.first_head; h < item.last_head; ++h) {
        part_rows<T>(op, item.sample, 0, h).gather(plan, g, q, op.scale * kLog2E);
        part_rows<T>(op, item.sample, 1, h).gather(plan, g, k);
        part_rows<T>(op, item.sample, 2, h).gather(plan, g, v);
        transpose(plan, k, kt);
        for (int64_t first = 0; first < plan.rows; first += kBlockRows) {
          const int64_t count = min(kBlockRows, plan.rows - first);
          float row_max2[kBlockRows], row_sum[kBlockRows];
          gemm(count, plan.rows_padded, plan.dim, {q + first * plan.dim_padded, plan.dim_padded, 1}, kt,
               plan.rows_padded, scores, plan.rows_padded, false);
          for (int64_t i = 0; i < count; ++i) {
            float* row = scores + i * plan.rows_padded;
            const int64_t visible = first_visible(plan, g, first + i);
            row_max2[i] = row_max(row, visible, plan.rows);
            row_sum[i] = exponentiate(row, visible, plan.rows, plan.rows_padded, row_max2[i]);
          }
          gemm(count, plan.dim_padded, plan.rows, {scores, plan.rows_padded, 1}, v, plan.dim_padded, values,
               plan.dim_padded, false);
          for (int64_t i = 0; i < count; ++i) {
            float* row = values + i * plan.dim_padded;
            if (first + i < plan.prefix)
              Partial(plan, parts, op.heads, item.sample, item.slot, h, first + i)
                  .merge(plan, row_max2[i], row_sum[i], row);
            else
              write_output<T>(plan, op, item.sample, h, plan.token(g, first + i), row_max2[i], row_sum[i], row);
          }
        }
      }
  });

#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < op.batch * op.heads * plan.prefix; ++row) {
    const int64_t p = row % plan.prefix, h = row / plan.prefix % op.heads, b = row / plan.prefix / op.heads;
    Partial total(plan, parts, op.heads, b, 0, h, p);
    for (int64_t slot = 1; slot < plan.slots; ++slot) {
      const Partial part(plan, parts, op.heads, b, slot, h, p);
      total.merge(plan, *part.max2, *part.sum, part.values);
    }
    write_output<T>(plan, op, b, h, p, *total.max2, *total.sum, total.values);
  }
}

template <typename T>
void write_gradient(const Plan& plan, const SpaceTimeAttention& op, int64_t sample, int64_t head, int64_t token,
                    int part, float* values) {
  // The scores' gradient is that of the natural exponents scale * q·k; the gathered q carries scale * log2(e).
  const float factor = part == 0 ? float(op.scale) : part == 1 ? kLn2 : 1.0f;
  for (int64_t d = 0; d < plan.dim; ++d) values[d] *= factor;
  T* to = static_cast<T*>(op.grad_qkv) + (((sample * plan.tokens + token) * 3 + part) * op.heads + head) * plan.dim;
  store_row(values, plan.dim, to);
}

// Probabilities are recomputed from each row's maximum and sum. For patches, delta = sum_j p_j dp_j needs the whole
// row, which is at hand; a prefix query's row is spread over the groups, so its delta comes from the saved output.
template <typename T>
void backward(const SpaceTimeAttention& op) {
  const Plan plan(op);
  const int64_t row_floats = plan.rows * plan.dim_padded, transposed_floats = plan.dim * plan.rows_padded;
  const int64_t need = 7 * row_floats + 2 * transposed_floats + 2 * kBlockRows * plan.rows_padded;
  const int64_t prefix_floats = plan.prefix * plan.dim_padded;
  // (batch, slots, heads, 3, prefix, dim_padded): each item's share of the prefix tokens' gradients
  float* parts = scratch(Scratch::kShared, op.batch * plan.slots * op.heads * 3 * prefix_floats);
  const auto parts_of = [&](int64_t sample, int64_t slot, int64_t head) {
    return parts + ((sample * plan.slots + slot) * op.heads + head) * 3 * prefix_floats;
  };

  for_each_item(plan, op.heads, need, [&](const Item& item, float* buffer) {
    float* q = buffer;
    float* k = q + row_floats;
    float* v = k + row_floats;
    float* grad_out = v + row_floats;
    float* grad[3];
    for (int part = 0; part < 3; ++part) grad[part] = grad_out + (1 + part) * row_floats;
    float* kt = grad_out + 4 * row_floats;
    float* vt = kt + transposed_floats;
    float* probs = vt + transposed_floats;
    float* grad_scores = probs + kBlockRows * plan.rows_padded;

    for (int64_t h = item.first_head; h < item.last_head; ++h) {
      float* mine = parts_of(item.sample, item.slot, h);
      for (int64_t i = 0; i < 3 * prefix_floats; ++i) mine[i] = 0;
    }

    for (int64_t g = item.first_group; g < item.last_group; ++g)
      for (int64_t h = item.first_head; h < item.last_head; ++h) {
        const Rows<T> incoming{
            static_cast<const T*>(op.grad_out) + item.sample * op.grad_out_stride_batch + h * op.grad_out_stride_head,
            op.grad_out_stride_token};
        const T* out = static_cast<const T*>(op.out) + (item.sample * plan.tokens * op.heads + h) * plan.dim;
        const float* stats = op.stats + (item.sample * op.heads + h) * plan.tokens * 2;
        part_rows<T>(op, item.sample, 0, h).gather(plan, g, q, op.scale * kLog2E);
        part_rows<T>(op, item.sample, 1, h).gather(plan, g, k);
        part_rows<T>(op, item.sample, 2, h).gather(plan, g, v);
        incoming.gather(plan, g, grad_out);
        transpose(plan, k, kt);
        transpose(plan, v, vt);

        for (int64_t first = 0; first < plan.rows; first += kBlockRows) {
          const int64_t count = min(kBlockRows, plan.rows - first);
          const int64_t at = first * plan.dim_padded;
          gemm(count, plan.rows_padded, plan.dim, {q + at, plan.dim_padded, 1}, kt, plan.rows_padded, probs,
               plan.rows_padded, false);
          gemm(count, plan.rows_padded, plan.dim, {grad_out + at, plan.dim_padded, 1}, vt, plan.rows_padded,
               grad_scores, plan.rows_padded, false);
          for (int64_t i = 0; i < count; ++i) {
            float* p = probs + i * plan.rows_padded;
            float* dp = grad_scores + i * plan.rows_padded;
            const int64_t token = plan.token(g, first + i);
            const float normalizer = 1 / stats[2 * token + 1];
            float delta = 0;
            exponentiate(p, first_visible(plan, g, first + i), plan.rows, plan.rows_padded, stats[2 * token]);
            if (first + i < plan.prefix) {
              const float* row = grad_out + at + i * plan.dim_padded;
              const T* out_row = out + token * op.heads * plan.dim;
              delta = dot(plan.dim, row, out_row);
            } else {
              Vec sum{};
              for (int64_t j = 0; j < plan.rows_padded; j += kLanes) sum += load(p + j) * load(dp + j);
              delta = reduce_add(sum) * normalizer;
            }
            for (int64_t j = 0; j < plan.rows_padded; j += kLanes) {
              store(p + j, load(p + j) * broadcast(normalizer));
              store(dp + j, load(p + j) * (load(dp + j) - broadcast(delta)));
            }
          }
          gemm(count, plan.dim_padded, plan.rows, {grad_scores, plan.rows_padded, 1}, k, plan.dim_padded, grad[0] + at,
               plan.dim_padded, false);
          gemm(plan.rows, plan.dim_padded, count, {grad_scores, 1, plan.rows_padded}, q + at, plan.dim_padded, grad[1],
               plan.dim_padded, first > 0);
          gemm(plan.rows, plan.dim_padded, count, {probs, 1, plan.rows_padded}, grad_out + at, plan.dim_padded, grad[2],
               plan.dim_padded, first > 0);
        }

        float* mine = parts_of(item.sample, item.slot, h);
        for (int part = 0; part < 3; ++part) {
          for (int64_t i = 0; i < prefix_floats; ++i) mine[part * prefix_floats + i] += grad[part][i];
          for (int64_t r = plan.prefix; r < plan.rows; ++r)
            write_gradient<T>(plan, op, item.sample, h, plan.token(g, r), part, grad[part] + r * plan.dim_padded);
        }
      }
  });

#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < op.batch * op.heads; ++row) {
    const int64_t b = row / op.heads, h = row % op.heads;
    float* total = parts_of(b, 0, h);
    for (int64_t slot = 1; slot < plan.slots; ++slot) {
      const float* share = parts_of(b, slot, h);
      for (int64_t i = 0; i < 3 * prefix_floats; ++i) total[i] += share[i];
    }
    for (int part = 0; part < 3; ++part)
      for (int64_t p = 0; p < plan.prefix; ++p)
        write_gradient<T>(plan, op, b, h, p, part, total + (part * plan.prefix + p) * plan.dim_padded);
  }
}

}  // namespace

void space_time_attention_forward(const SpaceTimeAttention& op) {
  switch (op.dtype) {
    case DType::kFloat32:
      return forward<float>(op);
    case DType::kBFloat16:
      return forward<BFloat16>(op);
    case DType::kFloat16:
      return forward<Float16>(op);
  }
}

void space_time_attention_backward(const SpaceTimeAttention& op) {
  switch (op.dtype) {
    case DType::kFloat32:
      return backward<float>(op);
    case DType::kBFloat16:
      return backward<BFloat16>(op);
    case DType::kFloat16:
      return backward<Float16>(op);
  }
}

}  // namespace HSTA_ISA
}  // namespace hsta
