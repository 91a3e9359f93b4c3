// Kernels with one fault each, which the emulator must find, and the same kernels without it.
//
//     planted FAULT      exits with 0 when the results are right
#include <cstdio>
#include <string>
#include <vector>

#include "../../csrc/cuda/device.h"

using namespace hsta::cuda;

namespace {

constexpr int kThreads = 128;

// Every thread doubles its neighbour's number.
__global__ void neighbours(const float* from, float* to, bool with_barrier) {
  float* shared = shared_memory<float>();
  const int i = thread_index();
  shared[i] = load<1>(from + i).at[0];
  if (with_barrier) block_barrier();
  store(to + i, Vector<float, 1>{{2 * shared[(i + 1) % kThreads]}});
}

// The same with two numbers a thread, brought by bulk copies; the buffer is used twice.
__global__ void copied(const float* from, float* to, bool with_wait, bool with_second_barrier) {
  Arrival& arrival = *shared_memory<Arrival>();
  float* shared = shared_memory<float>() + 4;
  const int i = thread_index();
  if (i == 0) begin(arrival);
  block_barrier();
  for (int turn = 0; turn < 2; ++turn) {
    if (i == 0) {
      expect_bytes(arrival, 8 * kThreads);
      copy_bulk(shared, from + 2 * turn * kThreads, 8 * kThreads, arrival);
    }
    if (with_wait) wait(arrival, turn);
    block_barrier();
    for (int half = 0; half < 2; ++half)
      store(to + (2 * turn + half) * kThreads + i,
            Vector<float, 1>{{2 * shared[(half * kThreads + i + 4) % (2 * kThreads)]}});
    if (with_second_barrier) block_barrier();
    if (!with_wait) wait(arrival, turn);
  }
}

// A copy that nobody waits for.
__global__ void left_on_its_way(const float* from, float* to, bool with_wait) {
  Arrival& arrival = *shared_memory<Arrival>();
  if (thread_index() == 0) {
    begin(arrival);
    expect_bytes(arrival, 16);
    copy_bulk(shared_memory<float>() + 4, from, 16, arrival);
  }
  block_barrier();
  if (with_wait) wait(arrival, 0);
  store(to + thread_index(), Vector<float, 1>{{1}});
}

// Twice the numbers go back by a bulk copy, and their place is used again.
__global__ void stored(const float* from, float* to, bool with_wait) {
  float* shared = shared_memory<float>();
  const int i = thread_index();
  shared[i] = 2 * load<1>(from + i).at[0];
  order_before_copies();
  block_barrier();
  if (i == 0) {
    store_bulk(to, shared, 4 * kThreads);
    if (with_wait) wait_stores();
  }
  block_barrier();
  shared[i] = 0;
  block_barrier();
  if (i == 0) wait_stores();
}

// More bytes are expected than come.
__global__ void never_arrives(const float* from, float* to, int expected) {
  Arrival& arrival = *shared_memory<Arrival>();
  if (thread_index() == 0) {
    begin(arrival);
    expect_bytes(arrival, expected);
    copy_bulk(shared_memory<float>() + 4, from, 16, arrival);
  }
  block_barrier();
  wait(arrival, 0);
  store(to + thread_index(), Vector<float, 1>{{1}});
}

// Every thread doubles the number that the cluster's other block has.
__global__ void other_block(const float* from, float* to, bool with_barrier, bool staying) {
  float* shared = shared_memory<float>();
  const int i = thread_index();
  const int64_t at = block_index() * kThreads + i;
  shared[i] = load<1>(from + at).at[0];
  if (with_barrier) cluster_barrier();
  const float other = 2 * *in_block(shared + i, 1 - cluster_rank());
  store(to + at, Vector<float, 1>{{other}});
  if (staying) cluster_barrier();
}

__global__ void out_of_bounds(float* to, int index) { store(to + index + thread_index(), Vector<float, 1>{{1}}); }

__global__ void out_of_shared_memory(float* to, int index) {
  shared_memory<float>()[thread_index() + index] = 1;
  block_barrier();
  store(to + thread_index(), Vector<float, 1>{{shared_memory<float>()[thread_index()]}});
}

__global__ void misaligned(const float* from, float* to, int shift) {
  store(to + 4 * thread_index(), load<4>(from + 4 * thread_index() + shift));
}

__global__ void divergent(float* to, int leaving) {
  if (thread_index() < leaving) return;
  block_barrier();
  store(to + thread_index(), Vector<float, 1>{{1}});
}

__global__ void another_barrier(float* to, int others) {
  if (thread_index() < others) {
    block_barrier();
  } else {
    block_barrier();
  }
  store(to + thread_index(), Vector<float, 1>{{1}});
}

__global__ void half_a_warp(float* to, int lanes) {
  float sum = 1;
  if (thread_index() % 32 < lanes) sum += shuffle_xor(sum, 1);
  store(to + thread_index(), Vector<float, 1>{{sum}});
}

}  // namespace

