// Absorbed attention on the CPU, forward and backward: what crossmodal attention does between its projections.
//
// Rows are the query token and the N tokens, x_j; y_j = (x_j - mean_j) / sqrt(var_j + eps). For every head
//     z_h = sum_j softmax_j(u_h · y_j) y_j.
// Rows are taken a block at a time: into a buffer that stays in cache, multiplied with all heads' u, and added to z
// while still there (absorbed_rows.h), so that memory is read once. Runs of rows are the work items; each keeps its own
// softmax state, and a second stage merges them in order. The split depends on N alone.
//
// Dropout multiplies the softmax with a mask: row j of a head keeps its probability or not by word j % 4 of the block
// of random numbers with counter (j / 4, head, 0, sample).
#include <cmath>

#include "absorbed_rows.h"
#include "philox.h"
#include "writer.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

// to[h] = factor * from[h], as words; sums[h] is the sum of these.
template <typename Word>
void pack_heads(const RowPlan<Word>& plan, const float* from, float factor, float* row, Word* to, float* sums) {
  for (int64_t h = 0; h < plan.heads; ++h) {
    for (int64_t c = 0; c < plan.padded; ++c) row[c] = c < plan.width ? factor * from[h * plan.width + c] : 0.0f;
    round_row(row, plan.padded, to + h * plan.words_stride);
    sums[h] = sum_words(plan.words, to + h * plan.words_stride);
  }
}

// Rows of floats as words down their columns: to[k][c] is from[k][c], or the pair of from[2k][c] and from[2k + 1][c].
static inline void words_down(int64_t rows, int64_t columns, const float* from, float* to) {
  std::memcpy(to, from, rows * columns * sizeof(float));
}

#ifdef __AVX512BF16__
static inline void words_down(int64_t rows, int64_t columns, const float* from, Pair* to) {
  for (int64_t k = 0; k < rows; k += 2)
    for (int64_t c = 0; c < columns; c += kLanes)
      store(to + k / 2 * columns + c, pair_up(load(from + k * columns + c), load(from + (k + 1) * columns + c)));
}
#endif

// The mask of a run of rows.
class RunMask {
 public:
  RunMask(const AbsorbedAttention& op, int64_t rows) : dropout_(op.dropout_rate, op.seed), heads_(op.heads) {
    // Rows begin anywhere in a block of four. Runs are cut into blocks of rows, whose last vector may end beyond them.
    if (dropout_.drops) stride_ = round_up(round_up(rows, kBlockRows) + 3, 4 * kLanes);
  }

  bool drops() const { return dropout_.drops; }

  int64_t floats() const { return heads_ * stride_; }

  void draw(int64_t sample, int64_t first, float* kept) {
    kept_ = kept, first_ = first / 4 * 4;
    for (int64_t h = 0; h < heads_; ++h) {
      BitsVec counter[4] = {uint32_t(first / 4) + Dropout::block_numbers(), uint32_t(h) - BitsVec{}, BitsVec{},
                            uint32_t(sample) - BitsVec{}};
      for (int64_t i = 0; i < stride_; i += 4 * kLanes, counter[0] += uint32_t(kLanes))
        dropout_.draw(counter, kept + h * stride_ + i);
    }
  }

  // A vector of a head's numbers, of rows from `row` on.
  Vec apply(Vec numbers, int64_t head, int64_t row) const {
    return dropout_.apply(numbers, load(kept_ + head * stride_ + row - first_));
  }

 private:
  const Dropout dropout_;
  const int64_t heads_;
  int64_t stride_ = 0, first_ = 0;
  const float* kept_ = nullptr;
};

