// The operators on a GPU. Calls enqueue kernels on a stream of the current device and return; std::runtime_error says
// why a kernel could not be launched.
//
// Absorbed attention takes at most 16 heads, and rows of half types, as wide as a tiny, small or base model's.
#pragma once

#include "../operators.h"
#include "device.h"

namespace hsta::cuda {

// The one list of the kernels: a function's name, and the struct that it takes. The declarations are made of it, and
// the functions of the Python module.
#define HSTA_CUDA_KERNELS(KERNEL)                       \
  KERNEL(absorbed_attention_forward, AbsorbedAttention) \
  KERNEL(absorbed_attention_backward, AbsorbedAttention)

#define HSTA_DECLARE(name, Operator) void name(const Operator&, Stream);
HSTA_CUDA_KERNELS(HSTA_DECLARE)
#undef HSTA_DECLARE

// f(T{}, width) with the half type T of `dtype`, and the width as a constant.
template <typename F>
void with_constants(DType dtype, int64_t width, F&& f) {
  const auto with_width = [&](auto element) {
    if (width == 96) return f(element, std::integral_constant<int, 96>());
    if (width == 192) return f(element, std::integral_constant<int, 192>());
    if (width == 384) return f(element, std::integral_constant<int, 384>());
    if (width == 768) return f(element, std::integral_constant<int, 768>());
    throw std::runtime_error("no kernel is compiled for rows of this width");
  };
  if (dtype == DType::kBFloat16) return with_width(BFloat16{});
  if (dtype == DType::kFloat16) return with_width(Float16{});
  throw std::runtime_error("the kernels take half types");
}

}  // namespace hsta::cuda
