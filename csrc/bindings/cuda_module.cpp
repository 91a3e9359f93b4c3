// What Python calls to run the CUDA kernels. Behind an operator's arguments come a function that allocates so many
// floats, for a kernel that takes working memory, and the stream.
#include <stdexcept>

#include "../cuda/kernels.h"
#include "arguments.h"

namespace py = pybind11;

namespace {

constexpr int64_t kRowBytes = 16;

template <typename Operator>
void define(py::module_& m, const char* name, void (*read)(hsta::Arguments&, Operator&),
            int64_t (*workspace_floats)(const Operator&), void (*run)(const Operator&, hsta::cuda::Stream)) {
  m.def(name, [=](const py::args& values) {
    hsta::Arguments in(name, values, kRowBytes);
    Operator op{};
    read(in, op);
    const auto allocate = in.cast<py::object>("allocate", "a function");
    const auto stream = (hsta::cuda::Stream)(in.cast<uintptr_t>("stream", "an address"));
    in.end();
    try {
      py::object workspace;  // PyTorch gives it to others when this stream is done with it
      if (const int64_t floats = workspace_floats ? workspace_floats(op) : 0) {
        workspace = allocate(floats);
        op.workspace = reinterpret_cast<float*>(workspace.attr("data_ptr")().template cast<uintptr_t>());
      }
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
#define HSTA_DEFINE(name, Operator, workspace) \
  define<hsta::Operator>(m, #name, hsta::read_##name, workspace, hsta::cuda::name);
  HSTA_CUDA_KERNELS(HSTA_DEFINE)
}
