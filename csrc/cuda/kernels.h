// The operators on a GPU. Calls enqueue kernels on a stream of the current device and return; std::runtime_error says
// why a kernel could not be launched.
//
// Strides count elements. Rows are contiguous and, like all strides and addresses, multiples of 16 bytes. Tensors that
// are written are contiguous. `workspace` is working memory from the caller, with room for as many floats as the
// function of that name says.
#pragma once

#include <string>

#include "device.h"

namespace hsta::cuda {

// sum = x + residual, norm = LayerNorm(sum), over rows of `width` elements, a multiple of 8 up to 8,192.
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
  float* workspace;
};

void add_layer_norm_forward(const AddLayerNorm&, Stream);
void add_layer_norm_backward(const AddLayerNorm&, Stream);
int64_t add_layer_norm_workspace(const AddLayerNorm&);  // of the backward pass

// space_time_attention along time, over qkv (B, L, 3, H, D) with L = prefix + frames * patches; at most 64 frames and
// 16 prefix tokens, D a multiple of 8 up to 128. `stats` (B, H, prefix, 2) are, of the scores s_j = scale * log2(e) *
// q·k_j of a prefix query, max_j s_j and sum_j 2^(s_j - max): kept apart, because rounding their log-sum-exp to float
// would put a common error of several ulp on the recomputed probabilities. Other queries' are at hand in the backward
// pass.
struct SpaceTimeAttention {
  DType dtype;
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
  float* workspace;
};

void space_time_attention_forward(const SpaceTimeAttention&, Stream);
void space_time_attention_backward(const SpaceTimeAttention&, Stream);
int64_t space_time_attention_workspace(const SpaceTimeAttention&);  // of either pass

// Absorbed attention, cross_modal_attention without its projections, over the rows [query, tokens] of a sample: z_h =
// sum_j softmax_j(u_h · y_j) y_j with y_j the normalized row. At most 32 heads; rows of C elements, a multiple of 8. u,
// z, grad_z, grad_u (B, H, C) and stats (B, H, 2; as above) are float.
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
  float* workspace;
};

void absorbed_attention_forward(const AbsorbedAttention&, Stream);
void absorbed_attention_backward(const AbsorbedAttention&, Stream);
int64_t absorbed_attention_workspace(const AbsorbedAttention&);  // of either pass

// f(element of the type that `dtype` names).
template <typename F>
void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kBFloat16:
      return f(BFloat16{});
    case DType::kFloat16:
      return f(Float16{});
  }
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

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
