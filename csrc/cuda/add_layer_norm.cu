// add_layer_norm on the GPU: a row of up to 1,024 elements belongs to a warp, a wider one to a block. A thread holds
// its pieces of the row, 16 bytes each, in registers between the passes over it, so memory is read once and written
// once.
#include "reduce.h"

namespace hsta::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kWarpColumns = 1024;
constexpr int kRowsPerBlock = 32;  // backward: a block's share of the weights' gradients is then 1/16 of the traffic

// The pieces of a row that a thread holds, as float: piece i starts at column (i * kGroup + thread) * kColumns.
template <typename R, int kGroup>
struct Row {
  static constexpr int kColumns = 16 / sizeof(R), kPieces = kWarpColumns / kWarp / kColumns;
  float at[kPieces][kColumns];

  template <typename F>
  __device__ static void for_pieces(int64_t width, F&& f) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int column = (i * kGroup + thread_index() % kGroup) * kColumns;
      if (column < width) f(i, column);
    }
  }

  template <typename T>
  __device__ void load_from(const T* row, int64_t width) {
    for_pieces(width, [&](int i, int column) {
      const auto piece = load<kColumns>(row + column);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) at[i][c] = widened(piece.at[c]);
    });
  }

  template <typename T>
  __device__ void store_to(T* row, int64_t width) const {
    for_pieces(width, [&](int i, int column) {
      Vector<T, kColumns> piece;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) piece.at[c] = narrowed<T>(at[i][c]);
      store(row + column, piece);
    });
  }

  // f(value, i, c) for every element of the row that this thread holds.
  template <typename F>
  __device__ static void for_elements(int64_t width, F&& f) {
    for_pieces(width, [&](int i, int) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) f(i, c);
    });
  }
};

// Sums over the threads of a row. Each has its own place to meet, so that one barrier a sum is enough.
template <int kGroup>
struct RowSums {
  float* shared = shared_memory<float>();
  int next = 0;
  __device__ float operator()(float value) {
    const float sum = sum_threads<kGroup>(value, shared + next * kWarps);
    next = next == 3 ? 0 : next + 1;
    return sum;
  }
};

// row = (row - mean) / sqrt(var + eps); returns 1 / sqrt(var + eps).
template <typename R, int kGroup>
__device__ float normalize(Row<R, kGroup>& row, int64_t width, float eps, RowSums<kGroup>& sum) {
  float total = 0, squares = 0;
  row.for_elements(width, [&](int i, int c) { total += row.at[i][c]; });
  const float mean = sum(total) / float(width);
  row.for_elements(width, [&](int i, int c) {
    row.at[i][c] -= mean;
    squares = multiply_add(row.at[i][c], row.at[i][c], squares);
  });
  const float rstd = 1 / sqrtf(sum(squares) / float(width) + eps);
  row.for_elements(width, [&](int i, int c) { row.at[i][c] *= rstd; });
  return rstd;
}

template <typename R, typename X, typename N, int kGroup>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ AddLayerNorm op) {
  const int64_t index = block_index() * (kThreads / kGroup) + thread_index() / kGroup;
  if (index >= op.rows) return;
  RowSums<kGroup> sum;
  Row<R, kGroup> row, other;
  row.load_from(op.residual.at<const R>(index), op.width);
  other.load_from(op.x.at<const X>(index), op.width);
  row.for_elements(op.width, [&](int i, int c) {
    row.at[i][c] = widened(narrowed<R>(row.at[i][c] + other.at[i][c]));  // normalize what the next layer reads
  });
  row.store_to(op.sum.as<R>() + index * op.width, op.width);
  normalize(row, op.width, op.eps, sum);
  other.load_from(op.weight.as<float>(), op.width);
  row.for_elements(op.width, [&](int i, int c) { row.at[i][c] *= other.at[i][c]; });
  other.load_from(op.bias.as<float>(), op.width);
  row.for_elements(op.width, [&](int i, int c) { row.at[i][c] += other.at[i][c]; });
  row.store_to(op.norm.as<N>() + index * op.width, op.width);
}

