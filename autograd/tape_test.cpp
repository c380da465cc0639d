#include "autograd/tape.h"

#include <cmath>
#include <gtest/gtest.h>

#include "autograd/ops/activation/activation.h"
#include "autograd/ops/elementwise/elementwise.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft {
namespace {

using testing::bitwise_equal;
using testing::normal;

Tensor scaled(const Tensor& x, double factor) {
  Tensor y = testing::cast(x, x.dtype());
  for (double& v : y.span<double>()) v *= factor;
  return y;
}

// An operation whose saved struct calls `on_backward`: to watch the tape at work.
struct Probe {
  std::shared_ptr<int> token;
  std::function<void(Backward&)> on_backward;
  void backward(Backward& pass) const { on_backward(pass); }
};

Var probe(Tape& tape, std::initializer_list<Var> inputs, const Tensor& output, std::shared_ptr<int> token,
          std::function<void(Backward&)> on_backward) {
  return tape.record("probe", inputs, output, [&] { return Probe{std::move(token), std::move(on_backward)}; });
}

TEST(Tape, SumsTheGradientsOfAllUses) {
  Tape tape(heap_allocator(Hygiene::hostile));
  const Tensor dy = normal({3, 2}, 1);
  const Var x = tape.leaf(normal({3, 2}, 2));
  const std::array<Var, 3> y{scale(tape, x, 2.0), scale(tape, x, 4.0), scale(tape, x, 8.0)};
  const std::array<Tensor, 3> seeds{dy, dy, dy};
  tape.backward(y, seeds);
  EXPECT_TRUE(testing::close(tape.gradient(x), scaled(dy, 14.0), 1e-15, 1e-15));
}

TEST(Tape, OneValueTwiceInOneNodeGetsTwoBuffers) {
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var x = tape.leaf(normal({4}, 1));
  const Tensor dy = normal({4}, 2);
  const Var y = probe(tape, {x, x, x}, x.value, nullptr, [&](Backward& pass) {
    const GradTarget a = pass.target(0), b = pass.target(1);
    ASSERT_TRUE(a.wanted() && b.wanted());
    EXPECT_NE(a.raw(), b.raw());
    EXPECT_EQ(a.write, Write::overwrite);
    EXPECT_EQ(b.write, Write::overwrite);
    a.tensor.copy_from(scaled(dy, 1.0));
    b.tensor.copy_from(scaled(dy, 2.0));
    pass.pass(2, dy);
  });
  tape.backward(y, dy);
  EXPECT_TRUE(bitwise_equal(tape.gradient(x), scaled(dy, 4.0)));
  EXPECT_TRUE(bitwise_equal(dy, normal({4}, 2))) << "what is passed on is not written to";
}

TEST(Tape, GradientsFollowReshapes) {
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var x = tape.leaf(normal({2, 6}, 1));
  const Tensor dy = normal({3, 4}, 2);
  const Var y = add(tape, scale(tape, x.reshape({12}), 3.0).reshape({3, 4}), x.reshape({3, 4}));
  EXPECT_EQ(tape.node_count(), 2u);
  tape.backward(y.reshape({4, 3}), dy.reshape({4, 3}));
  EXPECT_EQ(tape.gradient(x).shape(), (Shape{2, 6}));
  EXPECT_TRUE(testing::close(tape.gradient(x), scaled(dy, 4.0), 1e-15, 1e-15));
}

TEST(Tape, AbsentGradients) {
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var x = tape.leaf(normal({2}, 1)), unused = tape.leaf(normal({2}, 2));
  const Var constant = Tape::constant(normal({2}, 3));
  bool ran = false;
  probe(tape, {unused}, unused.value, nullptr, [&](Backward&) { ran = true; });
  const auto [first, second] = tape.record("two outputs", {x, constant}, std::array{x.value, normal({5}, 3)}, [&] {
    return Probe{nullptr, [](Backward& pass) {
                   EXPECT_TRUE(pass.grad(0).defined());
                   EXPECT_FALSE(pass.grad(1).defined());
                   EXPECT_TRUE(bitwise_equal(pass.grad_or_zero(1), Tensor::zeros({5}, DType::f64)));
                   EXPECT_TRUE(pass.wants(0));
                   EXPECT_FALSE(pass.wants(1));
                   EXPECT_FALSE(pass.target(1).wanted());
                   EXPECT_EQ(pass.target(1).raw(), nullptr);
                   pass.pass(0, pass.grad(0));
                   pass.pass(1, pass.grad(0));
                 }};
  });
  tape.backward(first, normal({2}, 4));
  EXPECT_FALSE(ran) << "a node that no gradient reaches";
  EXPECT_TRUE(tape.gradient(x).defined());
  EXPECT_FALSE(tape.gradient(unused).defined());
}

TEST(Tape, RecordsOnlyWhatWantsAGradient) {
  Tape tape(heap_allocator());
  EXPECT_FALSE(scale(tape, Tape::constant(normal({2}, 1)), 2.0).requires_grad());
  EXPECT_EQ(tape.node_count(), 0u);
  Tape inference(heap_allocator(), Tape::Mode::inference);
  EXPECT_FALSE(scale(inference, inference.leaf(normal({2}, 1)), 2.0).requires_grad());
  EXPECT_EQ(inference.node_count(), 0u);
  EXPECT_THROW(inference.backward(Tape::constant(normal({2}, 1)), normal({2}, 1)), Error);
}

TEST(Tape, RefusesForeignSeeds) {
  Tape tape(heap_allocator());
  const Var y = scale(tape, tape.leaf(normal({2}, 1)), 2.0);
  EXPECT_THROW(tape.backward(y, testing::cast(normal({2}, 1), DType::f32)), Error);
  EXPECT_THROW(tape.backward(y, normal({3}, 1)), Error);
}

TEST(Tape, FreesEachNodeOnceUsed) {
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var x = tape.leaf(normal({2}, 1));
  auto token = std::make_shared<int>();
  const std::weak_ptr<int> watched = token;
  bool freed = false;
  const Var first = probe(tape, {x}, x.value, nullptr, [&](Backward& pass) {
    freed = watched.expired();
    pass.pass(0, pass.grad(0));
  });
  const Var second = probe(tape, {first}, x.value, std::move(token), [&](Backward& pass) {
    EXPECT_FALSE(watched.expired());
    pass.pass(0, pass.grad(0));
  });
  tape.backward(second, normal({2}, 2));
  EXPECT_TRUE(freed);
  EXPECT_EQ(tape.node_count(), 0u);
}

// add() hands one gradient tensor to both its inputs; later terms for one must not show up in the other, in the seed,
// or in what a consumer still holds.
TEST(Tape, SharedGradientsAreCopiedBeforeTheyAreWritten) {
  const Tensor dy = normal({5}, 1), original = normal({5}, 1);
  {
    Tape tape(heap_allocator(Hygiene::hostile));
    const Var a = tape.leaf(normal({5}, 2)), b = tape.leaf(normal({5}, 3));
    const Var twice = scale(tape, a, 2.0);  // accumulates into a's gradient after add() has shared it
    tape.backward(add(tape, add(tape, a, b), twice), dy);
    EXPECT_TRUE(testing::close(tape.gradient(a), scaled(original, 3.0), 1e-15, 1e-15));
    EXPECT_TRUE(bitwise_equal(tape.gradient(b), original));
  }
  {
    Tape tape(heap_allocator(Hygiene::hostile));
    const Var a = tape.leaf(normal({5}, 2)), b = tape.leaf(normal({5}, 3));
    const Var sum = add(tape, a, b);
    tape.backward(add(tape, sum, sum), dy);
    EXPECT_TRUE(bitwise_equal(tape.gradient(a), scaled(original, 2.0)));
    EXPECT_TRUE(bitwise_equal(tape.gradient(b), scaled(original, 2.0)));
  }
  EXPECT_TRUE(bitwise_equal(dy, original)) << "the seed was written to";
}

// --- parameters ------------------------------------------------------------------------------------------------------

struct Weights {
  ParameterStore store;
  Parameter &w1, &w2, &norm;

