// The CPU kernels as one table of functions. Every file of this folder that computes is compiled once for each
// instruction set, in a namespace of its own (HSTA_ISA); dispatch.cpp chooses a table when the library loads.
#pragma once

#include <cstdint>

#include "../common/dtype.h"

namespace hsta {

enum class Axis : int { kTime = 0, kSpace = 1, kJoint = 2 };

// space_time_attention over qkv (B, L, 3, H, D), L = prefix + frames * patches. Strides count elements; the last
// dimension is contiguous. `out` (B, L, H, D), `stats` (B, H, prefix, 2) and `grad_qkv` (B, L, 3, H, D) are contiguous.
// Stats belong to queries whose keys are in several groups: the prefix, except with joint. They are m = max_j s_j and
// sum_j 2^(s_j - m) for its scores s_j = scale * log2(e) * q·k_j: kept apart, because rounding their log-sum-exp to
// float would put a common error of several ulp on the recomputed probabilities.
struct SpaceTimeAttention {
  DType dtype;
  Axis axis;
  int64_t batch, prefix, frames, patches, heads, head_dim;
  double scale;
  const void* qkv;
  int64_t qkv_stride_batch, qkv_stride_token, qkv_stride_part, qkv_stride_head;
  // Written by the forward pass, read by the backward pass.
  void* out;
  float* stats;
  // Backward pass only.
  const void* grad_out;
  int64_t grad_out_stride_batch, grad_out_stride_token, grad_out_stride_head;
  void* grad_qkv;
};

// Absorbed attention: cross_modal_attention without its projections. Float arrays u, z, grad_z, grad_u (B, H, C), stats
// (B, H, 2; as above) and the gradients of the tokens are contiguous; the rows of `query` and `token` are contiguous,
// their other strides any.
struct AbsorbedAttention {
  DType dtype;  // of the query token, the tokens, and their gradients
  int64_t batch, tokens, heads, width;
  float eps;
  const float* u;
  const void* query;
  int64_t query_stride_batch;
  const void* token;
  int64_t token_stride_batch, token_stride_row;
  // Written by the forward pass, read by the backward pass.
  float *z, *stats;
  // Backward pass only.
  const float* grad_z;
  float* grad_u;
  void *grad_query, *grad_token;
};

// The projections of cross_modal_attention, before and after AbsorbedAttention, for inference. Weights are (width,
// width) as nn.Linear stores them, contiguous; the key bias changes nothing and is not here.
struct CrossModalProjections {
  DType dtype;  // of the query token, the weights and biases of projections, and out
  int64_t batch, heads, width;
  float eps;
  const float *norm_weight, *norm_bias;
  // absorb_query: writes u, which carries norm_weight and the softmax scale.
  const void* query;
  int64_t query_stride_batch;
  const void *q_weight, *q_bias, *k_weight;
  float* u;
  // project_values: reads z, writes out (batch, width).
  const float* z;
  const void *v_weight, *v_bias;
  void* out;
};

// sum = x + residual, norm = LayerNorm(sum), over rows of `width` contiguous elements. Written tensors are contiguous.
struct AddLayerNorm {
  DType dtype;    // of residual, sum, norm and their gradients
  DType x_dtype;  // the same, or a half type beside float (autocast)
  int64_t rows, width;
  float eps;
  const void* residual;
  int64_t residual_stride_row;
  const void* x;
  int64_t x_stride_row;
  const float *weight, *bias;
  // Written by the forward pass; the backward pass reads sum.
  void *sum, *norm;
  // Backward pass only. grad_residual is the gradient of the sum, hence that of x too.
  const void* grad_norm;
  int64_t grad_norm_stride_row;
  const void* grad_sum;
  int64_t grad_sum_stride_row;
  void* grad_residual;
  float *grad_weight, *grad_bias;
};

// out = dropout(gelu(x + bias)), GELU by the error function, over rows of `width` contiguous elements. Written tensors
// are contiguous. Dropout's mask is a function of `seed`, row and column (bias_gelu.cpp); rate 0 leaves it out.
struct BiasGelu {
  DType dtype;  // of x, out and their gradients
  int64_t rows, width;
  const void* x;
  int64_t x_stride_row;
  const float* bias;
  double dropout_rate;  // in float32 its threshold would be another than the reference's
  uint64_t seed;
  // Written by the forward pass.
  void* out;
  // Backward pass only.
  const void* grad_out;
  int64_t grad_out_stride_row;
  void* grad_x;
  float* grad_bias;
};

// The one list of the kernels: a function's name and the struct that it takes. The members of KernelTable are made of
// it, and in table.cpp, for every instruction set, the functions' declarations and the table's entries.
#define HSTA_KERNELS(KERNEL)                                \
  KERNEL(absorbed_attention_forward, AbsorbedAttention)     \
  KERNEL(absorbed_attention_backward, AbsorbedAttention)    \
  KERNEL(add_layer_norm_forward, AddLayerNorm)              \
  KERNEL(add_layer_norm_backward, AddLayerNorm)             \
  KERNEL(bias_gelu_forward, BiasGelu)                       \
  KERNEL(bias_gelu_backward, BiasGelu)                      \
  KERNEL(cross_modal_absorb_query, CrossModalProjections)   \
  KERNEL(cross_modal_project_values, CrossModalProjections) \
  KERNEL(space_time_attention_forward, SpaceTimeAttention)  \
  KERNEL(space_time_attention_backward, SpaceTimeAttention)

struct KernelTable {
  const char* isa;
  void (*exp2)(const float* x, float* y, int64_t count);  // for the test of its error bound
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
