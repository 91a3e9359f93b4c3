// The arguments of a call from Python: read in order, and checked against what the operator says of them.
//
// A tensor is PyTorch's own. What is needed of it are four of its attributes, read by name: no torch headers, and one
// binary for every version. Packed into a tuple by Python they would take three times as long.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>
#include <type_traits>

#include "../operators.h"

namespace hsta {

namespace py = pybind11;

// A dtype or a size: one that a tensor must have, or, given by address, one to be taken from it: any size, a floating
// dtype.
template <typename T>
struct Wanted {
  T* taken = nullptr;
  T value{};
  Wanted(T* taken) : taken(taken) {}
  Wanted(T value) : value(value) {}
  bool accepts(T found) const {
    if (!taken) return value == found;
    *taken = found;
    if constexpr (std::is_same_v<T, DType>) return int(found) < kFloatingDTypes;
    return true;
  }
};

class Arguments {
 public:
  // Tensors, and rows of Layout::kRows, must begin at multiples of `row_bytes`.
  Arguments(const char* function, const py::args& values, int64_t row_bytes)
      : function_(function), values_(values), row_bytes_(row_bytes) {}

  void tensor(const char* name, TensorView& to, Wanted<DType> dtype, std::initializer_list<Wanted<int64_t>> shape,
              Layout layout = Layout::kContiguous) {
    PyObject* tensor = next(name);
    read(name, tensor, to);
    bool fits = to.dims == int(shape.size()) && dtype.accepts(to.dtype);
    int dim = 0;
    for (const auto& size : shape) fits = fits && size.accepts(to.shape[dim++]);
    if (fits && lies(to, layout)) return;
    std::string expected = dtype.taken ? "float32, bfloat16 or float16" : dtype_name(dtype.value);
    expected += " of shape (";
    for (const auto& size : shape) expected += size.taken ? "any, " : std::to_string(size.value) + ", ";
    expected.resize(expected.size() - 2);
    expected += layout == Layout::kContiguous ? "), contiguous" : "), rows contiguous";
    if (row_bytes_ > 1) expected += ", beginning at multiples of " + std::to_string(row_bytes_) + " bytes";
    fail(name, "is " + described(to) + "; expected " + expected);
  }

  template <typename T>
  void number(const char* name, T& to) {
    to = cast<T>(name, "a number");
  }

  void size(const char* name, int64_t& to) {
    to = cast<int64_t>(name, "a size");
    if (to < 0) fail(name, "is " + std::to_string(to) + "; expected a size");
  }

  template <typename Enum>
  void choice(const char* name, Enum& to, int count) {
    const int value = cast<int>(name, "an integer");
    if (value < 0 || value >= count)
      fail(name, "is " + std::to_string(value) + "; expected one of 0 to " + std::to_string(count - 1));
    to = Enum(value);
  }

  template <typename T>
  T cast(const char* name, const char* expected) {
    py::handle value = next(name);
    try {
      return value.cast<T>();
    } catch (const py::cast_error&) {
      fail(name, "is " + py::repr(value).cast<std::string>() + "; expected " + expected);
    }
  }

  void end() const {
    if (index_ != values_.size())
      throw py::type_error(std::string(function_) + " takes " + std::to_string(index_) + " arguments; got " +
                           std::to_string(values_.size()));
  }

  // What was asked for, for the messages of errors that come later.
  std::string call() const {
    std::string text = function_;
    for (size_t i = 0; i < values_.size(); ++i) {
      TensorView tensor;
      if (!PyObject_HasAttr(values_[i].ptr(), names().data_ptr)) continue;
      read("tensor", values_[i].ptr(), tensor);
      text += (text == function_ ? " of " : ", ") + described(tensor, false);
    }
    return text;
  }

