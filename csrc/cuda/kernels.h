// The operators on a GPU. Calls enqueue kernels on a stream of the current device and return; std::runtime_error says
// why a kernel could not be launched.
//
// Absorbed attention takes at most kMaxHeads heads, and rows of half types, of a multiple of 8 up to kMaxWidth
// elements.
#pragma once

#include "../operators.h"
#include "device.h"

namespace hsta::cuda {

constexpr int kMaxHeads = 16, kMaxWidth = 768;

// The one list of the kernels: a function's name, and the struct that it takes. The declarations are made of it, and
// the functions of the Python module.
#define HSTA_CUDA_KERNELS(KERNEL)                       \
  KERNEL(absorbed_attention_forward, AbsorbedAttention) \
  KERNEL(absorbed_attention_backward, AbsorbedAttention)

#define HSTA_DECLARE(name, Operator) void name(const Operator&, Stream);
HSTA_CUDA_KERNELS(HSTA_DECLARE)
#undef HSTA_DECLARE

// f(T{}) with the half type T of `dtype`.
template <typename F>
void with_half_type(DType dtype, F&& f) {
  if (dtype == DType::kBFloat16) return f(BFloat16{});
  if (dtype == DType::kFloat16) return f(Float16{});
  throw std::runtime_error("the kernels take half types");
}

}  // namespace hsta::cuda
