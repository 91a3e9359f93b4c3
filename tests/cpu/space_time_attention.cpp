// Space-time attention against a loop over all pairs of tokens that see each other.
#include <algorithm>

#include "check.h"

namespace hsta {
namespace {

using Values = std::vector<double>;

constexpr uint64_t kSeed = 0x123456789abcdefull;

struct Shape {
  Axis axis;
  int64_t batch, prefix, frames, patches, heads, dim;
  TokenOrder order = TokenOrder::kTimeMajor;
  PrefixAttention prefix_attention = PrefixAttention::kAll;
  double dropout_rate = 0;
  bool rotates = false;
  RotaryPairs pairs = RotaryPairs::kInterleaved;
  bool normalizes = false;
  NormKind norm = NormKind::kLayer;
  bool biased = false;

  int64_t tokens() const { return prefix + frames * patches; }
  int64_t frame(int64_t token) const {
    return order == TokenOrder::kTimeMajor ? (token - prefix) / patches : (token - prefix) % frames;
  }
  int64_t position(int64_t token) const {
    return order == TokenOrder::kTimeMajor ? (token - prefix) % patches : (token - prefix) / frames;
  }
  // How many softmaxes a query has, of whose results the mean is taken, and whether the n-th one is over token j.
  int64_t softmaxes(int64_t i) const {
    return i < prefix && prefix_attention == PrefixAttention::kFrameMean ? frames : 1;
  }
  bool sees(int64_t i, int64_t j, int64_t n) const {
    const bool alone = prefix_attention == PrefixAttention::kNone;
    if (i < prefix && j >= prefix && softmaxes(i) > 1) return frame(j) == n;
    if (i < prefix || j < prefix) return alone ? i == j : true;
    if (axis == Axis::kJoint) return true;
    return axis == Axis::kTime ? position(i) == position(j) : frame(i) == frame(j);
  }
  // A token's row in a group that it belongs to, as a bias has them.
  int64_t bias_row(int64_t token) const {
    const int64_t first = prefix_attention == PrefixAttention::kNone ? 0 : prefix;
    if (token < prefix) return token;
    return first + (axis == Axis::kJoint ? token - prefix : axis == Axis::kTime ? frame(token) : position(token));
  }
  // What dropout makes of the probability of query i and key j in the n-th softmax: a group's rows count its patches
  // first, and then the prefix.
  double dropout_factor(int64_t sequence, int64_t i, int64_t j, int64_t n) const {
    const bool alone = prefix_attention == PrefixAttention::kNone;
    if (dropout_rate == 0 || (alone && i < prefix)) return 1;
    const auto row = [&](int64_t token) {
      if (axis == Axis::kJoint) return token - (alone ? prefix : 0);
      if (token < prefix) return (axis == Axis::kTime ? frames : patches) + token;
      return axis == Axis::kTime ? frame(token) : position(token);
    };
    const auto group_of = [&](int64_t token) { return axis == Axis::kTime ? position(token) : frame(token); };
    const int64_t group = axis == Axis::kJoint ? 0 : i >= prefix ? group_of(i) : j >= prefix ? group_of(j) : n;
    const auto words = philox(kSeed, {uint32_t(row(j) / 4), uint32_t(row(i)), uint32_t(group), uint32_t(sequence)});
    const bool kept = words[row(j) % 4] >= uint32_t(dropout_rate * 4294967296.0 + 0.5);
    return kept ? 1 / (1 - dropout_rate) : 0;
  }
};

// Rows of q and k of `qkv` (B, L, 3, H, D), rotated channel by channel; or by the transposed map.
void rotate(const Shape& s, const Values& cos, const Values& sin, bool transposed, Values& qkv) {
  const bool interleaved = s.pairs == RotaryPairs::kInterleaved;
  const int64_t length = s.tokens(), dim = s.dim, apart = interleaved ? 1 : dim / 2;
  Values row(dim);
  for (int64_t r = 0; r < s.batch * length * 3 * s.heads; ++r) {
    if (r / s.heads % 3 == 2) continue;
    double* at = &qkv[r * dim];
    const double *c = &cos[r / s.heads / 3 % length * dim], *sine = &sin[r / s.heads / 3 % length * dim];
    for (int64_t d = 0; d < dim; ++d) {
      const bool first = interleaved ? d % 2 == 0 : d < apart;
      const int64_t partner = first ? d + apart : d - apart;
      const double sign = first == transposed ? 1 : -1;
      row[d] = at[d] * c[d] + sign * at[partner] * sine[transposed ? partner : d];
    }
    std::copy(row.begin(), row.end(), at);
  }
}

constexpr double kEps = 1e-3;

// f(part, number of the row's first element) for the rows of q and k in (B, L, 3, H, D).
template <typename F>
void for_normalized_rows(const Shape& s, const F& f) {
  for (int64_t r = 0; r < s.batch * s.tokens() * 3 * s.heads; ++r)
    if (r / s.heads % 3 < 2) f(r / s.heads % 3, r * s.dim);
}

// A row's statistics and its norm without weight and bias; returns 1 / standard deviation.
double standardize(const Shape& s, const double* row, Values& y) {
  double mean = 0, variance = 0;
  for (int64_t d = 0; s.norm == NormKind::kLayer && d < s.dim; ++d) mean += row[d] / double(s.dim);
  for (int64_t d = 0; d < s.dim; ++d) variance += (row[d] - mean) * (row[d] - mean) / double(s.dim);
  const double rstd = 1 / std::sqrt(variance + kEps);
  y.resize(s.dim);
  for (int64_t d = 0; d < s.dim; ++d) y[d] = (row[d] - mean) * rstd;
  return rstd;
}

// Rows of q and k become their norms; `affine` has weight and bias of q, and of k.
void normalize(const Shape& s, const Values& affine, Values& qkv) {
  Values y;
  for_normalized_rows(s, [&](int64_t part, int64_t at) {
    standardize(s, &qkv[at], y);
    for (int64_t d = 0; d < s.dim; ++d)
      qkv[at + d] = y[d] * affine[part * 2 * s.dim + d] + affine[(part * 2 + 1) * s.dim + d];
  });
}

// Gradients of the norms become those of the rows `qkv`, and give those of `affine`.
void normalize_backward(const Shape& s, const Values& affine, const Values& qkv, Values& grad, Values& grad_affine) {
  Values y, h(s.dim);
  grad_affine.assign(affine.size(), 0);
  for_normalized_rows(s, [&](int64_t part, int64_t at) {
    const double rstd = standardize(s, &qkv[at], y);
    double mean = 0, along = 0;
    for (int64_t d = 0; d < s.dim; ++d) {
      const int64_t weight = part * 2 * s.dim + d, bias = weight + s.dim;
      grad_affine[weight] += grad[at + d] * y[d];
      grad_affine[bias] += grad[at + d];
      h[d] = grad[at + d] * affine[weight];
      if (s.norm == NormKind::kLayer) mean += h[d] / double(s.dim);
      along += h[d] * y[d] / double(s.dim);
    }
    for (int64_t d = 0; d < s.dim; ++d) grad[at + d] = rstd * (h[d] - mean - y[d] * along);
  });
}

// `out` (B, L, H, D), `grad_qkv` (B, L, 3, H, D) and `grad_bias` (H, rows, rows), in double.
void naive(const Shape& s, const Values& qkv, const Values& bias, int64_t rows, const Values& grad_out, Values& out,
           Values& grad_qkv, Values& grad_bias) {
  const int64_t length = s.tokens(), dim = s.dim;
  const double scale = 1 / std::sqrt(double(dim));
  out.assign(grad_out.size(), 0);
  grad_qkv.assign(qkv.size(), 0);
  grad_bias.assign(bias.size(), 0);
  // Of a query and a key; prefix tokens that take no part have none.
  const auto in_bias = [&](int64_t h, int64_t i, int64_t j) {
    return (h * rows + s.bias_row(i)) * rows + s.bias_row(j);
  };
  const auto added = [&](int64_t i) {
    return s.biased && !(i < s.prefix && s.prefix_attention == PrefixAttention::kNone);
  };
  const auto row = [&](int64_t b, int64_t token, int part, int64_t h) {
    return (((b * length + token) * 3 + part) * s.heads + h) * dim;
  };
  const auto dot = [&](const double* a, const double* b) {
    double sum = 0;
    for (int64_t d = 0; d < dim; ++d) sum += a[d] * b[d];
    return sum;
  };
  Values p(length), dp(length), factor(length);
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < length; ++i)
        for (int64_t n = 0; n < s.softmaxes(i); ++n) {
          const int64_t o = ((b * length + i) * s.heads + h) * dim, q = row(b, i, 0, h);
          double sum = 0, delta = 0;
          for (int64_t j = 0; j < length; ++j) {
            const double more = added(i) && s.sees(i, j, n) ? bias[in_bias(h, i, j)] : 0;
            p[j] = s.sees(i, j, n) ? std::exp(scale * dot(&qkv[q], &qkv[row(b, j, 1, h)]) + more) : 0;
            sum += p[j];
          }
          for (int64_t j = 0; j < length; ++j) {
            if (!s.sees(i, j, n)) continue;
            p[j] /= sum;
            factor[j] = s.dropout_factor(b * s.heads + h, i, j, n);
            dp[j] = factor[j] * dot(&grad_out[o], &qkv[row(b, j, 2, h)]);
            delta += p[j] * dp[j];
          }
          for (int64_t j = 0; j < length; ++j) {
            if (!s.sees(i, j, n)) continue;
            p[j] /= double(s.softmaxes(i));
            const int64_t k = row(b, j, 1, h), v = row(b, j, 2, h);
            const double ds = scale * p[j] * (dp[j] - delta);
            if (added(i)) grad_bias[in_bias(h, i, j)] += p[j] * (dp[j] - delta);
            for (int64_t d = 0; d < dim; ++d) {
              out[o + d] += factor[j] * p[j] * qkv[v + d];
              grad_qkv[q + d] += ds * qkv[k + d];
              grad_qkv[k + d] += ds * qkv[q + d];
              grad_qkv[v + d] += factor[j] * p[j] * grad_out[o + d];
            }
          }
        }
}

// Part `part` of a packed tensor (B, L, 3, H, D).
TensorView part_of(const TensorView& packed, int part, int64_t bytes) {
  TensorView view{static_cast<char*>(packed.data) + part * packed.stride[2] * bytes, packed.dtype, 4, {}, {}};
  for (int d = 0; d < 4; ++d) {
    view.shape[d] = packed.shape[d < 2 ? d : d + 1];
    view.stride[d] = packed.stride[d < 2 ? d : d + 1];
  }
  return view;
}

template <typename T>
void check(const Shape& s, Tensor<T> qkv, Tensor<T> grad_out, const std::string& layout) {
  std::mt19937 random(7);
  qkv.randomize(random), grad_out.randomize(random);
  Tensor<T> out({s.batch, s.tokens(), s.heads, s.dim}), grad_qkv(qkv.sizes);

  SpaceTimeAttention op{};
  op.dtype = dtype_of<T>(), op.axis = s.axis, op.order = s.order, op.prefix_attention = s.prefix_attention;
  Tensor<float> cos({s.tokens(), s.dim}), sin({s.tokens(), s.dim});
  cos.randomize(random), sin.randomize(random);
  Tensor<float> stats({s.batch, s.heads, op.has_stats() ? s.prefix : 0, 2});
  op.batch = s.batch, op.prefix = s.prefix, op.frames = s.frames, op.patches = s.patches;
  op.heads = s.heads, op.head_dim = s.dim, op.scale = 1 / std::sqrt(double(s.dim));
  op.dropout_rate = s.dropout_rate, op.seed = kSeed;
  if (s.rotates) op.rotary_pairs = s.pairs, op.cos = cos.view(), op.sin = sin.view();
  Tensor<float> affine({2, 2, s.dim}), grad_affine({2, 2, s.dim});
  affine.randomize(random, 1);
  for (float& element : affine.memory) element /= 2;  // of scores of about one
  if (s.normalizes) {
    op.qk_norm = s.norm, op.qk_norm_eps = kEps;
    op.affine = affine.view(), op.grad_affine = grad_affine.view();
  }
  Tensor<float> bias({s.heads, op.group_rows(), op.group_rows()}, s.biased ? 2 : 0);
  Tensor<float> grad_bias(bias.sizes);
  bias.randomize(random);
  if (s.biased) {
    bias[0] = -INFINITY;
    op.bias = bias.view(), op.grad_bias = grad_bias.view();
  }
  for (int part = 0; part < 3; ++part) {
    op.qkv[part] = part_of(qkv.view(), part, sizeof(T));
    op.grad_qkv[part] = part_of(grad_qkv.view(), part, sizeof(T));
  }
  op.out = out.view(), op.stats = stats.view(), op.grad_out = grad_out.view();
  in_new_thread([&] { kernels().space_time_attention_forward(op); });
  in_new_thread([&] { kernels().space_time_attention_backward(op); });

  Values exact_out, exact_grad, exact_grad_affine, exact_bias;
  Values rows = qkv.values();
  if (s.normalizes) normalize(s, affine.values(), rows);
  if (s.rotates) rotate(s, cos.values(), sin.values(), false, rows);
  naive(s, rows, bias.values(), op.group_rows(), grad_out.values(), exact_out, exact_grad, exact_bias);
  if (s.rotates) rotate(s, cos.values(), sin.values(), true, exact_grad);
  if (s.normalizes) normalize_backward(s, affine.values(), qkv.values(), exact_grad, exact_grad_affine);
  const std::string what =
      "space_time_attention, dtype " + std::to_string(int(op.dtype)) + ", axis " + std::to_string(int(s.axis)) +
      ", T=" + std::to_string(s.frames) + " N=" + std::to_string(s.patches) + " P=" + std::to_string(s.prefix) +
      " H=" + std::to_string(s.heads) + " D=" + std::to_string(s.dim) + " order " + std::to_string(int(s.order)) +
      " prefix " + std::to_string(int(s.prefix_attention)) + " dropout " + std::to_string(s.dropout_rate) +
      (s.rotates ? " pairs " + std::to_string(int(s.pairs)) : "") +
      (s.normalizes ? " norm " + std::to_string(int(s.norm)) : "") + (s.biased ? " bias" : "") + ", " + layout;
  expect_close(what + ": out", out, exact_out, op.dtype);
  expect_close(what + ": grad_qkv", grad_qkv, exact_grad, op.dtype);
  if (s.normalizes) expect_close(what + ": grad_affine", grad_affine, exact_grad_affine, op.dtype);
  if (s.biased) expect_close(what + ": grad_bias", grad_bias, exact_bias, op.dtype);
}

template <typename T>
void check_layouts(const Shape& s, bool all) {
  const std::vector<int64_t> qkv{s.batch, s.tokens(), 3, s.heads, s.dim}, out{s.batch, s.tokens(), s.heads, s.dim};
  check(s, Tensor<T>(qkv, 3), Tensor<T>(out, 5), "gaps");
  if (!all) return;
  check(s, Tensor<T>(qkv), Tensor<T>(out), "contiguous");
  check(s, Tensor<T>::ordered(qkv, {2, 0, 3, 1, 4}), Tensor<T>::ordered(out, {2, 0, 1, 3}), "permuted");
  check(s, Tensor<T>(qkv), Tensor<T>(out, {0, 0, 0, 1}), "expanded gradient");
}

// Who attends to whom in other ways: small groups with and without a border, groups of a vector and more, large ones.
template <typename T>
void test_orders_and_prefixes() {
  for (TokenOrder order : {TokenOrder::kTimeMajor, TokenOrder::kPatchMajor})
    for (PrefixAttention prefix_attention :
         {PrefixAttention::kAll, PrefixAttention::kNone, PrefixAttention::kFrameMean})
      for (Axis axis : {Axis::kTime, Axis::kSpace, Axis::kJoint}) {
        if (prefix_attention == PrefixAttention::kFrameMean && axis != Axis::kSpace) continue;
        for (int64_t prefix : {0, 1, 3})
          for (auto [frames, patches] : {std::pair<int64_t, int64_t>{3, 4}, {2, 11}, {17, 3}, {3, 67}})
            for (double rate : {0.0, 0.3})
              check_layouts<T>({axis, 2, prefix, frames, patches, 2, 24, order, prefix_attention, rate}, false);
        for (double rate : {0.0, 0.3})
          check_layouts<T>({axis, 1, 40, 2, 33, 1, 40, order, prefix_attention, rate}, false);
      }
}

// Rows of whole vectors, with a tail, of a tail alone; halves that begin within a vector.
template <typename T>
void test_rotary() {
  for (RotaryPairs pairs : {RotaryPairs::kInterleaved, RotaryPairs::kHalf})
    for (PrefixAttention prefix_attention : {PrefixAttention::kAll, PrefixAttention::kFrameMean})
      for (Axis axis : {Axis::kTime, Axis::kSpace, Axis::kJoint}) {
        if (prefix_attention == PrefixAttention::kFrameMean && axis != Axis::kSpace) continue;
        for (auto [frames, patches] : {std::pair<int64_t, int64_t>{3, 4}, {4, 3}, {2, 11}, {17, 3}, {3, 67}})
          for (int64_t dim : {6, 24, 32})
            check_layouts<T>(
                {axis, 2, 1, frames, patches, 2, dim, TokenOrder::kPatchMajor, prefix_attention, 0, true, pairs},
                false);
      }
}

// Rows of whole vectors and with a tail; rotated after that or not.
template <typename T>
void test_norms() {
  for (NormKind norm : {NormKind::kLayer, NormKind::kRms})
    for (bool rotates : {false, true})
      for (Axis axis : {Axis::kTime, Axis::kSpace, Axis::kJoint})
        for (auto [frames, patches] : {std::pair<int64_t, int64_t>{3, 4}, {17, 3}, {3, 67}})
          for (int64_t dim : {10, 32})
            check_layouts<T>({axis, 2, 1, frames, patches, 2, dim, TokenOrder::kTimeMajor, PrefixAttention::kAll, 0,
                              rotates, RotaryPairs::kInterleaved, true, norm},
                             false);
}

// Groups of less than a vector, of a tail, of several blocks; more of them than shares of the gradient.
template <typename T>
void test_bias() {
  for (TokenOrder order : {TokenOrder::kTimeMajor, TokenOrder::kPatchMajor})
    for (PrefixAttention prefix_attention :
         {PrefixAttention::kAll, PrefixAttention::kNone, PrefixAttention::kFrameMean})
      for (Axis axis : {Axis::kTime, Axis::kSpace, Axis::kJoint}) {
        if (prefix_attention == PrefixAttention::kFrameMean && axis != Axis::kSpace) continue;
        for (auto [frames, patches] : {std::pair<int64_t, int64_t>{3, 4}, {2, 11}, {17, 3}, {3, 67}}) {
          Shape shape{axis, 2, 2, frames, patches, 2, 24, order, prefix_attention};
          shape.biased = true;
          check_layouts<T>(shape, false);
          shape.batch = 3, shape.dropout_rate = 0.3, shape.rotates = true;
          check_layouts<T>(shape, false);
        }
      }
}

template <typename T>
void test() {
  test_norms<T>();
  test_bias<T>();
  test_orders_and_prefixes<T>();
  test_rotary<T>();
  for (Axis axis : {Axis::kTime, Axis::kSpace, Axis::kJoint}) {
    for (int64_t prefix : {0, 1, 2}) check_layouts<T>({axis, 2, prefix, 3, 7, 3, 40}, true);
    for (int64_t dim : {5, 8, 16, 64, 128}) check_layouts<T>({axis, 1, 1, 2, 5, 2, dim}, false);
    for (int64_t frames : {1, 9, 16, 33, 64}) check_layouts<T>({axis, 1, 1, frames, 3, 1, 24}, false);
    for (int64_t patches : {1, 31, 32, 67}) check_layouts<T>({axis, 1, 1, 2, patches, 1, 32}, false);
    check_layouts<T>({axis, 1, 40, 2, 3, 1, 8}, false);     // more prefix tokens than patches
    check_layouts<T>({axis, 1, 100, 2, 33, 1, 40}, false);  // than queries of a block
    for (double rate : {0.0, 0.3})                          // one group's queries are several work items
      check_layouts<T>({axis, 1, 1, 1, 401, 1, 8, TokenOrder::kTimeMajor, PrefixAttention::kAll, rate}, false);
  }
}

}  // namespace

void test_space_time_attention() {
  test<float>();
  test<BFloat16>();
  test<Float16>();
}

}  // namespace hsta
