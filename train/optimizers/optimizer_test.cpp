#include "train/optimizers/optimizer.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <limits>
#include <omp.h>

#include "train/optimizers/adamw.h"
#include "train/optimizers/gradient_norm.h"
#include "train/optimizers/muon.h"

namespace weft {
namespace {

// Standard normal numbers, the same for the same (seed, index).
double normal_number(std::uint64_t seed, std::uint64_t index) {
  RandomWords words(seed, RandomStream::test, index);
  const double u = 1.0 - words.uniform();
  return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * words.uniform());
}

void fill_normal(const Tensor& tensor, std::uint64_t seed, double scale = 1.0) {
  float* values = tensor.data<float>();
  for (std::int64_t i = 0; i < tensor.numel(); ++i) {
    values[i] = static_cast<float>(scale * normal_number(seed, static_cast<std::uint64_t>(i)));
  }
}

struct Model {
  ParameterStore store;
  std::vector<Parameter*> parameters;

  Parameter& add(const std::string& name, const Shape& shape, ParameterKind kind = ParameterKind::matrix) {
    return store.declare(name, shape, kind, Init::normal(0.5));
  }
  void ready() {
    store.initialise(7, DType::f32);
    parameters = store.all();
  }
  void random_gradients(std::uint64_t seed) {
    for (std::size_t p = 0; p < parameters.size(); ++p) fill_normal(parameters[p]->grad, seed * 100 + p);
  }
  bool same_bits(Model& other) {
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      const Tensor& a = parameters[p]->value;
      if (std::memcmp(a.raw(), other.parameters[p]->value.raw(), a.nbytes()) != 0) return false;
    }
    return true;
  }
};

TEST(AdamW, FollowsAnFp64OracleFor1000Steps) {
  constexpr std::int64_t n = 257;
  Model model;
  const Parameter& w = model.add("w", {1, n});
  model.ready();
  const OptimizerOptions options{.learning_rate = 3e-3, .weight_decay = 0.1, .adamw = {}, .muon = {}, .groups = {}};
  Optimizer optimizer(model.parameters, options);

  std::vector<double> p(w.value.span<float>().begin(), w.value.span<float>().end());
  std::vector<double> m(n);
  std::vector<double> v(n);
  const double beta1 = 0.9;
  const double beta2 = 0.95;
  for (int t = 1; t <= 1000; ++t) {
    const double factor = t < 500 ? 1.0 : 0.3;
    const double scale = t % 3 == 0 ? 0.25 : 1.0;
    fill_normal(w.grad, static_cast<std::uint64_t>(t), std::pow(10.0, t % 5 - 4));
    for (std::size_t i = 0; i < n; ++i) {
      const double g = scale * static_cast<double>(w.grad.data<float>()[i]);
      m[i] = beta1 * m[i] + (1 - beta1) * g;
      v[i] = beta2 * v[i] + (1 - beta2) * g * g;
      const double m_hat = m[i] / (1 - std::pow(beta1, t));
      const double v_hat = v[i] / (1 - std::pow(beta2, t));
      p[i] -= factor * options.learning_rate * (m_hat / (std::sqrt(v_hat) + 1e-10) + options.weight_decay * p[i]);
    }
    optimizer.update(factor, scale);
  }
  EXPECT_EQ(optimizer.updates(), 1000);
  double largest = 0.0;
  double error = 0.0;
  for (std::size_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::abs(p[i]));
    error = std::max(error, std::abs(p[i] - static_cast<double>(w.value.data<float>()[i])));
  }
  EXPECT_LE(error / largest, 1e-5);
}

TEST(AdamW, FirstStepByHand) {
  Model model;
  const Parameter& w = model.add("w", {1, 4});
  model.ready();
  Optimizer optimizer(model.parameters,
                      {.learning_rate = 0.01, .weight_decay = 0.5, .adamw = {}, .muon = {}, .groups = {}});
  float* p = w.value.data<float>();
  float* g = w.grad.data<float>();
  for (int i = 0; i < 4; ++i) p[i] = 2.0f;
  g[0] = 1e-3f;
  g[1] = -1e18f;
  g[2] = 0.0f;
  g[3] = 1e-12f;
  optimizer.update(1.0);
  // At t = 1 the corrected moments are g and g^2, so the step is sign(g), up to eps beside a tiny gradient.
  EXPECT_FLOAT_EQ(p[0], 2.0f - 0.01f * (1.0f + 1.0f));
  EXPECT_FLOAT_EQ(p[1], 2.0f - 0.01f * (-1.0f + 1.0f));
  EXPECT_FLOAT_EQ(p[2], 2.0f - 0.01f);  // decay only
  EXPECT_FLOAT_EQ(p[3], 2.0f - 0.01f * (1e-12f / (1e-12f + 1e-10f) + 1.0f));
}

