// Feature maps inside the recurrence against the same maps taken beforehand, heads that share keys against copies of
// them, and the column of denominators.

#include "autograd/ops/feature_map/feature_map.h"
#include "modules/families/gated_linear/denominators.h"
#include "modules/families/gated_linear/gated_linear_test_cases.h"
#include "tests/support/op_check.h"

namespace weft::testing {
namespace {

constexpr FeatureMap kMaps[] = {FeatureMap::taylor, FeatureMap::softmax_pair, FeatureMap::elu_plus_one};

struct MappedCase {
  FeatureMap map;
  std::vector<std::int32_t> lengths;
  ChunkSchedule schedule = ChunkSchedule::automatic;
  bool initial_state = true;
  std::int64_t H = 2, D_x = 4, d_v = 3;
};

// Inputs: q, k [T,H,D_x], v [T,H,d_v], initial state. `inside`: the recurrence maps q and k itself.
OpCase op_case(const MappedCase& c, bool inside) {
  const DocumentsPtr documents = Documents::from_lengths(c.lengths);
  const std::int64_t T = documents->tokens();
  std::vector<Tensor> inputs{normal({T, c.H, c.D_x}, 1), normal({T, c.H, c.D_x}, 2), normal({T, c.H, c.d_v}, 3)};
  if (c.initial_state) inputs.push_back(normal({documents->count(), c.H, feature_width(c.map, c.D_x), c.d_v}, 4));
  return {.name = fmt::format("map {} T {} schedule {} inside {}", static_cast<int>(c.map), T,
                              static_cast<int>(c.schedule), inside),
          .inputs = testing::activations(inputs),
          .function = [c, documents, inside](Tape& tape, std::span<const Var> in) {
            const Var decay = Tape::constant(cast(Tensor::from({c.H}, std::vector<double>{0.0, -0.1}), in[0].dtype()));
            const Var s0 = c.initial_state ? in[3] : Var{};
            const GatedLinearPlan plan{.chunk = 0, .schedule = c.schedule};
            const auto [o, st] =
                inside ? gated_linear(tape, c.map, in[0], in[1], in[2], decay, s0, documents, 0.7, plan)
                       : gated_linear(tape, feature_map(tape, c.map, in[0]), feature_map(tape, c.map, in[1]), in[2],
                                      decay, s0, documents, 0.7, plan);
            return std::vector{o, st};
          }};
}

TEST(GatedLinearFeatures, EqualFeaturesTakenBeforehandBitForBit) {
  for (const FeatureMap map : kMaps) {
    for (const ChunkSchedule schedule : {ChunkSchedule::fused, ChunkSchedule::two_level}) {
      for (const bool initial_state : {false, true}) {
        const MappedCase c{.map = map,
                           .lengths = {0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000},
                           .schedule = schedule,
                           .initial_state = initial_state};
        for (const DType dtype : {DType::f64, DType::f32}) {
          const OpCase inside = op_case(c, true);
          SCOPED_TRACE(inside.name);
          const Evaluation a = evaluate(inside, dtype), b = evaluate(op_case(c, false), dtype);
          for (std::size_t i = 0; i < a.outputs.size(); ++i) EXPECT_TRUE(bitwise_equal(a.outputs[i], b.outputs[i]));
          for (std::size_t i = 0; i < a.gradients.size(); ++i) {
            EXPECT_TRUE(bitwise_equal(a.gradients[i], b.gradients[i])) << "input " << i;
          }
        }
      }
    }
  }
}

TEST(GatedLinearFeatures, GradientsAndPrecision) {
  for (const FeatureMap map : kMaps) check_op(op_case({.map = map, .lengths = {3, 70, 0, 16}}, true));
}

// Every head of a set with a copy of its own gives the same bits; gradients of shared keys are sums over the set.
TEST(GatedLinearSharedKeys, EqualCopiesBitForBit) {
  const std::int64_t H_k = 2, copies = 3, d_k = 5, d_v = 4;
  const std::vector<std::int32_t> lengths{0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000};
  const DocumentsPtr documents = Documents::from_lengths(lengths);
  const std::int64_t T = documents->tokens(), N = documents->count(), H = H_k * copies;
  const auto repeated = [&](const Tensor& x) {  // [T, H_k, D] -> [T, H, D]
    const std::int64_t D = x.dim(2);
    const Tensor y = Tensor::empty({T, H, D}, DType::f64);
    for (std::int64_t i = 0; i < y.numel(); ++i) {
      y.data<double>()[i] = x.data<double>()[i / D / copies * D + i % D];
    }
    return y;
  };
  const auto summed = [&](const Tensor& dy) {
    const std::int64_t D = dy.dim(2);
    const Tensor single = cast(dy, dy.dtype());
    const Tensor dx = Tensor::zeros({T, H_k, D}, dy.dtype());
    dispatch_real(dy.dtype(), "sum", [&]<class F>() {
      for (std::int64_t i = 0; i < dx.numel(); ++i) {
        for (std::int64_t copy = 0; copy < copies; ++copy) {
          dx.data<F>()[i] += single.data<F>()[(i / D * copies + copy) * D + i % D];
        }
      }
    });
    return dx;
  };
  const Tensor q = normal({T, H_k, d_k}, 1), k = normal({T, H_k, d_k}, 2);
  for (const FeatureMap map : {FeatureMap::identity, FeatureMap::elu_plus_one}) {
    for (const ChunkSchedule schedule : {ChunkSchedule::fused, ChunkSchedule::two_level}) {
      const auto op = [&](const Tensor& query, const Tensor& key, const Tensor& decay) {
        return OpCase{.name = fmt::format("map {} schedule {}", static_cast<int>(map), static_cast<int>(schedule)),
                      .inputs = {query, key, normal({T, H, d_v}, 3), normal({N, H, d_k, d_v}, 4), decay},
                      .function = [&, schedule, map](Tape& tape, std::span<const Var> in) {
                        const GatedLinearPlan plan{.chunk = 0, .schedule = schedule};
                        const Var g = map == FeatureMap::identity ? in[4] : Tape::constant(in[4].value);
                        const auto [o, st] =
                            gated_linear(tape, map, in[0], in[1], in[2], g, in[3], documents, 0.7, plan);
                        return std::vector{o, st};
                      }};
      };
      // A decay of each token, or, with a map, a constant one.
      const Tensor decay = uniform(map == FeatureMap::identity ? Shape{T, H} : Shape{H}, 5, -0.5, 0.0);
      for (const DType dtype : {DType::f64, DType::f32}) {
        const OpCase shared = op(q, k, decay);
        SCOPED_TRACE(shared.name);
        const Evaluation a = evaluate(shared, dtype), b = evaluate(op(repeated(q), repeated(k), decay), dtype);
        for (std::size_t i = 0; i < 2; ++i) EXPECT_TRUE(bitwise_equal(a.outputs[i], b.outputs[i])) << i;
        for (std::size_t i = 0; i < 2; ++i) {
          const Tensor sum = summed(b.gradients[i]);
          if (map == FeatureMap::identity) {
            EXPECT_TRUE(bitwise_equal(a.gradients[i], sum)) << i;
          } else {  // the sum goes through the map once
            const Tolerance& tolerance = dtype == DType::f64 ? kFp64Chunked : kFp32;
            EXPECT_TRUE(close(a.gradients[i], sum, tolerance.backward, tolerance.max)) << i;
          }
        }
        for (std::size_t i = 2; i < 5; ++i) EXPECT_TRUE(bitwise_equal(a.gradients[i], b.gradients[i])) << i;
      }
    }
  }
}

TEST(GatedLinearSharedKeys, GradientsAndPrecision) {
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{3, 70, 0, 16});
  check_op(
      {.name = "shared keys",
       .inputs = {normal({89, 1, 4}, 1), normal({89, 1, 4}, 2), normal({89, 3, 2}, 3), uniform({89, 3}, 4, -0.5, 0.0)},
       .function = [documents](Tape& tape, std::span<const Var> in) {
         const auto [o, st] = gated_linear(tape, in[0], in[1], in[2], in[3], {}, documents, 1.0);
         return std::vector{o, st};
       }});
}

TEST(GatedLinearSharedKeys, RefuseDecaysOfChannelsAndSetsThatDoNotFit) {
  Tape tape(heap_allocator());
  const Var q = tape.leaf(normal({4, 2, 8}, 1)), v = tape.leaf(normal({4, 4, 6}, 2));
  EXPECT_THROW(gated_linear(tape, q, q, v, q, {}, Documents::single(4), 1.0), Error);
  const Var three = tape.leaf(normal({4, 3, 6}, 2)), g = tape.leaf(normal({4, 3}, 3));
  EXPECT_THROW(gated_linear(tape, q, q, three, g, {}, Documents::single(4), 1.0), Error);
}

TEST(GatedLinearFeatures, RefuseDecaysThatVary) {
  Tape tape(heap_allocator());
  const Var q = tape.leaf(normal({4, 2, 8}, 1)), v = tape.leaf(normal({4, 2, 6}, 2));
  const Var g = tape.leaf(normal({4, 2}, 3));
  EXPECT_THROW(gated_linear(tape, FeatureMap::taylor, q, q, v, g, {}, Documents::single(4), 1.0), Error);
}

// One more value column of ones gives the denominators: the same as dividing the explicitly summed products.
TEST(GatedLinearFeatures, AColumnOfOnesIsTheExplicitDivision) {
  const std::int64_t T = 150, H = 2, D = 5, d_v = 3;
  const Tensor q = normal({T, H, D}, 1), k = normal({T, H, D}, 2), v = normal({T, H, d_v}, 3);
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  const Var decay = Tape::constant(Tensor::zeros({H}, DType::f64));
  const Var sums = gated_linear(tape, FeatureMap::elu_plus_one, Tape::constant(q), Tape::constant(k),
                                append_ones(tape, Tape::constant(v)), decay, {}, Documents::single(T), 1.0)
                       .o;
  const Tensor o = divide_by_denominator(tape, sums).value;
  const auto phi = [](double x) { return x > 0.0 ? x + 1.0 : std::exp(x); };
  const Tensor expected = Tensor::zeros(v.shape(), DType::f64);
  for (std::int64_t t = 0; t < T; ++t) {
    for (std::int64_t h = 0; h < H; ++h) {
      double denominator = 0.0;
      double* row = expected.data<double>() + (t * H + h) * d_v;
      for (std::int64_t j = 0; j <= t; ++j) {
        double score = 0.0;
        for (std::int64_t x = 0; x < D; ++x) {
          score += phi(q.data<double>()[(t * H + h) * D + x]) * phi(k.data<double>()[(j * H + h) * D + x]);
        }
        denominator += score;
        for (std::int64_t y = 0; y < d_v; ++y) row[y] += score * v.data<double>()[(j * H + h) * d_v + y];
      }
      for (std::int64_t y = 0; y < d_v; ++y) row[y] /= denominator;
    }
  }
  EXPECT_TRUE(close(o, expected, kFp64Chunked.forward, kFp64Chunked.max));
}

}  // namespace
}  // namespace weft::testing
