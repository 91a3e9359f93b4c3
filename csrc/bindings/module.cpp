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

hsta::SpaceTimeAttention space_time_attention(int dtype, int axis, std::array<int64_t, 6> sizes, float scale,
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

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native kernels of hsta_kernels; called by hsta_kernels.ops, never directly.";
  m.def("cpu_isa", [] { return hsta::kernels().isa; });
  m.def("runnable_cpu_isas", &hsta::runnable_isas);
  m.def("exp2", [](uintptr_t x, uintptr_t y, int64_t count) {
    hsta::kernels().exp2(pointer<const float>(x), pointer<float>(y), count);
  });

  m.def(
      "space_time_attention_forward",
      [](int dtype, int axis, std::array<int64_t, 6> sizes, float scale, uintptr_t qkv, std::array<int64_t, 4> strides,
         uintptr_t out, uintptr_t stats) {
        const auto op = space_time_attention(dtype, axis, sizes, scale, qkv, strides, out, stats);
        hsta::kernels().space_time_attention_forward(op);
      },
      py::arg("dtype"), py::arg("axis"), py::arg("sizes"), py::arg("scale"), py::arg("qkv"), py::arg("strides"),
      py::arg("out"), py::arg("stats"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "space_time_attention_backward",
      [](int dtype, int axis, std::array<int64_t, 6> sizes, float scale, uintptr_t qkv, std::array<int64_t, 4> strides,
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
}
