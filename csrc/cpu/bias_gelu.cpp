// out = dropout(gelu(x + bias)) in one pass over memory, forward and backward. The backward pass recomputes everything
// from x, the dropout mask included: its random numbers are a function of the seed and of the element's place.
#include "gelu.h"
#include "kernels.h"
#include "memory.h"
#include "row_shares.h"
#include "writer.h"

namespace hsta {
namespace HSTA_ISA {
namespace {

// The high and low halves of 32-bit products.
typedef uint64_t WideVec __attribute__((vector_size(8 * kLanes)));
inline void multiply(BitsVec a, uint32_t b, BitsVec* high, BitsVec* low) {
  const WideVec product = __builtin_convertvector(a, WideVec) * uint64_t(b);
  *high = __builtin_convertvector(product >> 32, BitsVec);
  *low = a * b;
}

// Philox 4x32-10 (Salmon et al., SC 2011): element c of a row gets word c % 4 of the block with counter (c / 4, 0, row)
// and the seed as key.
class Dropout {
 public:
  Dropout(double rate, uint64_t seed)
      : seed_(seed), threshold_(uint32_t(rate * 4294967296.0)), scale_(float(1 / (1 - rate))) {}

  // Dropped elements are zeros, whatever they were.
  static Vec apply(Vec elements, Vec factors) { return factors > 0 ? elements * factors : Vec{}; }

  // Factors of a row's elements: 0 or 1 / (1 - rate). There is room for whole runs of 4 * kLanes.
  void factors(int64_t row, int64_t width, float* to) const {
    for (int64_t c = 0; c < width; c += 4 * kLanes) {
      BitsVec blocks{};
      for (int lane = 0; lane < kLanes; ++lane) blocks[lane] = uint32_t(c / 4 + lane);
      BitsVec words[4] = {blocks, BitsVec{}, uint32_t(row) - BitsVec{}, uint32_t(uint64_t(row) >> 32) - BitsVec{}};
      uint32_t key0 = uint32_t(seed_), key1 = uint32_t(seed_ >> 32);
      for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
        BitsVec high0, low0, high1, low1;
        multiply(words[0], 0xD2511F53u, &high0, &low0);
        multiply(words[2], 0xCD9E8D57u, &high1, &low1);
        words[0] = high1 ^ words[1] ^ key0, words[1] = low1;
        words[2] = high0 ^ words[3] ^ key1, words[3] = low0;
      }
      for (int lane = 0; lane < kLanes; ++lane)
        for (int word = 0; word < 4; ++word) to[c + 4 * lane + word] = words[word][lane] >= threshold_ ? scale_ : 0.0f;
    }
  }

 private:
  uint64_t seed_;
  uint32_t threshold_;
  float scale_;
};

template <typename X>
void forward(const BiasGelu& op) {
  const Dropout dropout(op.dropout_rate, op.seed);
  const float* bias = op.bias.as<float>();
  const int64_t row_bytes = op.width * int64_t(sizeof(X));
  const Writer writer(op.out.data, op.rows * row_bytes, row_bytes);
#pragma omp parallel
  {
    float* factors = scratch(Scratch::kThread, round_up(op.width, 4 * kLanes));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < op.rows; ++i) {
      const X* x = op.x.at<const X>(i);
      X* out = op.out.at<X>(i);
      if (op.dropout_rate > 0) dropout.factors(i, op.width, factors);
      for_vectors(op.width, [&](int64_t c, auto count) {
        const Vec y = gelu(load_floats(x + c, count) + load_floats(bias + c, count));
        writer.store(op.dropout_rate > 0 ? Dropout::apply(y, load(factors + c)) : y, out + c, count);
      });
    }
    writer.finish();
  }
}

template <typename X>
void backward(const BiasGelu& op) {
  const Dropout dropout(op.dropout_rate, op.seed);
  const int64_t padded = round_up(op.width, 4 * kLanes);
  const int64_t items = divide_up(op.rows, kRowsPerItem);
  float* shares = scratch(Scratch::kShared, items * padded);
  const float* bias = op.bias.as<float>();
  const int64_t row_bytes = op.width * int64_t(sizeof(X));
  const Writer writer(op.grad_x.data, op.rows * row_bytes, row_bytes);
#pragma omp parallel
  {
    float* factors = scratch(Scratch::kThread, padded);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < items; ++item) {
      float* grad_bias = shares + item * padded;
      for (int64_t c = 0; c < padded; ++c) grad_bias[c] = 0;
      for (int64_t i = item * kRowsPerItem; i < min((item + 1) * kRowsPerItem, op.rows); ++i) {
        const X* x = op.x.at<const X>(i);
        const X* grad_out = op.grad_out.at<const X>(i);
        X* grad_x = op.grad_x.at<X>(i);
        if (op.dropout_rate > 0) dropout.factors(i, op.width, factors);
        for_vectors(op.width, [&](int64_t c, auto count) {
          const Vec slope = gelu_derivative(load_floats(x + c, count) + load_floats(bias + c, count));
          const Vec incoming = load_floats(grad_out + c, count);
          const Vec grad = slope * (op.dropout_rate > 0 ? Dropout::apply(incoming, load(factors + c)) : incoming);
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
