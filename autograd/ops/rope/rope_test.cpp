#include "autograd/ops/rope/rope.h"

#include <cmath>
#include <omp.h>

#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::bitwise_equal;
using testing::cast;
using testing::normal;
using testing::OpCase;

DocumentsPtr documents_of(std::vector<std::int32_t> lengths) {
  return Documents::from_lengths(lengths);
}

Tensor rotated(const Tensor& x, std::span<const std::int32_t> positions, const RopeTable& table) {
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  return cast(rope(tape, Tape::constant(x), positions, table).value, x.dtype());
}

double dot(const Tensor& x, const Tensor& y) {
  const Tensor a = cast(x, DType::f64), b = cast(y, DType::f64);
  double total = 0.0;
  for (std::int64_t i = 0; i < a.numel(); ++i) total += a.data<double>()[i] * b.data<double>()[i];
  return total;
}

OP_TEST(Rope, Gradients) {
  struct Case {
    std::int64_t H, D, D_r;
    double yarn;
  };
  for (const Case& c : {Case{1, 2, 2, 1.0}, Case{3, 16, 16, 1.0}, Case{2, 10, 6, 1.0}, Case{2, 24, 8, 16.0},
                        Case{5, 64, 64, 4.0}, Case{16, 128, 128, 1.0}, Case{6, 64, 32, 1.0}}) {
    const DocumentsPtr documents = documents_of({1, 0, 7, 30});
    const RopeTable table(RopeConfig{
        .rotary_dim = c.D_r, .base = 100.0, .yarn_factor = c.yarn, .yarn_original_length = c.yarn > 1.0 ? 64 : 0});
    check_op(OpCase{.name = fmt::format("H {} D {} D_r {} yarn {}", c.H, c.D, c.D_r, c.yarn),
                    .inputs = {normal({38, c.H, c.D}, 1)},
                    .function = [&](Tape& tape, std::span<const Var> in) {
                      return std::vector{rope(tape, in[0], documents, table)};
                    }});
  }
}

// The two fp32 levels that kernels combine are as good as rows rounded from fp64.
TEST(Rope, LevelsAreExactUpToFourMillionTokens) {
  const RopeTable table(RopeConfig{.rotary_dim = 64, .yarn_factor = 4.0, .yarn_original_length = 4096});
  const RopeLevels levels = table.levels();
  const std::vector<std::int32_t> positions{0, 1, 4095, 4096, 131071, 1048064, 4194303};
  const Shape shape{static_cast<std::int64_t>(positions.size()), 32};
  const RopeRows rows{Tensor::empty(shape, DType::f64), Tensor::empty(shape, DType::f64)};
  table.build(positions, rows);
  for (std::size_t t = 0; t < positions.size(); ++t) {
    const float* fine = levels.fine.data<float>() + positions[t] % kRopeStride * 64;
    const float* coarse = levels.coarse.data<float>() + positions[t] / kRopeStride * 64;
    for (int i = 0; i < 32; ++i) {
      const float cos = coarse[2 * i] * fine[2 * i] - coarse[2 * i + 1] * fine[2 * i + 1];
      const float sin = coarse[2 * i + 1] * fine[2 * i] + coarse[2 * i] * fine[2 * i + 1];
      EXPECT_NEAR(cos, rows.cos.data<double>()[t * 32 + static_cast<std::size_t>(i)], 2.5e-7) << positions[t];
      EXPECT_NEAR(sin, rows.sin.data<double>()[t * 32 + static_cast<std::size_t>(i)], 2.5e-7) << positions[t];
    }
  }
}

OP_TEST(Rope, GivenPositions) {
  const RopeTable table(RopeConfig{.rotary_dim = 16});
  const std::vector<std::int32_t> positions{0, 70000, 4096, 4095, 3, 1048064};
  check_op(OpCase{
      .name = "positions", .inputs = {normal({6, 3, 16}, 1)}, .function = [&](Tape& tape, std::span<const Var> in) {
        return std::vector{rope(tape, in[0], positions, table)};
      }});
}

