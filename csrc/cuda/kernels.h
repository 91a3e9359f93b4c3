// The operators on a GPU. Calls enqueue kernels on a stream of the current device and return; std::runtime_error says
// why a kernel could not be launched.
//
// Strides count elements. Rows are contiguous and, like all strides and addresses, multiples of 16 bytes. Tensors that
// are written are contiguous. `workspace` is working memory from the caller, with room for as many floats as the
// function of that name says.
#pragma once

#include "device.h"

namespace hsta::cuda {

// sum = x + residual, norm = LayerNorm(sum), over rows of `width` elements, a multiple of 8 up to 8,192.
struct AddLayerNorm {
  DType dtype;           // of x, sum, norm and their gradients
  DType residual_dtype;  // the same, or a half type beside float (autocast)
  int64_t rows, width;
  float eps;
  const void* x;
  int64_t x_stride_row;
  const void* residual;
  int64_t residual_stride_row;
  const float *weight, *bias;
  // Written by the forward pass; the backward pass reads sum.
  void *sum, *norm;
  // Backward pass only. grad_x is the gradient of the sum, hence of x and of the residual alike.
  const void* grad_norm;
  int64_t grad_norm_stride_row;
  const void* grad_sum;
  int64_t grad_sum_stride_row;
  void* grad_x;
  float *grad_weight, *grad_bias;
  float* workspace;
};

void add_layer_norm_forward(const AddLayerNorm&, Stream);
void add_layer_norm_backward(const AddLayerNorm&, Stream);
int64_t add_layer_norm_workspace(const AddLayerNorm&);  // of the backward pass

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

}  // namespace hsta::cuda
