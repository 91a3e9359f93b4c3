// One instruction set's table of kernels.
#include "kernels.h"
#include "simd.h"

#define HSTA_STRING(x) #x
#define HSTA_NAME(x) HSTA_STRING(x)

namespace hsta {
namespace HSTA_ISA {

#define HSTA_DECLARE(name, Operator) void name(const Operator&);
HSTA_KERNELS(HSTA_DECLARE)

template <Vec (*kFunction)(Vec)>
static void for_array(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = count - i < kLanes ? count - i : kLanes;
    float lanes[kLanes] = {};
    for (int64_t j = 0; j < n; ++j) lanes[j] = x[i + j];
    store(lanes, kFunction(load(lanes)));
    for (int64_t j = 0; j < n; ++j) y[i + j] = lanes[j];
  }
}

extern const KernelTable table;
#define HSTA_ENTER(name, Operator) name,
const KernelTable table = {HSTA_NAME(HSTA_ISA), for_array<exp2>, for_array<exp2_for_bfloat16>,
                           HSTA_KERNELS(HSTA_ENTER)};

}  // namespace HSTA_ISA
}  // namespace hsta
