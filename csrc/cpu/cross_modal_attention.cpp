// The streaming pass of crossmodal attention on the CPU, forward and backward.
//
// Rows are the query token and the N tokens, x_j; y_j = (x_j - mean_j) / sqrt(var_j + eps). For every head
//     z_h = sum_j softmax_j(u_h · y_j) y_j.
// Rows are taken a block at a time: normalized into a buffer that stays in cache, multiplied with all heads' u at once,
// and added to z while still there, so that memory is read once. Runs of rows of fixed length are the work items; each
// keeps its own softmax state, and a second stage merges them in order. The split depends on N alone.
#include <cmath>

#include "gemm.h"
#include "kernels.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr int64_t kBlockRows = 4 * kTileRows;
constexpr int64_t kRowsPerItem = 6 * kBlockRows;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

struct Plan {
  int64_t rows, width, width_padded, heads, heads_padded, slots, items;

  explicit Plan(const CrossModalAttention& op) {
    rows = 1 + op.tokens;
    width = op.width;
    width_padded = round_up(width, kLanes);
    heads = op.heads;
    heads_padded = round_up(heads, kLanes);
    slots = (rows + kRowsPerItem - 1) / kRowsPerItem;
    items = op.batch * slots;
  }
};

template <typename T>
const T* source_row(const CrossModalAttention& op, int64_t sample, int64_t row) {
  return row == 0 ? static_cast<const T*>(op.query) + sample * op.query_stride_batch
                  : static_cast<const T*>(op.token) + sample * op.token_stride_batch + (row - 1) * op.token_stride_row;
}

// y = (x - mean) / sqrt(var + eps), padded with zeros; returns 1 / sqrt(var + eps).
template <typename T>
float normalize(const Plan& plan, const T* x, float eps, float* y) {
  load_row(x, plan.width, y);
  for (int64_t c = plan.width; c < plan.width_padded; ++c) y[c] = 0;
  Vec sum{};
  for (int64_t c = 0; c < plan.width_padded; c += kLanes) sum += load(y + c);
  const float mean = reduce_add(sum) / float(plan.width);
  for (int64_t c = 0; c < plan.width; ++c) y[c] -= mean;
  Vec squares{};
  for (int64_t c = 0; c < plan.width_padded; c += kLanes) squares += load(y + c) * load(y + c);
  const float rstd = 1.0f / std::sqrt(reduce_add(squares) / float(plan.width) + eps);
  for (int64_t c = 0; c < plan.width_padded; c += kLanes) store(y + c, load(y + c) * broadcast(rstd));
  return rstd;
}

// to[c][column + h] = factor * from[h][c]; the heads' padding is zeroed.
void pack_heads(const Plan& plan, const float* from, float factor, float* to, int64_t stride, int64_t column) {
  for (int64_t c = 0; c < plan.width; ++c)
    for (int64_t h = 0; h < plan.heads_padded; ++h)
      to[c * stride + column + h] = h < plan.heads ? factor * from[h * plan.width + c] : 0.0f;
}

// Softmax state of one run of rows, for all heads: maximum (base 2), sum, and weighted sum of y, which is
// (heads, width_padded).
struct Partial {
  float *max2, *sum, *z;
  Partial(const Plan& plan, float* parts, int64_t sample, int64_t slot) {
    max2 = parts + (sample * plan.slots + slot) * (2 * plan.heads_padded + plan.heads * plan.width_padded);
    sum = max2 + plan.heads_padded;
    z = sum + plan.heads_padded;
  }
  static int64_t floats(const Plan& plan) { return 2 * plan.heads_padded + plan.heads * plan.width_padded; }
};

void scale_row(float* row, int64_t count, float factor) {
  for (int64_t c = 0; c < count; c += kLanes) store(row + c, load(row + c) * broadcast(factor));
}

