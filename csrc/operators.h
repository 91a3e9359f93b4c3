// Every operator's arguments, one struct for CPU and CUDA, and what its kernels rely on.
//
// read_<kernel> takes a kernel's arguments from Python in order, and says of each tensor its name, dtype, shape and
// layout. A dtype or size given by address is taken from the tensor; one given by value is what the tensor must have.
// The binding checks it (bindings/arguments.h). Tensors of kRows have contiguous rows; all others are contiguous. Where
// a tensor_or_none is None, its data are null. On a GPU tensors and rows begin at multiples of 16 bytes.
#pragma once

#include "common/tensor_view.h"

namespace hsta {

enum class Axis : int { kTime = 0, kSpace = 1, kJoint = 2 };

enum class PrefixAttention : int { kAll = 0, kNone = 1, kFrameMean = 2 };

enum class TokenOrder : int { kTimeMajor = 0, kPatchMajor = 1 };

enum class RotaryPairs : int { kInterleaved = 0, kHalf = 1 };

enum class NormKind : int { kLayer = 0, kRms = 1 };

enum class Layout { kContiguous, kRows };

// Absorbed attention: cross_modal_attention without its projections, over the rows [query, tokens] of a sample: z_h =
// sum_j softmax_j(u_h · y_j) y_j with y_j the normalized row. `stats` are as those of SpaceTimeAttention.
//
// Dropout makes p_j / (1 - rate) or 0 of each probability p_j, by a mask that is a function of `seed`, sample, head and
// row (cpu/absorbed_attention.cpp). They no longer sum to 1: s_h, their sum, is the third of `stats` then, and has a
// gradient of its own. The CUDA kernels drop nothing.
struct AbsorbedAttention {
  DType dtype;  // of the query token, the tokens, and their gradients
  int64_t batch, tokens, heads, width;
  float eps;
  TensorView u, query, token;
  TensorView z, stats;  // written by the forward pass, read by the backward pass
  TensorView grad_z, grad_u, grad_query, grad_token;
  double dropout_rate;  // as of BiasGelu
  uint64_t seed;
  TensorView grad_s;  // with dropout only