  explicit Weights(DType dtype = DType::f32)
      : w1(store.declare("w1", {8, 8}, ParameterKind::matrix, Init::normal(0.4))),
        w2(store.declare("w2", {8, 8}, ParameterKind::matrix, Init::normal(0.4))),
        norm(store.declare("norm", {8}, ParameterKind::vector, Init::constant(1.0))) {
    store.initialise(3, dtype);
  }
};

TEST(Tape, ParametersAreReadyOnceAndLast) {
  Weights weights;
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var x = tape.leaf(testing::cast(normal({4, 8}, 1), DType::f32));
  Var h = linear(tape, x, tape.parameter(weights.w1));
  h = linear(tape, h, tape.parameter(weights.w2));
  h = rms_norm(tape, linear(tape, h, tape.parameter(weights.w1)), tape.parameter(weights.norm));
  // Used, but no gradient comes this way: the parameter is ready all the same.
  ParameterStore other;
  Parameter& idle = other.declare("idle", {8}, ParameterKind::vector, Init::constant(1.0));
  other.initialise(1, DType::f32);
  add_row(tape, x, tape.parameter(idle));

  std::vector<std::pair<Parameter*, Tensor>> ready;
  tape.on_parameter_ready = [&](Parameter& p) { ready.emplace_back(&p, testing::cast(p.grad, DType::f32)); };
  tape.backward(h, testing::cast(normal({4, 8}, 2), DType::f32));
  ASSERT_EQ(ready.size(), 4u);
  EXPECT_EQ(ready[0].first, &idle);
  EXPECT_EQ(ready[1].first, &weights.norm);
  EXPECT_EQ(ready[2].first, &weights.w2);
  EXPECT_EQ(ready[3].first, &weights.w1);
  for (const auto& [parameter, gradient] : ready) EXPECT_TRUE(bitwise_equal(gradient, parameter->grad));
}

TEST(Tape, ParameterGradientsAddUpOverTapes) {
  Weights weights(DType::f64);
  const Tensor x = normal({4, 8}, 1), dy = normal({4, 8}, 2);
  Tensor once;
  for (int pass = 0; pass < 2; ++pass) {
    Tape tape(heap_allocator(Hygiene::hostile));
    tape.backward(linear(tape, Tape::constant(x), tape.parameter(weights.w1)), dy);
    if (pass == 0) once = testing::cast(weights.w1.grad, DType::f64);
  }
  EXPECT_TRUE(bitwise_equal(weights.w1.grad, scaled(once, 2.0)));
}

// --- recomputation ---------------------------------------------------------------------------------------------------

// A residual block that uses its input twice and one of its weights twice.
std::vector<Var> block(Tape& tape, const Weights& weights, std::span<const Var> in) {
  const Var h = rms_norm(tape, in[0], tape.parameter(weights.norm));
  const Var u = silu(tape, linear(tape, h, tape.parameter(weights.w1)));
  const Var v = linear(tape, mul(tape, u, in[1]), tape.parameter(weights.w1));
  return {add(tape, in[0], v), u};
}

struct StepResult {
  Tensor y, dx, dscale;
  std::vector<Tensor> gradients;
  std::vector<std::string> ready;
  std::size_t kept_bytes = 0;  // when the forward pass is over
  std::size_t peak_bytes = 0;
};

// Inputs, weights and a constant also reach the loss outside of the spans, before and after them.
enum class Spans : std::uint8_t { kept, recomputed, cheap_recomputed };
StepResult step(Spans spans, DType dtype, int layers = 2, std::int64_t tokens = 5) {
  const Weights weights(dtype);
  const auto memory = heap_allocator(Hygiene::hostile);
  Tape tape(memory);
  const Var x = tape.leaf(testing::cast(normal({tokens, 8}, 1), dtype));
  const Var gate = tape.leaf(testing::cast(normal({tokens, 8}, 2), dtype));
  Var h = linear(tape, x, tape.parameter(weights.w1));
  Var side = gate;
  for (int layer = 0; layer < layers; ++layer) {
    const std::array<Var, 2> in{h, gate};
    const auto span = [&weights](Tape& t, std::span<const Var> inputs) { return block(t, weights, inputs); };
    const std::vector<Var> out = spans == Spans::kept         ? span(tape, in)
                                 : spans == Spans::recomputed ? tape.recompute(in, span)
                                                              : tape.recompute_cheap(in, span);
    h = add(tape, out[0], h);
    side = add(tape, side, out[1]);
  }
  h = linear(tape, mul(tape, h, side), tape.parameter(weights.w1));
  h = linear(tape, add(tape, h, x), tape.parameter(weights.w2));
  StepResult result{.y = testing::cast(h.value, dtype), .dx = {}, .dscale = {}, .gradients = {}, .ready = {}};
  result.kept_bytes = memory->stats().current_bytes;
  tape.on_parameter_ready = [&](Parameter& p) { result.ready.push_back(p.name); };
  tape.backward(h, testing::cast(normal({tokens, 8}, 4), dtype));
  result.dx = testing::cast(tape.gradient(x), dtype);
  result.dscale = testing::cast(tape.gradient(gate), dtype);
  for (const Parameter* p : {&weights.w1, &weights.w2, &weights.norm}) result.gradients.push_back(p->grad);
  result.peak_bytes = memory->stats().peak_bytes;
  return result;
}

TEST(Recompute, ChangesNoBit) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const StepResult kept = step(Spans::kept, dtype);
    EXPECT_EQ(kept.ready, (std::vector<std::string>{"w2", "norm", "w1"}));
    for (const Spans spans : {Spans::recomputed, Spans::cheap_recomputed}) {
      SCOPED_TRACE(static_cast<int>(spans));
      const StepResult recomputed = step(spans, dtype);
      EXPECT_TRUE(bitwise_equal(recomputed.y, kept.y));
      EXPECT_TRUE(bitwise_equal(recomputed.dx, kept.dx));
      EXPECT_TRUE(bitwise_equal(recomputed.dscale, kept.dscale));
      for (std::size_t k = 0; k < kept.gradients.size(); ++k) {
        EXPECT_TRUE(bitwise_equal(recomputed.gradients[k], kept.gradients[k])) << "parameter " << k;
      }
      EXPECT_EQ(recomputed.ready, kept.ready);
    }
  }
}