// Softmax state of one run of rows, for all heads: maximum (base 2), sum, sum of what dropout keeps, and weighted sum
// of y, which is `shift` less than z, (heads, padded).
template <typename Word>
struct Partial {
  float *max2, *sum, *kept_sum, *shift, *z;
  Partial(Arena& arena, const RowPlan<Word>& plan)
      : max2(arena.take(round_up(plan.heads, kLanes))),
        sum(arena.take(round_up(plan.heads, kLanes))),
        kept_sum(arena.take(round_up(plan.heads, kLanes))),
        shift(arena.take(round_up(plan.heads, kLanes))),
        z(arena.take(plan.heads * plan.padded)) {}
};

// One run's share of the gradient of u, which is `shift` less than it.
template <typename Word>
struct Share {
  float *shift, *grad_u;  // (heads), (heads, padded)
  Share(Arena& arena, const RowPlan<Word>& plan)
      : shift(arena.take(plan.heads)), grad_u(arena.take(plan.heads * plan.padded)) {}
};

// What run `item` has of memory for all of them.
template <typename Pieces, typename Word>
Pieces of_item(const RowPlan<Word>& plan, float* memory, int64_t item) {
  return pieces_in<Pieces>(memory + item * floats_of<Pieces>(plan), plan);
}

// The vectors come first, here and in BackwardBuffers: they start at cache lines.
template <typename T, typename Word = typename WordOf<T>::type>
struct ForwardBuffers {
  float* scores;
  Word *weights, *u;
  float* u_row;
  BlockOfRows<T> block;
  float *sums, *kept;

  ForwardBuffers(Arena& arena, const RowPlan<Word>& plan, int64_t u_rows, int64_t mask)
      : scores(arena.take(u_rows * kBlockRows)),
        weights(arena.take<Word>(u_rows * kBlockRows)),
        u(arena.take<Word>(u_rows * plan.words_stride)),
        u_row(arena.take(plan.padded)),
        block(arena, plan),
        sums(arena.take(u_rows)),
        kept(arena.take(mask)) {}
};

template <typename T>
void forward(const AbsorbedAttention& op) {
  using Word = typename WordOf<T>::type;
  const RowPlan<Word> plan(op);
  const int64_t u_rows = round_up(plan.heads, kTileHeads);
  float* parts = scratch(Scratch::kShared, plan.items * floats_of<Partial<Word>>(plan));

#pragma omp parallel
  {
    RunMask mask(op, plan.rows_per_item);
    auto buffers = pieces<ForwardBuffers<T>>(Scratch::kThread, plan, u_rows, mask.floats());
    float *scores = buffers.scores, *sums = buffers.sums;
    Word *weights = buffers.weights, *u = buffers.u;
    BlockOfRows<T>& block = buffers.block;
    std::memset(static_cast<void*>(u), 0, u_rows * plan.words_stride * sizeof(Word));
    for (int64_t i = plan.heads; i < u_rows; ++i) sums[i] = 0;
    int64_t packed_sample = -1;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < plan.items; ++item) {
      const int64_t sample = item / plan.slots, slot = item % plan.slots;
      if (sample != packed_sample) pack_heads(plan, op.u.at<const float>(sample), kLog2E, buffers.u_row, u, sums);
      packed_sample = sample;
      const auto state = of_item<Partial<Word>>(plan, parts, item);
      for (int64_t h = 0; h < plan.heads; ++h)
        state.max2[h] = -INFINITY, state.sum[h] = 0, state.kept_sum[h] = 0, state.shift[h] = 0;
      for (int64_t i = 0; i < plan.heads * plan.padded; ++i) state.z[i] = 0;

      const int64_t end = min((slot + 1) * plan.rows_per_item, plan.rows);
      if (mask.drops()) mask.draw(sample, slot * plan.rows_per_item, buffers.kept);
      for (int64_t first = slot * plan.rows_per_item; first < end; first += kBlockRows) {
        const int64_t count = min(kBlockRows, end - first);
        block.take(op, plan, sample, first, count, u_rows, u, sums, scores);
        for (int64_t h = 0; h < plan.heads; ++h) {
          float* row = scores + h * kBlockRows;
          for (int64_t i = count; i < kBlockRows; ++i) row[i] = -INFINITY;
          Vec top = broadcast(state.max2[h]);
          for (int64_t i = 0; i < kBlockRows; i += kLanes) top = max(top, load(row + i));
          top = broadcast(reduce_max(top));
          const Vec correction = exp2(broadcast(state.max2[h]) - top);
          Vec sum{};
          for (int64_t i = 0; i < kBlockRows; i += kLanes) {
            const Vec p = exp2(load(row + i) - top);
            sum += p;
            store(row + i, p);
          }
          if (mask.drops()) {
            Vec kept_sum{};
            for (int64_t i = 0; i < kBlockRows; i += kLanes) {
              const Vec weight = mask.apply(load(row + i), h, first + i);
              kept_sum += weight;
              store(row + i, weight);
            }
            state.kept_sum[h] = state.kept_sum[h] * correction[0] + reduce_add(kept_sum);
          }
          const float shift = block.weights_of_words(row, weights + h * kBlockRows / kPerWord<Word>);
          state.max2[h] = top[0];
          state.sum[h] = state.sum[h] * correction[0] + reduce_add(sum);
          state.shift[h] = state.shift[h] * correction[0] + shift;
          float* z = state.z + h * plan.padded;
          if (correction[0] != 1)
            for (int64_t c = 0; c < plan.padded; c += kLanes) store(z + c, load(z + c) * correction);
        }
        block.add_rows(plan, count, weights, state.z, true);
      }
    }
  }