  bool drops() const { return dropout_rate > 0; }
};

template <typename Arguments>
void read_absorbed_attention_forward(Arguments& in, AbsorbedAttention& op) {
  in.tensor("u", op.u, DType::kFloat32, {&op.batch, &op.heads, &op.width});
  in.tensor("query_token", op.query, &op.dtype, {op.batch, op.width}, Layout::kRows);
  in.tensor("tokens", op.token, op.dtype, {op.batch, &op.tokens, op.width}, Layout::kRows);
  in.number("eps", op.eps);
  in.number("dropout_rate", op.dropout_rate);
  in.number("seed", op.seed);
  in.tensor("z", op.z, DType::kFloat32, {op.batch, op.heads, op.width});
  in.tensor("stats", op.stats, DType::kFloat32, {op.batch, op.heads, op.drops() ? 3 : 2});
}

template <typename Arguments>
void read_absorbed_attention_backward(Arguments& in, AbsorbedAttention& op) {
  read_absorbed_attention_forward(in, op);
  in.tensor("grad_z", op.grad_z, DType::kFloat32, {op.batch, op.heads, op.width});
  in.tensor("grad_s", op.grad_s, DType::kFloat32, {op.batch, op.drops() ? op.heads : 0});
  in.tensor("grad_u", op.grad_u, DType::kFloat32, {op.batch, op.heads, op.width});
  in.tensor("grad_query_token", op.grad_query, op.dtype, {op.batch, op.width});
  in.tensor("grad_tokens", op.grad_token, op.dtype, {op.batch, op.tokens, op.width});
}

// sum = x + residual, norm = LayerNorm(sum).
//
// Under autocast x is of a half type beside a float residual. So may norm be then, and grad_norm.
struct AddLayerNorm {
  DType dtype;  // of residual, sum and their gradients
  int64_t rows, width;
  float eps;
  TensorView residual, x, weight, bias;
  TensorView sum, norm;  // written by the forward pass; the backward pass reads sum
  // Backward pass only. grad_residual is the gradient of the sum, hence that of x too: grad_x, where it is given, is
  // the same in the dtype of grad_norm. So is norm, which is computed anew where it is given.
  TensorView grad_norm, grad_sum, grad_residual, grad_x, grad_weight, grad_bias;
};

template <typename Arguments>
void read_add_layer_norm_forward(Arguments& in, AddLayerNorm& op) {
  in.tensor("residual", op.residual, &op.dtype, {&op.rows, &op.width}, Layout::kRows);
  DType x_dtype = op.dtype;
  if (op.dtype == DType::kFloat32)
    in.tensor("x", op.x, &x_dtype, {op.rows, op.width}, Layout::kRows);
  else
    in.tensor("x", op.x, op.dtype, {op.rows, op.width}, Layout::kRows);
  in.tensor("weight", op.weight, DType::kFloat32, {op.width});
  in.tensor("bias", op.bias, DType::kFloat32, {op.width});
  in.number("eps", op.eps);
  in.tensor("sum", op.sum, op.dtype, {op.rows, op.width});
  in.tensor("norm", op.norm, {op.dtype, x_dtype}, {op.rows, op.width});
}

template <typename Arguments>
void read_add_layer_norm_backward(Arguments& in, AddLayerNorm& op) {
  in.tensor("sum", op.sum, &op.dtype, {&op.rows, &op.width});
  in.tensor("weight", op.weight, DType::kFloat32, {op.width});
  in.tensor("bias", op.bias, DType::kFloat32, {op.width});
  in.number("eps", op.eps);
  DType narrow = op.dtype;
  if (op.dtype == DType::kFloat32)
    in.tensor("grad_norm", op.grad_norm, &narrow, {op.rows, op.width}, Layout::kRows);
  else
    in.tensor("grad_norm", op.grad_norm, op.dtype, {op.rows, op.width}, Layout::kRows);
  in.tensor("grad_sum", op.grad_sum, op.dtype, {op.rows, op.width}, Layout::kRows);
  in.tensor("grad_residual", op.grad_residual, op.dtype, {op.rows, op.width});
  in.tensor_or_none("grad_x", op.grad_x, narrow, {op.rows, op.width}, Layout::kContiguous);
  in.tensor_or_none("norm", op.norm, narrow, {op.rows, op.width}, Layout::kContiguous);
  in.tensor("grad_weight", op.grad_weight, DType::kFloat32, {op.width});
  in.tensor("grad_bias", op.grad_bias, DType::kFloat32, {op.width});
}

// out = dropout(gelu(x + bias)), GELU by the error function. Dropout's mask is a function of `seed`, row and column
// (cpu/bias_gelu.cpp); rate 0 leaves it out.
struct BiasGelu {
  DType dtype;  // of x, out and their gradients
  int64_t rows, width;
  TensorView x, bias;
  double dropout_rate;  // in float32 its threshold would be another than the reference's
  uint64_t seed;
  TensorView out;                          // written by the forward pass
  TensorView grad_out, grad_x, grad_bias;  // backward pass only
};

template <typename Arguments>
void read_bias_gelu(Arguments& in, BiasGelu& op) {
  in.tensor("x", op.x, &op.dtype, {&op.rows, &op.width}, Layout::kRows);
  in.tensor("bias", op.bias, DType::kFloat32, {op.width});
  in.number("dropout_rate", op.dropout_rate);
  in.number("seed", op.seed);
}

template <typename Arguments>
void read_bias_gelu_forward(Arguments& in, BiasGelu& op) {
  read_bias_gelu(in, op);
  in.tensor("out", op.out, op.dtype, {op.rows, op.width});
}

template <typename Arguments>
void read_bias_gelu_backward(Arguments& in, BiasGelu& op) {
  read_bias_gelu(in, op);
  in.tensor("grad_out", op.grad_out, op.dtype, {op.rows, op.width}, Layout::kRows);
  in.tensor("grad_x", op.grad_x, op.dtype, {op.rows, op.width});
  in.tensor("grad_bias", op.grad_bias, DType::kFloat32, {op.width});
}

// out = x · weight^T + bias, and GELU of it if wanted, for inference. The rows of the weight, one for each column of
// out, are transposed in panels of kPanelColumns; what the last panel has beyond them is zeros.
constexpr int64_t kPanelColumns = 48;  // whole vectors of any processor

struct PackedProduct {
  int64_t rows, inner, columns;
  bool gelu;
  TensorView x, weight, bias, out;
};

template <typename Arguments>
void read_packed_product(Arguments& in, PackedProduct& op) {
  in.size("columns", op.columns);
  in.tensor("x", op.x, DType::kFloat32, {&op.rows, &op.inner}, Layout::kRows);
  in.tensor("weight", op.weight, DType::kFloat32, {divide_up(op.columns, kPanelColumns), op.inner, kPanelColumns});
  in.tensor("bias", op.bias, DType::kFloat32, {op.columns});
  in.number("gelu", op.gelu);
  in.tensor("out", op.out, DType::kFloat32, {op.rows, op.columns});
}

// The projections of cross_modal_attention, before and after AbsorbedAttention, for inference. Weights are (width,
// width) as nn.Linear stores them; the key bias changes nothing and is not here.
struct CrossModalProjections {
  DType dtype;  // of the query token, the weights and biases of projections, and out
  int64_t batch, heads, width;
  TensorView norm_weight, norm_bias;
  // absorb_query: writes u, which carries norm_weight and the softmax scale.
  float eps;
  TensorView query, q_weight, q_bias, k_weight, u;
  // project_values: reads z, writes out.
  TensorView z, v_weight, v_bias, out;
};

template <typename Arguments>
void read_cross_modal_absorb_query(Arguments& in, CrossModalProjections& op) {
  in.tensor("query_token", op.query, &op.dtype, {&op.batch, &op.width}, Layout::kRows);
  in.tensor("norm_weight", op.norm_weight, DType::kFloat32, {op.width});
  in.tensor("norm_bias", op.norm_bias, DType::kFloat32, {op.width});
  in.number("eps", op.eps);
  in.tensor("q_weight", op.q_weight, op.dtype, {op.width, op.width});
  in.tensor("q_bias", op.q_bias, op.dtype, {op.width});
  in.tensor("k_weight", op.k_weight, op.dtype, {op.width, op.width});
  in.tensor("u", op.u, DType::kFloat32, {op.batch, &op.heads, op.width});
}

template <typename Arguments>
void read_cross_modal_project_values(Arguments& in, CrossModalProjections& op) {
  in.tensor("z", op.z, DType::kFloat32, {&op.batch, &op.heads, &op.width});
  in.tensor("norm_weight", op.norm_weight, DType::kFloat32, {op.width});
  in.tensor("norm_bias", op.norm_bias, DType::kFloat32, {op.width});
  in.tensor("v_weight", op.v_weight, &op.dtype, {op.width, op.width});
  in.tensor("v_bias", op.v_bias, op.dtype, {op.width});
  in.tensor("out", op.out, op.dtype, {op.batch, op.width});
}

// What a product of 8-bit integers has before and after it. quantize_rows makes integers round(x / scale) + most + 1 of
// each row of x, ties to even, with scale = max(max|x|, the smallest normal float) / most. scale_rows makes y * scale +
// bias of the product y, in its place, and GELU of that where asked.
struct QuantizedRows {
  int64_t rows, width;
  int64_t most;  // at most 127
  TensorView x, integers;
  TensorView scale;  // written by quantize_rows, read by scale_rows; NaN or infinite where x has such
  TensorView y, bias;
  bool gelu;
};

template <typename Arguments>
void read_quantize_rows(Arguments& in, QuantizedRows& op) {
  in.tensor("x", op.x, DType::kFloat32, {&op.rows, &op.width}, Layout::kRows);
  in.size("most", op.most);
  in.tensor("integers", op.integers, DType::kUInt8, {op.rows, op.width});
  in.tensor("scale", op.scale, DType::kFloat32, {op.rows});
}

template <typename Arguments>
void read_scale_rows(Arguments& in, QuantizedRows& op) {
  in.tensor("y", op.y, DType::kFloat32, {&op.rows, &op.width});
  in.tensor("scale", op.scale, DType::kFloat32, {op.rows});
  in.tensor("bias", op.bias, DType::kFloat32, {op.width});
  in.number("gelu", op.gelu);
}

// space_time_attention over q, k and v, each (B, L, H, D) with L = prefix + frames * patches. They may be parts of one
// tensor (B, L, 3, H, D); so may their gradients. Stats belong to queries whose softmax is over several groups: the
// prefix, with PrefixAttention::kAll and unless joint. They are m = max_j s_j and sum_j 2^(s_j - m) for its scores s_j
// = scale * log2(e) * q·k_j: kept apart, because rounding their log-sum-exp to float would put a common error of
// several ulp on the recomputed probabilities. Dropout's mask is a function of `seed` and of the place of query and key
// (cpu/attention_dropout.h), and neither stats nor any softmax's sum know of it.
//
// With `cos` and `sin`, a row for each token, rows of q and k are rotated before they are used (cpu/rotary.h); without,
// their data are null. With `affine`, weight and bias of q and of k, they are
// normalized before that (cpu/qk_norm.h).
//
// With `bias`, whose rows and columns are a group's rows, the prefix first, it is added to scale * q·k, in every sample
// and group (cpu/attention_bias.h); its gradient is computed where `grad_bias` is given.
struct SpaceTimeAttention {
  DType dtype;
  Axis axis;
  TokenOrder order;
  PrefixAttention prefix_attention;
  int64_t batch, prefix, frames, patches, heads, head_dim;
  double scale;
  double dropout_rate;  // as of BiasGelu
  uint64_t seed;
  RotaryPairs rotary_pairs;
  NormKind qk_norm;
  double qk_norm_eps;
  TensorView qkv[3];
  TensorView cos, sin;
  TensorView affine, grad_affine;
  TensorView out, stats;  // written by the forward pass, read by the backward pass
  TensorView grad_out, grad_qkv[3];
  TensorView bias, grad_bias;