TEST(Recompute, KeepsLess) {
  EXPECT_LT(step(Spans::recomputed, DType::f32, 8, 600).peak_bytes,
            step(Spans::kept, DType::f32, 8, 600).peak_bytes * 3 / 4);
}

// A block keeps in, the norm's rstd and output h, the linear map's output, u and mul; of these, what is cheap goes: h
// and rstd, and mul. u is a result.
TEST(Recompute, GivesBackWhatIsCheap) {
  constexpr std::int64_t T = 600;
  constexpr int kLayers = 8;
  const auto padded = [](std::int64_t elements) {
    return padded_block(static_cast<std::size_t>(elements) * sizeof(float), Hygiene::hostile);
  };
  const StepResult kept = step(Spans::kept, DType::f32, kLayers, T),
                   cheap = step(Spans::cheap_recomputed, DType::f32, kLayers, T);
  EXPECT_EQ(kept.kept_bytes - cheap.kept_bytes, kLayers * (2 * padded(8 * T) + padded(T)));
  EXPECT_LT(cheap.peak_bytes, kept.peak_bytes);
}

// silu's input is held by nobody but would have to be kept for its output: nothing is gained.
TEST(Recompute, KeepsWhatWouldTakeAsMuch) {
  const Weights weights(DType::f32);
  const auto memory = heap_allocator();
  Tape tape(memory);
  const Var x = tape.leaf(testing::cast(normal({64, 8}, 1), DType::f32));
  const auto span = [&](Tape& t, std::span<const Var> in) {
    // Nodes keep x, the scaled value and w1; the linear map's output itself is needed by nobody.
    const Var h = scale(t, linear(t, in[0], t.parameter(weights.w1)), 2.0);
    return std::vector{linear(t, h, t.parameter(weights.w1))};
  };
  const auto kept_by = [&](bool cheap) {
    Tape one(memory);
    const Var leaf = one.leaf(x.value);
    const Var y = cheap ? one.recompute_cheap(std::span(&leaf, 1), span)[0] : span(one, std::span(&leaf, 1))[0];
    return memory->stats().current_bytes;
  };
  EXPECT_EQ(kept_by(true), kept_by(false));
}

