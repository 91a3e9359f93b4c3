// Chooses the instruction set when the library is first used. Compiled for the baseline processor, like everything that
// may run before the choice is made.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

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

}  // namespace hsta
