// What runs a GPU's kernels on the host, for emulator.h: cluster by cluster, a cluster's threads as fibers on one
// processor.
//
// A fiber runs until it reaches a barrier, a shuffle or a matrix instruction, and goes on when all threads concerned
// have reached the same one. Within those limits everything that a GPU leaves open is chosen at random, from
// HSTA_FIBER_SEED, and anew in every launch: the order of clusters, and that of threads after each barrier. Bulk copies
// arrive as late as the kernel allows, shared memory starts out full of NaN and ends so with its block, and every
// block's lies in a buffer of its own of exactly the size asked for. Powers of two are as wrong as a GPU's may be. So a
// missing barrier or wait gives wrong results for some seed, and AddressSanitizer sees a wrong index. (Two faults stay
// hidden: a shuffle or a matrix instruction brings a warp's writes to shared memory in order here, which on a GPU only
// a barrier does; and bulk copies need no fence after other accesses.) A thread that waits for others that will never
// come, or that come to another barrier, and a copy that nobody waits for, are reported.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)

namespace hsta::cuda {

using Stream = uintptr_t;

namespace emulator {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 256 << 10;

// Where in the kernels' source a thread waits: threads that meet must have come to the same line.
struct Place {
  const char* file = nullptr;
  int line = 0;
  bool operator==(const Place& other) const { return file == other.file && line == other.line; }
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

// What an Arrival of device.h counts. A turn's copies arrive when all are asked for and the first thread waits.
struct Turn {
  int number = 0;
  bool expecting = false;
  int64_t expected = 0, asked_for = 0;
  std::vector<Copy> copies;
  std::vector<int> waiting;  // fibers

  bool complete() const { return expecting && asked_for == expected; }
};

// Where to go on: __builtin_setjmp's. swapcontext makes two system calls, and AddressSanitizer's version of it clears
// all that is known of a stack.
struct Context {
  void* registers[5];
};

// A frame that nobody comes back to: AddressSanitizer must leave no marks beside its variables.
#define HSTA_ABANDONED __attribute__((noinline, no_sanitize("address")))

// In the function that calls __builtin_setjmp it would not work, and [[noreturn]] would have AddressSanitizer clear,
// too.
HSTA_ABANDONED inline void go_on(Context& context) { __builtin_longjmp(context.registers, 1); }

// Runs one kernel after another.
struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* fake_stack = nullptr;  // AddressSanitizer's
  bool begun = false, ready = true, finished = false;
  Place place;
  std::vector<Copy> stores;  // that it has asked for
};

// Threads that wait for each other: a cluster's, a block's or a warp's.
struct Meeting {
  int arrived = 0, generation = 0;
};

// What the lanes of a warp show each other in one instruction.
struct Exchange {
  uint32_t words[kWarp][8];
};

class Machine {
 public:
  static Machine& get() {
    static Machine machine;
    return machine;
  }

  // ---- called by kernels
  int thread = 0, threads = 0;
  int rank = 0, cluster = 1;
  int64_t block = 0;
  void* shared() { return blocks_[rank].shared.get(); }
  const void* shared_of(const void* mine, int other) {
    return blocks_[other].shared.get() + (static_cast<const char*>(mine) - blocks_[rank].shared.get());
  }

  void meet_cluster(Place place) { meet(cluster_meeting_, 0, threads * cluster, place); }
  void meet_block(Place place) { meet(blocks_[rank].meeting, rank * threads, (rank + 1) * threads, place); }
  void meet_warp(Place place) {
    const int first = rank * threads + thread / kWarp * kWarp;
    meet(warp_meetings_[warp()], first, std::min(first + kWarp, (rank + 1) * threads), place);
  }
  // Shows `mine` to the warp and returns what every lane shows.
  template <typename Fill>
  const Exchange& exchange(Place place, Fill&& mine) {
    // Two buffers in turn: who is late still reads one while who is early fills the other.
    Exchange& buffer = exchanges_[2 * warp() + warp_meetings_[warp()].generation % 2];
    mine(buffer, thread % kWarp);
    meet_warp(place);
    return buffer;
  }
  Fiber& fiber() { return fibers_[rank * threads + thread]; }

