// The rows of [query, tokens] of a sample, shared out among the blocks of a cluster. A block has its rows in tiles of
// eight a warp: while it computes with one tile, the next is on its way by bulk copies. In each tile a warp normalizes
// its eight rows in place and multiplies them with all heads; then it has some of the columns, in squares of 16, of
// all rows. So threads wait for each other three times a tile. What a block has summed up in the end, the cluster adds
// up through distributed shared memory, in the order of the blocks.
#pragma once

#include "kernels.h"
#include "tile.h"

namespace hsta::cuda {

constexpr int kHeads = kSquare;  // with empty ones behind the last
constexpr int kRowsOfWarp = 8, kColumnsOfProduct = 32;
constexpr float kLog2EFloat = 1.4426950408889634f;

// How many rows a block has, and how many blocks share a sample: as many as have three tiles of 64 rows to do, which
// leaves the next tile time to come, and at most the eight of a portable cluster. The batch has no say: results do not
// depend on it.
struct Shares {
  int64_t rows_of_block;
  int blocks;

  explicit Shares(const AbsorbedAttention& op) {
    constexpr int64_t kMost = 8, kRows = 192;
    const int64_t rows = op.tokens + 1;
    rows_of_block = round_up(divide_up(rows, min(divide_up(rows, kRows), kMost)), kRowsOfWarp);
    blocks = int(divide_up(rows, rows_of_block));
  }
};

inline int padded_width(int64_t width) { return int(round_up(width, kColumnsOfProduct)); }

// Shared memory. kSides: 1 for the forward pass, which has products with u; 2 for the backward pass, which also has
// some with the gradient of z. kWarps: of a block.
template <typename T, int kWarps, int kSides>
struct Memory {
  static constexpr int kTile = kWarps * kRowsOfWarp;
  static constexpr int kFloats = 3 * kTile + (3 + 2 * kWarps) * kHeads;

  Arrival* arrivals;         // of the two tiles
  Matrix<T> heads[kSides];   // u, and the gradient of z
  Matrix<T> tiles;           // two, in turn
  Matrix<T> scores[kSides];  // probabilities, and the scores' gradients: (heads, rows)
  float* of_rows;            // three numbers a row
  float* of_heads;           // three numbers a head
  float* of_warps;           // two numbers a warp and head

  __device__ explicit Memory(int padded) {
    arrivals = shared_memory<Arrival>();
    Matrix<T> next{reinterpret_cast<T*>(arrivals + 2), pitch_of<T>(padded)};
    for (auto& matrix : heads) matrix = next, next = next.from(kHeads, 0);
    tiles = next, next = next.from(2 * kTile, 0);
    next.pitch = pitch_of<T>(kTile);
    for (auto& matrix : scores) matrix = next, next = next.from(kHeads, 0);
    of_rows = reinterpret_cast<float*>(next.data);
    of_heads = of_rows + 3 * kTile;
    of_warps = of_heads + 3 * kHeads;
  }

  __device__ Matrix<T> tile(int index) const { return tiles.from(index % 2 * kTile, 0); }
  __device__ Arrival& arrival(int index) const { return arrivals[index % 2]; }
  // The sums of the heads, in float, where the tiles were.
  __device__ Matrix<float> sums(int padded) const { return {reinterpret_cast<float*>(tiles.data), padded + 4}; }

  static int64_t bytes(int padded) {
    const int64_t elements = (kSides * kHeads + 2 * kTile) * pitch_of<T>(padded) + kSides * kHeads * pitch_of<T>(kTile);
    return 2 * int64_t(sizeof(Arrival)) + elements * int64_t(sizeof(T)) + kFloats * 4;
  }
};

// A block's rows, and the heads of their sample. kSquares: squares of columns that a warp may have.
template <typename T, int kWarps, int kSquares>
struct Rows {
  static constexpr int kPiece = 16 / sizeof(T);
  static constexpr int kTile = kWarps * kRowsOfWarp;
  static constexpr int kLanesOfRow = kWarp / kRowsOfWarp;
  static constexpr int kPieces = kWarps * kSquares * kSquare / (kPiece * kLanesOfRow);  // of a row, a lane

  const AbsorbedAttention& op;
  int width, padded;
  int64_t sample, first, last;
  int warp, lane;

  __device__ Rows(const AbsorbedAttention& op, const Shares& shares, int padded)
      : op(op), width(int(op.width)), padded(padded) {
    sample = block_index() / shares.blocks;
    first = cluster_rank() * shares.rows_of_block;
    last = min(first + shares.rows_of_block, op.tokens + 1);
    warp = thread_index() / kWarp, lane = thread_index() % kWarp;
  }

  __device__ int64_t first_of(int tile) const { return first + tile * kTile; }
  // How many rows a tile has: none behind the last one.
  __device__ int rows_of(int tile) const {
    const int64_t left = last - first_of(tile);
    return left < 0 ? 0 : left < kTile ? int(left) : kTile;
  }

  // Asks for a tile's rows: called by the whole block, and after a barrier.
  template <typename Memory>
  __device__ void bring(int tile, const Memory& memory) const {
    const int rows = rows_of(tile), bytes = width * int(sizeof(T));
    if (warp || !rows) return;
    if (lane == 0) expect_bytes(memory.arrival(tile), rows * bytes);
    warp_barrier();
    for (int row = lane; row < rows; row += kWarp) {
      const int64_t source = first_of(tile) + row;
      const T* from = source ? op.token.at<const T>(sample, source - 1) : op.query.at<const T>(sample);
      copy_bulk(memory.tile(tile).at(row, 0), from, bytes, memory.arrival(tile));
    }
  }

