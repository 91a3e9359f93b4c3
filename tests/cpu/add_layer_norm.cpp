// add_layer_norm against a loop over rows.
#include "check.h"

namespace hsta {
namespace {

constexpr double kEps = 1e-6f;

// N: of the norm and its gradient.
template <typename R, typename X, typename N>
void check(int64_t rows, int64_t width, int64_t gap) {
  std::mt19937 random(7);
  Tensor<R> residual({rows, width}, gap), grad_sum(residual.sizes, gap);
  Tensor<X> x({rows, width}, gap);
  Tensor<N> grad_norm(residual.sizes, gap), norm(residual.sizes), norm_anew(residual.sizes), grad_x(residual.sizes);
  Tensor<float> weight({width}), bias({width}), grad_weight({width}), grad_bias({width});
  Tensor<R> sum(residual.sizes), grad_residual(residual.sizes);
  residual.randomize(random, 0.5), x.randomize(random), weight.randomize(random, 1), bias.randomize(random);
  grad_norm.randomize(random), grad_sum.randomize(random);

  AddLayerNorm op{};
  op.dtype = dtype_of<R>(), op.rows = rows, op.width = width, op.eps = float(kEps);
  op.residual = residual.view(), op.x = x.view();
  op.weight = weight.view(), op.bias = bias.view();
  op.sum = sum.view(), op.norm = norm.view();
  op.grad_norm = grad_norm.view(), op.grad_sum = grad_sum.view();
  op.grad_residual = grad_residual.view();
  op.grad_weight = grad_weight.view(), op.grad_bias = grad_bias.view();
  in_new_thread([&] { kernels().add_layer_norm_forward(op); });
  op.grad_x = grad_x.view(), op.norm = norm_anew.view();
  in_new_thread([&] { kernels().add_layer_norm_backward(op); });

  std::vector<double> exact_sum(rows * width), exact_norm(rows * width), exact_grad(rows * width);
  std::vector<double> exact_weight(width), exact_bias(width), y(width), g(width);
  for (int64_t i = 0; i < rows; ++i) {
    double mean = 0, variance = 0, grad_mean = 0, along = 0;
    const int64_t at = i * width;
    for (int64_t c = 0; c < width; ++c) {
      exact_sum[at + c] = to_float(from_float<R>(to_float(residual[at + c]) + to_float(x[at + c])));
      mean += exact_sum[at + c] / width;
    }
    for (int64_t c = 0; c < width; ++c) variance += std::pow(exact_sum[at + c] - mean, 2) / width;
    const double rstd = 1 / std::sqrt(variance + kEps);
    for (int64_t c = 0; c < width; ++c) {
      y[c] = (exact_sum[at + c] - mean) * rstd;
      exact_norm[at + c] = y[c] * weight[c] + bias[c];
      exact_weight[c] += y[c] * to_float(grad_norm[at + c]);
      exact_bias[c] += to_float(grad_norm[at + c]);
      g[c] = weight[c] * to_float(grad_norm[at + c]);
      grad_mean += g[c] / width;
      along += g[c] * y[c] / width;
    }
    for (int64_t c = 0; c < width; ++c)
      exact_grad[at + c] = to_float(grad_sum[at + c]) + rstd * (g[c] - grad_mean - y[c] * along);
  }
  const std::string what = "add_layer_norm, dtypes " + std::to_string(int(op.dtype)) + " " +
                           std::to_string(int(op.x.dtype)) + " " + std::to_string(int(op.norm.dtype)) +
                           ", rows=" + std::to_string(rows) + " C=" + std::to_string(width) + ", gap " +
                           std::to_string(gap);
  expect_close(what + ": sum", sum, exact_sum, op.dtype);
  expect_close(what + ": norm", norm, exact_norm, op.norm.dtype);
  expect_close(what + ": norm anew", norm_anew, exact_norm, op.norm.dtype);
  expect_close(what + ": grad_residual", grad_residual, exact_grad, op.dtype);
  expect_close(what + ": grad_x", grad_x, exact_grad, op.norm.dtype);
  expect_close(what + ": grad_weight", grad_weight, exact_weight, DType::kFloat32);
  expect_close(what + ": grad_bias", grad_bias, exact_bias, DType::kFloat32);
}

template <typename R, typename X, typename N>
void test() {
  for (int64_t gap : {0, 3})
    for (int64_t width : {3, 15, 16, 17, 40, 100, 768})
      for (int64_t rows : {1, 2, 65, 200}) check<R, X, N>(rows, width, gap);
}

}  // namespace

void test_add_layer_norm() {
  test<float, float, float>();
  test<float, BFloat16, float>();
  test<float, BFloat16, BFloat16>();
  test<float, Float16, float>();
  test<float, Float16, Float16>();
  test<BFloat16, BFloat16, BFloat16>();
  test<Float16, Float16, Float16>();
}

}  // namespace hsta
