// The host's version of csrc/cuda/device.h, on the machine of machine.h.
#pragma once

#include "machine.h"

namespace hsta::cuda {

using emulator::machine;

inline int thread_index() { return machine().thread; }
inline int thread_count() { return machine().threads; }
inline int64_t block_index() { return machine().block; }

template <typename T>
inline T* shared_memory() {
  return static_cast<T*>(machine().shared());
}

inline void block_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  machine().meet_block({file, line});
}
inline void warp_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  machine().meet_warp({file, line});
}
inline int cluster_rank() { return machine().rank; }
inline int cluster_size() { return machine().cluster; }
inline void cluster_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  machine().meet_cluster({file, line});
}
template <typename T>
inline const T* in_block(const T* shared, int rank) {
  return static_cast<const T*>(machine().shared_of(shared, rank));
}
inline float shuffle_xor(float value, int mask, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const auto& all = machine().exchange(
      {file, line}, [&](emulator::Exchange& mine, int lane) { std::memcpy(mine.words[lane], &value, sizeof value); });
  float other;
  std::memcpy(&other, all.words[(thread_index() % emulator::kWarp) ^ mask], sizeof other);
  return other;
}

// ex2.approx.ftz: takes its argument in fixed point, is exact for whole numbers and elsewhere off by up to 2^-23 of the
// value, one way or the other; no denormals.
inline float exp2(float x) {
  constexpr double kUnit = 1.0 / (1 << 23), kSmallest = 1.1754943508222875e-38;
  const double fixed = std::round(x / kUnit) * kUnit;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const double error = fixed == std::floor(fixed) ? 0 : bits * 2654435761u >> 31 ? kUnit : -kUnit;
  const double value = std::exp2(fixed) * (1 + error);
  return value < kSmallest ? 0 : float(value);
}
inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
template <typename T, int n>
struct alignas(n * sizeof(T) < 16 ? n * sizeof(T) : 16) Vector {
  T at[n];
};

inline void forget(uint32_t&) {}
template <typename T>
inline Vector<float, 2> widened_pair(uint32_t word) {
  return {{to_float(T{uint16_t(word)}), to_float(T{uint16_t(word >> 16)})}};
}
template <typename T>
inline uint32_t narrowed_word(const Vector<float, 2>& pair) {
  return from_float<T>(pair.at[0]).bits | uint32_t(from_float<T>(pair.at[1]).bits) << 16;
}

template <int n, typename T>
inline Vector<T, n> load(const T* global) {
  emulator::check_aligned(global, alignof(Vector<T, n>), "load");
  machine().count(global, sizeof(Vector<T, n>), false);
  Vector<T, n> values;
  std::memcpy(&values, global, sizeof values);
  return values;
}
template <typename T, int n>
inline void store(T* global, const Vector<T, n>& values) {
  emulator::check_aligned(global, alignof(Vector<T, n>), "store");
  machine().count(global, sizeof values, true);
  std::memcpy(global, &values, sizeof values);
}

struct Arrival {
  uint64_t word;
};

inline void begin(Arrival& arrival) { machine().begin_turns(&arrival); }
inline void order_before_copies() {}
inline void expect_bytes(Arrival& arrival, int bytes) { machine().expect(&arrival, bytes); }
inline void copy_bulk(void* shared, const void* global, int bytes, Arrival& arrival) {
  emulator::check_aligned(shared, 16, "bulk copy");
  emulator::check_aligned(global, 16, "bulk copy");
  if (bytes % 16) machine().fail("misaligned bulk copy");
  std::memset(shared, 0xff, size_t(bytes));  // until it arrives
  machine().count(global, size_t(bytes), false);
  machine().ask_for(&arrival, {shared, global, bytes});
}
inline void store_bulk(void* global, const void* shared, int bytes) {
  emulator::check_aligned(shared, 16, "bulk copy");
  emulator::check_aligned(global, 16, "bulk copy");
  if (bytes % 16) machine().fail("misaligned bulk copy");
  machine().count(global, size_t(bytes), true);
  machine().fiber().stores.push_back({global, shared, bytes});
}
inline void wait_stores() {
  for (const auto& store : std::exchange(machine().fiber().stores, {}))
    std::memcpy(store.to, store.from, size_t(store.bytes));
}
inline void wait(Arrival& arrival, int turn, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  machine().wait(&arrival, turn, {file, line});
}

template <bool transposed>
inline void load_matrices(uint32_t (&to)[4], const void* shared_row, const char* file = __builtin_FILE(),
                          int line = __builtin_LINE()) {
  emulator::check_aligned(shared_row, 16, "matrix row");
  const auto& all = machine().exchange(
      {file, line}, [&](emulator::Exchange& mine, int lane) { std::memcpy(mine.words[lane], shared_row, 16); });
  const int lane = thread_index() % emulator::kWarp;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int row = transposed ? 2 * (lane % 4) + i : lane / 4, column = transposed ? lane / 4 : 2 * (lane % 4) + i;
      pair[i] = uint16_t(all.words[8 * matrix + row][column / 2] >> 16 * (column % 2));
    }
    std::memcpy(&to[matrix], pair, sizeof pair);
  }
}

inline void store_matrices(const uint32_t (&from)[4], void* shared_row, const char* file = __builtin_FILE(),
                           int line = __builtin_LINE()) {
  emulator::check_aligned(shared_row, 16, "matrix row");
  const auto& all = machine().exchange({file, line}, [&](emulator::Exchange& mine, int lane) {
    std::memcpy(mine.words[lane], &shared_row, sizeof shared_row);
  });
  const int lane = thread_index() % emulator::kWarp;
  for (int matrix = 0; matrix < 4; ++matrix) {
    char* row;
    std::memcpy(&row, all.words[8 * matrix + lane / 4], sizeof row);
    std::memcpy(row + 4 * (lane % 4), &from[matrix], sizeof from[matrix]);
  }
}

template <typename Half>
inline void multiply_fragments(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Half,
                               const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const auto& all = machine().exchange({file, line}, [&](emulator::Exchange& mine, int lane) {
    std::copy(a, a + 4, mine.words[lane]);
    mine.words[lane][4] = b0, mine.words[lane][5] = b1;
  });
  // Element k of row or column `group`: in registers of lane 4·group + k % 8 / 2.
  const auto element = [&](int group, int word, int k) {
    return to_float(Half{uint16_t(all.words[4 * group + k % 8 / 2][word] >> 16 * (k % 2))});
  };
  const int lane = thread_index() % emulator::kWarp;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, half = i / 2, column = 2 * (lane % 4) + i % 2;
    float products = 0;
    for (int k = 0; k < 16; ++k) products += element(row, half + 2 * (k / 8), k) * element(column, 4 + k / 8, k);
    sum[i] += products;
  }
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int cluster, int threads, int64_t shared_bytes, Stream,
            Arguments... arguments) {
  machine().run(blocks, cluster, threads, shared_bytes, [&] { kernel(arguments...); });
}

}  // namespace hsta::cuda
