// The arguments of a call from Python: read in order, and checked against what the operator says of them.
//
// A tensor is PyTorch's own. What is needed of it are four of its attributes, read by name: no torch headers, and one
// binary for every version. Packed into a tuple by Python they would take three times as long.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <type_traits>
#include <vector>

#include "../operators.h"

namespace hsta {

namespace py = pybind11;

// A dtype or a size: one that a tensor must have, or one of two, or, given by address, one to be taken from it: any
// size, a floating dtype.
template <typename T>
struct Wanted {
  T* taken = nullptr;
  T value{}, other{};
  Wanted(T* taken) : taken(taken) {}
  Wanted(T value) : Wanted(value, value) {}
  Wanted(T value, T other) : value(value), other(other) {}
  bool accepts(T found) const {
    if (!taken) return value == found || other == found;
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

  using Shape = std::vector<Wanted<int64_t>>;

  void tensor(const char* name, TensorView& to, Wanted<DType> dtype, const Shape& shape,
              Layout layout = Layout::kContiguous) {
    take(name, next(name), to, dtype, shape, layout);
  }

  void tensor_or_none(const char* name, TensorView& to, Wanted<DType> dtype, const Shape& shape, Layout layout) {
    PyObject* value = next(name);
    if (value != Py_None) take(name, value, to, dtype, shape, layout);
  }

  // A tuple of three tensors of `shape`, or one tensor that has them side by side in a dimension after the first two.
  void parts(const char* name, TensorView (&to)[3], Wanted<DType> dtype, Shape shape, Layout layout) {
    PyObject* value = next(name);
    if (!PyTuple_Check(value)) {
      TensorView packed;
      shape.insert(shape.begin() + 2, int64_t(3));
      take(name, value, packed, dtype, shape, layout);
      for (int part = 0; part < 3; ++part) to[part] = select(packed, 2, part);
      return;
    }
    if (PyTuple_GET_SIZE(value) != 3)
      fail(name, "has " + std::to_string(PyTuple_GET_SIZE(value)) + " tensors; expected 3");
    take(name, PyTuple_GET_ITEM(value, 0), to[0], dtype, shape, layout);
    const Shape known(to[0].shape, to[0].shape + to[0].dims);
    for (int part : {1, 2}) take(name, PyTuple_GET_ITEM(value, part), to[part], to[0].dtype, known, layout);
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
  void take(const char* name, PyObject* tensor, TensorView& to, Wanted<DType> dtype, const Shape& shape,
            Layout layout) const {
    read(name, tensor, to);
    bool fits = to.dims == int(shape.size()) && dtype.accepts(to.dtype);
    for (int dim = 0; fits && dim < to.dims; ++dim) fits = shape[dim].accepts(to.shape[dim]);
    if (fits && lies(to, layout)) return;
    std::string expected = dtype.taken ? "float32, bfloat16 or float16" : dtype_name(dtype.value);
    if (dtype.other != dtype.value) expected += std::string(" or ") + dtype_name(dtype.other);
    expected += " of shape (";
    for (const auto& size : shape) expected += size.taken ? "any, " : std::to_string(size.value) + ", ";
    expected.resize(expected.size() - 2);
    expected += layout == Layout::kContiguous ? "), contiguous" : "), rows contiguous";
    if (row_bytes_ > 1) expected += ", beginning at multiples of " + std::to_string(row_bytes_) + " bytes";
    fail(name, "is " + described(to) + "; expected " + expected);
  }

  // Element `index` of dimension `dim`.
  static TensorView select(const TensorView& from, int dim, int64_t index) {
    TensorView to = from;
    to.data = static_cast<char*>(from.data) + index * from.stride[dim] * bytes_of(from.dtype);
    --to.dims;
    for (int i = dim; i < to.dims; ++i) to.shape[i] = from.shape[i + 1], to.stride[i] = from.stride[i + 1];
    return to;
  }

  static int64_t bytes_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : dtype == DType::kUInt8 ? 1 : 2; }

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
    const int64_t bytes = bytes_of(tensor.dtype);
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