#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < op.batch * plan.heads; ++i) {
    const int64_t sample = i / plan.heads, first = sample * plan.slots, h = i % plan.heads;
    float top = -INFINITY, sum = 0, kept_sum = 0, shift = 0;
    for (int64_t slot = 0; slot < plan.slots; ++slot) {
      const float other = of_item<Partial<Word>>(plan, parts, first + slot).max2[h];
      top = top > other ? top : other;
    }
    float* z = op.z.as<float>() + i * plan.width;
    for (int64_t c = 0; c < plan.width; ++c) z[c] = 0;
    for (int64_t slot = 0; slot < plan.slots; ++slot) {
      const auto state = of_item<Partial<Word>>(plan, parts, first + slot);
      const float factor = std::exp2(state.max2[h] - top);
      sum += factor * state.sum[h];
      kept_sum += factor * state.kept_sum[h];
      shift += factor * state.shift[h];
      const float* from = state.z + h * plan.padded;
      for (int64_t c = 0; c < plan.width; ++c) z[c] += factor * from[c];
    }
    const float inverse = 1 / sum;
    for (int64_t c = 0; c < plan.width; ++c) z[c] = (z[c] - shift) * inverse;
    float* stats = op.stats.at<float>(sample, h);
    stats[0] = top, stats[1] = sum;
    if (op.drops()) stats[2] = kept_sum * inverse;
  }
}

// dL/dx of one row from dL/dy, through the normalization: rstd * (dy - mean(dy) - y * mean(dy * y)).
template <typename T, typename Element>
void normalize_backward(int64_t width, int64_t padded, const Element* row, float mean, float rstd, const float* grad,
                        const Writer& writer, T* to) {
  const Vec sum = sum_vectors(padded, [&](int64_t c) { return load(grad + c); });
  const Vec projection =
      sum_vectors(padded, [&](int64_t c) { return load(grad + c) * (load_floats(row + c) - broadcast(mean)); });
  const Vec mean_grad = broadcast(reduce_add(sum) / float(width));
  const Vec along = broadcast(reduce_add(projection) / float(width) * rstd * rstd);
  for_vectors(width, [&](int64_t c, auto count) {
    const Vec centred = load_floats(row + c, count) - broadcast(mean);
    writer.store(broadcast(rstd) * (load_floats(grad + c, count) - mean_grad - centred * along), to + c, count);
  });
}

