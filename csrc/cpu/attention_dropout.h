// Dropout of attention probabilities: whether a group's queries keep its keys, the prefix tokens first as elsewhere
// here.
//
// Random numbers count the prefix tokens last: query row i and key row j of a group, there, have word j % 4 of the
// block with counter (j / 4, i, group, sample * heads + head). So a mask does not depend on how patches are grouped in
// memory.
#pragma once

#include "attention_groups.h"
#include "philox.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

// Of a run of a group's queries; `kept` has room for floats(queries).
class AttentionDropout {
 public:
  AttentionDropout(const Plan& plan, const SpaceTimeAttention& op)
      : plan_(plan), dropout_(op.dropout_rate, op.seed), blocks_(divide_up(plan.rows, 4)) {}

  bool drops() const { return dropout_.drops; }

  // None where nothing is dropped. A vector may begin before the first number by the prefix, and reach beyond the last.
  int64_t floats(int64_t queries) const {
    return drops() ? plan_.prefix + round_up(4 * blocks_ * queries, 4 * kLanes) + 2 * kLanes : 0;
  }

  template <typename T>
  void draw(const Group<T>& group, int64_t first, int64_t count, float* kept) const {
    kept += plan_.prefix;
    const int32_t blocks = int32_t(blocks_);
    const IntVec number = (IntVec)Dropout::block_numbers();
    // Exact: a quotient is an integer, or half a block's share away from one.
    const Vec quotient = (__builtin_convertvector(number, Vec) + broadcast(0.5f)) / broadcast(float(blocks));
    IntVec query = __builtin_convertvector(quotient, IntVec);
    IntVec block = number - query * blocks;
    const int32_t sequence = int32_t(group.sample * group.op.heads + group.head);
    for (int64_t at = 0; at < count * blocks; at += kLanes) {
      const IntVec row = query + broadcast(int32_t(first - plan_.prefix));
      const IntVec drawn = row < 0 ? row + broadcast(int32_t(plan_.rows)) : row;
      dropout_.draw(
          {(BitsVec)block, (BitsVec)drawn, (BitsVec)broadcast(int32_t(group.index)), (BitsVec)broadcast(sequence)},
          kept + 4 * at);
      query += kLanes / blocks, block += kLanes % blocks;
      const IntVec past = ~is_below(block, blocks);
      query -= past, block -= past & blocks;
    }
  }

  // Whether the i-th query of the run keeps keys j, j + 1, ...; of those past the last nothing is said.
  Vec row(const float* kept, int64_t i, int64_t j) const {
    return prefix_first(j, lane_numbers(), kept + 4 * blocks_ * i + j,
                        [](const float* row) __attribute__((always_inline)) { return load(row); });
  }

  // Four keys of queries i, i + 1, ... of the run, as a tile of scores has them (small_tiles.h).
  Vec tile(const float* kept, int64_t i, int64_t j) const {
    const int64_t stride = 4 * blocks_;
    return prefix_first(j, lane_numbers() % 4, kept + stride * i + j,
                        [=](const float* first) __attribute__((always_inline)) {
                          Vec v = load(first);
                          for (int q = 1; q < kLanes / 4; ++q)
                            v = is_equal(lane_numbers() / 4, q) ? load(first + (stride - 4) * q) : v;
                          return v;
                        });
  }

  Vec apply(Vec probabilities, Vec kept) const { return dropout_.apply(probabilities, kept); }

 private:
  const Plan& plan_;
  const Dropout dropout_;
  const int64_t blocks_;

  // load_keys(from) for a vector whose keys have the numbers `key` beyond j; the prefix tokens among them are drawn
  // last.
  template <typename Load>
  Vec prefix_first(int64_t j, IntVec key, const float* from, const Load& load_keys) const {
    const Vec kept = load_keys(from);
    if (j >= plan_.prefix) return kept;
    return is_below(key, plan_.prefix - j) ? load_keys(from + plan_.rows) : kept;
  }
};

}  // namespace
}  // namespace HSTA_ISA
}  // namespace hsta
