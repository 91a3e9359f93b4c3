// What comes before and after absorbed attention in crossmodal attention on the CPU, when no gradients are wanted: a
// few rows times (C, C) weights, which a library's product of large matrices does badly. Weights are read once, in
// place where their layout is that of the words.
#include <cmath>

#include "gemm.h"
#include "kernels.h"
#include "long_rows.h"
#include "memory.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

constexpr int64_t kColumns = 256;  // of the key projection, taken by one work item

// write(b, i, weight[i] · x + bias[i]) for every row i of the weight, where fill(h, b, x) gives the row of sample b
// that row i's head h takes.
template <typename T, typename Fill, typename Write>
void project(const CrossModalProjections& op, int64_t heads, const void* weight, const void* bias, const Fill& fill,
             const Write& write) {
  using Word = typename WordOf<T>::type;
  const int64_t words = row_words<Word>(op.width), stride = odd_vectors(words), padded = words * kPerWord<Word>;
  const bool in_place = sizeof(Word) == sizeof(T) * kPerWord<Word> && padded == op.width;
  const int64_t head_dim = op.width / heads, tiles = (head_dim + kTileOfRows - 1) / kTileOfRows;
  const int64_t pairs = round_up(op.batch, kTileHeads);

#pragma omp parallel
  {
    float* row = scratch(Scratch::kThread, padded + (pairs + kTileOfRows) * stride);
    Word* rows = reinterpret_cast<Word*>(row + padded);
    Word* copies = rows + pairs * stride;
    std::memset(static_cast<void*>(rows), 0, (pairs + kTileOfRows) * stride * sizeof(Word));
    std::memset(row, 0, padded * sizeof(float));
    int64_t filled = -1;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < heads * tiles; ++item) {
      const int64_t head = item / tiles, start = item % tiles * kTileOfRows;
      for (int64_t b = 0; head != filled && b < op.batch; ++b) {
        fill(head, b, row);
        round_row(row, padded, rows + b * stride);
      }
      filled = head;
      const int64_t first = head * head_dim + start, count = min(kTileOfRows, head_dim - start);
      const T* from = static_cast<const T*>(weight) + first * op.width;
      const bool whole = in_place && count == kTileOfRows;
      for (int64_t r = 0; !whole && r < count; ++r) pack_row(from + r * op.width, op.width, copies + r * stride);
      for (int64_t b = 0; b < op.batch; b += kTileHeads) {
        float products[kLanes];
        const auto ask_for_next_rows = [&](int64_t w) __attribute__((always_inline)) {
          for (int64_t r = 0; b == 0 && r < kTileOfRows; ++r)
            __builtin_prefetch(from + (kTileOfRows + r) * op.width + w * kPerWord<Word>, 0, 2);
        };
        store(products, dot_tile(words, whole ? reinterpret_cast<const Word*>(from) : copies, whole ? words : stride,
                                 rows + b * stride, stride, ask_for_next_rows));
        for (int64_t i = 0; i < min(kTileHeads, op.batch - b); ++i)
          for (int64_t r = 0; r < count; ++r)
            write(b + i, first + r, products[i * kTileOfRows + r] + to_float(static_cast<const T*>(bias)[first + r]));
      }
    }
  }
}

// u_h = norm_weight / sqrt(D) * (Wk_h^T q_h), q = Wq LayerNorm(query) + bq.
template <typename T>
void absorb_query(const CrossModalProjections& op) {
  const int64_t head_dim = op.width / op.heads;
  float* q = scratch(Scratch::kShared, op.batch * op.width);
  const auto normalized_query = [&](int64_t, int64_t b, float* y) {
    const T* x = static_cast<const T*>(op.query) + b * op.query_stride_batch;
    const auto [mean, rstd] = centre(x, op.width, round_up(op.width, kLanes), op.eps, y);
    for (int64_t c = 0; c < op.width; ++c) y[c] = (y[c] - mean) * rstd * op.norm_weight[c] + op.norm_bias[c];
  };
  project<T>(op, 1, op.q_weight, op.q_bias, normalized_query,
             [&](int64_t b, int64_t i, float value) { q[b * op.width + i] = value; });

  const int64_t slices = (op.width + kColumns - 1) / kColumns;
  const float scale = 1.0f / std::sqrt(float(head_dim));
#pragma omp parallel
  {
    float* copies = scratch(Scratch::kThread, (head_dim + op.batch) * kColumns);
    float* products = copies + head_dim * kColumns;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < op.heads * slices; ++item) {
      const int64_t head = item / slices, first = item % slices * kColumns;
      const int64_t columns = min(kColumns, op.width - first);
      const T* from = static_cast<const T*>(op.k_weight) + head * head_dim * op.width + first;
      const bool in_place = std::is_same_v<T, float> && columns % kLanes == 0;
      for (int64_t d = 0; !in_place && d < head_dim; ++d) pack_row(from + d * op.width, columns, copies + d * kColumns);
      gemm<float>(op.batch, round_up(columns, kLanes), head_dim, {q + head * head_dim, op.width, 1},
                  in_place ? reinterpret_cast<const float*>(from) : copies, in_place ? op.width : kColumns, products,
                  kColumns, false);
      for (int64_t b = 0; b < op.batch; ++b) {
        float* u = op.u + (b * op.heads + head) * op.width + first;
        for (int64_t c = 0; c < columns; ++c) u[c] = products[b * kColumns + c] * scale * op.norm_weight[first + c];
      }
    }
  }
}

// out_h = Wv_h (norm_weight * z_h + norm_bias) + bv_h.
template <typename T>
void project_values(const CrossModalProjections& op) {
  const auto weighted_mean = [&](int64_t head, int64_t b, float* row) {
    const float* z = op.z + (b * op.heads + head) * op.width;
    for (int64_t c = 0; c < op.width; ++c) row[c] = z[c] * op.norm_weight[c] + op.norm_bias[c];
  };
  project<T>(op, op.heads, op.v_weight, op.v_bias, weighted_mean, [&](int64_t b, int64_t i, float value) {
    static_cast<T*>(op.out)[b * op.width + i] = from_float<T>(value);
  });
}

}  // namespace

void cross_modal_absorb_query(const CrossModalProjections& op) {
  switch (op.dtype) {
    case DType::kFloat32:
      return absorb_query<float>(op);
    case DType::kBFloat16:
      return absorb_query<BFloat16>(op);
    case DType::kFloat16:
      return absorb_query<Float16>(op);
  }
}

void cross_modal_project_values(const CrossModalProjections& op) {
  switch (op.dtype) {
    case DType::kFloat32:
      return project_values<float>(op);
    case DType::kBFloat16:
      return project_values<BFloat16>(op);
    case DType::kFloat16:
      return project_values<Float16>(op);
  }
}

}  // namespace HSTA_ISA
}  // namespace hsta