// Spans within spans, a parameter and a constant as inputs, one value as two inputs, and an output nobody uses.
TEST(Recompute, AwkwardSpans) {
  Tensor gradients[2], dx[2];
  for (const bool recompute : {false, true}) {
    Weights weights(DType::f64);
    Tape tape(heap_allocator(Hygiene::hostile));
    const Var x = tape.leaf(normal({3, 8}, 1));
    const auto inner = [](Tape& t, std::span<const Var> in) {
      return std::vector{linear(t, mul(t, in[0], in[1]), in[2]), silu(t, in[3])};
    };
    const auto outer = [&](Tape& t, std::span<const Var> in) {
      const std::vector<Var> out = recompute ? t.recompute(in, inner) : inner(t, in);
      return std::vector{add(t, out[0], mul(t, out[0], in[0])), out[1]};
    };
    const std::array<Var, 4> in{x, x, tape.parameter(weights.w1), Tape::constant(normal({3, 8}, 2))};
    const std::vector<Var> out = recompute ? tape.recompute(in, outer) : outer(tape, in);
    tape.backward(linear(tape, add(tape, out[0], x), tape.parameter(weights.w1)), normal({3, 8}, 3));
    gradients[recompute] = weights.w1.grad;
    dx[recompute] = testing::cast(tape.gradient(x), DType::f64);
  }
  EXPECT_TRUE(bitwise_equal(gradients[1], gradients[0]));
  EXPECT_TRUE(bitwise_equal(dx[1], dx[0]));
}

