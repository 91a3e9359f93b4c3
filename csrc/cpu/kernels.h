// The CPU kernels as one table of functions. Every file of this folder that computes is compiled once for each
// instruction set, in a namespace of its own (HSTA_ISA); dispatch.cpp chooses a table when the library loads.
#pragma once

#include "../operators.h"

namespace hsta {

struct KernelTable {
  const char* isa;
  // For the tests of their error bounds.
  void (*exp2)(const float* x, float* y, int64_t count);
  void (*exp2_for_bfloat16)(const float* x, float* y, int64_t count);
#define HSTA_MEMBER(name, Operator) void (*name)(const Operator&);
  HSTA_KERNELS(HSTA_MEMBER)
#undef HSTA_MEMBER
};

// The table in use. Chosen on first call: the best the processor reports, or what HSTA_CPU_ISA names.
// Throws std::runtime_error when HSTA_CPU_ISA names one that is not built or not supported here.
const KernelTable& kernels();

// Names of all instruction sets that were built and that this processor can run, best first, separated by spaces.
const char* runnable_isas();

}  // namespace hsta
