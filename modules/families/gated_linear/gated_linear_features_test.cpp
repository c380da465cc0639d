// Feature maps inside the recurrence against the same maps taken beforehand, and the column of denominators.

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
          .inputs = inputs,
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
        const MappedCase c{
            .map = map, .lengths = {1, 0, 130, 64, 17}, .schedule = schedule, .initial_state = initial_state};
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
