// quantize_rows and scale_rows against a loop over elements: integers and scales are exactly those.
#include <algorithm>

#include "check.h"

namespace hsta {
namespace {

[[noreturn]] void fail(const std::string& what, int64_t at, double got, double expected) {
  std::fprintf(stderr, "%s, %s: element %lld is %.9g, expected %.9g\n", kernels().isa, what.c_str(),
               static_cast<long long>(at), got, expected);
  std::exit(1);
}

void check_integers(int64_t rows, int64_t width, int64_t gap, int64_t most) {
  std::mt19937 random(7);
  Tensor<float> x({rows, width}, gap), scale({rows});
  x.randomize(random);
  for (int64_t c = 0; c < width; ++c) x[(rows - 1) * width + c] = 0;
  std::vector<uint8_t> integers(rows * width);

  QuantizedRows op{};
  op.rows = rows, op.width = width, op.most = most;
  op.x = x.view(), op.scale = scale.view();
  op.integers = {integers.data(), DType::kUInt8, 2, {rows, width}, {width, 1}};
  in_new_thread([&] { kernels().quantize_rows(op); });

  const std::string what = "quantize_rows, rows=" + std::to_string(rows) + " C=" + std::to_string(width) + ", gap " +
                           std::to_string(gap) + ", most " + std::to_string(most);
  for (int64_t i = 0; i < rows; ++i) {
    float largest = std::numeric_limits<float>::min();
    for (int64_t c = 0; c < width; ++c) largest = std::max(largest, std::abs(x[i * width + c]));
    const float expected = largest / float(most);
    if (scale[i] != expected) fail(what + ": scale", i, scale[i], expected);
    for (int64_t c = i * width; c < (i + 1) * width; ++c) {
      const int integer = int(std::nearbyint(x[c] / expected)) + int(most) + 1;
      if (integers[c] != integer) fail(what, c, integers[c], integer);
    }
  }
}

void check_scaled(int64_t rows, int64_t width, bool gelu) {
  std::mt19937 random(7);
  Tensor<float> y({rows, width}), scale({rows}), bias({width});
  y.randomize(random), scale.randomize(random), bias.randomize(random);
  std::vector<double> exact(rows * width);
  for (int64_t i = 0; i < rows * width; ++i) {
    const double z = double(y[i]) * scale[i / width] + bias[i % width];
    exact[i] = gelu ? z * std::erfc(-z / std::sqrt(2.0)) / 2 : z;
  }

  QuantizedRows op{};
  op.rows = rows, op.width = width, op.gelu = gelu;
  op.y = y.view(), op.scale = scale.view(), op.bias = bias.view();
  in_new_thread([&] { kernels().scale_rows(op); });
  expect_close("scale_rows, rows=" + std::to_string(rows) + " C=" + std::to_string(width), y, exact, DType::kFloat32);
}

}  // namespace

void test_quantized_rows() {
  for (int64_t width : {1, 3, 15, 16, 17, 63, 65, 768})
    for (int64_t rows : {1, 2, 65}) {
      for (int64_t gap : {0, 3})
        for (int64_t most : {63, 127}) check_integers(rows, width, gap, most);
      for (bool gelu : {false, true}) check_scaled(rows, width, gelu);
    }
}

}  // namespace hsta
