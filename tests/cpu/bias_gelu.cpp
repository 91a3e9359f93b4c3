// bias_gelu against a loop over elements.
#include "check.h"

namespace hsta {
namespace {

template <typename X>
void check(int64_t rows, int64_t width, int64_t gap, float rate) {
  std::mt19937 random(7);
  Tensor<X> x({rows, width}, gap), grad_out(x.sizes, gap), out(x.sizes), grad_x(x.sizes);
  Tensor<float> bias({width}), grad_bias({width});
  x.randomize(random, 0.5), bias.randomize(random), grad_out.randomize(random);

  BiasGelu op{};
  op.dtype = dtype_of<X>(), op.rows = rows, op.width = width;
  op.x = x.view(), op.bias = bias.view();
  op.dropout_rate = rate, op.seed = 0x123456789abcdefull;
  op.out = out.view();
  op.grad_out = grad_out.view(), op.grad_x = grad_x.view(), op.grad_bias = grad_bias.view();
  in_new_thread([&] { kernels().bias_gelu_forward(op); });
  in_new_thread([&] { kernels().bias_gelu_backward(op); });

  std::vector<double> exact_out(rows * width), exact_grad(rows * width), exact_bias(width);
  for (int64_t i = 0; i < rows * width; ++i) {
    const double z = double(to_float(x[i])) + bias[i % width];
    const double below = std::erfc(-z / std::sqrt(2.0)) / 2;
    const int64_t column = i % width;
    const uint32_t word = philox(op.seed, {uint32_t(column / 8), 0, uint32_t(i / width), 0})[column % 4];
    const uint32_t half = column % 8 < 4 ? word & 0xFFFF : word >> 16;
    const bool kept = half >= uint32_t(double(rate) * 65536 + 0.5);
    const double factor = kept ? 1 / (1 - double(rate)) : 0;
    exact_out[i] = z * below * factor;
    exact_grad[i] = to_float(grad_out[i]) * factor * (below + z * std::exp(-z * z / 2) * 0.3989422804014327);
    exact_bias[i % width] += exact_grad[i];
  }
  const std::string what = "bias_gelu, dtype " + std::to_string(int(op.dtype)) + ", rows=" + std::to_string(rows) +
                           " C=" + std::to_string(width) + ", gap " + std::to_string(gap) + ", dropout " +
                           std::to_string(rate);
  expect_close(what + ": out", out, exact_out, op.dtype);
  expect_close(what + ": grad_x", grad_x, exact_grad, op.dtype);
  expect_close(what + ": grad_bias", grad_bias, exact_bias, DType::kFloat32);
}

template <typename X>
void test() {
  for (float rate : {0.0f, 0.3f})
    for (int64_t gap : {0, 3})
      for (int64_t width : {3, 15, 16, 63, 64, 65, 768})
        for (int64_t rows : {1, 2, 65}) check<X>(rows, width, gap, rate);
}

}  // namespace

void test_bias_gelu() {
  test<float>();
  test<BFloat16>();
  test<Float16>();
}

}  // namespace hsta