TEST(Rope, EqualsTheFormula) {
  const std::int64_t H = 2, D = 12, D_r = 8;
  const double base = 500.0;
  const std::vector<std::int32_t> positions{0, 1, 5, 4095, 4096, 4097, 70000};
  const auto T = static_cast<std::int64_t>(positions.size());
  const Tensor x = normal({T, H, D}, 3);
  const Tensor y = rotated(x, positions, RopeTable(RopeConfig{.rotary_dim = D_r, .base = base}));
  Tensor expected = cast(x, DType::f64);
  for (std::int64_t t = 0; t < T; ++t) {
    for (std::int64_t h = 0; h < H; ++h) {
      const double* from = x.data<double>() + (t * H + h) * D;
      double* to = expected.data<double>() + (t * H + h) * D;
      for (std::int64_t i = 0; i < D_r / 2; ++i) {
        const long double theta = std::pow(static_cast<long double>(base), -2.0L * static_cast<long double>(i) / D_r);
        const long double phi = theta * positions[static_cast<std::size_t>(t)];
        const auto c = static_cast<double>(std::cos(phi)), s = static_cast<double>(std::sin(phi));
        to[i] = from[i] * c - from[i + D_r / 2] * s;
        to[i + D_r / 2] = from[i] * s + from[i + D_r / 2] * c;
      }
    }
  }
  EXPECT_TRUE(testing::close(y, expected, 1e-11, 1e-10));
  // Channels beyond the rotary width are the same bits.
  for (std::int64_t row = 0; row < T * H; ++row) {
    for (std::int64_t i = D_r; i < D; ++i) EXPECT_EQ(y.data<double>()[row * D + i], x.data<double>()[row * D + i]);
  }
}

// The logit of a query and a key a fixed distance apart must not depend on where they are. What remains is the rounding
// of cos and sin to fp32, and that of the rotated vectors; a product position * theta in fp32 would reach 6e-4 at a
// million tokens.
TEST(Rope, LogitsDependOnRelativePositionUpToAMillionTokens) {
  const std::int64_t D = 128;
  const RopeTable table(RopeConfig{.rotary_dim = D});
  for (const std::int32_t p : {512, 8192, 131072, 1048064}) {
    double worst_table = 0.0, worst_fp32 = 0.0;
    for (std::int32_t trial = 0; trial < 64; ++trial) {
      const std::int32_t delta = trial * 500 / 63;
      const auto seed = static_cast<std::uint64_t>(p) + static_cast<std::uint64_t>(trial);
      const Tensor q = cast(normal({1, 1, D}, seed), DType::f32), k = cast(normal({1, 1, D}, seed + 7), DType::f32);
      const std::vector<std::int32_t> here{p}, there{p + delta}, apart{delta};
      // Exact: <R_delta q, k>, in fp64 throughout.
      const double exact = dot(rotated(cast(q, DType::f64), apart, table), k);
      const double scale = std::sqrt(dot(q, q) * dot(k, k));
      worst_fp32 =
          std::max(worst_fp32, std::abs(dot(rotated(q, there, table), rotated(k, here, table)) - exact) / scale);
      // fp32 tables used in fp64 arithmetic.
      const auto turn = [&](const Tensor& x, const std::vector<std::int32_t>& at) {
        const RopeRows rows{Tensor::empty({1, D / 2}, DType::f32), Tensor::empty({1, D / 2}, DType::f32)};
        table.build(at, rows);
        Tensor y = Tensor::empty({1, 1, D}, DType::f64);
        for (std::int64_t i = 0; i < D / 2; ++i) {
          const double c = rows.cos.data<float>()[i], s = rows.sin.data<float>()[i];
          const double a = x.data<float>()[i], b = x.data<float>()[i + D / 2];
          y.data<double>()[i] = a * c - b * s;
          y.data<double>()[i + D / 2] = a * s + b * c;
        }
        return y;
      };
      worst_table = std::max(worst_table, std::abs(dot(turn(q, there), turn(k, here)) - exact) / scale);
    }
    RecordProperty(fmt::format("position_{}", p), fmt::format("table {:.1e} fp32 {:.1e}", worst_table, worst_fp32));
    EXPECT_LE(worst_table, 1e-8) << "position " << p;
    EXPECT_LE(worst_fp32, 2e-8) << "position " << p;
  }
}

TEST(Rope, Fp64AnglesAreExactAtAMillionTokens) {
  const std::int64_t D = 64;
  const RopeTable table(RopeConfig{.rotary_dim = D});
  for (const std::int32_t p : {4096, 131072, 1048064}) {
    const Tensor q = normal({1, 1, D}, 1), k = normal({1, 1, D}, 2);
    const std::vector<std::int32_t> here{p}, there{p + 333}, apart{333};
    const double exact = dot(rotated(q, apart, table), k);
    const double moved = dot(rotated(q, there, table), rotated(k, here, table));
    EXPECT_NEAR(moved, exact, 2e-15 * std::sqrt(dot(q, q) * dot(k, k))) << "position " << p;
  }
}