// The roundings that adamw.h promises, one operation at a time.
TEST(AdamW, RoundsExactlyAsDeclared) {
  constexpr std::int64_t n = 1003;
  const Tensor p = Tensor::empty({n}, DType::f32);
  const Tensor g = Tensor::empty({n}, DType::f32);
  const Tensor m = Tensor::empty({n}, DType::f32);
  const Tensor v = Tensor::empty({n}, DType::f32);
  fill_normal(p, 1);
  fill_normal(g, 2);
  fill_normal(m, 3);
  fill_normal(v, 4);
  for (float& x : v.span<float>()) x = std::abs(x);
  const AdamWScalars s = adamw_scalars(0.9, 0.95, 1e-10, 3e-3, 0.1, 0.7, 5);
  std::vector<float> expected(n);
  for (std::int64_t i = 0; i < n; ++i) {
    const volatile float gi = s.gradient_scale * g.data<float>()[i];
    const volatile float square = gi * gi;
    const volatile float dm = m.data<float>()[i] - gi;
    const volatile float dv = v.data<float>()[i] - square;
    const volatile float m1 = std::fma(s.beta1, dm, gi);
    const volatile float v1 = std::fma(s.beta2, dv, square);
    const volatile float mh = m1 * s.correction1;
    const volatile float vh = v1 * s.correction2;
    const volatile float root = std::sqrt(vh);
    const volatile float below = root + s.eps;
    const volatile float direction = mh / below;
    const volatile float step = std::fma(s.weight_decay, p.data<float>()[i], direction);
    expected[static_cast<std::size_t>(i)] = std::fma(-s.learning_rate, step, p.data<float>()[i]);
  }
  adamw_update(s, true, n, p.data<float>(), g.data<float>(), m.data<float>(), v.data<float>());
  EXPECT_EQ(std::memcmp(p.raw(), expected.data(), p.nbytes()), 0);
  for (const float x : g.span<float>()) EXPECT_EQ(x, 0.0f);
}

TEST(AdamW, BiasCorrectionKeepsItsDigits) {
  // 1 - 0.999999 formed by subtraction keeps 10 digits of fp64; by expm1 the error is that of one rounding to fp32.
  EXPECT_FLOAT_EQ(adamw_scalars(0.9, 0.999999, 0, 0, 0, 1, 1).correction2, 1e6f);
  EXPECT_EQ(adamw_scalars(0.0, 0.95, 0, 0, 0, 1, 3).correction1, 1.0f);
}

// Stretches of 65,536 elements against the same parameters updated one element at a time.
TEST(Optimizer, StretchBoundariesChangeNothing) {
  for (const std::int64_t n : {1, 255, 256, 257, 65535, 65536, 65537}) {
    Model model;
    const Parameter& w = model.add("w", {n}, ParameterKind::vector);
    model.ready();
    std::vector<float> p(w.value.span<float>().begin(), w.value.span<float>().end());
    std::vector<float> m(p.size());
    std::vector<float> v(p.size());
    Optimizer optimizer(model.parameters, {.adamw = {}, .muon = {}, .groups = {}});
    for (std::int64_t t = 1; t <= 2; ++t) {
      fill_normal(w.grad, static_cast<std::uint64_t>(t));
      const AdamWScalars s = adamw_scalars(0.9, 0.95, 1e-10, 1e-3, 0.0, 1.0, t);
      for (std::size_t i = 0; i < p.size(); ++i) {
        float g = w.grad.data<float>()[i];
        adamw_update(s, false, 1, &p[i], &g, &m[i], &v[i]);
      }
      optimizer.update(1.0);
    }
    EXPECT_EQ(std::memcmp(p.data(), w.value.raw(), w.value.nbytes()), 0) << n;
  }
}

TEST(Optimizer, SameBitsForAnyNumberOfThreads) {
  const auto train = [](Model& model, bool one_matrix, int threads) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    model.add("a.wq", {256, 320});
    if (!one_matrix) {
      model.add("a.wk", {64, 192});
      model.add("b.wq", {64, 64});
    }
    model.add("embedding", {300, 64}, ParameterKind::embedding);
    model.ready();
    Optimizer optimizer(model.parameters,
                        {.rule = UpdateRule::muon, .adamw = {}, .muon = {.learning_rate = 0.01}, .groups = {}});
    for (std::uint64_t t = 1; t <= 20; ++t) {
      model.random_gradients(t);
      optimizer.update(1.0, clip_factor(gradient_norm(optimizer.trainable()).norm, 1.0), GradientsAfter::zero);
    }
    omp_set_num_threads(before);
  };
  for (const bool one_matrix : {false, true}) {
    Model one;
    train(one, one_matrix, 1);
    for (const int threads : {2, 16}) {  // fewer than the three matrices, and more
      Model many;
      train(many, one_matrix, threads);
      EXPECT_TRUE(one.same_bits(many)) << threads << " threads";
    }
  }
}

