// What Python calls to run the CPU kernels.
#include "../cpu/kernels.h"
#include "arguments.h"

namespace py = pybind11;

namespace {

constexpr int64_t kAnyAddress = 1;

template <typename Operator>
void define(py::module_& m, const char* name, void (*read)(hsta::Arguments&, Operator&), void (*run)(const Operator&)) {
  m.def(name, [=](const py::args& values) {
    hsta::Arguments in(name, values, kAnyAddress);
    Operator op{};
    read(in, op);
    in.end();
    const py::gil_scoped_release released;
    run(op);
  });
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of hsta_kernels; called by hsta_kernels.ops, never directly.";
  m.def("cpu_isa", [] { return hsta::kernels().isa; });
  m.def("runnable_cpu_isas", &hsta::runnable_isas);
#define HSTA_DEFINE_FUNCTION(name)                             \
  m.def(#name, [](const py::args& values) {                    \
    hsta::Arguments in(#name, values, kAnyAddress);            \
    hsta::TensorView x, y;                                     \
    int64_t count;                                             \
    in.tensor("x", x, hsta::DType::kFloat32, {&count});        \
    in.tensor("y", y, hsta::DType::kFloat32, {count});         \
    in.end();                                                  \
    hsta::kernels().name(x.as<float>(), y.as<float>(), count); \
  });
  HSTA_DEFINE_FUNCTION(exp2)
  HSTA_DEFINE_FUNCTION(exp2_for_bfloat16)
#define HSTA_DEFINE(name, Operator) \
  define<hsta::Operator>(m, #name, hsta::read_##name, [](const hsta::Operator& op) { hsta::kernels().name(op); });
  HSTA_KERNELS(HSTA_DEFINE)
}
