// out = dropout(gelu(x + bias)) in one pass over memory, forward and backward. The backward pass recomputes everything
// from x, the dropout mask included: its random numbers are a function of the seed and of the element's place.
#include "gelu.h"
#include "kernels.h"
#include "memory.h"
#include "philox.h"
#include "row_shares.h"
#include "row_vectors.h"
#include "writer.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

// Whether to keep the elements of a row: eight of them, from c on, share the block with counter (c / 8, 0, row). There
// is room for whole runs of 8 * kLanes.
void draw_row(const Dropout& dropout, int64_t row, int64_t width, float* kept) {
  BitsVec counter[4] = {Dropout::block_numbers(), BitsVec{}, uint32_t(row) - BitsVec{},
                        uint32_t(uint64_t(row) >> 32) - BitsVec{}};
  for (int64_t c = 0; c < width; c += 8 * kLanes, counter[0] += uint32_t(kLanes))
    dropout.draw_halves(counter, kept + c);
}

template <typename X>
void forward(const BiasGelu& op) {
  const Dropout dropout(op.dropout_rate, op.seed);
  const float* bias = op.bias.as<float>();
  const int64_t row_bytes = op.width * int64_t(sizeof(X));
  const Writer writer(op.out.data, op.rows * row_bytes, row_bytes);
#pragma omp parallel
  {
    float* kept = scratch(Scratch::kThread, round_up(op.width, 8 * kLanes));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < op.rows; ++i) {
      const X* x = op.x.at<const X>(i);
      X* out = op.out.at<X>(i);
      if (dropout.drops) draw_row(dropout, i, op.width, kept);
      for_vectors(op.width, [=, &dropout](int64_t c, auto count) {
        const Vec y = gelu(load_floats(x + c, count) + load_floats(bias + c, count));
        writer.store(dropout.drops ? dropout.apply(y, load(kept + c)) : y, out + c, count);
      });
    }
    writer.finish();
  }
}

template <typename X>
void backward(const BiasGelu& op) {
  const Dropout dropout(op.dropout_rate, op.seed);
  const int64_t padded = round_up(op.width, 8 * kLanes);
  const int64_t items = divide_up(op.rows, kRowsPerItem);
  float* shares = scratch(Scratch::kShared, items * padded);
  const float* bias = op.bias.as<float>();
  const int64_t row_bytes = op.width * int64_t(sizeof(X));
  const Writer writer(op.grad_x.data, op.rows * row_bytes, row_bytes);
#pragma omp parallel
  {
    float* kept = scratch(Scratch::kThread, padded);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < items; ++item) {
      float* grad_bias = shares + item * padded;
      for (int64_t c = 0; c < padded; ++c) grad_bias[c] = 0;
      for (int64_t i = item * kRowsPerItem; i < min((item + 1) * kRowsPerItem, op.rows); ++i) {
        const X* x = op.x.at<const X>(i);
        const X* grad_out = op.grad_out.at<const X>(i);
        X* grad_x = op.grad_x.at<X>(i);
        if (dropout.drops) draw_row(dropout, i, op.width, kept);
        for_vectors(op.width, [=, &dropout](int64_t c, auto count) {
          const Vec slope = gelu_derivative(load_floats(x + c, count) + load_floats(bias + c, count));
          const Vec incoming = load_floats(grad_out + c, count);
          const Vec grad = slope * (dropout.drops ? dropout.apply(incoming, load(kept + c)) : incoming);
          writer.store(grad, grad_x + c, count);
          store(grad_bias + c, load(grad_bias + c) + grad);
        });
      }
    }
    writer.finish();
#pragma omp for schedule(static)
    for (int64_t c = 0; c < padded; c += kLanes) {
      if (c < op.width)
        store_floats(sum_shares(shares + c, items, padded), op.grad_bias.as<float>() + c, min(kLanes, op.width - c));
    }
  }
}

}  // namespace

void bias_gelu_forward(const BiasGelu& op) {
  with_type(op.dtype, [&](auto element) { forward<decltype(element)>(op); });
}

void bias_gelu_backward(const BiasGelu& op) {
  with_type(op.dtype, [&](auto element) { backward<decltype(element)>(op); });
}

}  // namespace HSTA_ISA
}  // namespace hsta
