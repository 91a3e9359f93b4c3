// The operators on a GPU. Calls enqueue kernels on a stream of the current device and return; std::runtime_error says
// why a kernel could not be launched.
//
// add_layer_norm takes rows of a multiple of 8 up to 8,192 elements; absorbed attention at most 32 heads, and rows of a
// multiple of 8; space_time_attention the axis time alone, at most 64 frames and 16 prefix tokens, head dimensions of a
// multiple of 8 up to 128.
#pragma once

#include <string>

#include "../operators.h"
#include "device.h"

namespace hsta::cuda {

// The one list of the kernels: a function's name, the struct that it takes, and the function that says how many floats
// of working memory it needs, or nullptr where it needs none. The declarations are made of it, and the functions of the
// Python module.
#define HSTA_CUDA_KERNELS(KERNEL)                                                           \
  KERNEL(absorbed_attention_forward, AbsorbedAttention, &absorbed_attention_workspace)      \
  KERNEL(absorbed_attention_backward, AbsorbedAttention, &absorbed_attention_workspace)     \
  KERNEL(add_layer_norm_forward, AddLayerNorm, nullptr)                                     \
  KERNEL(add_layer_norm_backward, AddLayerNorm, &add_layer_norm_workspace)                  \
  KERNEL(space_time_attention_forward, SpaceTimeAttention, &space_time_attention_workspace) \
  KERNEL(space_time_attention_backward, SpaceTimeAttention, &space_time_attention_workspace)

#define HSTA_DECLARE(name, Operator, workspace) void name(const Operator&, Stream);
HSTA_CUDA_KERNELS(HSTA_DECLARE)
#undef HSTA_DECLARE

int64_t absorbed_attention_workspace(const AbsorbedAttention&);
int64_t add_layer_norm_workspace(const AddLayerNorm&);
int64_t space_time_attention_workspace(const SpaceTimeAttention&);

// How many columns, a multiple of `unit`, a block has in shared memory at a time: all of them if they fit, else as many
// as equal shares of them allow. bytes(columns) is what the block then takes.
template <typename Bytes>
int columns_that_fit(int columns, int unit, Bytes&& bytes) {
  const int64_t limit = shared_memory_limit(), units = divide_up(columns, unit);
  for (int64_t shares = 1; shares <= units; ++shares) {
    const int span = int(divide_up(units, shares)) * unit;
    if (bytes(span) <= limit) return span;
  }
  throw std::runtime_error("a block needs " + std::to_string(bytes(unit)) +
                           " bytes of shared memory, and this GPU has " + std::to_string(limit));
}

}  // namespace hsta::cuda
