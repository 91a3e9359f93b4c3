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
constexpr int kRowsOfWarp = 8;
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

// Shared memory. kSides: 1 for the forward pass, which has products with u; 2 for the backward pass, which also has
// some with the gradient of z. kWarps: of a block.
template <typename T, int kWidth, int kWarps, int kSides>
struct Memory {
  static constexpr int kTile = kWarps * kRowsOfWarp;
  using RowsOfTokens = Matrix<T, kWidth>;
  using Scores = Matrix<T, kTile>;

  Arrival* arrivals;           // of the two tiles
  RowsOfTokens heads[kSides];  // u, and the gradient of z
  RowsOfTokens tiles;          // two, in turn
  Scores scores[kSides];       // probabilities, and the scores' gradients: (heads, rows)
  float* of_rows;              // three numbers a row
  float* of_heads;             // three numbers a head
  float* of_warps;             // two numbers a warp and head

  __device__ Memory() {
    arrivals = shared_memory<Arrival>();
    RowsOfTokens next{reinterpret_cast<T*>(arrivals + 2)};
    for (auto& matrix : heads) matrix = next, next = next.from(kHeads, 0);
    tiles = next;
    Scores after{next.at(2 * kTile, 0)};
    for (auto& matrix : scores) matrix = after, after = after.from(kHeads, 0);
    of_rows = reinterpret_cast<float*>(after.data);
    of_heads = of_rows + 3 * kTile;
    of_warps = of_heads + 3 * kHeads;
  }

  __device__ RowsOfTokens tile(int index) const { return tiles.from(index % 2 * kTile, 0); }
  __device__ Arrival& arrival(int index) const { return arrivals[index % 2]; }
  // The sums of the heads, in float, where the tiles were.
  __device__ Matrix<float, kWidth> sums() const { return {reinterpret_cast<float*>(tiles.data)}; }

  static constexpr int kBytes = 2 * int(sizeof(Arrival)) + RowsOfTokens::bytes(kSides * kHeads + 2 * kTile) +
                                Scores::bytes(kSides * kHeads) + 4 * (3 * kTile + (3 + 2 * kWarps) * kHeads);
  static_assert(Matrix<float, kWidth>::bytes(kHeads) <= RowsOfTokens::bytes(2 * kTile));
};

// A block's rows, and the heads of their sample.
template <typename T, int kWidth, int kWarps>
struct Rows {
  static constexpr int kTile = kWarps * kRowsOfWarp, kPiece = 16 / sizeof(T);
  static constexpr int kSquares = (kWidth / kSquare + kWarps - 1) / kWarps;  // of columns, that a warp may have
  using Tokens = Matrix<T, kWidth>;

  const AbsorbedAttention& op;
  int64_t sample, first, last;
  int warp, lane;

  __device__ Rows(const AbsorbedAttention& op, const Shares& shares) : op(op) {
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
    constexpr int kBytes = kWidth * int(sizeof(T));
    const int rows = rows_of(tile);
    if (warp || !rows) return;
    if (lane == 0) expect_bytes(memory.arrival(tile), rows * kBytes);
    warp_barrier();
    for (int row = lane; row < rows; row += kWarp) {
      const int64_t source = first_of(tile) + row;
      const T* from = source ? op.token.at<const T>(sample, source - 1) : op.query.at<const T>(sample);
      copy_bulk(memory.tile(tile).at(row, 0), from, kBytes, memory.arrival(tile));
    }
  }

  // Before all else: the first tiles are asked for.
  template <typename Memory>
  __device__ void start(const Memory& memory) const {
    if (thread_index() == 0) begin(memory.arrivals[0]), begin(memory.arrivals[1]);
    order_before_copies();
    block_barrier();
    bring(0, memory);
    bring(1, memory);
  }

  // Where a head's row begins in a (B, H, C) array of float; of those that are not there, the last one's.
  __device__ const float* row_of_head(const float* from, int head) const {
    return from + (sample * op.heads + min(head, op.heads - 1)) * kWidth;
  }

