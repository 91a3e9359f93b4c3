// Absorbed attention, and the projections of crossmodal attention, against a loop over heads and rows.
#include "check.h"

namespace hsta {
namespace {

using Values = std::vector<double>;

struct Shape {
  int64_t batch, tokens, heads, width;
};

constexpr double kEps = 1e-6f;

// z and grad_u (B, H, C), and the gradients of the query token (B, C) and of the tokens (B, N, C), in double.
struct Exact {
  Values z, grad_u, grad_query, grad_token;
};

Exact naive(const Shape& s, const Values& u, const Values& query, const Values& token, const Values& grad_z) {
  const int64_t rows = 1 + s.tokens, width = s.width;
  Exact exact{Values(u.size()), Values(u.size()), Values(query.size()), Values(token.size())};
  for (int64_t b = 0; b < s.batch; ++b) {
    Values y(rows * width), rstd(rows), grad_y(rows * width), p(rows), dp(rows);
    for (int64_t j = 0; j < rows; ++j) {
      const double* x = j == 0 ? &query[b * width] : &token[(b * s.tokens + j - 1) * width];
      double mean = 0, variance = 0;
      for (int64_t c = 0; c < width; ++c) mean += x[c] / width;
      for (int64_t c = 0; c < width; ++c) variance += (x[c] - mean) * (x[c] - mean) / width;
      rstd[j] = 1 / std::sqrt(variance + kEps);
      for (int64_t c = 0; c < width; ++c) y[j * width + c] = (x[c] - mean) * rstd[j];
    }
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t at = (b * s.heads + h) * width;
      double sum = 0, delta = 0;
      for (int64_t j = 0; j < rows; ++j) {
        double score = 0;
        dp[j] = 0;
        for (int64_t c = 0; c < width; ++c) {
          score += u[at + c] * y[j * width + c];
          dp[j] += grad_z[at + c] * y[j * width + c];
        }
        sum += p[j] = std::exp(score);
      }
      for (int64_t j = 0; j < rows; ++j) delta += (p[j] /= sum) * dp[j];
      for (int64_t j = 0; j < rows; ++j) {
        const double ds = p[j] * (dp[j] - delta);
        for (int64_t c = 0; c < width; ++c) {
          exact.z[at + c] += p[j] * y[j * width + c];
          exact.grad_u[at + c] += ds * y[j * width + c];
          grad_y[j * width + c] += p[j] * grad_z[at + c] + ds * u[at + c];
        }
      }
    }
    for (int64_t j = 0; j < rows; ++j) {
      double* to = j == 0 ? &exact.grad_query[b * width] : &exact.grad_token[(b * s.tokens + j - 1) * width];
      double mean = 0, along = 0;
      for (int64_t c = 0; c < width; ++c) {
        mean += grad_y[j * width + c] / width;
        along += grad_y[j * width + c] * y[j * width + c] / width;
      }
      for (int64_t c = 0; c < width; ++c) to[c] = rstd[j] * (grad_y[j * width + c] - mean - y[j * width + c] * along);
    }
  }
  return exact;
}

template <typename T>
void check(const Shape& s, int64_t gap) {
  std::mt19937 random(7);
  Tensor<float> u({s.batch, s.heads, s.width}), z(u.sizes), grad_z(u.sizes), grad_u(u.sizes);
  Tensor<float> stats({s.batch, s.heads, 2});
  Tensor<T> query({s.batch, s.width}, gap), token({s.batch, s.tokens, s.width}, gap);
  Tensor<T> grad_query(query.sizes), grad_token(token.sizes);
  u.randomize(random), grad_z.randomize(random);
  query.randomize(random, 0.5), token.randomize(random, 0.5);
  for (float& x : u.memory) x *= 1 / std::sqrt(float(s.width));

  AbsorbedAttention op{};
  op.dtype = dtype_of<T>();
  op.batch = s.batch, op.tokens = s.tokens, op.heads = s.heads, op.width = s.width, op.eps = float(kEps);
  op.u = u.view();
  op.query = query.view();
  op.token = token.view();
  op.z = z.view(), op.stats = stats.view();
  op.grad_z = grad_z.view(), op.grad_u = grad_u.view();
  op.grad_query = grad_query.view(), op.grad_token = grad_token.view();
  in_new_thread([&] { kernels().absorbed_attention_forward(op); });
  in_new_thread([&] { kernels().absorbed_attention_backward(op); });

  const Exact exact = naive(s, u.values(), query.values(), token.values(), grad_z.values());
  const std::string what = "absorbed_attention, dtype " + std::to_string(int(op.dtype)) +
                           ", N=" + std::to_string(s.tokens) + " H=" + std::to_string(s.heads) +
                           " C=" + std::to_string(s.width) + ", gap " + std::to_string(gap);
  expect_close(what + ": z", z, exact.z, op.dtype);
  expect_close(what + ": grad_u", grad_u, exact.grad_u, op.dtype);
  expect_close(what + ": grad_query", grad_query, exact.grad_query, op.dtype);
  expect_close(what + ": grad_token", grad_token, exact.grad_token, op.dtype);
}

// The projections around the pass: u_h = w / sqrt(D) * (Wk_h^T (Wq LayerNorm(x) + bq)_h), out_h = Wv_h (w z_h + b) +
// bv_h.
template <typename T>
void check_projections(int64_t batch, int64_t heads, int64_t width, int64_t gap) {
  std::mt19937 random(8);
  Tensor<float> norm_weight({width}), norm_bias({width}), u({batch, heads, width}), z(u.sizes);
  Tensor<T> query({batch, width}, gap), q_weight({width, width}), k_weight({width, width}), v_weight({width, width});
  Tensor<T> q_bias({width}), v_bias({width}), out({batch, width});
  norm_weight.randomize(random), norm_bias.randomize(random), z.randomize(random);
  query.randomize(random, 0.5), q_bias.randomize(random), v_bias.randomize(random);
  for (Tensor<T>* weight : {&q_weight, &k_weight, &v_weight}) {
    weight->randomize(random);
    for (T& x : weight->memory) x = from_float<T>(to_float(x) / std::sqrt(float(width)));
  }

  CrossModalProjections op{};
  op.dtype = dtype_of<T>();
  op.batch = batch, op.heads = heads, op.width = width, op.eps = float(kEps);
  op.norm_weight = norm_weight.view(), op.norm_bias = norm_bias.view();
  op.query = query.view();
  op.q_weight = q_weight.view(), op.q_bias = q_bias.view(), op.k_weight = k_weight.view();
  op.u = u.view(), op.z = z.view();
  op.v_weight = v_weight.view(), op.v_bias = v_bias.view(), op.out = out.view();
  in_new_thread([&] { kernels().cross_modal_absorb_query(op); });
  in_new_thread([&] { kernels().cross_modal_project_values(op); });

  const int64_t head_dim = width / heads;
  const Values x = query.values(), w = norm_weight.values(), b = norm_bias.values(), zs = z.values();
  const Values wq = q_weight.values(), wk = k_weight.values(), wv = v_weight.values();
  const Values bq = q_bias.values(), bv = v_bias.values();
  Values exact_u(u.count()), exact_out(out.count());
  for (int64_t s = 0; s < batch; ++s) {
    double mean = 0, variance = 0;
    for (int64_t c = 0; c < width; ++c) mean += x[s * width + c] / width;
    for (int64_t c = 0; c < width; ++c) variance += std::pow(x[s * width + c] - mean, 2) / width;
    for (int64_t i = 0; i < width; ++i) {
      const int64_t head = i / head_dim;
      double q = bq[i];
      exact_out[s * width + i] = bv[i];
      for (int64_t c = 0; c < width; ++c) {
        q += wq[i * width + c] * ((x[s * width + c] - mean) / std::sqrt(variance + kEps) * w[c] + b[c]);
        exact_out[s * width + i] += wv[i * width + c] * (zs[(s * heads + head) * width + c] * w[c] + b[c]);
      }
      for (int64_t c = 0; c < width; ++c)
        exact_u[(s * heads + head) * width + c] += q * wk[i * width + c] * w[c] / std::sqrt(double(head_dim));
    }
  }
  const std::string what = "projections of cross_modal_attention, dtype " + std::to_string(int(op.dtype)) +
                           ", B=" + std::to_string(batch) + " H=" + std::to_string(heads) +
                           " C=" + std::to_string(width) + ", gap " + std::to_string(gap);
  expect_close(what + ": u", u, exact_u, op.dtype);
  expect_close(what + ": out", out, exact_out, op.dtype);
}

template <typename T>
void test() {
  for (int64_t gap : {0, 7}) {
    check_projections<T>(2, 3, 96, gap);
    check_projections<T>(5, 1, 288, gap);
    check_projections<T>(1, 4, 20, gap);
    check_projections<T>(3, 1, 7, gap);
  }
  for (int64_t gap : {0, 7}) {
    for (int64_t tokens : {0, 1, 23, 24, 150, 333}) check<T>({2, tokens, 3, 48}, gap);
    for (int64_t heads : {1, 5, 16, 17}) check<T>({1, 29, heads, heads * 8}, gap);
    for (int64_t width : {3, 15, 40, 96}) check<T>({3, 9, 1, width}, gap);
  }
}

}  // namespace

void test_cross_modal_attention() {
  test<float>();
  test<BFloat16>();
  test<Float16>();
}

}  // namespace hsta