  // Before all else: the first tiles are asked for, and nothing but zeros is behind the rows' columns.
  template <typename Memory>
  __device__ void start(const Memory& memory) const {
    if (thread_index() == 0) begin(memory.arrivals[0]), begin(memory.arrivals[1]);
    for (int i = thread_index(); i < 2 * kTile * (padded - width); i += kWarps * kWarp)
      *memory.tiles.at(i / (padded - width), width + i % (padded - width)) = T{};
    order_before_copies();
    block_barrier();
    bring(0, memory);
    bring(1, memory);
  }

  // The heads of a (B, H, C) array of float, as factors of products; zeros where there are none.
  __device__ void load_heads(const float* from, Matrix<T> to) const {
    const int pieces = padded / 4;
    for (int i = thread_index(); i < kHeads * pieces; i += kWarps * kWarp) {
      const int head = i / pieces, column = i % pieces * 4;
      Vector<float, 4> values{};
      if (head < op.heads && column < width) values = load<4>(from + (sample * op.heads + head) * width + column);
      Vector<T, 4> narrow;
      for (int c = 0; c < 4; ++c) narrow.at[c] = narrowed<T>(values.at[c]);
      *reinterpret_cast<Vector<T, 4>*>(to.at(head, column)) = narrow;
    }
  }

  // y = (x - mean) / sqrt(var + eps) of this warp's rows of a tile, in place; zeros behind the last row. Returns
  // 1 / sqrt(var + eps) of row lane % 8. Eight neighbouring lanes have different rows: their banks differ, too.
  __device__ float normalize(int tile, Matrix<T> rows) const {
    const int row = lane % kRowsOfWarp, part = lane / kRowsOfWarp;
    const bool valid = warp * kRowsOfWarp + row < rows_of(tile);
    constexpr int kWords = kPiece / 2;
    using Piece = Vector<uint32_t, kWords>;  // of elements, each would take a register
    Piece x[kPieces];
    const auto each_piece = [&](auto&& f) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int column = (i * kLanesOfRow + part) * kPiece;
        if (column < width) f(x[i], *reinterpret_cast<Piece*>(rows.at(row, column)));
      }
    };
    const auto mean_of = [&](const float (&sums)[kWords]) {
      float sum = sums[0] + sums[1] + (sums[2] + sums[3]);
      for (int mask = kRowsOfWarp; mask < kWarp; mask *= 2) sum += shuffle_xor(sum, mask);
      return sum / float(width);
    };
    float sums[kWords] = {}, squares[kWords] = {};  // several, for their sums not to wait for each other
    each_piece([&](Piece& x, const Piece& stored) {
      x = valid ? stored : Piece{};
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const Vector<float, 2> pair = widened_pair<T>(x.at[w]);
        sums[w] += pair.at[0] + pair.at[1];
      }
    });
    const float mean = mean_of(sums);
    each_piece([&](const Piece& x, const Piece&) {
#pragma unroll
      for (int w = 0; w < kWords; ++w)
        for (float value : widened_pair<T>(x.at[w]).at)
          squares[w] = multiply_add(value - mean, value - mean, squares[w]);
    });
    const float rstd = 1 / sqrtf(mean_of(squares) + op.eps);
    each_piece([&](const Piece& x, Piece& stored) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        Vector<float, 2> y = widened_pair<T>(x.at[w]);
        for (float& value : y.at) value = (value - mean) * rstd;
        *reinterpret_cast<Vector<T, 2>*>(&stored.at[w]) = narrowed_pair<T>(y);
      }
    });
    return rstd;
  }

  // Writes the gradients of a tile's rows, which have taken their place.
  __device__ void store_gradients(int tile, Matrix<T> grads) const {
    const int pieces = width / kPiece;
    for (int i = thread_index(); i < rows_of(tile) * pieces; i += kWarps * kWarp) {
      const int64_t target = first_of(tile) + i / pieces;
      const int column = i % pieces * kPiece;
      T* to = target ? op.grad_token.as<T>() + (sample * op.tokens + target - 1) * width
                     : op.grad_query.as<T>() + sample * width;
      store(to + column, *reinterpret_cast<const Vector<T, kPiece>*>(grads.at(i / pieces, column)));
    }
  }

  // f(i, column) for the squares of columns that belong to this thread's warp.
  template <typename F>
  __device__ void each_square(F&& f) const {
#pragma unroll
    for (int i = 0; i < kSquares; ++i) {
      const int column = (warp + i * kWarps) * kSquare;
      if (column < padded) f(i, column);
    }
  }

  // f(head, column) for this block's share, four columns a thread, of what the cluster has summed up.
  template <typename F>
  __device__ void each_share(F&& f) const {
    const int pieces = width / 4, threads = cluster_size() * kWarps * kWarp;
    for (int i = cluster_rank() * kWarps * kWarp + thread_index(); i < int(op.heads) * pieces; i += threads)
      f(i / pieces, i % pieces * 4);
  }
};

// f(how many squares of columns a warp has, at most, of rows of `width`).
template <int kWarps, typename F>
void with_squares(int64_t width, F&& f) {
  constexpr int kMost = kMaxWidth / kSquare / kWarps;
  if (width <= kMaxWidth / 2) return f(std::integral_constant<int, kMost / 2>());
  f(std::integral_constant<int, kMost>());
}

}  // namespace hsta::cuda
