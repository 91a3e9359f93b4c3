// packed_product against a loop over elements.
#include "check.h"

namespace hsta {
namespace {

void check(int64_t rows, int64_t inner, int64_t columns, int64_t gap, bool gelu) {
  std::mt19937 random(7);
  const int64_t panels = divide_up(columns, kPanelColumns);
  Tensor<float> x({rows, inner}, gap), weight({panels, inner, kPanelColumns}), bias({columns}), out({rows, columns});
  x.randomize(random), weight.randomize(random), bias.randomize(random);
  // As a layer's are, so that results are about 1: the tolerance is of these, and sums of numbers about 1 round with
  // the size that they pass through on the way.
  for (float& w : weight.memory) w /= std::sqrt(float(inner));

  PackedProduct op{};
  op.rows = rows, op.inner = inner, op.columns = columns, op.gelu = gelu;
  op.x = x.view(), op.weight = weight.view(), op.bias = bias.view(), op.out = out.view();
  in_new_thread([&] { kernels().packed_product(op); });

  std::vector<double> exact(rows * columns);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      double y = bias[j];
      for (int64_t k = 0; k < inner; ++k)
        y += double(*op.x.at<float>(i, k)) * *op.weight.at<float>(j / kPanelColumns, k, j % kPanelColumns);
      exact[i * columns + j] = gelu ? y * std::erfc(-y / std::sqrt(2.0)) / 2 : y;
    }
  expect_close("packed_product, rows=" + std::to_string(rows) + " inner=" + std::to_string(inner) +
                   " columns=" + std::to_string(columns) + ", gap " + std::to_string(gap) + (gelu ? ", GELU" : ""),
               out, exact, DType::kFloat32);
}

}  // namespace

void test_packed_product() {
  for (bool gelu : {false, true})
    for (int64_t gap : {0, 3})
      for (int64_t columns : {1, 47, 48, 97})
        for (int64_t inner : {1, 6, 385, 1541})
          for (int64_t rows : {1, 5, 8, 13, 70}) check(rows, inner, columns, gap, gelu);
}

}  // namespace hsta