// dL/dsum = grad_sum + rstd * (g - mean(g) - y * mean(g * y)), g = weight * grad_norm, y the normalized row. A block
// takes kRowsPerBlock rows and leaves its share of the weight's and the bias's gradient, (2, width), in the workspace.
template <typename R, typename N, int kGroup>
__global__ void __launch_bounds__(kThreads) backward_kernel(const __grid_constant__ AddLayerNorm op) {
  constexpr int kRowsAtOnce = kThreads / kGroup;
  RowSums<kGroup> sum;
  Row<R, kGroup> grad_weight{}, grad_bias{};
  const int64_t first = block_index() * kRowsPerBlock;
  const int64_t last = first + kRowsPerBlock < op.rows ? first + kRowsPerBlock : op.rows;
  for (int64_t index = first + thread_index() / kGroup; index < last; index += kRowsAtOnce) {
    Row<R, kGroup> y, grad, weight;
    y.load_from(op.sum.as<const R>() + index * op.width, op.width);
    grad.load_from(op.grad_norm.at<const N>(index), op.width);
    const float rstd = normalize(y, op.width, op.eps, sum);
    if (op.norm.data) {  // piece by piece, for registers
      N* norm = op.norm.as<N>() + index * op.width;
      y.for_pieces(op.width, [&](int i, int column) {
        const auto scale = load<y.kColumns>(op.weight.as<float>() + column);
        const auto shift = load<y.kColumns>(op.bias.as<float>() + column);
        Vector<N, y.kColumns> piece;
#pragma unroll
        for (int c = 0; c < y.kColumns; ++c) piece.at[c] = narrowed<N>(y.at[i][c] * scale.at[c] + shift.at[c]);
        store(norm + column, piece);
      });
    }
    weight.load_from(op.weight.as<float>(), op.width);
    float total = 0, along = 0;
    y.for_elements(op.width, [&](int i, int c) {
      grad_weight.at[i][c] = multiply_add(grad.at[i][c], y.at[i][c], grad_weight.at[i][c]);
      grad_bias.at[i][c] += grad.at[i][c];
      grad.at[i][c] *= weight.at[i][c];
      total += grad.at[i][c];
      along = multiply_add(grad.at[i][c], y.at[i][c], along);
    });
    total = sum(total) / float(op.width);
    along = sum(along) / float(op.width);
    Row<R, kGroup> incoming;
    incoming.load_from(op.grad_sum.at<const R>(index), op.width);
    y.for_elements(op.width, [&](int i, int c) {
      y.at[i][c] = incoming.at[i][c] + rstd * (grad.at[i][c] - total - y.at[i][c] * along);
    });
    y.store_to(op.grad_residual.as<R>() + index * op.width, op.width);
    if (op.grad_x.data) y.store_to(op.grad_x.as<N>() + index * op.width, op.width);
  }

  // The groups add their shares one after the other.
  float* totals = shared_memory<float>() + 4 * kWarps;
  for (int turn = 0; turn < kRowsAtOnce; ++turn) {
    if (thread_index() / kGroup == turn)
      grad_weight.for_pieces(op.width, [&](int i, int column) {
#pragma unroll
        for (int c = 0; c < Row<R, kGroup>::kColumns; ++c) {
          float *weight = totals + column + c, *bias = weight + op.width;
          *weight = (turn ? *weight : 0) + grad_weight.at[i][c];
          *bias = (turn ? *bias : 0) + grad_bias.at[i][c];
        }
      });
    block_barrier();
  }
  for (int64_t i = 4 * thread_index(); i < 2 * op.width; i += 4 * kThreads)
    store(op.workspace + block_index() * 2 * op.width + i, *reinterpret_cast<const Vector<float, 4>*>(totals + i));
}

struct ToWeightAndBias {
  float *weight, *bias;
  int64_t width;
  __device__ void operator()(int64_t, int64_t i, const Vector<float, 4>& totals) const {
    store(i < width ? weight + i : bias + (i - width), totals);
  }
};

// f(number of threads that share a row, as a constant).
template <typename F>
void with_group(int64_t width, F&& f) {
  if (width <= kWarpColumns) return f(std::integral_constant<int, kWarp>());
  f(std::integral_constant<int, kThreads>());
}

}  // namespace

void add_layer_norm_forward(const AddLayerNorm& op, Stream stream) {
  with_group(op.width, [&](auto group) {
    const int64_t blocks = divide_up(op.rows, kThreads / group);
    const auto run = [&](auto kernel) { launch(kernel, blocks, kThreads, 4 * kWarps * 4, stream, op); };
    with_type(op.x.dtype, [&](auto x) {
      using X = decltype(x);
      if (op.dtype == op.x.dtype) return run(forward_kernel<X, X, X, group()>);
      if (op.norm.dtype == op.dtype) return run(forward_kernel<float, X, float, group()>);
      run(forward_kernel<float, X, X, group()>);
    });
  });
}

int64_t add_layer_norm_workspace(const AddLayerNorm& op) { return divide_up(op.rows, kRowsPerBlock) * 2 * op.width; }

void add_layer_norm_backward(const AddLayerNorm& op, Stream stream) {
  const int64_t blocks = divide_up(op.rows, kRowsPerBlock);
  with_group(op.width, [&](auto group) {
    const auto run = [&](auto kernel) {
      launch(kernel, blocks, kThreads, (4 * kWarps + 2 * op.width) * 4, stream, op);
    };
    with_type(op.grad_norm.dtype, [&](auto narrow) {
      using N = decltype(narrow);
      if (op.dtype == op.grad_norm.dtype) return run(backward_kernel<N, N, group()>);
      run(backward_kernel<float, N, group()>);
    });
  });
  sum_parts(op.workspace, 1, blocks, 2 * op.width,
            ToWeightAndBias{op.grad_weight.as<float>(), op.grad_bias.as<float>(), op.width}, stream);
}

}  // namespace hsta::cuda
