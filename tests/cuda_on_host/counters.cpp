// What the emulator counted: for test_traffic.py, test_launches.py and shared_memory.py.
#include "../../csrc/cuda/device.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

using hsta::cuda::machine;

// Bytes of global memory moved since the last call.
EXPORTED int64_t take_traffic() { return std::exchange(machine().traffic, 0); }

// From now on moving these bytes is free; a count of 0 forgets all such memory.
EXPORTED void share(const char* first, int64_t bytes) {
  if (!bytes) machine().cached.clear();
  machine().cached.emplace_back(first, first + bytes);
}

// Bytes of shared memory that a block of the first kernel launched since the last call took, and how many were
// launched.
EXPORTED int64_t take_shared_memory(int64_t* launches) {
  const auto taken = std::exchange(machine().shared_bytes_of_launches, {});
  *launches = int64_t(taken.size());
  return taken.empty() ? 0 : taken.front();
}
