// What Python calls to run the CUDA kernels. Behind an operator's arguments comes the stream.
#include <stdexcept>

#include "../cuda/kernels.h"
#include "arguments.h"

namespace py = pybind11;

namespace {

constexpr int64_t kRowBytes = 16;

template <typename Operator>
void define(py::module_& m, const char* name, void (*read)(hsta::Arguments&, Operator&),
            void (*run)(const Operator&, hsta::cuda::Stream)) {
  m.def(name, [=](const py::args& values) {
    hsta::Arguments in(name, values, kRowBytes);
    Operator op{};
    read(in, op);
    const auto stream = (hsta::cuda::Stream)(in.cast<uintptr_t>("stream", "an address"));
    in.end();
    try {
      const py::gil_scoped_release released;
      run(op, stream);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(in.call() + ": " + error.what());
    }
  });
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of hsta_kernels; called by hsta_kernels.ops, never directly.";
  using namespace hsta::cuda;
#define HSTA_DEFINE(name, Operator) define<hsta::Operator>(m, #name, hsta::read_##name, hsta::cuda::name);
  HSTA_CUDA_KERNELS(HSTA_DEFINE)
}