TEST(Optimizer, FrozenParametersStayAndStatesAreNamed) {
  Model model;
  model.add("embedding", {10, 64}, ParameterKind::embedding);
  model.add("layers.0.mixer.wq", {64, 64});
  model.add("layers.0.norm_w", {64}, ParameterKind::vector);
  model.ready();
  Optimizer optimizer(model.parameters, {.rule = UpdateRule::muon,
                                         .adamw = {},
                                         .muon = {.learning_rate = 0.01},
                                         .groups = {{.match = "embed*", .rule = UpdateRule::frozen}}});
  const std::vector<float> before(model.parameters[0]->value.span<float>().begin(),
                                  model.parameters[0]->value.span<float>().end());
  model.random_gradients(1);
  optimizer.update(1.0, 1.0, GradientsAfter::zero);
  EXPECT_EQ(std::memcmp(before.data(), model.parameters[0]->value.raw(), model.parameters[0]->value.nbytes()), 0);
  for (const Parameter* parameter : model.parameters) {
    for (const float g : parameter->grad.span<float>()) ASSERT_EQ(g, 0.0f) << parameter->name;
  }
  EXPECT_EQ(optimizer.trainable().size(), 2u);

  std::vector<std::string> names;
  for (const OptimizerState& state : optimizer.states()) {
    names.push_back(std::string(state.kind) + " " + state.parameter + " " + state.tensor.shape().str());
  }
  EXPECT_EQ(names, (std::vector<std::string>{"mom layers.0.mixer.wq [64, 64]", "m layers.0.norm_w [64]",
                                             "v layers.0.norm_w [64]"}));
}

TEST(Optimizer, ResumesBitwiseFromItsStates) {
  const auto build = [](Model& model) {
    model.add("wq", {64, 128});
    model.add("norm_w", {64}, ParameterKind::vector);
    model.ready();
    return Optimizer(model.parameters,
                     {.rule = UpdateRule::muon, .adamw = {}, .muon = {.learning_rate = 0.01}, .groups = {}});
  };
  Model through;
  Optimizer a = build(through);
  Model resumed;
  Optimizer b = build(resumed);
  for (std::uint64_t t = 1; t <= 6; ++t) {
    if (t == 4) {
      for (std::size_t p = 0; p < through.parameters.size(); ++p) {
        resumed.parameters[p]->value.copy_from(through.parameters[p]->value);
      }
      const auto from = a.states();
      const auto to = b.states();
      for (std::size_t i = 0; i < from.size(); ++i) to[i].tensor.copy_from(from[i].tensor);
      b.set_updates(a.updates());
    }
    through.random_gradients(t);
    a.update(1.0);
    if (t < 4) continue;
    resumed.random_gradients(t);
    b.update(1.0);
  }
  EXPECT_TRUE(through.same_bits(resumed));
}

TEST(Optimizer, RefusesParametersThatAreNotF32) {
  ParameterStore store;
  store.declare("w", {4, 4}, ParameterKind::matrix, Init::constant(0));
  store.initialise(1, DType::f64);
  const std::vector<Parameter*> parameters = store.all();
  EXPECT_THROW(Optimizer(parameters, {.adamw = {}, .muon = {}, .groups = {}}), Error);
}

TEST(GradientNorm, AgainstFp64) {
  Model model;
  for (const std::int64_t n : {1, 15, 16, 17, 65535, 65536, 200001}) {
    model.add(std::to_string(n), {n}, ParameterKind::vector);
  }
  model.add("empty", {0, 8});
  model.ready();
  model.random_gradients(3);
  const GradientNorm result = gradient_norm(model.parameters);
  double total = 0.0;
  for (std::size_t p = 0; p < model.parameters.size(); ++p) {
    double square = 0.0;
    for (const float g : model.parameters[p]->grad.span<float>()) square += static_cast<double>(g) * g;
    EXPECT_NEAR(result.squares[p], square, 1e-6 * square);
    total += square;
  }
  EXPECT_NEAR(result.norm, std::sqrt(total), 1e-6 * std::sqrt(total));
  EXPECT_TRUE(result.finite());
}

TEST(GradientNorm, OneBadElementNamesItsParameter) {
  Model model;
  for (int i = 0; i < 8; ++i) model.add("layers." + std::to_string(i) + ".w", {3, 70000});
  model.ready();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e20f}) {
    model.random_gradients(1);
    model.parameters[5]->grad.data<float>()[150001] = bad;
    const GradientNorm norm = gradient_norm(model.parameters);
    EXPECT_FALSE(norm.finite());
    EXPECT_EQ(nonfinite_parameters(model.parameters, norm), "layers.5.w");
  }
  for (Parameter* parameter : model.parameters) parameter->grad.data<float>()[0] = NAN;
  EXPECT_EQ(nonfinite_parameters(model.parameters, gradient_norm(model.parameters), 2),
            "layers.0.w, layers.1.w and 6 more");
}

TEST(GradientNorm, ClipFactor) {
  EXPECT_EQ(clip_factor(0.5, 1.0), 1.0);
  EXPECT_EQ(clip_factor(0.0, 1.0), 1.0);
  EXPECT_NEAR(clip_factor(4.0, 1.0), 0.25, 1e-6);
  EXPECT_EQ(clip_factor(4.0, 0.0), 1.0);
}

}  // namespace
}  // namespace weft