int main(int, char** arguments) {
  const std::string fault = arguments[1];
  const bool planted = fault.rfind("no ", 0) != 0;
  const auto is = [&](const std::string& name) { return fault == name || fault == "no " + name; };
  std::vector<float> from(4 * kThreads), to(4 * kThreads, -1), expected(4 * kThreads, -1);
  for (size_t i = 0; i < from.size(); ++i) from[i] = float(i);
  const auto expect = [&](int count, auto value) {
    for (int i = 0; i < count; ++i) expected[i] = float(value(i));
  };
  const auto one = [](int) { return 1; };
  try {
    if (is("race")) {
      launch(neighbours, 1, 1, kThreads, 4 * kThreads, 0, from.data(), to.data(), !planted);
      expect(kThreads, [](int i) { return 2 * ((i + 1) % kThreads); });
    } else if (is("missing wait") || is("early overwrite")) {
      const bool wait = !(planted && is("missing wait")), second = !(planted && is("early overwrite"));
      launch(copied, 1, 1, kThreads, 16 + 8 * kThreads, 0, from.data(), to.data(), wait, second);
      expect(4 * kThreads,
             [](int i) { return 2 * (i / (2 * kThreads) * 2 * kThreads + (i % (2 * kThreads) + 4) % (2 * kThreads)); });
    } else if (is("copy on its way")) {
      launch(left_on_its_way, 1, 1, kThreads, 32, 0, from.data(), to.data(), !planted);
      expect(kThreads, one);
    } else if (is("overwritten before it is stored")) {
      launch(stored, 1, 1, kThreads, 4 * kThreads, 0, from.data(), to.data(), !planted);
      expect(kThreads, [](int i) { return 2 * i; });
    } else if (is("bytes that never come")) {
      launch(never_arrives, 1, 1, kThreads, 32, 0, from.data(), to.data(), planted ? 32 : 16);
      expect(kThreads, one);
    } else if (is("race in a cluster") || is("left too early")) {
      const bool barrier = !(planted && is("race in a cluster")), staying = !(planted && is("left too early"));
      launch(other_block, 2, 2, kThreads, 4 * kThreads, 0, from.data(), to.data(), barrier, staying);
      expect(2 * kThreads, [](int i) { return 2 * ((i + kThreads) % (2 * kThreads)); });
    } else if (is("out of bounds")) {
      launch(out_of_bounds, 1, 1, kThreads, 0, 0, to.data(), planted ? 3 * kThreads + 1 : 0);
      expect(kThreads, one);
    } else if (is("out of shared memory")) {
      launch(out_of_shared_memory, 1, 1, kThreads, 4 * kThreads, 0, to.data(), planted ? 1 : 0);
      expect(kThreads, one);
    } else if (is("misaligned")) {
      launch(misaligned, 1, 1, kThreads - 32, 0, 0, from.data(), to.data(), planted ? 1 : 0);
      expect(4 * (kThreads - 32), [](int i) { return i; });
    } else if (is("divergent")) {
      launch(divergent, 1, 1, kThreads, 0, 0, to.data(), planted ? 1 : 0);
      expect(kThreads, one);
    } else if (is("another barrier")) {
      launch(another_barrier, 1, 1, kThreads, 0, 0, to.data(), planted ? 64 : 0);
      expect(kThreads, one);
    } else if (is("half a warp")) {
      launch(half_a_warp, 1, 1, kThreads, 0, 0, to.data(), planted ? 16 : 32);
      expect(kThreads, [](int) { return 2; });
    } else {
      std::fprintf(stderr, "no such fault: %s\n", fault.c_str());
      return 2;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  if (to != expected) std::fprintf(stderr, "wrong results\n");
  return to == expected ? 0 : 1;
}