  bool has_stats() const { return axis != Axis::kJoint && prefix_attention == PrefixAttention::kAll; }
  int64_t group_rows() const {
    const int64_t members = axis == Axis::kTime ? frames : axis == Axis::kSpace ? patches : frames * patches;
    return members + (prefix_attention == PrefixAttention::kNone ? 0 : prefix);
  }
};

template <typename Arguments>
void read_space_time_attention_forward(Arguments& in, SpaceTimeAttention& op) {
  in.choice("axis", op.axis, 3);
  in.choice("token_order", op.order, 2);
  in.choice("prefix", op.prefix_attention, 3);
  in.size("num_prefix_tokens", op.prefix);
  in.size("num_frames", op.frames);
  in.size("num_patches", op.patches);
  in.number("scale", op.scale);
  in.number("dropout_rate", op.dropout_rate);
  in.number("seed", op.seed);
  in.choice("rotary_pairs", op.rotary_pairs, 2);
  in.choice("qk_norm", op.qk_norm, 2);
  in.number("qk_norm_eps", op.qk_norm_eps);
  const int64_t tokens = op.prefix + op.frames * op.patches;
  in.parts("qkv", op.qkv, &op.dtype, {&op.batch, tokens, &op.heads, &op.head_dim}, Layout::kRows);
  in.tensor_or_none("cos", op.cos, DType::kFloat32, {tokens, op.head_dim}, Layout::kRows);
  in.tensor_or_none("sin", op.sin, DType::kFloat32, {tokens, op.head_dim}, Layout::kRows);
  in.tensor_or_none("affine", op.affine, DType::kFloat32, {2, 2, op.head_dim}, Layout::kContiguous);
  const int64_t rows = op.group_rows();
  in.tensor_or_none("bias", op.bias, DType::kFloat32, {op.heads, rows, rows}, Layout::kRows);
  in.tensor("out", op.out, op.dtype, {op.batch, tokens, op.heads, op.head_dim});
  in.tensor("stats", op.stats, DType::kFloat32, {op.batch, op.heads, op.has_stats() ? op.prefix : 0, 2});
}

template <typename Arguments>
void read_space_time_attention_backward(Arguments& in, SpaceTimeAttention& op) {
  read_space_time_attention_forward(in, op);
  const int64_t tokens = op.qkv[0].shape[1];
  in.tensor("grad_out", op.grad_out, op.dtype, {op.batch, tokens, op.heads, op.head_dim}, Layout::kRows);
  in.parts("grad_qkv", op.grad_qkv, op.dtype, {op.batch, tokens, op.heads, op.head_dim}, Layout::kContiguous);
  in.tensor_or_none("grad_affine", op.grad_affine, DType::kFloat32, {op.affine.data ? 2 : 0, 2, op.head_dim},
                    Layout::kContiguous);
  const int64_t rows = op.group_rows();
  in.tensor_or_none("grad_bias", op.grad_bias, DType::kFloat32, {op.heads, rows, rows}, Layout::kContiguous);
}

// The one list of the CPU kernels: a function's name and the struct that it takes. The members of KernelTable are made
// of it (cpu/kernels.h); for every instruction set the functions' declarations and the table's entries (cpu/table.cpp);
// and the functions of the Python module. Of the CUDA kernels there is one in cuda/kernels.h.
#define HSTA_KERNELS(KERNEL)                                \
  KERNEL(absorbed_attention_forward, AbsorbedAttention)     \
  KERNEL(absorbed_attention_backward, AbsorbedAttention)    \
  KERNEL(add_layer_norm_forward, AddLayerNorm)              \
  KERNEL(add_layer_norm_backward, AddLayerNorm)             \
  KERNEL(bias_gelu_forward, BiasGelu)                       \
  KERNEL(bias_gelu_backward, BiasGelu)                      \
  KERNEL(cross_modal_absorb_query, CrossModalProjections)   \
  KERNEL(cross_modal_project_values, CrossModalProjections) \
  KERNEL(packed_product, PackedProduct)                     \
  KERNEL(quantize_rows, QuantizedRows)                      \
  KERNEL(scale_rows, QuantizedRows)                         \
  KERNEL(space_time_attention_forward, SpaceTimeAttention)  \
  KERNEL(space_time_attention_backward, SpaceTimeAttention)

}  // namespace hsta