template <typename T>
void forward(const CrossModalAttention& op) {
  const Plan plan(op);
  const int64_t u_floats = plan.width * plan.heads_padded;
  const int64_t need = u_floats + kBlockRows * (plan.width_padded + plan.heads_padded);
  float* parts = scratch(Scratch::kShared, plan.items * Partial::floats(plan));

#pragma omp parallel
  {
    float* u = scratch(Scratch::kThread, need);
    float* y = u + u_floats;
    float* scores = y + kBlockRows * plan.width_padded;
    int64_t packed_sample = -1;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < plan.items; ++item) {
      const int64_t sample = item / plan.slots, slot = item % plan.slots;
      if (sample != packed_sample)
        pack_heads(plan, op.u + sample * plan.heads * plan.width, kLog2E, u, plan.heads_padded, 0);
      packed_sample = sample;
      const Partial state(plan, parts, sample, slot);
      for (int64_t h = 0; h < plan.heads_padded; ++h) state.max2[h] = -INFINITY, state.sum[h] = 0;
      for (int64_t i = 0; i < plan.heads * plan.width_padded; ++i) state.z[i] = 0;

      const int64_t end = min((slot + 1) * kRowsPerItem, plan.rows);
      for (int64_t first = slot * kRowsPerItem; first < end; first += kBlockRows) {
        const int64_t count = min(kBlockRows, end - first);
        for (int64_t i = 0; i < count; ++i)
          normalize(plan, source_row<T>(op, sample, first + i), op.eps, y + i * plan.width_padded);
        gemm(count, plan.heads_padded, plan.width, {y, plan.width_padded, 1}, u, plan.heads_padded, scores,
             plan.heads_padded, false);
        for (int64_t h = 0; h < plan.heads_padded; h += kLanes) {
          const Vec before = load(state.max2 + h);
          Vec top = before;
          for (int64_t i = 0; i < count; ++i) top = max(top, load(scores + i * plan.heads_padded + h));
          const Vec correction = exp2(before - top);
          Vec sum = load(state.sum + h) * correction;
          for (int64_t i = 0; i < count; ++i) {
            float* at = scores + i * plan.heads_padded + h;
            store(at, exp2(load(at) - top));
            sum += load(at);
          }
          store(state.max2 + h, top);
          store(state.sum + h, sum);
          for (int64_t lane = 0; lane < kLanes && h + lane < plan.heads; ++lane)
            if (correction[lane] != 1)
              scale_row(state.z + (h + lane) * plan.width_padded, plan.width_padded, correction[lane]);
        }
        gemm(plan.heads, plan.width_padded, count, {scores, 1, plan.heads_padded}, y, plan.width_padded, state.z,
             plan.width_padded, true);
      }
    }
  }

#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < op.batch * plan.heads; ++i) {
    const int64_t sample = i / plan.heads, h = i % plan.heads;
    float top = -INFINITY, sum = 0;
    for (int64_t slot = 0; slot < plan.slots; ++slot) {
      const float other = Partial(plan, parts, sample, slot).max2[h];
      top = top > other ? top : other;
    }
    float* z = op.z + i * plan.width;
    for (int64_t c = 0; c < plan.width; ++c) z[c] = 0;
    for (int64_t slot = 0; slot < plan.slots; ++slot) {
      const Partial state(plan, parts, sample, slot);
      const float factor = std::exp2(state.max2[h] - top);
      sum += factor * state.sum[h];
      const float* from = state.z + h * plan.width_padded;
      for (int64_t c = 0; c < plan.width; ++c) z[c] += factor * from[c];
    }
    const float inverse = 1 / sum;
    for (int64_t c = 0; c < plan.width; ++c) z[c] *= inverse;
    op.stats[2 * i] = top, op.stats[2 * i + 1] = sum;
  }
}

// dL/dx of one row from dL/dy, through the normalization: rstd * (dy - mean(dy) - y * mean(dy * y)).
template <typename T>
void normalize_backward(const Plan& plan, const float* y, float rstd, float* grad, T* to) {
  Vec sum{}, projection{};
  for (int64_t c = 0; c < plan.width_padded; c += kLanes) {
    sum += load(grad + c);
    projection += load(grad + c) * load(y + c);
  }
  const Vec mean = broadcast(reduce_add(sum) / float(plan.width));
  const Vec along = broadcast(reduce_add(projection) / float(plan.width));
  for (int64_t c = 0; c < plan.width_padded; c += kLanes)
    store(grad + c, broadcast(rstd) * (load(grad + c) - mean - load(y + c) * along));
  store_row(grad, plan.width, to);
}

