// The rows of [query, tokens] of a sample, shared out among the blocks of a cluster. A block has its rows in tiles of
// eight a warp: while it computes with one tile, the next is on its way by bulk copies. In each tile a warp multiplies
// its eight rows with all heads; then it has some of the columns, in squares of 16, of all rows. So threads wait for
// each other three times a tile. What a block has summed up in the end, the cluster adds up through distributed shared
// memory, in the order of the blocks.
//
// With y = (x - mean) rstd, u·y = rstd (u·x - mean Σu) and Σ p y = Σ (p rstd) x - Σ (p rstd) mean: in bfloat16 rows are
// multiplied as they are. Where the mean is large, digits would be lost, and in float16 p rstd may be too small a
// number: there rows are normalized first, in their place.
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

// Of a row as products have it: y = (x - mean) scale. rstd is 1 / sqrt(var + eps), and scale the same unless the row is
// normalized.
struct alignas(16) Moments {
  float mean, scale, inverse_scale, rstd;
};

// How many standard deviations a mean may be: float then leaves scores more digits than bfloat16 leaves y.
constexpr float kNear = 64;

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
  Moments* moments;            // of the rows
  Vector<float, 4>* of_rows;   // four numbers a row, in the backward pass
  float* of_heads;             // four numbers a head
  float* of_warps;             // three numbers a warp and head

  __device__ Memory() {
    arrivals = shared_memory<Arrival>();
    RowsOfTokens next{reinterpret_cast<T*>(arrivals + 2)};
    for (auto& matrix : heads) matrix = next, next = next.from(kHeads, 0);
    tiles = next;
    Scores after{next.at(2 * kTile, 0)};
    for (auto& matrix : scores) matrix = after, after = after.from(kHeads, 0);
    moments = reinterpret_cast<Moments*>(after.data);
    of_rows = reinterpret_cast<Vector<float, 4>*>(moments + kTile);
    of_heads = reinterpret_cast<float*>(of_rows + (kSides - 1) * kTile);
    of_warps = of_heads + 4 * kHeads;
  }

  __device__ RowsOfTokens tile(int index) const { return tiles.from(index % 2 * kTile, 0); }
  __device__ Arrival& arrival(int index) const { return arrivals[index % 2]; }
  // The sums of the heads, in float, where the tiles were.
  __device__ Matrix<float, kWidth> sums() const { return {reinterpret_cast<float*>(tiles.data)}; }

  static constexpr int kBytes = 2 * int(sizeof(Arrival)) + RowsOfTokens::bytes(kSides * kHeads + 2 * kTile) +
                                Scores::bytes(kSides * kHeads) + 16 * kSides * kTile + 4 * (4 + 3 * kWarps) * kHeads;
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

  // Asks for a tile's rows: called by the whole block, and after a barrier. What was in their place has been stored.
  template <typename Memory>
  __device__ void bring(int tile, const Memory& memory) const {
    constexpr int kBytes = kWidth * int(sizeof(T));
    const int rows = rows_of(tile);
    if (warp) return;
    wait_stores();
    if (!rows) return;
    warp_barrier();
    if (lane == 0) expect_bytes(memory.arrival(tile), rows * kBytes);
    warp_barrier();
#pragma unroll 1
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

  // The heads of such an array as factors of products; zeros where there are none. All are asked for before the first
  // is waited for.
  __device__ void load_heads(const float* from, Tokens to) const {
    constexpr int kPieces = kWidth / 4, kThreads = kWarps * kWarp,
                  kTurns = (kHeads * kPieces + kThreads - 1) / kThreads;
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

  // Products of the heads with this warp's rows of a tile, as multiply_rows has them, and these rows' moments. Behind
  // the last row there are zeros.
  template <int kSides>
  __device__ void multiply_heads(float (&products)[kSides][2][2], const Tokens (&heads)[kSides], int tile, Tokens place,
                                 Moments* moments) const {
    const int row = lane / 4, left = rows_of(tile) - warp * kRowsOfWarp;
    if (left < kRowsOfWarp) {
      constexpr int kPieces = kWidth / kPiece;
      for (int i = (left < 0 ? 0 : left) * kPieces + lane; i < kRowsOfWarp * kPieces; i += kWarp)
        *reinterpret_cast<Vector<uint32_t, 4>*>(place.at(i / kPieces, i % kPieces * kPiece)) = {};
      warp_barrier();
    }
    // Mean and variance in one pass, as those of the differences from the row's first element. That lies within √C
    // standard deviations of the mean: the variance keeps its digits.
    const float first = widened_pair<T>(*reinterpret_cast<const uint32_t*>(place.at(row, 0))).at[0];
    float sums[2] = {}, squares[2] = {};  // of even and odd elements
    const auto measure = [&](uint32_t word) {
      const Vector<float, 2> x = widened_pair<T>(word);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float difference = x.at[c] - first;
        sums[c] += difference, squares[c] = multiply_add(difference, difference, squares[c]);
      }
    };
    const auto measured = [&] {
      const auto mean_of = [](float sum) { return sum_lanes(sum, 1, 4) / float(kWidth); };
      const float above = mean_of(sums[0] + sums[1]), variance = mean_of(squares[0] + squares[1]) - above * above;
      const float deviation = sqrtf(fmaxf(variance, 0) + op.eps);
      return Moments{first + above, 1 / deviation, deviation, 1 / deviation};
    };
    const auto normalize = [&](EightRows<T, kWidth>& rows, Moments& of_row) {
      rows.each([&](uint32_t& word) {
        Vector<float, 2> y = widened_pair<T>(word);
        for (float& value : y.at) value = (value - of_row.mean) * of_row.rstd;
        word = narrowed_word<T>(y);
      });
      rows.store(place);
      of_row = {0, 1, 1, of_row.rstd};
      warp_barrier();
      multiply_rows(products, heads, place, [](uint32_t) {});
    };
    Moments of_row;
    if constexpr (std::is_same_v<T, BFloat16>) {
      multiply_rows(products, heads, place, measure);
      of_row = measured();
      float farthest = fabsf(of_row.mean) * of_row.rstd;
      for (int mask = 4; mask < kWarp; mask *= 2) farthest = fmaxf(farthest, shuffle_xor(farthest, mask));
      if (farthest > kNear) {
        EightRows<T, kWidth> rows(place);
        normalize(rows, of_row);
      }
    } else {
      EightRows<T, kWidth> rows(place);
      rows.each([&](uint32_t& word) { measure(word), forget(word); });
      of_row = measured();
      normalize(rows, of_row);
    }
    if (lane % 4 == 0) moments[row] = of_row;
    warp_barrier();
  }

  // The sum of a head's columns in shared memory, by a warp.
  __device__ float sum_of_head(Tokens heads, int head) const {
    float sum = 0;
    for (int column = 2 * lane; column < kWidth; column += 2 * kWarp)
      for (float value : widened_pair<T>(*reinterpret_cast<const uint32_t*>(heads.at(head, column))).at) sum += value;
    return sum_lanes(sum, 1, kWarp);
  }

  // Asks for a tile's gradients to be written, which have taken its rows' place: called by the whole block, and after a
  // barrier. Before the next call of `bring` these threads wait for it.
  __device__ void store_gradients(int tile, Tokens grads) const {
    if (warp) return;
#pragma unroll 1
    for (int row = lane; row < rows_of(tile); row += kWarp) {
      const int64_t target = first_of(tile) + row;
      T* to = target ? op.grad_token.as<T>() + (sample * op.tokens + target - 1) * kWidth
                     : op.grad_query.as<T>() + sample * kWidth;
      store_bulk(to, grads.at(row, 0), kWidth * int(sizeof(T)));
    }
  }

  // f(i, column) for the squares of columns that belong to this thread's warp.
  template <typename F>
  __device__ void each_square(F&& f) const {
#pragma unroll
    for (int i = 0; i < kSquares; ++i) {
      const int column = (warp + i * kWarps) * kSquare;
      if (kSquares * kWarps * kSquare == kWidth || column < kWidth) f(i, column);
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