TEST(Recompute, IsTransparentWithoutGradients) {
  Tape tape(heap_allocator(), Tape::Mode::inference);
  const Var x = Tape::constant(normal({3}, 1));
  const std::vector<Var> y = tape.recompute(
      std::span<const Var>(&x, 1), [](Tape& t, std::span<const Var> in) { return std::vector{scale(t, in[0], 2.0)}; });
  EXPECT_TRUE(bitwise_equal(y[0].value, scaled(x.value, 2.0)));
  EXPECT_EQ(tape.node_count(), 0u);
}

// --- memory ----------------------------------------------------------------------------------------------------------

TEST(Tape, ArenaAddressesRepeatFromStepToStep) {
  for (const bool recompute : {false, true}) {
    const auto arena = std::make_shared<Arena>(1 << 20, Hygiene::hostile);
    Weights weights;
    std::vector<std::vector<const void*>> steps;
    std::size_t peak = 0;
    for (int i = 0; i < 3; ++i) {
      std::vector<const void*> addresses;
      {
        Tape tape(arena);
        const Var x = tape.leaf(testing::cast(normal({5, 8}, 1), DType::f32));
        const std::array<Var, 2> in{x, x};
        const auto span = [&](Tape& t, std::span<const Var> inputs) {
          std::vector<Var> out = block(t, weights, inputs);
          for (const Var& v : out) addresses.push_back(v.value.raw());
          return out;
        };
        const std::vector<Var> out = recompute ? tape.recompute(in, span) : span(tape, in);
        const Var y = probe(tape, {out[0]}, out[0].value, nullptr, [&](Backward& pass) {
          const GradTarget target = pass.target(0);
          target.tensor.copy_from(pass.grad(0));
          addresses.push_back(target.raw());
        });
        tape.backward(y, testing::cast(normal({5, 8}, 2), DType::f32));
        addresses.push_back(tape.gradient(x).raw());
      }
      EXPECT_EQ(arena->stats().current_bytes, 0u) << "a step leaves nothing behind";
      if (i > 0) {
        EXPECT_EQ(arena->stats().peak_bytes, peak);
      }
      peak = arena->stats().peak_bytes;
      steps.push_back(addresses);
    }
    EXPECT_EQ(steps[1], steps[0]);
    EXPECT_EQ(steps[2], steps[0]);
  }
}

TEST(Tape, WorkspacesReturnWithTheirScope) {
  const auto memory = heap_allocator(Hygiene::hostile);
  const Tape tape(memory);
  {
    const LaunchScope scope = tape.launch(1001);
    const Launch& launch = scope;
    EXPECT_NE(launch.workspace, nullptr);
    EXPECT_GE(launch.workspace_bytes, 1001u);
    EXPECT_GT(memory->stats().current_bytes, 0u);
  }
  EXPECT_EQ(memory->stats().current_bytes, 0u);
  const LaunchScope none = tape.launch();
  EXPECT_EQ(static_cast<const Launch&>(none).workspace, nullptr);
}

}  // namespace
}  // namespace weft
