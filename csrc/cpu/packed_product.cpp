// out = gelu(x · weight^T + bias), or without GELU, with the weight in panels: what is wide and used often is laid out
// once, x is read in place. A span of a panel stays in the caches while a block of rows goes by.
#include "gelu.h"
#include "kernels.h"
#include "row_vectors.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 8, kTileVecs = 3;  // 24 sums of 32 registers
#else
constexpr int kTileRows = 5, kTileVecs = 2;  // 10 of 16: six rows would leave no room for what GCC moves
#endif
constexpr int64_t kTileColumns = kTileVecs * kLanes;
static_assert(kPanelColumns % kTileColumns == 0);
constexpr int64_t kLineFloats = 16;
constexpr int64_t kDepth = 768;          // of the spans that products are made in
constexpr int64_t kChain = 384;          // terms that are added one after the other: more would round worse
constexpr int64_t kBlockFloats = 98304;  // of x, which the second cache holds beside a span of a panel

struct Lines {
  const float* first;
  int64_t count;
};

// The lines that are read next, in equal parts for each tile of this span of a panel to ask for.
class Ahead {
 public:
  Ahead(const float* first, int64_t count, int64_t parts) : first_(first), count_(count), parts_(parts) {}
  Lines next() {
    const int64_t begin = count_ * part_ / parts_, end = count_ * ++part_ / parts_;
    return {first_ + begin * kLineFloats, end - begin};
  }

 private:
  const float* first_;
  int64_t count_, parts_, part_ = 0;
};

struct Tile {
  int64_t depth, columns;
  const float* x;
  int64_t x_row;
  const float *weight, *bias;
  float* out;
  int64_t out_row;
  bool first;  // of the spans of a panel's depth
  bool gelu;   // after the last
  Lines ahead;
};

template <int kRows>
inline void multiply(const Tile& tile) {
  // Two addresses for the rows: more than four strides from one are none that an instruction can name.
  const int64_t row = tile.x_row;
  const float *x = tile.x, *fifth = x + (kRows > 4 ? 4 : 0) * row, *weight = tile.weight, *ahead = tile.ahead.first;
  int64_t lines = tile.ahead.count;
  for (int64_t begin = 0; begin == 0 || begin < tile.depth; begin += kChain) {
    Vec sum[kRows][kTileVecs];
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 3
      for (int n = 0; n < kTileVecs; ++n) {
        __builtin_prefetch(tile.out + m * tile.out_row + n * kLanes, 1, 3);
        sum[m][n] = Vec{};
      }
    const auto step = [&]() __attribute__((always_inline)) {
      Vec w[kTileVecs];
#pragma GCC unroll 3
      for (int n = 0; n < kTileVecs; ++n) w[n] = load(weight + n * kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const Vec factor = rounded(broadcast(m < 4 ? x[m * row] : fifth[(m - 4) * row]));
#pragma GCC unroll 3
        for (int n = 0; n < kTileVecs; ++n) sum[m][n] = multiply_add(sum[m][n], factor, w[n]);
      }
      weight += kPanelColumns, ++x, ++fifth;
    };
    const int64_t end = min(begin + kChain, tile.depth);
    int64_t k = begin;
    for (; k + 4 <= end; k += 4) {
      if (lines > 0) __builtin_prefetch(ahead, 0, 2), ahead += kLineFloats, --lines;
      step(), step(), step(), step();
    }
    for (; k < end; ++k) step();
    const bool first = tile.first && begin == 0;
    if (tile.columns == kTileColumns) {
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 3
        for (int n = 0; n < kTileVecs; ++n) {
          float* out = tile.out + m * tile.out_row + n * kLanes;
          store(out, load(first ? tile.bias + n * kLanes : out) + sum[m][n]);
        }
    } else {
      float sums[kRows][kTileColumns];
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 3
        for (int n = 0; n < kTileVecs; ++n) store(sums[m] + n * kLanes, sum[m][n]);
      for (int m = 0; m < kRows; ++m) {
        float* out = tile.out + m * tile.out_row;
        const float* before = first ? tile.bias : out;
        for_vectors(tile.columns, [&](int64_t c, auto count) {
          store_floats(load_floats(before + c, count) + load(sums[m] + c), out + c, count);
        });
      }
    }
  }
  if (tile.gelu)
    for (int m = 0; m < kRows; ++m) {
      float* out = tile.out + m * tile.out_row;
      for_vectors(tile.columns,
                  [&](int64_t c, auto count) { store_floats(gelu(load_floats(out + c, count)), out + c, count); });
    }
}

// Every row's sums are made alike, so that a row's result does not depend on how many there are.
template <int kRows = kTileRows>
inline void multiply(int64_t rows, const Tile& tile) {
  if (rows == kRows) return multiply<kRows>(tile);
  if constexpr (kRows > 1) multiply<kRows - 1>(rows, tile);
}

}  // namespace

void packed_product(const PackedProduct& op) {
  const int64_t tiles = divide_up(op.rows, kTileRows), panels = divide_up(op.columns, kPanelColumns);
  const int64_t blocks = 1 + op.rows * min(op.inner, kDepth) / kBlockFloats;
  const auto row_of = [&](int64_t tile) { return op.rows * tile / tiles; };
#pragma omp parallel
  for (int64_t k = 0; k == 0 || k < op.inner; k += kDepth) {
    const int64_t depth = min(kDepth, op.inner - k);
    // A thread meets the same elements of out in every span: nobody has to wait.
#pragma omp for schedule(static) nowait
    for (int64_t item = 0; item < blocks * panels; ++item) {
      const int64_t block = item / panels, panel = item % panels;
      const int64_t begin = tiles * block / blocks, end = tiles * (block + 1) / blocks;
      const int64_t column = panel * kPanelColumns, columns = min(op.columns - column, kPanelColumns);
      Ahead ahead(op.weight.at<const float>((panel + 1) % panels, k), depth * kPanelColumns / kLineFloats,
                  (end - begin) * divide_up(columns, kTileColumns));
      for (int64_t c = 0; c < columns; c += kTileColumns)
        for (int64_t t = begin; t < end; ++t) {
          const int64_t row = row_of(t);
          Tile tile{};
          tile.depth = depth, tile.columns = min(columns - c, kTileColumns);
          tile.x = op.x.at<const float>(row, k), tile.x_row = op.x.stride[0];
          tile.weight = op.weight.at<const float>(panel, k, c), tile.bias = op.bias.at<const float>(column + c);
          tile.out = op.out.at<float>(row, column + c), tile.out_row = op.out.stride[0];
          tile.first = k == 0, tile.gelu = op.gelu && k + depth >= op.inner;
          tile.ahead = ahead.next();
          multiply(row_of(t + 1) - row, tile);
        }
    }
  }
}

}  // namespace HSTA_ISA
}  // namespace hsta