template <typename T>
void backward(const CrossModalAttention& op) {
  const Plan plan(op);
  const int64_t both = 2 * plan.heads_padded;  // columns of [u, grad_z], and of [grad_scores, probabilities]
  const int64_t packed_floats = plan.width * both, stacked_floats = both * plan.width_padded;
  const int64_t need =
      packed_floats + stacked_floats + 3 * plan.heads_padded + kBlockRows * (2 * plan.width_padded + both);
  float* parts = scratch(Scratch::kShared, plan.items * plan.heads * plan.width_padded);

#pragma omp parallel
  {
    float* packed = scratch(Scratch::kThread, need);
    float* stacked = packed + packed_floats;  // rows of u, then of grad_z, each padded to heads_padded rows
    float* max2 = stacked + stacked_floats;
    float* inverse = max2 + plan.heads_padded;
    float* delta = inverse + plan.heads_padded;
    float* y = delta + plan.heads_padded;
    float* grad_y = y + kBlockRows * plan.width_padded;
    float* scores = grad_y + kBlockRows * plan.width_padded;
    int64_t packed_sample = -1;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < plan.items; ++item) {
      const int64_t sample = item / plan.slots, slot = item % plan.slots;
      if (sample != packed_sample) {
        const int64_t at = sample * plan.heads * plan.width;
        pack_heads(plan, op.u + at, kLog2E, packed, both, 0);
        pack_heads(plan, op.grad_z + at, 1, packed, both, plan.heads_padded);
        for (int64_t h = 0; h < plan.heads_padded; ++h) {
          const bool real = h < plan.heads;
          for (int64_t c = 0; c < plan.width_padded; ++c) {
            const bool inside = real && c < plan.width;
            stacked[h * plan.width_padded + c] = inside ? op.u[at + h * plan.width + c] : 0.0f;
            stacked[(plan.heads_padded + h) * plan.width_padded + c] =
                inside ? op.grad_z[at + h * plan.width + c] : 0.0f;
          }
          max2[h] = real ? op.stats[2 * (sample * plan.heads + h)] : 0;
          inverse[h] = real ? 1 / op.stats[2 * (sample * plan.heads + h) + 1] : 0;
          delta[h] = real ? dot(plan.width, op.z + at + h * plan.width, op.grad_z + at + h * plan.width) : 0;
        }
      }
      packed_sample = sample;
      float* grad_u = parts + item * plan.heads * plan.width_padded;
      const int64_t start = slot * kRowsPerItem, end = min(start + kRowsPerItem, plan.rows);
      for (int64_t first = start; first < end; first += kBlockRows) {
        const int64_t count = min(kBlockRows, end - first);
        float rstd[kBlockRows];
        for (int64_t i = 0; i < count; ++i)
          rstd[i] = normalize(plan, source_row<T>(op, sample, first + i), op.eps, y + i * plan.width_padded);
        gemm(count, both, plan.width, {y, plan.width_padded, 1}, packed, both, scores, both, false);
        for (int64_t i = 0; i < count; ++i)
          for (int64_t h = 0; h < plan.heads_padded; h += kLanes) {
            float* s = scores + i * both + h;
            float* dp = s + plan.heads_padded;
            const Vec p = exp2(load(s) - load(max2 + h)) * load(inverse + h);
            store(s, p * (load(dp) - load(delta + h)));
            store(dp, p);
          }
        gemm(count, plan.width_padded, both, {scores, both, 1}, stacked, plan.width_padded, grad_y, plan.width_padded,
             false);
        gemm(plan.heads, plan.width_padded, count, {scores, 1, both}, y, plan.width_padded, grad_u, plan.width_padded,
             first > start);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t row = first + i;
          T* to = row == 0 ? static_cast<T*>(op.grad_query) + sample * plan.width
                           : static_cast<T*>(op.grad_token) + (sample * op.tokens + row - 1) * plan.width;
          normalize_backward(plan, y + i * plan.width_padded, rstd[i], grad_y + i * plan.width_padded, to);
        }
      }
    }
  }

#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < op.batch * plan.heads; ++i) {
    const int64_t sample = i / plan.heads, h = i % plan.heads;
    float* to = op.grad_u + i * plan.width;
    for (int64_t c = 0; c < plan.width; ++c) to[c] = 0;
    for (int64_t slot = 0; slot < plan.slots; ++slot) {
      const float* from = parts + ((sample * plan.slots + slot) * plan.heads + h) * plan.width_padded;
      for (int64_t c = 0; c < plan.width; ++c) to[c] += from[c];
    }
  }
}

}  // namespace

void cross_modal_attention_forward(const CrossModalAttention& op) {
  switch (op.dtype) {
    case DType::kFloat32:
      return forward<float>(op);
    case DType::kBFloat16:
      return forward<BFloat16>(op);
    case DType::kFloat16:
      return forward<Float16>(op);
  }
}

void cross_modal_attention_backward(const CrossModalAttention& op) {
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
