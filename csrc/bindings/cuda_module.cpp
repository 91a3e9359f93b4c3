// What Python calls to run the CUDA kernels: addresses, sizes and strides, no torch. The checks are made in Python,
// where arguments have names; an error here names the operator and its sizes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <sstream>
#include <stdexcept>

#include "../cuda/kernels.h"

namespace py = pybind11;

namespace {

using namespace hsta;
using cuda::AbsorbedAttention;
using cuda::AddLayerNorm;
using cuda::SpaceTimeAttention;

using Address = uintptr_t;
template <size_t n>
using Numbers = std::array<int64_t, n>;

template <typename T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

cuda::Stream to_stream(Address address) { return (cuda::Stream)(address); }

const char* name(DType dtype) {
  return dtype == DType::kFloat32 ? "float32" : dtype == DType::kBFloat16 ? "bfloat16" : "float16";
}

void describe(std::ostream& to, const AddLayerNorm& op) {
  to << "add_layer_norm of " << op.rows << " rows of " << op.width << ' ' << name(op.dtype);
}

void describe(std::ostream& to, const SpaceTimeAttention& op) {
  to << "space_time_attention over time of " << op.batch << " samples of " << op.prefix << " + " << op.frames << " x "
     << op.patches << " tokens, " << op.heads << " heads of " << op.head_dim << ' ' << name(op.dtype);
}

void describe(std::ostream& to, const AbsorbedAttention& op) {
  to << "cross_modal_attention of " << op.batch << " samples of 1 + " << op.tokens << " rows of " << op.width << ' '
     << name(op.dtype) << ", " << op.heads << " heads";
}

// Runs f(op), whose errors then say what was asked for.
template <typename Op, typename F>
void named_errors(const char* pass, const Op& op, F&& f) {
  try {
    f(op);
  } catch (const std::exception& error) {
    std::ostringstream message;
    describe(message, op);
    message << ", " << pass << ": " << error.what();
    throw std::runtime_error(message.str());
  }
}

// sum = x + residual is what both passes have, and the weight.
AddLayerNorm add_layer_norm(int dtype, Numbers<2> sizes, float eps, Address sum, Address weight) {
  AddLayerNorm op{};
  op.dtype = DType(dtype);
  op.rows = sizes[0], op.width = sizes[1], op.eps = eps;
  op.sum = pointer(sum), op.weight = pointer<const float>(weight);
  return op;
}

void define_add_layer_norm(py::module_& m) {
  m.def("add_layer_norm_workspace",
        [](Numbers<2> sizes) { return cuda::add_layer_norm_workspace(add_layer_norm(0, sizes, 0, 0, 0)); });
  m.def(
      "add_layer_norm_forward",
      [](int dtype, int x_dtype, Numbers<2> sizes, float eps, Address residual, Address x, Numbers<2> row_strides,
         Address weight, Address bias, Address sum, Address norm, Address stream) {
        auto op = add_layer_norm(dtype, sizes, eps, sum, weight);
        op.x_dtype = DType(x_dtype);
        op.residual = pointer(residual), op.residual_stride_row = row_strides[0];
        op.x = pointer(x), op.x_stride_row = row_strides[1];
        op.bias = pointer<const float>(bias);
        op.norm = pointer(norm);
        named_errors("forward", op, [&](auto& op) { cuda::add_layer_norm_forward(op, to_stream(stream)); });
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "add_layer_norm_backward",
      [](int dtype, Numbers<2> sizes, float eps, Address sum, Address weight, Address grad_norm, Address grad_sum,
         Numbers<2> row_strides, Address grad_residual, Address grad_weight, Address grad_bias, Address workspace,
         Address stream) {
        auto op = add_layer_norm(dtype, sizes, eps, sum, weight);
        op.grad_norm = pointer(grad_norm), op.grad_norm_stride_row = row_strides[0];
        op.grad_sum = pointer(grad_sum), op.grad_sum_stride_row = row_strides[1];
        op.grad_residual = pointer(grad_residual);
        op.grad_weight = pointer<float>(grad_weight), op.grad_bias = pointer<float>(grad_bias);
        op.workspace = pointer<float>(workspace);
        named_errors("backward", op, [&](auto& op) { cuda::add_layer_norm_backward(op, to_stream(stream)); });
      },
      py::call_guard<py::gil_scoped_release>());
}

SpaceTimeAttention space_time_attention(int dtype, Numbers<6> sizes, double scale = 0, Address qkv = 0,
                                        Numbers<4> strides = {}, Address out = 0, Address stats = 0,
                                        Address workspace = 0) {
  SpaceTimeAttention op{};
  op.dtype = DType(dtype);
  op.batch = sizes[0], op.prefix = sizes[1], op.frames = sizes[2], op.patches = sizes[3];
  op.heads = sizes[4], op.head_dim = sizes[5];
  op.scale = scale;
  op.qkv = pointer(qkv);
  op.qkv_stride_batch = strides[0], op.qkv_stride_token = strides[1];
  op.qkv_stride_part = strides[2], op.qkv_stride_head = strides[3];
  op.out = pointer(out);
  op.stats = pointer<float>(stats), op.workspace = pointer<float>(workspace);
  return op;
}

void define_space_time_attention(py::module_& m) {
  m.def("space_time_attention_workspace", [](int dtype, Numbers<6> sizes) {
    return cuda::space_time_attention_workspace(space_time_attention(dtype, sizes));
  });
  m.def(
      "space_time_attention_forward",
      [](int dtype, Numbers<6> sizes, double scale, Address qkv, Numbers<4> strides, Address out, Address stats,
         Address workspace, Address stream) {
        const auto op = space_time_attention(dtype, sizes, scale, qkv, strides, out, stats, workspace);
        named_errors("forward", op, [&](auto& op) { cuda::space_time_attention_forward(op, to_stream(stream)); });
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "space_time_attention_backward",
      [](int dtype, Numbers<6> sizes, double scale, Address qkv, Numbers<4> strides, Address out, Address stats,
         Address grad_out, Numbers<3> grad_out_strides, Address grad_qkv, Address workspace, Address stream) {
        auto op = space_time_attention(dtype, sizes, scale, qkv, strides, out, stats, workspace);
        op.grad_out = pointer(grad_out);
        op.grad_out_stride_batch = grad_out_strides[0], op.grad_out_stride_token = grad_out_strides[1];
        op.grad_out_stride_head = grad_out_strides[2];
        op.grad_qkv = pointer(grad_qkv);
        named_errors("backward", op, [&](auto& op) { cuda::space_time_attention_backward(op, to_stream(stream)); });
      },
      py::call_guard<py::gil_scoped_release>());
}

AbsorbedAttention absorbed_attention(int dtype, Numbers<4> sizes, float eps = 0, Address u = 0, Address query = 0,
                                     int64_t query_stride = 0, Address token = 0, Numbers<2> token_strides = {},
                                     Address z = 0, Address stats = 0, Address workspace = 0) {
  AbsorbedAttention op{};
  op.dtype = DType(dtype);
  op.batch = sizes[0], op.tokens = sizes[1], op.heads = sizes[2], op.width = sizes[3];
  op.eps = eps;
  op.u = pointer<const float>(u);
  op.query = pointer(query), op.query_stride_batch = query_stride;
  op.token = pointer(token), op.token_stride_batch = token_strides[0], op.token_stride_row = token_strides[1];
  op.z = pointer<float>(z), op.stats = pointer<float>(stats), op.workspace = pointer<float>(workspace);
  return op;
}

void define_absorbed_attention(py::module_& m) {
  m.def("absorbed_attention_workspace", [](int dtype, Numbers<4> sizes) {
    return cuda::absorbed_attention_workspace(absorbed_attention(dtype, sizes));
  });
  m.def(
      "absorbed_attention_forward",
      [](int dtype, Numbers<4> sizes, float eps, Address u, Address query, int64_t query_stride, Address token,
         Numbers<2> token_strides, Address z, Address stats, Address workspace, Address stream) {
        const auto op =
            absorbed_attention(dtype, sizes, eps, u, query, query_stride, token, token_strides, z, stats, workspace);
        named_errors("forward", op, [&](auto& op) { cuda::absorbed_attention_forward(op, to_stream(stream)); });
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "absorbed_attention_backward",
      [](int dtype, Numbers<4> sizes, float eps, Address u, Address query, int64_t query_stride, Address token,
         Numbers<2> token_strides, Address z, Address stats, Address grad_z, Address grad_u, Address grad_query,
         Address grad_token, Address workspace, Address stream) {
        auto op =
            absorbed_attention(dtype, sizes, eps, u, query, query_stride, token, token_strides, z, stats, workspace);
        op.grad_z = pointer<const float>(grad_z);
        op.grad_u = pointer<float>(grad_u);
        op.grad_query = pointer(grad_query);
        op.grad_token = pointer(grad_token);
        named_errors("backward", op, [&](auto& op) { cuda::absorbed_attention_backward(op, to_stream(stream)); });
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of hsta_kernels; called by hsta_kernels.ops, never directly.";
  define_add_layer_norm(m);
  define_space_time_attention(m);
  define_absorbed_attention(m);
}