template <typename T, typename Word = typename WordOf<T>::type>
struct BackwardBuffers {
  float *scores, *stacked, *grad_y;  // stacked: u and grad_z
  Word* packed;                      // the same, words along the columns
  Word* packed_down;                 // and along u and grad_z
  Word *scores_down, *weights;
  BlockOfRows<T> block;
  float *sums, *inverse, *delta, *kept;

  BackwardBuffers(Arena& arena, const RowPlan<Word>& plan, int64_t both, int64_t u_rows, int64_t mask)
      : scores(arena.take(u_rows * kBlockRows)),
        stacked(arena.take(both * plan.padded)),
        grad_y(arena.take(kBlockRows * plan.stride)),
        packed(arena.take<Word>(u_rows * plan.words_stride)),
        packed_down(arena.take<Word>(depth_words<Word>(both) * plan.padded)),
        scores_down(arena.take<Word>(depth_words<Word>(both) * kBlockRows)),
        weights(arena.take<Word>(plan.heads * kBlockRows)),
        block(arena, plan),
        sums(arena.take(u_rows)),
        inverse(arena.take(plan.heads)),
        delta(arena.take(plan.heads)),
        kept(arena.take(mask)) {}
};

template <typename T>
void backward(const AbsorbedAttention& op) {
  using Word = typename WordOf<T>::type;
  const RowPlan<Word> plan(op);
  const int64_t both = 2 * plan.heads;  // rows of u, then of grad_z; of grad_scores, then of weights
  const int64_t u_rows = round_up(both, kTileHeads), depth = depth_words<Word>(both);
  float* parts = scratch(Scratch::kShared, plan.items * floats_of<Share<Word>>(plan));
  const int64_t row_bytes = op.width * int64_t(sizeof(T));
  const Writer query_writer(op.grad_query.data, op.batch * row_bytes, row_bytes);
  const Writer token_writer(op.grad_token.data, op.batch * op.tokens * row_bytes, row_bytes);

#pragma omp parallel
  {
    RunMask mask(op, plan.rows_per_item);
    auto buffers = pieces<BackwardBuffers<T>>(Scratch::kThread, plan, both, u_rows, mask.floats());
    float *scores = buffers.scores, *stacked = buffers.stacked, *grad_y = buffers.grad_y, *sums = buffers.sums;
    Word *packed = buffers.packed, *packed_down = buffers.packed_down, *weights = buffers.weights;
    Word* scores_down = buffers.scores_down;
    float *inverse = buffers.inverse, *delta = buffers.delta;
    BlockOfRows<T>& block = buffers.block;
    std::memset(static_cast<void*>(packed), 0, u_rows * plan.words_stride * sizeof(Word));
    for (int64_t i = both; i < u_rows; ++i) sums[i] = 0;
    int64_t packed_sample = -1;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < plan.items; ++item) {
      const int64_t sample = item / plan.slots, slot = item % plan.slots;
      const float *u = op.u.at<const float>(sample), *z = op.z.at<const float>(sample);
      const float* grad_z = op.grad_z.at<const float>(sample);
      const float* grad_s = mask.drops() ? op.grad_s.at<const float>(sample) : nullptr;
      const auto stats = [&](int64_t h) { return op.stats.at<const float>(sample, h); };
      if (sample != packed_sample) {
        pack_heads(plan, u, kLog2E, grad_y, packed, sums);
        pack_heads(plan, grad_z, 1, grad_y, packed + plan.heads * plan.words_stride, sums + plan.heads);
        for (int64_t h = 0; h < plan.heads; ++h) {
          for (int64_t c = 0; c < plan.padded; ++c) {
            const bool inside = c < plan.width;
            stacked[h * plan.padded + c] = inside ? u[h * plan.width + c] : 0.0f;
            stacked[(plan.heads + h) * plan.padded + c] = inside ? grad_z[h * plan.width + c] : 0.0f;
          }
          inverse[h] = 1 / stats(h)[1];
          delta[h] = dot(plan.width, z + h * plan.width, grad_z + h * plan.width);
          if (mask.drops()) delta[h] += stats(h)[2] * grad_s[h];
        }
        words_down(both, plan.padded, stacked, packed_down);
      }
      packed_sample = sample;
      const auto share = of_item<Share<Word>>(plan, parts, item);
      float *shift = share.shift, *grad_u = share.grad_u;
      const int64_t start = min(slot * plan.rows_per_item, plan.rows);
      const int64_t end = min(start + plan.rows_per_item, plan.rows);
      for (int64_t h = 0; h < plan.heads; ++h) shift[h] = 0;
      if (mask.drops()) mask.draw(sample, start, buffers.kept);
      if (start == end)
        for (int64_t i = 0; i < plan.heads * plan.padded; ++i) grad_u[i] = 0;
      for (int64_t first = start; first < end; first += kBlockRows) {
        const int64_t count = min(kBlockRows, end - first);
        block.take(op, plan, sample, first, count, u_rows, packed, sums, scores);
        for (int64_t h = 0; h < plan.heads; ++h)
          for (int64_t i = 0; i < kBlockRows; i += kLanes) {
            float* s = scores + h * kBlockRows + i;
            float* dp = s + plan.heads * kBlockRows;
            const Vec p = exp2(load(s) - broadcast(stats(h)[0])) * broadcast(inverse[h]);
            Vec weight = p, grad_p = load(dp);
            if (mask.drops()) {
              weight = mask.apply(p, h, first + i);
              grad_p = mask.apply(grad_p + broadcast(grad_s[h]), h, first + i);
            }
            // The probability of a single row is 1 whatever its score.
            store(s, plan.rows == 1 ? Vec{} : p * (grad_p - broadcast(delta[h])));
            store(dp, weight);
          }
        for (int64_t h = 0; h < plan.heads; ++h)
          for (int64_t i = count; i < kBlockRows; ++i) scores[h * kBlockRows + i] = 0;
        words_down(both, kBlockRows, scores, scores_down);
        gemm_in_slices<Word>(count, plan.padded, depth, {scores_down, 1, kBlockRows}, packed_down, plan.padded, grad_y,
                             plan.stride, false);
        for (int64_t h = 0; h < plan.heads; ++h)
          shift[h] += block.weights_of_words(scores + h * kBlockRows, weights + h * kBlockRows / kPerWord<Word>);
        block.add_rows(plan, count, weights, grad_u, first > start);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t r = first + i;
          T* to = r == 0 ? op.grad_query.at<T>(sample) : op.grad_token.at<T>(sample, r - 1);
          normalize_backward(
              plan.width, plan.padded, reinterpret_cast<const ElementOf<Word, T>*>(block.words + i * plan.words_stride),
              block.mean[i], block.rstd[i], grad_y + i * plan.stride, r == 0 ? query_writer : token_writer, to);
        }
      }
    }
    query_writer.finish(), token_writer.finish();
  }

#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < op.batch * plan.heads; ++i) {
    const int64_t sample = i / plan.heads, h = i % plan.heads;
    float* to = op.grad_u.as<float>() + i * plan.width;
    for (int64_t c = 0; c < plan.width; ++c) to[c] = 0;
    for (int64_t slot = 0; slot < plan.slots; ++slot) {
      const auto share = of_item<Share<Word>>(plan, parts, sample * plan.slots + slot);
      const float* from = share.grad_u + h * plan.padded;
      for (int64_t c = 0; c < plan.width; ++c) to[c] += from[c] - share.shift[h];
    }
  }
}

}  // namespace

void absorbed_attention_forward(const AbsorbedAttention& op) {
  with_type(op.dtype, [&](auto element) { forward<decltype(element)>(op); });
}

void absorbed_attention_backward(const AbsorbedAttention& op) {
  with_type(op.dtype, [&](auto element) { backward<decltype(element)>(op); });
}

}  // namespace HSTA_ISA
}  // namespace hsta