  void begin_turns(const void* arrival) { turns_[arrival] = {}; }
  void expect(const void* arrival, int bytes) {
    Turn& turn = turns_.at(arrival);
    if (turn.expecting) fail("a turn's bytes are expected twice");
    turn.expecting = true, turn.expected = bytes;
    wake(turn);
  }
  void ask_for(const void* arrival, Copy copy) {
    Turn& turn = turns_.at(arrival);
    turn.copies.push_back(copy), turn.asked_for += copy.bytes;
    wake(turn);
  }
  void wait(const void* arrival, int number, Place place) {
    Turn& turn = turns_.at(arrival);
    while (turn.number % 2 == number % 2) {
      if (turn.complete()) {
        for (const Copy& copy : turn.copies) std::memcpy(copy.to, copy.from, size_t(copy.bytes));
        turn.copies.clear();
        turn.expecting = false, turn.asked_for = 0, ++turn.number;
        for (int waiting : std::exchange(turn.waiting, {})) fibers_[waiting].ready = true;
        return;
      }
      turn.waiting.push_back(rank * threads + thread);
      fiber().place = place, fiber().ready = false;
      leave();
    }
  }

  [[noreturn]] void fail(const std::string& what) {
    if (error_.empty()) error_ = what + " (thread " + std::to_string(thread) + ", block " + std::to_string(block) + ")";
    for (;;) leave();
  }

  // ---- traffic: global memory that kernels move, in sectors of 32 bytes, which count once a block and direction;
  // moving `cached` memory is free
  int64_t traffic = 0;
  std::vector<std::pair<const char*, const char*>> cached;
  void count(const void* global, size_t bytes, bool written) {
    constexpr uintptr_t kSector = 32;
    for (const auto& range : cached)
      if (global >= range.first && global < range.second) return;
    const auto address = reinterpret_cast<uintptr_t>(global);
    for (uintptr_t sector = address / kSector; sector <= (address + bytes - 1) / kSector; ++sector)
      if (blocks_[rank].sectors.insert(2 * sector + written).second) traffic += kSector;
  }

  // ---- called by launch
  static constexpr int64_t kSharedMemory = 227 << 10;  // that a block may have on an sm_90
  std::vector<int64_t> shared_bytes_of_launches;
  void run(int64_t blocks, int in_cluster, int block_threads, int64_t shared_bytes,
           const std::function<void()>& kernel) {
    if (shared_bytes > kSharedMemory) throw std::runtime_error("more shared memory than there is");
    if (blocks % in_cluster) throw std::runtime_error("blocks do not fill their clusters");
    shared_bytes_of_launches.push_back(shared_bytes);
    threads = block_threads, cluster = in_cluster;
    kernel_ = &kernel;
    if (fibers_.size() < size_t(threads * cluster)) fibers_ = std::vector<Fiber>(threads * cluster);
    std::vector<int64_t> order(blocks / cluster);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    try {
      for (int64_t index : order) run_cluster(index * cluster, shared_bytes);
    } catch (...) {
      fibers_.clear();  // they are in the middle of the kernel
      throw;
    }
  }

 private:
  struct Block {
    std::unique_ptr<char, void (*)(void*)> shared{nullptr, std::free};
    Meeting meeting;
    std::unordered_set<uintptr_t> sectors;
    int running;
  };
  std::vector<Fiber> fibers_;
  std::vector<Block> blocks_;  // of a cluster
  Meeting cluster_meeting_;
  std::vector<Meeting> warp_meetings_;
  std::vector<Exchange> exchanges_;
  std::map<const void*, Turn> turns_;
  std::mt19937 random_{seed()};
  const std::function<void()>* kernel_ = nullptr;
  int64_t first_block_ = 0;
  Context scheduler_;
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
  std::string error_;

  static unsigned seed() {
    const char* seed = std::getenv("HSTA_FIBER_SEED");
    return seed ? unsigned(std::atoi(seed)) : 0u;
  }

  int warp() const { return rank * ((threads + kWarp - 1) / kWarp) + thread / kWarp; }

  void wake(Turn& turn) {
    if (turn.complete())
      for (int waiting : std::exchange(turn.waiting, {})) fibers_[waiting].ready = true;
  }

