// What the emulator counted, for test_traffic.py.
#include "../../csrc/cuda/device.h"

using hsta::cuda::machine;

// Bytes of global memory moved since the last call.
extern "C" __attribute__((visibility("default"))) int64_t take_traffic() { return std::exchange(machine().traffic, 0); }

// From now on moving these bytes is free; a count of 0 forgets all such memory.
extern "C" __attribute__((visibility("default"))) void share(const char* first, int64_t bytes) {
  if (!bytes) machine().cached.clear();
  machine().cached.emplace_back(first, first + bytes);
}
