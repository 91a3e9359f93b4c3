// Chooses the instruction set when the library is first used, and owns the threads' working memory. Compiled for the
// baseline processor, like everything that may run before the choice is made.
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>

#include "kernels.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace hsta {

#define HSTA_DECLARE(isa)         \
  namespace isa {                 \
  extern const KernelTable table; \
  }
HSTA_DECLARE(baseline)
#ifdef HSTA_X86_64
HSTA_DECLARE(x86_64_v3)
HSTA_DECLARE(x86_64_v4)
HSTA_DECLARE(x86_64_v4_bf16)
#endif

namespace {

struct Choice {
  const KernelTable* table;
  bool runnable;
};

// Best first.
const Choice* choices(int* count) {
#ifdef HSTA_X86_64
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  const bool bf16 = v4 && __builtin_cpu_supports("avx512bf16");
  static const Choice all[] = {
      {&x86_64_v4_bf16::table, bf16}, {&x86_64_v4::table, v4}, {&x86_64_v3::table, v3}, {&baseline::table, true}};
#else
  static const Choice all[] = {{&baseline::table, true}};
#endif
  *count = int(sizeof all / sizeof all[0]);
  return all;
}

const KernelTable* choose() {
  int count;
  const Choice* all = choices(&count);
  const char* wanted = std::getenv("HSTA_CPU_ISA");
  for (int i = 0; i < count; ++i)
    if (wanted && *wanted ? std::string(wanted) == all[i].table->isa && all[i].runnable : all[i].runnable)
      return all[i].table;
  throw std::runtime_error(
      "HSTA_CPU_ISA=" + std::string(wanted) +
      " is not one of the instruction sets built and supported by this processor: " + runnable_isas());
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable* chosen = choose();
  return *chosen;
}

const char* runnable_isas() {
  static const std::string names = [] {
    std::string joined;
    int count;
    const Choice* all = choices(&count);
    for (int i = 0; i < count; ++i)
      if (all[i].runnable) joined += (joined.empty() ? "" : " ") + std::string(all[i].table->isa);
    return joined;
  }();
  return names.c_str();
}

#ifdef __linux__
namespace {

constexpr int64_t kHugePage = 2 << 20, kHugePageOrder = 9;

// Bytes in free huge pages, on the memory node that has the fewest.
int64_t free_huge_pages() {
  std::ifstream zones("/proc/buddyinfo");  // a line a zone: "Node 0, zone Normal", free blocks of 1, 2, 4, ... pages
  std::map<std::string, int64_t> bytes;
  for (std::string line; std::getline(zones, line);) {
    std::istringstream words(line);
    std::string node, number, zone, name;
    words >> node >> number >> zone >> name;
    int64_t& of_node = bytes[number];
    int64_t blocks;
    for (int order = 0; words >> blocks; ++order)
      if (order >= kHugePageOrder) of_node += blocks * (kHugePage << (order - kHugePageOrder));
  }
  int64_t fewest = bytes.empty() ? 0 : INT64_MAX;
  for (const auto& node : bytes) fewest = std::min(fewest, node.second);
  return fewest;
}

}  // namespace
#endif

void expect_writes(void* data, int64_t bytes) {
#ifdef __linux__
  // Where none are free, the kernel would make huge pages inside our writes, by moving others' memory about: that takes
  // longer than all that they save. Twice as many as needed, since others take some too.
  constexpr int64_t kNeverRecycled = 32 << 20;
  if (bytes <= kNeverRecycled || free_huge_pages() < 2 * bytes) return;
  const auto begin = reinterpret_cast<uintptr_t>(data), first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(first), (begin + bytes - first) / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
}

float* scratch(Scratch slot, int64_t floats) {
  // Kept between calls: a fresh block of this size would be mapped, faulted in page by page and unmapped every time.
  struct Buffer {
    float* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffers[2];
  Buffer& buffer = buffers[int(slot)];
  if (buffer.size < floats) {
    std::free(buffer.data);
    buffer.size = 0;
    const size_t bytes = (size_t(floats) * sizeof(float) + 63) / 64 * 64;
    buffer.data = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (!buffer.data) throw std::bad_alloc();
    buffer.size = floats;
  }
  return buffer.data;
}

}  // namespace hsta
