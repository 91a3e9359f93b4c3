// What Python calls: addresses, sizes and strides, no torch. The checks are made in Python, where arguments have names.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "../cpu/kernels.h"

namespace py = pybind11;

namespace {

template <typename T = void>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

hsta::SpaceTimeAttention space_time_attention(int dtype, int axis, std::array<int64_t, 6> sizes, double scale,
                                              uintptr_t qkv, std::array<int64_t, 4> strides, uintptr_t out,
                                              uintptr_t stats) {
  hsta::SpaceTimeAttention op{};
  op.dtype = hsta::DType(dtype);
  op.axis = hsta::Axis(axis);
  op.batch = sizes[0], op.prefix = sizes[1], op.frames = sizes[2], op.patches = sizes[3];
  op.heads = sizes[4], op.head_dim = sizes[5];
  op.scale = scale;
  op.qkv = pointer(qkv);
  op.qkv_stride_batch = strides[0], op.qkv_stride_token = strides[1];
  op.qkv_stride_part = strides[2], op.qkv_stride_head = strides[3];
  op.out = pointer(out);
  op.stats = pointer<float>(stats);
  return op;
}

hsta::AbsorbedAttention absorbed_attention(int dtype, std::array<int64_t, 4> sizes, float eps, uintptr_t u,
                                           uintptr_t query, int64_t query_stride, uintptr_t token,
                                           std::array<int64_t, 2> token_strides, uintptr_t z, uintptr_t stats) {
  hsta::AbsorbedAttention op{};
  op.dtype = hsta::DType(dtype);
  op.batch = sizes[0], op.tokens = sizes[1], op.heads = sizes[2], op.width = sizes[3];
  op.eps = eps;
  op.u = pointer<const float>(u);
  op.query = pointer(query), op.query_stride_batch = query_stride;
  op.token = pointer(token), op.token_stride_batch = token_strides[0], op.token_stride_row = token_strides[1];
  op.z = pointer<float>(z), op.stats = pointer<float>(stats);
  return op;
}

hsta::CrossModalProjections cross_modal_projections(int dtype, std::array<int64_t, 3> sizes, uintptr_t norm_weight,
                                                    uintptr_t norm_bias) {
  hsta::CrossModalProjections op{};
  op.dtype = hsta::DType(dtype);
  op.batch = sizes[0], op.heads = sizes[1], op.width = sizes[2];
  op.norm_weight = pointer<const float>(norm_weight), op.norm_bias = pointer<const float>(norm_bias);
  return op;
}

hsta::BiasGelu bias_gelu(int dtype, std::array<int64_t, 2> sizes, uintptr_t x, int64_t x_stride, uintptr_t bias,
                         double dropout_rate, uint64_t seed) {
  hsta::BiasGelu op{};
  op.dtype = hsta::DType(dtype);
  op.rows = sizes[0], op.width = sizes[1];
  op.x = pointer(x), op.x_stride_row = x_stride;
  op.bias = pointer<const float>(bias);
  op.dropout_rate = dropout_rate, op.seed = seed;
  return op;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of hsta_kernels; called by hsta_kernels.ops, never directly.";
  m.def("cpu_isa", [] { return hsta::kernels().isa; });
  m.def("runnable_cpu_isas", &hsta::runnable_isas);
  m.def("exp2", [](uintptr_t x, uintptr_t y, int64_t count) {
    hsta::kernels().exp2(pointer<const float>(x), pointer<float>(y), count);
  });

  m.def(
      "space_time_attention_forward",
      [](int dtype, int axis, std::array<int64_t, 6> sizes, double scale, uintptr_t qkv, std::array<int64_t, 4> strides,
         uintptr_t out, uintptr_t stats) {
        const auto op = space_time_attention(dtype, axis, sizes, scale, qkv, strides, out, stats);
        hsta::kernels().space_time_attention_forward(op);
      },
      py::arg("dtype"), py::arg("axis"), py::arg("sizes"), py::arg("scale"), py::arg("qkv"), py::arg("strides"),
      py::arg("out"), py::arg("stats"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "space_time_attention_backward",
      [](int dtype, int axis, std::array<int64_t, 6> sizes, double scale, uintptr_t qkv, std::array<int64_t, 4> strides,
         uintptr_t out, uintptr_t stats, uintptr_t grad_out, std::array<int64_t, 3> grad_out_strides,
         uintptr_t grad_qkv) {
        auto op = space_time_attention(dtype, axis, sizes, scale, qkv, strides, out, stats);
        op.grad_out = pointer(grad_out);
        op.grad_out_stride_batch = grad_out_strides[0], op.grad_out_stride_token = grad_out_strides[1];
        op.grad_out_stride_head = grad_out_strides[2];
        op.grad_qkv = pointer(grad_qkv);
        hsta::kernels().space_time_attention_backward(op);
      },
      py::arg("dtype"), py::arg("axis"), py::arg("sizes"), py::arg("scale"), py::arg("qkv"), py::arg("strides"),
      py::arg("out"), py::arg("stats"), py::arg("grad_out"), py::arg("grad_out_strides"), py::arg("grad_qkv"),
      py::call_guard<py::gil_scoped_release>());

  m.def(
      "absorbed_attention_forward",
      [](int dtype, std::array<int64_t, 4> sizes, float eps, uintptr_t u, uintptr_t query, int64_t query_stride,
         uintptr_t token, std::array<int64_t, 2> token_strides, uintptr_t z, uintptr_t stats) {
        hsta::kernels().absorbed_attention_forward(
            absorbed_attention(dtype, sizes, eps, u, query, query_stride, token, token_strides, z, stats));
      },
      py::arg("dtype"), py::arg("sizes"), py::arg("eps"), py::arg("u"), py::arg("query"), py::arg("query_stride"),
      py::arg("token"), py::arg("token_strides"), py::arg("z"), py::arg("stats"),
      py::call_guard<py::gil_scoped_release>());

  m.def(
      "absorbed_attention_backward",
      [](int dtype, std::array<int64_t, 4> sizes, float eps, uintptr_t u, uintptr_t query, int64_t query_stride,
         uintptr_t token, std::array<int64_t, 2> token_strides, uintptr_t z, uintptr_t stats, uintptr_t grad_z,
         uintptr_t grad_u, uintptr_t grad_query, uintptr_t grad_token) {
        auto op = absorbed_attention(dtype, sizes, eps, u, query, query_stride, token, token_strides, z, stats);
        op.grad_z = pointer<const float>(grad_z);
        op.grad_u = pointer<float>(grad_u);
        op.grad_query = pointer(grad_query);
        op.grad_token = pointer(grad_token);
        hsta::kernels().absorbed_attention_backward(op);
      },
      py::arg("dtype"), py::arg("sizes"), py::arg("eps"), py::arg("u"), py::arg("query"), py::arg("query_stride"),
      py::arg("token"), py::arg("token_strides"), py::arg("z"), py::arg("stats"), py::arg("grad_z"), py::arg("grad_u"),
      py::arg("grad_query"), py::arg("grad_token"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "cross_modal_absorb_query",
      [](int dtype, std::array<int64_t, 3> sizes, float eps, uintptr_t norm_weight, uintptr_t norm_bias,
         uintptr_t query, int64_t query_stride, uintptr_t q_weight, uintptr_t q_bias, uintptr_t k_weight, uintptr_t u) {
        auto op = cross_modal_projections(dtype, sizes, norm_weight, norm_bias);
        op.eps = eps;
        op.query = pointer(query), op.query_stride_batch = query_stride;
        op.q_weight = pointer(q_weight), op.q_bias = pointer(q_bias), op.k_weight = pointer(k_weight);
        op.u = pointer<float>(u);
        hsta::kernels().cross_modal_absorb_query(op);
      },
      py::arg("dtype"), py::arg("sizes"), py::arg("eps"), py::arg("norm_weight"), py::arg("norm_bias"),
      py::arg("query"), py::arg("query_stride"), py::arg("q_weight"), py::arg("q_bias"), py::arg("k_weight"),
      py::arg("u"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "cross_modal_project_values",
      [](int dtype, std::array<int64_t, 3> sizes, uintptr_t norm_weight, uintptr_t norm_bias, uintptr_t z,
         uintptr_t v_weight, uintptr_t v_bias, uintptr_t out) {
        auto op = cross_modal_projections(dtype, sizes, norm_weight, norm_bias);
        op.z = pointer<const float>(z);
        op.v_weight = pointer(v_weight), op.v_bias = pointer(v_bias);
        op.out = pointer(out);
        hsta::kernels().cross_modal_project_values(op);
      },
      py::arg("dtype"), py::arg("sizes"), py::arg("norm_weight"), py::arg("norm_bias"), py::arg("z"),
      py::arg("v_weight"), py::arg("v_bias"), py::arg("out"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "add_layer_norm_forward",
      [](int dtype, int x_dtype, std::array<int64_t, 2> sizes, float eps, uintptr_t residual, uintptr_t x,
         std::array<int64_t, 2> row_strides, uintptr_t weight, uintptr_t bias, uintptr_t sum, uintptr_t norm) {
        hsta::AddLayerNorm op{};
        op.dtype = hsta::DType(dtype), op.x_dtype = hsta::DType(x_dtype);
        op.rows = sizes[0], op.width = sizes[1], op.eps = eps;
        op.residual = pointer(residual), op.residual_stride_row = row_strides[0];
        op.x = pointer(x), op.x_stride_row = row_strides[1];
        op.weight = pointer<const float>(weight), op.bias = pointer<const float>(bias);
        op.sum = pointer(sum), op.norm = pointer(norm);
        hsta::kernels().add_layer_norm_forward(op);
      },
      py::arg("dtype"), py::arg("x_dtype"), py::arg("sizes"), py::arg("eps"), py::arg("residual"), py::arg("x"),
      py::arg("row_strides"), py::arg("weight"), py::arg("bias"), py::arg("sum"), py::arg("norm"),
      py::call_guard<py::gil_scoped_release>());

  m.def(
      "add_layer_norm_backward",
      [](int dtype, std::array<int64_t, 2> sizes, float eps, uintptr_t sum, uintptr_t weight, uintptr_t grad_norm,
         uintptr_t grad_sum, std::array<int64_t, 2> row_strides, uintptr_t grad_residual, uintptr_t grad_weight,
         uintptr_t grad_bias) {
        hsta::AddLayerNorm op{};
        op.dtype = hsta::DType(dtype);
        op.rows = sizes[0], op.width = sizes[1], op.eps = eps;
        op.sum = pointer(sum), op.weight = pointer<const float>(weight);
        op.grad_norm = pointer(grad_norm), op.grad_norm_stride_row = row_strides[0];
        op.grad_sum = pointer(grad_sum), op.grad_sum_stride_row = row_strides[1];
        op.grad_residual = pointer(grad_residual);
        op.grad_weight = pointer<float>(grad_weight), op.grad_bias = pointer<float>(grad_bias);
        hsta::kernels().add_layer_norm_backward(op);
      },
      py::arg("dtype"), py::arg("sizes"), py::arg("eps"), py::arg("sum"), py::arg("weight"), py::arg("grad_norm"),
      py::arg("grad_sum"), py::arg("row_strides"), py::arg("grad_residual"), py::arg("grad_weight"),
      py::arg("grad_bias"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "bias_gelu_forward",
      [](int dtype, std::array<int64_t, 2> sizes, uintptr_t x, int64_t x_stride, uintptr_t bias, double dropout_rate,
         uint64_t seed, uintptr_t out) {
        auto op = bias_gelu(dtype, sizes, x, x_stride, bias, dropout_rate, seed);
        op.out = pointer(out);
        hsta::kernels().bias_gelu_forward(op);
      },
      py::arg("dtype"), py::arg("sizes"), py::arg("x"), py::arg("x_stride"), py::arg("bias"), py::arg("dropout_rate"),
      py::arg("seed"), py::arg("out"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "bias_gelu_backward",
      [](int dtype, std::array<int64_t, 2> sizes, uintptr_t x, int64_t x_stride, uintptr_t bias, double dropout_rate,
         uint64_t seed, uintptr_t grad_out, int64_t grad_out_stride, uintptr_t grad_x, uintptr_t grad_bias) {
        auto op = bias_gelu(dtype, sizes, x, x_stride, bias, dropout_rate, seed);
        op.grad_out = pointer(grad_out), op.grad_out_stride_row = grad_out_stride;
        op.grad_x = pointer(grad_x), op.grad_bias = pointer<float>(grad_bias);
        hsta::kernels().bias_gelu_backward(op);
      },
      py::arg("dtype"), py::arg("sizes"), py::arg("x"), py::arg("x_stride"), py::arg("bias"), py::arg("dropout_rate"),
      py::arg("seed"), py::arg("grad_out"), py::arg("grad_out_stride"), py::arg("grad_x"), py::arg("grad_bias"),
      py::call_guard<py::gil_scoped_release>());
}