  // The heads of such an array as factors of products; zeros where there are none. All are asked for before the first is
  // waited for.
  __device__ void load_heads(const float* from, Tokens to) const {
    constexpr int kPieces = kWidth / 4, kThreads = kWarps * kWarp, kTurns = (kHeads * kPieces + kThreads - 1) / kThreads;
    Vector<float, 4> values[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int i = turn * kThreads + thread_index();
      values[turn] = load<4>(row_of_head(from, i / kPieces) + i % kPieces * 4);
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int i = turn * kThreads + thread_index(), head = i / kPieces;
      const auto& x = values[turn].at;
      const uint32_t words[2] = {narrowed_word<T>({{x[0], x[1]}}), narrowed_word<T>({{x[2], x[3]}})};
      if (kTurns * kThreads == kHeads * kPieces || head < kHeads)
        *reinterpret_cast<Vector<uint32_t, 2>*>(to.at(head, i % kPieces * 4)) = {
            {head < op.heads ? words[0] : 0, head < op.heads ? words[1] : 0}};
    }
  }

  // y = (x - mean) / sqrt(var + eps) of this warp's rows of a tile, in their place; zeros behind the last row. Returns
  // 1 / sqrt(var + eps) of row lane / 4.
  __device__ float normalize(int tile, Tokens place) const {
    EightRows<T, kWidth> rows(place);
    const int left = rows_of(tile) - warp * kRowsOfWarp;
    if (left < kRowsOfWarp) rows.each([&](uint32_t& word) { word = rows.row() < left ? word : 0; });
    // Mean and variance in one pass, as those of the differences from the row's first element. That lies within √C
    // standard deviations of the mean: the variance keeps its digits.
    const auto* begin = reinterpret_cast<const uint32_t*>(place.at(rows.row(), 0));
    const float first = rows.row() < left ? widened_pair<T>(*begin).at[0] : 0;
    float sums[4] = {}, squares[4] = {};  // several, for their sums not to wait for each other
    int turn = 0;
    rows.each([&](uint32_t& word) {
      for (float value : widened_pair<T>(word).at) {
        const float difference = value - first;
        sums[turn % 4] += difference;
        squares[turn % 4] = multiply_add(difference, difference, squares[turn % 4]);
        ++turn;
      }
      forget(word);  // or the compiler keeps the differences, which are more than there are registers
    });
    const auto mean_of = [](const float (&parts)[4]) {
      float sum = parts[0] + parts[1] + (parts[2] + parts[3]);
      sum += shuffle_xor(sum, 1), sum += shuffle_xor(sum, 2);
      return sum / float(kWidth);
    };
    const float above = mean_of(sums), mean = first + above;
    const float rstd = 1 / sqrtf(fmaxf(mean_of(squares) - above * above, 0) + op.eps);
    rows.each([&](uint32_t& word) {
      Vector<float, 2> y = widened_pair<T>(word);
      for (float& value : y.at) value = (value - mean) * rstd;
      word = narrowed_word<T>(y);
    });
    rows.store(place);
    warp_barrier();
    return rstd;
  }

  // Writes the gradients of a tile's rows, which have taken their place.
  __device__ void store_gradients(int tile, Tokens grads) const {
    constexpr int kPieces = kWidth / kPiece;
    for (int i = thread_index(); i < rows_of(tile) * kPieces; i += kWarps * kWarp) {
      const int64_t target = first_of(tile) + i / kPieces;
      const int column = i % kPieces * kPiece;
      T* to = target ? op.grad_token.as<T>() + (sample * op.tokens + target - 1) * kWidth
                     : op.grad_query.as<T>() + sample * kWidth;
      store(to + column, *reinterpret_cast<const Vector<T, kPiece>*>(grads.at(i / kPieces, column)));
    }
  }

  // f(i, column) for the squares of columns that belong to this thread's warp.
  template <typename F>
  __device__ void each_square(F&& f) const {
#pragma unroll
    for (int i = 0; i < kSquares; ++i) {
      const int column = (warp + i * kWarps) * kSquare;
      if (column < kWidth) f(i, column);
    }
  }

  // f(head, column) for this block's share, four columns a thread, of what the cluster has summed up.
  template <typename F>
  __device__ void each_share(F&& f) const {
    constexpr int kPieces = kWidth / 4;
    const int threads = cluster_size() * kWarps * kWarp;
    for (int i = cluster_rank() * kWarps * kWarp + thread_index(); i < int(op.heads) * kPieces; i += threads)
      f(i / kPieces, i % kPieces * 4);
  }
};

}  // namespace hsta::cuda
