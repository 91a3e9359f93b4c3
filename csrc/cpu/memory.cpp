// Compiled once, for the baseline processor.
#include "memory.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <new>
#include <sstream>
#include <string>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace hsta {

constexpr int64_t kHugePage = 2 << 20, kHugePageOrder = 9;

bool huge_pages_to_spare(std::istream& buddyinfo, int64_t bytes) {
  // A line a zone: "Node 0, zone Normal", then how many free blocks of 1, 2, 4, ... pages it has.
  std::map<std::string, int64_t> free_bytes;
  for (std::string line; std::getline(buddyinfo, line);) {
    std::istringstream words(line);
    std::string node, number, zone, name;
    words >> node >> number >> zone >> name;
    int64_t& of_node = free_bytes[number];
    int64_t blocks;
    for (int order = 0; words >> blocks; ++order)
      if (order >= kHugePageOrder) of_node += blocks * (kHugePage << (order - kHugePageOrder));
  }
  return !free_bytes.empty() && std::all_of(free_bytes.begin(), free_bytes.end(),
                                            [bytes](const auto& node) { return node.second >= 2 * bytes; });
}

void expect_writes(void* data, int64_t bytes) {
#ifdef __linux__
  constexpr int64_t kNeverRecycled = 32 << 20;
  if (bytes <= kNeverRecycled) return;
  // Where none are free, the kernel would make huge pages inside our writes, by moving others' memory about: that can
  // take longer than all that they save. Twice as many as needed, since others take some too.
  std::ifstream buddyinfo("/proc/buddyinfo");
  if (!huge_pages_to_spare(buddyinfo, bytes)) return;
  const auto begin = reinterpret_cast<uintptr_t>(data), first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(first), (begin + bytes - first) / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
}

float* scratch(Scratch slot, int64_t floats) {
  // Kept between calls: a fresh block of this size would be mapped, faulted in page by page and unmapped every time.
  constexpr auto kCacheLine = std::align_val_t(64);
  struct Buffer {
    float* data = nullptr;
    int64_t size = 0;
    void release() {
      if (data) ::operator delete(data, kCacheLine);
      data = nullptr;
      size = 0;
    }
    ~Buffer() { release(); }
  };
  static thread_local Buffer buffers[2];
  Buffer& buffer = buffers[int(slot)];
  if (buffer.size < floats) {
    buffer.release();
    buffer.data = static_cast<float*>(::operator new(size_t(floats) * sizeof(float), kCacheLine));
    buffer.size = floats;
  }
  return buffer.data;
}

}  // namespace hsta
