// What these tests share: tensors that end where their memory ends, and the comparison with a naive loop.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/kernels.h"

namespace hsta {

template <typename T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::kFloat32;
}
template <>
constexpr DType dtype_of<BFloat16>() {
  return DType::kBFloat16;
}
template <>
constexpr DType dtype_of<Float16>() {
  return DType::kFloat16;
}

// Largest error allowed, as a share of the largest exact element. Parity is measured elsewhere, against PyTorch; this
// one tells a wrong element from rounding.
inline double tolerance(DType dtype) {
  return dtype == DType::kFloat32 ? 1e-5 : dtype == DType::kFloat16 ? 4e-3 : 2e-2;
}

// A strided tensor. Its memory has room for its last element and not one more, so that AddressSanitizer sees a read or
// write past the end; memory between its elements, and outputs nobody has written, are NaN.
template <typename T>
struct Tensor {
  std::vector<int64_t> sizes, strides;
  std::vector<T> memory;

  // `gap` elements lie between one index and the next of every dimension but the last.
  explicit Tensor(std::vector<int64_t> shape, int64_t gap = 0) : sizes(shape), strides(shape.size(), 1) {
    for (size_t d = sizes.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * sizes[d] + gap;
    allocate();
  }
  Tensor(std::vector<int64_t> shape, std::vector<int64_t> steps) : sizes(shape), strides(steps) { allocate(); }

  // Memory in another order of dimensions: order[0] changes slowest.
  static Tensor ordered(const std::vector<int64_t>& shape, const std::vector<int>& order) {
    std::vector<int64_t> steps(shape.size());
    int64_t step = 1;
    for (size_t d = order.size(); d-- > 0; step *= shape[order[d]]) steps[order[d]] = step;
    return Tensor(shape, steps);
  }

  int64_t count() const {
    int64_t product = 1;
    for (int64_t size : sizes) product *= size;
    return product;
  }

  TensorView view() {
    TensorView view{memory.data(), dtype_of<T>(), int(sizes.size()), {}, {}};
    for (size_t d = 0; d < sizes.size(); ++d) view.shape[d] = sizes[d], view.stride[d] = strides[d];
    return view;
  }

  // Element number i, counted as if contiguous.
  T& operator[](int64_t i) {
    int64_t at = 0;
    for (size_t d = sizes.size(); d-- > 0; i /= sizes[d]) at += i % sizes[d] * strides[d];
    return memory[at];
  }

  Tensor& randomize(std::mt19937& random, double mean = 0) {
    std::normal_distribution<double> normal(mean);
    for (int64_t i = 0; i < count(); ++i) (*this)[i] = from_float<T>(float(normal(random)));
    return *this;
  }

  std::vector<double> values() {
    std::vector<double> result(count());
    for (int64_t i = 0; i < count(); ++i) result[i] = to_float((*this)[i]);
    return result;
  }

 private:
  void allocate() {
    int64_t last = 0;
    for (size_t d = 0; d < sizes.size(); ++d) last += (sizes[d] - 1) * strides[d];
    memory.assign(count() ? last + 1 : 0, from_float<T>(std::numeric_limits<float>::quiet_NaN()));
  }
};

// Fails the test program unless every element of `got` is within the tolerance of `exact`.
template <typename T>
void expect_close(const std::string& what, Tensor<T>& got, const std::vector<double>& exact, DType dtype) {
  double largest = 0;
  for (double x : exact) largest = std::max(largest, std::abs(x));
  // Inputs are about 1. Some results are exactly 0, the difference of sums of about 10, and carry those sums' rounding.
  const double allowed = tolerance(dtype) * std::max(largest, 1.0);
  for (int64_t i = 0; i < got.count(); ++i) {
    const double value = to_float(got[i]);
    if (std::abs(value - exact[i]) <= allowed) continue;
    std::fprintf(stderr, "%s, %s: element %lld is %.9g, expected %.9g within %.3g\n", kernels().isa, what.c_str(),
                 static_cast<long long>(i), value, exact[i], allowed);
    std::exit(1);
  }
}

// A block of Philox, written out for one.
inline std::array<uint32_t, 4> philox(uint64_t seed, std::array<uint32_t, 4> counter) {
  uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < 10; ++round, key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u) {
    const uint64_t first = uint64_t(counter[0]) * 0xD2511F53u, second = uint64_t(counter[2]) * 0xCD9E8D57u;
    counter = {uint32_t(second >> 32) ^ counter[1] ^ key[0], uint32_t(second),
               uint32_t(first >> 32) ^ counter[3] ^ key[1], uint32_t(first)};
  }
  return counter;
}

// A thread's working memory is kept between calls and only ever grows. A new thread (and the OpenMP threads it brings)
// starts with none, so that what this call asks for is all it has.
template <typename Function>
void in_new_thread(const Function& function) {
  std::thread(function).join();
}

void test_elements();
void test_memory();
void test_space_time_attention();
void test_cross_modal_attention();
void test_add_layer_norm();
void test_bias_gelu();
void test_quantized_rows();
void test_packed_product();

}  // namespace hsta
