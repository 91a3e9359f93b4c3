// Chooses the instruction set when the library is first used. Compiled for the baseline processor, like everything that
// may run before the choice is made.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

#ifdef HSTA_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
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
#ifdef HSTA_AMX
HSTA_DECLARE(x86_64_v4_amx)
#endif

namespace {

struct Choice {
  const KernelTable* table;
  bool runnable;
};

#ifdef HSTA_AMX
// Tile registers take 8 KB of every thread's saved state, so Linux has them asked for, once by each process.
bool has_tile_registers() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kBf16) == 0 || (edx & kTile) == 0) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h, which older systems have without them
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

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
#ifdef HSTA_AMX
      {&x86_64_v4_amx::table, bf16 && has_tile_registers()},
#endif
      {&x86_64_v4_bf16::table, bf16},
      {&x86_64_v4::table, v4},
      {&x86_64_v3::table, v3},
      {&baseline::table, true}};
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