TEST(Rope, YarnInterpolatesSlowChannelsOnly) {
  const RopeConfig plain{.rotary_dim = 128};
  const RopeConfig yarn{.rotary_dim = 128, .yarn_factor = 16.0, .yarn_original_length = 4096};
  const std::vector<double> theta = rope_frequencies(plain), stretched = rope_frequencies(yarn);
  EXPECT_DOUBLE_EQ(stretched[0] / theta[0], 1.0);
  EXPECT_NEAR(stretched[30] / theta[30], 0.295, 5e-4);
  EXPECT_NEAR(stretched[40] / theta[40], 0.0946, 5e-5);
  EXPECT_NEAR(stretched[63] / theta[63], 0.0625, 1e-12);
  EXPECT_NEAR(rope_magnitude(yarn), 1.2773, 5e-5);
  EXPECT_EQ(rope_magnitude(plain), 1.0);
  // The magnitude multiplies what is rotated and nothing else.
  const RopeTable table(RopeConfig{.rotary_dim = 4, .yarn_factor = 16.0, .yarn_original_length = 4096});
  const Tensor x = normal({1, 1, 6}, 1);
  const Tensor y = rotated(x, std::vector<std::int32_t>{0}, table);
  for (int i = 0; i < 6; ++i) {
    EXPECT_NEAR(y.data<double>()[i], x.data<double>()[i] * (i < 4 ? 0.1 * std::log(16.0) + 1.0 : 1.0), 1e-14);
  }
}

// Positions restart with each document and continue from pos0; the table grows on the way; the kept rows of one batch
// are not mistaken for those of another.
TEST(Rope, PackingAndContinuationAreBitwise) {
  const std::int64_t H = 2, D = 8;
  const RopeTable table(RopeConfig{.rotary_dim = D});
  const Tensor x = cast(normal({5000, H, D}, 1), DType::f32);
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  const auto run = [&](std::int64_t begin, std::int64_t end, const DocumentsPtr& documents) {
    return cast(rope(tape, Tape::constant(x.rows(begin, end)), documents, table).value, DType::f32);
  };
  const Tensor first = run(0, 40, Documents::single(40));
  const Tensor second = run(40, 5000, Documents::single(4960));
  const Tensor packed = run(0, 5000, documents_of({40, 0, 4960}));
  EXPECT_TRUE(bitwise_equal(packed.rows(0, 40), first));
  EXPECT_TRUE(bitwise_equal(packed.rows(40, 5000), second));
  const Tensor tail = run(4900, 5000, Documents::single(100, 4860));
  EXPECT_TRUE(bitwise_equal(packed.rows(4900, 5000), tail));
  // Decoding with explicit positions.
  const std::vector<std::int32_t> positions{3, 4859};
  Tensor two = Tensor::empty({2, H, D}, DType::f32);
  two.rows(0, 1).copy_from(x.rows(43, 44));
  two.rows(1, 2).copy_from(x.rows(4899, 4900));
  const Tensor decoded = rotated(two, positions, table);
  EXPECT_TRUE(bitwise_equal(decoded.rows(0, 1), packed.rows(43, 44)));
  EXPECT_TRUE(bitwise_equal(decoded.rows(1, 2), packed.rows(4899, 4900)));
}

TEST(Rope, ThreadsDoNotChangeBits) {
  const Tensor x = cast(normal({3000, 3, 16}, 1), DType::f32);
  const auto run = [&] {
    const RopeTable table(RopeConfig{.rotary_dim = 16});
    Tape tape(heap_allocator(), Tape::Mode::inference);
    return cast(rope(tape, Tape::constant(x), Documents::single(3000, 9000), table).value, DType::f32);
  };
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Tensor one = run();
  omp_set_num_threads(3);
  const Tensor three = run();
  omp_set_num_threads(threads);
  EXPECT_TRUE(bitwise_equal(one, three));
}

void expect_error(const RopeConfig& config, const std::string& message) {
  try {
    RopeTable table(config);
    ADD_FAILURE() << "accepted; expected: " << message;
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::config);
    EXPECT_EQ(std::string(e.what()), message);
  }
}

TEST(Rope, RefusesValuesWithoutMeaning) {
  expect_error({.rotary_dim = 7}, "rope: the rotary width is 7; expected a positive even number");
  expect_error({.rotary_dim = 0}, "rope: the rotary width is 0; expected a positive even number");
  expect_error({.rotary_dim = 8, .base = -1.0}, "rope: the base is -1; expected a positive number");
  expect_error({.rotary_dim = 8, .yarn_factor = 0.5},
               "rope: the YaRN factor is 0.5; expected new length / original length, at least 1");
  expect_error({.rotary_dim = 8, .yarn_factor = 4.0},
               "rope: a YaRN factor of 4 needs the original length in tokens, got 0");
  Tape tape(heap_allocator());
  const RopeTable table(RopeConfig{.rotary_dim = 8});
  EXPECT_THROW(rope(tape, tape.leaf(normal({4, 2, 6}, 1)), Documents::single(4), table), Error);
  EXPECT_THROW(rope(tape, tape.leaf(normal({4, 2, 8}, 1)), Documents::single(5), table), Error);
  EXPECT_THROW(rope(tape, tape.leaf(normal({1, 2, 8}, 1)), std::vector<std::int32_t>{-1}, table), Error);
}

}  // namespace
}  // namespace weft
