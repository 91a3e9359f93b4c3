// A tensor as the kernels see it, and what integers do everywhere.
#pragma once

#include <cstdint>

#include "dtype.h"

// Inlined whatever the compiler thinks of it: a file is compiled for several instruction sets, and of a function that
// is not inlined the linker keeps one copy, which could be that for a newer processor than this one.
#ifdef __CUDACC__
#define HSTA_INLINE __host__ __device__ __forceinline__
#else
#define HSTA_INLINE inline __attribute__((always_inline))
#endif

namespace hsta {

HSTA_INLINE constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
HSTA_INLINE constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
HSTA_INLINE constexpr int64_t round_up(int64_t n, int64_t multiple) { return divide_up(n, multiple) * multiple; }

// Strides count elements. The binding has checked whatever an operator says of it (operators.h).
struct TensorView {
  static constexpr int kMaxDims = 5;

  void* data;
  DType dtype;
  int dims;
  int64_t shape[kMaxDims], stride[kMaxDims];

  template <typename T>
  HSTA_INLINE T* as() const {
    return static_cast<T*>(data);
  }

  // Where the element of these indices is; with fewer indices than dimensions, the first one of these.
  template <typename T, typename... Index>
  HSTA_INLINE T* at(Index... index) const {
    int64_t offset = 0;
    int dim = 0;
    ((offset += index * stride[dim++]), ...);
    return static_cast<T*>(data) + offset;
  }
};

}  // namespace hsta
