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

template <typename Word>
struct ProjectionBuffers {
  float* row;
  Word *rows, *copies;  // of the samples, of the weight
  ProjectionBuffers(Arena& arena, int64_t padded, int64_t pairs, int64_t stride)
      : row(arena.take(padded)),
        rows(arena.take<Word>(pairs * stride)),
        copies(arena.take<Word>(kTileOfRows * stride)) {}
};

// write(b, i, weight[i] · x + bias[i]) for every row i of the weight, where fill(h, b, x) gives the row of sample b
// that row i's head h takes.
template <typename T, typename Fill, typename Write>
void project(const CrossModalProjections& op, int64_t heads, const TensorView& weight, const TensorView& bias,
             const Fill& fill, const Write& write) {
  using Word = typename WordOf<T>::type;
  const int64_t words = row_words<Word>(op.width), stride = odd_vectors(words), padded = words * kPerWord<Word>;
  const bool in_place = sizeof(Word) == sizeof(T) * kPerWord<Word> && padded == op.width;
  const int64_t head_dim = op.width / heads, tiles = divide_up(head_dim, kTileOfRows);
  const int64_t pairs = round_up(op.batch, kTileHeads);

#pragma omp parallel
  {
    const auto [row, rows, copies] = pieces<ProjectionBuffers<Word>>(Scratch::kThread, padded, pairs, stride);
    std::memset(static_cast<void*>(rows), 0, pairs * stride * sizeof(Word));
    std::memset(static_cast<void*>(copies), 0, kTileOfRows * stride * sizeof(Word));
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
      const T* from = weight.at<const T>(first);
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
            write(b + i, first + r, products[i * kTileOfRows + r] + to_float(bias.as<const T>()[first + r]));
      }
    }
  }
}

struct AbsorbBuffers {
  float *copies, *products;
  AbsorbBuffers(Arena& arena, int64_t head_dim, int64_t batch)
      : copies(arena.take(head_dim * kColumns)), products(arena.take(batch * kColumns)) {}
};

// u_h = norm_weight / sqrt(D) * (Wk_h^T q_h), q = Wq LayerNorm(query) + bq.
template <typename T>
void absorb_query(const CrossModalProjections& op) {
  const int64_t head_dim = op.width / op.heads;
  const float *norm_weight = op.norm_weight.as<float>(), *norm_bias = op.norm_bias.as<float>();
  float* q = scratch(Scratch::kShared, op.batch * op.width);
  const auto normalized_query = [&](int64_t, int64_t b, float* y) {
    const T* x = op.query.at<const T>(b);
    const auto [mean, rstd] = centre(x, op.width, round_up(op.width, kLanes), op.eps, y);
    for (int64_t c = 0; c < op.width; ++c) y[c] = (y[c] - mean) * rstd * norm_weight[c] + norm_bias[c];
  };
  project<T>(op, 1, op.q_weight, op.q_bias, normalized_query,
             [&](int64_t b, int64_t i, float value) { q[b * op.width + i] = value; });

  const int64_t slices = divide_up(op.width, kColumns);
  const float scale = 1.0f / std::sqrt(float(head_dim));
#pragma omp parallel
  {
    const auto [copies, products] = pieces<AbsorbBuffers>(Scratch::kThread, head_dim, op.batch);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < op.heads * slices; ++item) {
      const int64_t head = item / slices, first = item % slices * kColumns;
      const int64_t columns = min(kColumns, op.width - first);
      const T* from = op.k_weight.at<const T>(head * head_dim) + first;
      const bool in_place = std::is_same_v<T, float> && columns % kLanes == 0;
      for (int64_t d = 0; !in_place && d < head_dim; ++d) pack_row(from + d * op.width, columns, copies + d * kColumns);
      gemm<float>(op.batch, round_up(columns, kLanes), head_dim, {q + head * head_dim, op.width, 1},
                  in_place ? rows_of(reinterpret_cast<const float*>(from), op.width) : rows_of<float>(copies, kColumns),
                  products, kColumns, false);
      for (int64_t b = 0; b < op.batch; ++b) {
        float* u = op.u.at<float>(b, head) + first;
        for (int64_t c = 0; c < columns; ++c) u[c] = products[b * kColumns + c] * scale * norm_weight[first + c];
      }
    }
  }
}

// out_h = Wv_h (norm_weight * z_h + norm_bias) + bv_h.
template <typename T>
void project_values(const CrossModalProjections& op) {
  const float *norm_weight = op.norm_weight.as<float>(), *norm_bias = op.norm_bias.as<float>();
  const auto weighted_mean = [&](int64_t head, int64_t b, float* row) {
    const float* z = op.z.at<const float>(b, head);
    for (int64_t c = 0; c < op.width; ++c) row[c] = z[c] * norm_weight[c] + norm_bias[c];
  };
  project<T>(op, op.heads, op.v_weight, op.v_bias, weighted_mean,
             [&](int64_t b, int64_t i, float value) { op.out.as<T>()[b * op.width + i] = from_float<T>(value); });
}

}  // namespace

void cross_modal_absorb_query(const CrossModalProjections& op) {
  with_type(op.dtype, [&](auto element) { absorb_query<decltype(element)>(op); });
}

void cross_modal_project_values(const CrossModalProjections& op) {
  with_type(op.dtype, [&](auto element) { project_values<decltype(element)>(op); });
}

}  // namespace HSTA_ISA
}  // namespace hsta
