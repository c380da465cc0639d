// A memory of which only W1 learns, without forgetting, is a linear map of the features h(x) = silu(x W0^T) * (x W2^T).
// Written token by token it is a recurrence that other operations compute, one token later: here a token reads before
// it writes.
#include <cmath>

#include "modules/families/delta_rule/delta_rule.h"
#include "modules/families/fast_weights/fast_weights_test_cases.h"
#include "modules/families/gated_linear/gated_linear.h"

namespace weft {
namespace {

using namespace testing;

class LinearMemory : public ::testing::TestWithParam<InnerLoss> {
 protected:
  MemoryCase c{.lengths = {40, 0, 1, 23},
               .config = {.chunk = 1, .loss = GetParam(), .norm = NormMode::none, .residual = false},
               .momentum = false,
               .forget = false,  // it would change W0 and W2 too
               .rate = 0.9};
  MemoryTensors in = make_tensors(c);
  Tape tape{heap_allocator(Hygiene::hostile), Tape::Mode::inference};

  // h(x) [T, H, d_h]
  Tensor features(const Tensor& x) const {
    const Tensor h = Tensor::zeros({c.tokens(), c.H, c.d_h}, DType::f64);
    for (std::int64_t i = 0; i < h.numel(); ++i) {
      const double* row = x.data<double>() + i / c.d_h * c.d_m;
      const std::int64_t unit = i % (c.H * c.d_h);
      double a = 0.0, b = 0.0;
      for (std::int64_t y = 0; y < c.d_m; ++y) {
        a += in.w0.data<double>()[unit * c.d_m + y] * row[y];
        b += in.w2.data<double>()[unit * c.d_m + y] * row[y];
      }
      h.data<double>()[i] = a / (1.0 + std::exp(-a)) * b;
    }
    return h;
  }
  // Rates of W1 [T, H]; those of W0 and W2 become zero.
  Tensor rates() const {
    const Tensor beta = Tensor::zeros({c.tokens(), c.H}, DType::f64);
    for (std::int64_t i = 0; i < beta.numel(); ++i) {
      double* eta = in.eta.data<double>() + 3 * i;
      beta.data<double>()[i] = eta[1];
      eta[0] = eta[2] = 0.0;
    }
    return beta;
  }
  // Row t is row t + 1 of x.
  static Tensor later(const Tensor& x) {
    const Tensor y = Tensor::zeros(x.shape(), DType::f64);
    y.rows(0, x.dim(0) - 1).copy_from(x.rows(1, x.dim(0)));
    return y;
  }
  // W1^T of each document and head, [N, H, d_h, d_m], from [N, H, ...] whose last d_m d_h numbers are W1.
  Tensor states(const Tensor& weights) const {
    const Tensor S = Tensor::zeros({c.documents(), c.H, c.d_h, c.d_m}, DType::f64);
    const std::int64_t size = c.d_m * c.d_h, stride = weights.numel() / (c.documents() * c.H);
    for (std::int64_t i = 0; i < S.numel(); ++i) {
      const std::int64_t at = i % size;
      S.data<double>()[i] = weights.data<double>()[(i / size + 1) * stride - size + at % c.d_m * c.d_h + at / c.d_m];
    }
    return S;
  }
  Tensor initial_states() const {
    const Tensor W1 = Tensor::zeros({c.documents(), c.H, c.d_m, c.d_h}, DType::f64);
    for (std::int64_t i = 0; i < W1.numel(); ++i) {
      W1.data<double>()[i] = in.w1.data<double>()[i % in.w1.numel()];
    }
    return states(W1);
  }
  // `o` and `last`: what the recurrence reads after each token, with the query of the next, and its final states.
  void expect_one_token_later(const Tensor& o, const Tensor& last) {
    const MemoryResult r = evaluate(c, in);
    const DocumentsPtr documents = documents_of(c);
    for (std::int64_t n = 0; n < documents->count(); ++n) {
      const std::int64_t begin = documents->begin(n), end = documents->end(n);
      if (end - begin < 2) continue;
      EXPECT_TRUE(close(r.out.rows(begin + 1, end), o.rows(begin, end - 1), 1e-12, 1e-10)) << "document " << n;
    }
    EXPECT_TRUE(close(states(r.weights), last, 1e-12, 1e-10));
  }
};

TEST_P(LinearMemory, IsALinearRecurrenceOneTokenLater) {
  const Tensor beta = rates();
  const Var q = Tape::constant(later(features(in.q))), k = Tape::constant(features(in.k));
  const Var S = Tape::constant(initial_states());
  if (GetParam() == InnerLoss::l2) {  // the delta rule
    const auto y = delta_rule(tape, q, k, Tape::constant(in.v), {}, Tape::constant(beta), S, documents_of(c), 1.0);
    return expect_one_token_later(y.o.value, y.final_state.value);
  }
  const Tensor values = cast(in.v, DType::f64), decay = Tensor::zeros({c.H}, DType::f64);  // linear attention
  for (std::int64_t i = 0; i < values.numel(); ++i) values.data<double>()[i] *= beta.data<double>()[i / c.d_m];
  const auto y = gated_linear(tape, q, k, Tape::constant(values), Tape::constant(decay), S, documents_of(c), 1.0);
  expect_one_token_later(y.o.value, y.final_state.value);
}

INSTANTIATE_TEST_SUITE_P(Loss, LinearMemory, ::testing::Values(InnerLoss::l2, InnerLoss::dot),
                         [](const auto& loss) { return loss.param == InnerLoss::l2 ? "l2" : "dot"; });

}  // namespace
}  // namespace weft