  void run_cluster(int64_t first_block, int64_t shared_bytes) {
    first_block_ = first_block;
    blocks_.clear();
    for (int i = 0; i < cluster; ++i) {
      Block& block = blocks_.emplace_back();
      block.running = threads;
      if (shared_bytes) block.shared.reset(static_cast<char*>(std::aligned_alloc(16, size_t(shared_bytes))));
      if (shared_bytes) std::memset(block.shared.get(), 0xff, size_t(shared_bytes));
    }
    cluster_meeting_ = {};
    warp_meetings_.assign(cluster * ((threads + kWarp - 1) / kWarp), {});
    exchanges_.resize(2 * warp_meetings_.size());
    turns_.clear();
    const int all = threads * cluster;
    for (int i = 0; i < all; ++i) fibers_[i].ready = true, fibers_[i].finished = false;
    std::vector<int> order(all);
    std::iota(order.begin(), order.end(), 0);
    for (bool all_finished = false; !all_finished;) {
      std::shuffle(order.begin(), order.end(), random_);
      bool moved = false;
      all_finished = true;
      for (int i : order) {
        if (fibers_[i].ready && !fibers_[i].finished) {
          moved = true;
          enter(i);
          if (!error_.empty()) throw std::runtime_error(std::exchange(error_, {}));
          // Others of the cluster may not read it any more.
          if (fibers_[i].finished && !--blocks_[rank].running && shared_bytes)
            std::memset(shared(), 0xff, size_t(shared_bytes));
        }
        all_finished = all_finished && fibers_[i].finished;
      }
      if (!moved && !all_finished) throw std::runtime_error(divergence());
    }
    for (int i = 0; i < all; ++i)
      if (!std::exchange(fibers_[i].stores, {}).empty())
        throw std::runtime_error("a bulk copy is on its way when its block has ended");
    for (const auto& [arrival, turn] : turns_)
      if (!turn.copies.empty()) throw std::runtime_error("a bulk copy is on its way when its block has ended");
  }

  std::string divergence() {
    for (int i = 0; i < threads * cluster; ++i)
      if (!fibers_[i].finished)
        return "divergent barrier: thread " + std::to_string(i % threads) + " of block " +
               std::to_string(first_block_ + i / threads) + " waits at " + fibers_[i].place.file + ":" +
               std::to_string(fibers_[i].place.line) + " for what never comes";
    return "";
  }

  void meet(Meeting& meeting, int first, int last, Place place) {
    Fiber& me = fiber();
    me.place = place;
    me.ready = false;
    if (++meeting.arrived < last - first) return leave();
    for (int i = first; i < last; ++i)
      if (fibers_[i].finished || !(fibers_[i].place == place))
        fail("divergent barrier: threads wait for each other at " + std::string(place.file) + ":" +
             std::to_string(place.line) + " and at line " + std::to_string(fibers_[i].place.line));
    meeting.arrived = 0;
    ++meeting.generation;
    for (int i = first; i < last; ++i) fibers_[i].ready = true;
    leave();  // the last to come is not always the first to go on
  }

  // ---- switching between fibers
  static void body() {
    Machine& machine = get();
    machine.arrive(nullptr);
    for (;;) {
      (*machine.kernel_)();
      machine.fiber().finished = true;
      machine.leave();
    }
  }

  __attribute__((noinline)) void enter(int index) {
    thread = index % threads, rank = index / threads, block = first_block_ + rank;
    Fiber& to = fibers_[index];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake_stack_, to.stack.get(), kStackBytes);
#endif
    if (!__builtin_setjmp(scheduler_.registers)) to.begun ? go_on(to.context) : begin(to);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
  }

  HSTA_ABANDONED static void begin(Fiber& fiber) {
    fiber.begun = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.get();
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, &Machine::body, 0);
    setcontext(&context);
  }

  __attribute__((noinline)) void leave() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fiber().fake_stack, scheduler_stack_, scheduler_stack_bytes_);
#endif
    if (!__builtin_setjmp(fiber().context.registers)) go_on(scheduler_);
    arrive(fiber().fake_stack);
  }

  void arrive([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }
};

inline Machine& machine() { return Machine::get(); }

inline void check_aligned(const void* address, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) machine().fail(std::string("misaligned ") + what);
}

}  // namespace emulator

}  // namespace hsta::cuda
