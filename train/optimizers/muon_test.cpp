// Legend: matrices are A x B, r = min(A, B).
#include "train/optimizers/muon.h"

#include <cmath>
#include <gtest/gtest.h>
#include <vector>

#include "autograd/philox.h"
#include "train/optimizers/optimizer.h"

namespace weft {
namespace {

using Matrix = std::vector<float>;

Matrix random_matrix(std::int64_t A, std::int64_t B, std::uint64_t seed) {
  Matrix x(static_cast<std::size_t>(A * B));
  for (std::size_t i = 0; i < x.size(); ++i) {
    RandomWords words(seed, RandomStream::test, i);
    x[i] = static_cast<float>(words.uniform() + words.uniform() + words.uniform() - 1.5);
  }
  return x;
}

Matrix orthogonalised(std::int64_t A, std::int64_t B, Matrix x) {
  std::vector<float> workspace(newton_schulz_workspace(A, B), NAN);
  newton_schulz(A, B, x.data(), workspace.data());
  return x;
}

double norm_of(const Matrix& x) {
  double sum = 0.0;
  for (const float value : x) sum += static_cast<double>(value) * value;
  return std::sqrt(sum);
}

double relative_error(const Matrix& x, const Matrix& y) {
  double sum = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double difference = static_cast<double>(x[i]) - static_cast<double>(y[i]);
    sum += difference * difference;
  }
  return std::sqrt(sum) / norm_of(y);
}

double iterate(double s) {
  for (int i = 0; i < NewtonSchulz::kIterations; ++i) {
    s = s * (NewtonSchulz::a + s * s * (NewtonSchulz::b + s * s * NewtonSchulz::c));
  }
  return s;
}

// An orthonormal basis by Gram-Schmidt, columns of [n, r].
std::vector<std::vector<double>> basis(std::int64_t n, std::int64_t r, std::uint64_t seed) {
  std::vector<std::vector<double>> columns;
  for (std::int64_t j = 0; j < r; ++j) {
    const Matrix start = random_matrix(1, n, seed * 1000 + static_cast<std::uint64_t>(j));
    std::vector<double> u(start.begin(), start.end());
    for (int pass = 0; pass < 2; ++pass) {
      for (const auto& w : columns) {
        double dot = 0.0;
        for (std::size_t i = 0; i < u.size(); ++i) dot += u[i] * w[i];
        for (std::size_t i = 0; i < u.size(); ++i) u[i] -= dot * w[i];
      }
    }
    double norm = 0.0;
    for (const double x : u) norm += x * x;
    for (double& x : u) x /= std::sqrt(norm);
    columns.push_back(u);
  }
  return columns;
}

// A matrix with known singular values goes to the same singular vectors with the polynomial's values.
TEST(NewtonSchulz, MapsSingularValuesByThePolynomial) {
  for (const auto& [A, B] : {std::pair<std::int64_t, std::int64_t>{12, 12}, {7, 40}, {40, 7}}) {
    const std::int64_t r = std::min(A, B);
    const auto u = basis(A, r, 1);
    const auto v = basis(B, r, 2);
    std::vector<double> sigma;
    double norm = 0.0;
    for (std::int64_t k = 0; k < r; ++k) {
      sigma.push_back(std::pow(10.0, -3.0 * static_cast<double>(k) / static_cast<double>(r)));
      norm += sigma.back() * sigma.back();
    }
    Matrix x(static_cast<std::size_t>(A * B));
    Matrix expected(x.size());
    for (std::int64_t i = 0; i < A; ++i) {
      for (std::int64_t j = 0; j < B; ++j) {
        double before = 0.0;
        double after = 0.0;
        for (std::size_t k = 0; k < static_cast<std::size_t>(r); ++k) {
          const double product = u[k][static_cast<std::size_t>(i)] * v[k][static_cast<std::size_t>(j)];
          before += sigma[k] * product;
          after += iterate(sigma[k] / (std::sqrt(norm) + 1e-7)) * product;
        }
        x[static_cast<std::size_t>(i * B + j)] = static_cast<float>(before);
        expected[static_cast<std::size_t>(i * B + j)] = static_cast<float>(after);
      }
    }
    // Rounding errors beside the smallest singular values grow by a^5 = 485.
    EXPECT_LE(relative_error(orthogonalised(A, B, x), expected), 1e-4) << A << " x " << B;
  }
  for (double s = 2e-3; s <= 1.0; s *= 1.01) {
    EXPECT_GE(iterate(s), 0.68);
    EXPECT_LE(iterate(s), 1.21);
  }
}

TEST(NewtonSchulz, UpdateOfRandomMatricesHasTheDocumentedSize) {
  for (const auto& [A, B, rms] : {std::tuple<std::int64_t, std::int64_t, double>{256, 1024, 0.955}, {256, 256, 0.90}}) {
    const Matrix o = orthogonalised(A, B, random_matrix(A, B, 5));
    const double measured = norm_of(o) / std::sqrt(static_cast<double>(A * B));
    EXPECT_NEAR(measured * std::sqrt(static_cast<double>(std::max(A, B))), rms, 0.02);
  }
}

TEST(NewtonSchulz, TransposesWithItsInput) {
  for (const auto& [A, B] : {std::pair<std::int64_t, std::int64_t>{1, 33}, {33, 1}, {5, 64}, {48, 48}}) {
    const Matrix x = random_matrix(A, B, 9);
    Matrix transposed(x.size());
    for (std::int64_t i = 0; i < A * B; ++i) {
      transposed[static_cast<std::size_t>(i % B * A + i / B)] = x[static_cast<std::size_t>(i)];
    }
    const Matrix o = orthogonalised(A, B, x);
    const Matrix ot = orthogonalised(B, A, transposed);
    Matrix back(o.size());
    for (std::int64_t i = 0; i < A * B; ++i) {
      back[static_cast<std::size_t>(i)] = ot[static_cast<std::size_t>(i % B * A + i / B)];
    }
    EXPECT_LE(relative_error(back, o), 1e-4) << A << " x " << B;
  }
}

TEST(NewtonSchulz, HostileMatrices) {
  for (const float value : orthogonalised(8, 5, Matrix(40))) EXPECT_EQ(value, 0.0f);
  // Rank one: one singular value 1, the others stay 0.
  Matrix rank_one(6 * 9);
  for (std::size_t i = 0; i < 54; ++i) rank_one[i] = static_cast<float>((i / 9 + 1) * (i % 9 + 1));
  EXPECT_NEAR(norm_of(orthogonalised(6, 9, rank_one)), std::abs(iterate(1.0)), 1e-3);
  // The scale of the input does not matter, up to squares that fp32 could not hold.
  const Matrix x = random_matrix(16, 24, 3);
  Matrix large = x;
  for (float& value : large) value *= 1e25f;
  EXPECT_LE(relative_error(orthogonalised(16, 24, large), orthogonalised(16, 24, x)), 1e-4);
}

TEST(Muon, Scales) {
  EXPECT_DOUBLE_EQ(muon_scale(MuonScale::rms, 0.2, 100, 400), 4.0);
  EXPECT_DOUBLE_EQ(muon_scale(MuonScale::rms, 0.2, 400, 100), 4.0);
  EXPECT_DOUBLE_EQ(muon_scale(MuonScale::original, 1.0, 400, 100), 2.0);
  EXPECT_DOUBLE_EQ(muon_scale(MuonScale::original, 1.0, 100, 400), 1.0);
  EXPECT_DOUBLE_EQ(muon_scale(MuonScale::spectral, 1.0, 100, 400), 0.5);
}

// Steps on f(W) = ||W - target||^2 / 2, against the rule written with the summed momentum M = mu M + G, N = G + mu M,
// whose direction differs by the factor 1 - mu only.
TEST(Muon, BothMomentumConventionsGiveTheSameSteps) {
  constexpr std::int64_t A = 64;
  constexpr std::int64_t B = 96;
  const double lr = 0.15;
  const double wd = 0.1;
  ParameterStore store;
  Parameter& w = store.declare("w", {A, B}, ParameterKind::matrix, Init::normal(0.1));
  store.initialise(1, DType::f32);
  const std::vector<Parameter*> parameters = store.all();
  Optimizer optimizer(
      parameters,
      {.rule = UpdateRule::muon, .adamw = {}, .muon = {.learning_rate = lr, .weight_decay = wd}, .groups = {}});
  const Matrix target = random_matrix(A, B, 8);
  Matrix reference(w.value.span<float>().begin(), w.value.span<float>().end());
  Matrix momentum(reference.size());
  const auto distance = [&](const Matrix& x) { return relative_error(x, target); };
  const double start = distance(reference);
  const double rho = 0.2 * std::sqrt(96.0);
  for (int t = 0; t < 8; ++t) {
    for (std::size_t i = 0; i < target.size(); ++i) w.grad.data<float>()[i] = w.value.data<float>()[i] - target[i];
    optimizer.update(1.0);

    Matrix direction(target.size());
    for (std::size_t i = 0; i < target.size(); ++i) {
      const float gradient = reference[i] - target[i];
      momentum[i] = 0.95f * momentum[i] + gradient;
      direction[i] = gradient + 0.95f * momentum[i];
    }
    direction = orthogonalised(A, B, direction);
    for (std::size_t i = 0; i < target.size(); ++i) {
      reference[i] = static_cast<float>((1 - lr * wd) * reference[i] - lr * rho * direction[i]);
    }
  }
  const Matrix result(w.value.span<float>().begin(), w.value.span<float>().end());
  EXPECT_LE(relative_error(result, reference), 1e-3);
  EXPECT_LT(distance(result), 0.8 * start);
}

TEST(Muon, BatchesAndSplitsAreSeparateMatrices) {
  const auto updated = [](const Shape& shape, std::int64_t split, std::int64_t rows_from, std::int64_t rows) {
    ParameterStore store;
    Parameter& w = store.declare("w", shape, ParameterKind::matrix, Init::constant(0.0));
    store.initialise(1, DType::f32);
    const Matrix all = random_matrix(192, 64, 4);
    std::copy_n(all.begin() + rows_from * 64, rows * 64, w.grad.data<float>());
    const std::vector<Parameter*> parameters = store.all();
    Optimizer(parameters, {.rule = UpdateRule::muon,
                           .adamw = {},
                           .muon = {.learning_rate = 1.0},
                           .groups = {{.match = "*", .split = split}}})
        .update(1.0);
    return Matrix(w.value.span<float>().begin(), w.value.span<float>().end());
  };
  const Matrix batch = updated({3, 64, 64}, 1, 0, 192);
  EXPECT_EQ(batch, updated({192, 64}, 3, 0, 192));
  EXPECT_NE(batch, updated({192, 64}, 1, 0, 192));
  const Matrix middle = updated({64, 64}, 1, 64, 64);
  EXPECT_EQ(middle, Matrix(batch.begin() + 64 * 64, batch.begin() + 128 * 64));
}

TEST(Muon, ZeroGradientDecaysOnly) {
  ParameterStore store;
  Parameter& w = store.declare("w", {64, 64}, ParameterKind::matrix, Init::constant(1.0));
  store.initialise(1, DType::f32);
  const std::vector<Parameter*> parameters = store.all();
  Optimizer optimizer(
      parameters,
      {.rule = UpdateRule::muon, .adamw = {}, .muon = {.learning_rate = 0.5, .weight_decay = 0.25}, .groups = {}});
  optimizer.update(0.5);
  for (const float value : w.value.span<float>()) EXPECT_EQ(value, 1.0f - 0.5f * 0.5f * 0.25f);
}

}  // namespace
}  // namespace weft