 private:
  struct Names {
    PyObject *data_ptr = PyUnicode_InternFromString("data_ptr"), *dtype = PyUnicode_InternFromString("dtype");
    PyObject *shape = PyUnicode_InternFromString("shape"), *stride = PyUnicode_InternFromString("stride");
    PyObject* dtypes[4];  // by number; there is one object of each
    Names() {
      for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kUInt8})
        dtypes[int(dtype)] = py::object(py::module_::import("torch").attr(dtype_name(dtype))).release().ptr();
    }
  };

  static const Names& names() {
    static const Names* once = new Names;
    return *once;
  }

  static const char* dtype_name(DType dtype) {
    const char* names[] = {"float32", "bfloat16", "float16", "uint8"};
    return names[int(dtype)];
  }

  static std::string described(const TensorView& tensor, bool with_strides = true) {
    const auto listed = [&](const int64_t* numbers) {
      std::string text = "(";
      for (int i = 0; i < tensor.dims; ++i) text += (i ? ", " : "") + std::to_string(numbers[i]);
      return text + ")";
    };
    const std::string text = std::string(dtype_name(tensor.dtype)) + " of shape " + listed(tensor.shape);
    return with_strides ? text + ", strides " + listed(tensor.stride) : text;
  }

  bool lies(const TensorView& tensor, Layout layout) const {
    // Where there is nothing to read, PyTorch calls any strides contiguous.
    for (int i = 0; i < tensor.dims; ++i)
      if (tensor.shape[i] == 0) return true;
    const int64_t bytes = tensor.dtype == DType::kFloat32 ? 4 : tensor.dtype == DType::kUInt8 ? 1 : 2;
    int64_t expected = 1;
    for (int i = tensor.dims - 1; i >= 0; --i) {
      if (tensor.shape[i] == 1) continue;
      const bool whole = layout == Layout::kContiguous || i == tensor.dims - 1;
      if (whole ? tensor.stride[i] != expected : tensor.stride[i] * bytes % row_bytes_ != 0) return false;
      expected *= tensor.shape[i];
    }
    return uintptr_t(tensor.data) % row_bytes_ == 0;
  }

  void read(const char* name, PyObject* from, TensorView& to) const {
    const auto found = [&](PyObject* attribute) {
      if (attribute) return py::reinterpret_steal<py::object>(attribute);
      PyErr_Clear();
      fail(name, "is of type " + std::string(Py_TYPE(from)->tp_name) + "; expected a tensor");
    };
    const auto address = found(PyObject_CallMethodNoArgs(from, names().data_ptr));
    to.data = reinterpret_cast<void*>(PyLong_AsUnsignedLongLong(address.ptr()));
    const auto dtype = found(PyObject_GetAttr(from, names().dtype));
    int number = 0;
    while (number < 4 && dtype.ptr() != names().dtypes[number]) ++number;
    if (number == 4) fail(name, "is " + py::str(dtype).cast<std::string>() + "; expected float32, bfloat16 or float16");
    to.dtype = DType(number);
    const auto numbers = [&](const py::object& tuple, int64_t* to) {
      const int count = int(PyTuple_GET_SIZE(tuple.ptr()));
      if (count > TensorView::kMaxDims)
        fail(name, "is of " + std::to_string(count) + " dimensions; expected at most " +
                       std::to_string(TensorView::kMaxDims));
      for (int i = 0; i < count; ++i) to[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), i));
      return count;
    };
    to.dims = numbers(found(PyObject_GetAttr(from, names().shape)), to.shape);
    numbers(found(PyObject_CallMethodNoArgs(from, names().stride)), to.stride);
  }

  PyObject* next(const char* name) {
    if (index_ == values_.size()) throw py::type_error(std::string(function_) + " lacks the argument " + name);
    return PyTuple_GET_ITEM(values_.ptr(), index_++);
  }

  [[noreturn]] void fail(const char* name, const std::string& what) const {
    throw py::value_error(std::string(function_) + ": " + name + " " + what);
  }

  const char* function_;
  const py::args& values_;
  size_t index_ = 0;
  int64_t row_bytes_;
};

}  // namespace hsta
