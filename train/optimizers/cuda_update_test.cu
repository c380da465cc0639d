// The update on a GPU against the one on the CPU.
#include <cmath>
#include <gtest/gtest.h>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_memory.h"
#include "autograd/transfer.h"
#include "tests/support/compare.h"
#include "tests/support/gpu.h"
#include "tests/support/random.h"
#include "train/optimizers/gradient_norm.h"
#include "train/optimizers/optimizer.h"

namespace weft {
namespace {

using testing::bitwise_equal;
using testing::cast;
using testing::close;

// A few parameters on the CPU or the GPU, with gradients that depend on the step alone.
struct Model {
  ParameterStore store;
  OptimizerPlace place;
  std::vector<Parameter*> parameters;

  void add(const std::string& name, const Shape& shape, ParameterKind kind = ParameterKind::matrix) {
    store.declare(name, shape, kind, Init::normal(0.5));
  }
  void ready(bool on_gpu, DType compute = DType::bf16) {
    store.initialise(7, DType::f32);
    if (on_gpu) {
      place = {testing::gpu_stream(), testing::gpu_memory(), testing::gpu_memory(std::size_t{3} << 30)};
      store.move_to({.stream = place.stream, .lasting = place.memory, .arena = nullptr, .dtype = compute});
    }
    parameters = store.all();
  }
  void set_gradient(std::size_t p, const Tensor& values) {
    copy(parameters[p]->grad, values, place.stream);
    synchronize(place.stream);
  }
  void random_gradients(std::uint64_t seed, double scale = 1.0) {
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      set_gradient(p, cast(testing::normal(parameters[p]->shape, seed * 100 + p, scale), DType::f32));
    }
  }
  Tensor host(const Tensor& t) const { return cast(to_host(t, place.stream), t.dtype()); }
};

void expect_same(const Model& cpu, const Model& gpu, const Optimizer& cpu_optimizer, const Optimizer& gpu_optimizer) {
  for (std::size_t p = 0; p < cpu.parameters.size(); ++p) {
    const Parameter &a = *cpu.parameters[p], &b = *gpu.parameters[p];
    EXPECT_TRUE(bitwise_equal(gpu.host(b.master), a.master)) << a.name;
    EXPECT_TRUE(bitwise_equal(gpu.host(b.value), cast(a.master, b.value.dtype()))) << a.name;
    EXPECT_TRUE(bitwise_equal(gpu.host(b.grad), Tensor::zeros(a.shape, DType::f32))) << a.name;
  }
  const auto expected = cpu_optimizer.states(), states = gpu_optimizer.states();
  ASSERT_EQ(states.size(), expected.size());
  for (std::size_t i = 0; i < states.size(); ++i) {
    EXPECT_EQ(states[i].parameter, expected[i].parameter);
    EXPECT_TRUE(bitwise_equal(gpu.host(states[i].tensor), expected[i].tensor)) << states[i].parameter;
  }
}

void add_adamw_shapes(Model& model) {
  for (const std::int64_t n : {1, 3, 255, 256, 257, 65535, 65536, 65537, 200001}) {
    model.add(fmt::format("v{}", n), {n}, ParameterKind::vector);
  }
  model.add("embedding", {300, 65}, ParameterKind::embedding);
  model.add("w", {96, 1000});
  model.add("frozen", {10, 65});
}
const OptimizerOptions kAdamW{
    .learning_rate = 3e-3,
    .weight_decay = 0.1,
    .adamw = {},
    .muon = {},
    .groups = {{.match = "frozen", .rule = UpdateRule::frozen}, {.match = "w", .lr_mult = 0.5, .beta2 = 0.99}}};

// Division, square root and fused multiply-add round alike everywhere: the same bits, clipped or not.
TEST(OptimizerGpu, AdamWFollowsTheCpuBitForBit) {
  WEFT_NEEDS_GPU();
  for (const DType compute : {DType::f32, DType::bf16}) {
    Model cpu, gpu;
    add_adamw_shapes(cpu);
    add_adamw_shapes(gpu);
    cpu.ready(false);
    gpu.ready(true, compute);
    Optimizer a(cpu.parameters, kAdamW), b(gpu.parameters, kAdamW, gpu.place);
    for (std::uint64_t t = 1; t <= 5; ++t) {
      for (Model* model : {&cpu, &gpu}) model->random_gradients(t, std::pow(10.0, static_cast<double>(t) - 4.0));
      for (Optimizer* optimizer : {&a, &b}) {
        optimizer->prepare({.schedule_factor = 1.0 / static_cast<double>(t), .clip = t % 2 == 0 ? 0.0 : 1.0});
        optimizer->step();
      }
      const StepOutcome expected = a.finish(), outcome = b.finish();
      EXPECT_TRUE(outcome.applied);
      EXPECT_NEAR(outcome.norm, expected.norm, 1e-13 * expected.norm);
      EXPECT_EQ(static_cast<float>(outcome.gradient_scale), static_cast<float>(expected.gradient_scale));
      EXPECT_EQ(b.updates(), a.updates());
      const auto squares = b.gradient_squares(), expected_squares = a.gradient_squares();
      ASSERT_EQ(squares.size(), expected_squares.size());
      for (std::size_t p = 0; p < squares.size(); ++p) {
        EXPECT_NEAR(squares[p], expected_squares[p], 1e-12 * expected_squares[p]) << p;
      }
    }
    expect_same(cpu, gpu, a, b);
  }
}

// A step that must not be made changes nothing but the gradients, which become zero; the next one is as if it had not
// been.
TEST(OptimizerGpu, SkipsOnTheDevice) {
  WEFT_NEEDS_GPU();
  Model cpu, gpu;
  for (Model* model : {&cpu, &gpu}) {
    add_adamw_shapes(*model);
    model->add("layers.0.wq", {64, 96});
    model->add("layers.0.wk", {64, 65});
  }
  cpu.ready(false);
  gpu.ready(true);
  OptimizerOptions options = kAdamW;
  Optimizer a(cpu.parameters, options), b(gpu.parameters, options, gpu.place);
  const auto scalar = [&](double value) {
    return to_memory(Tensor::from<double>({1}, std::vector{value}), gpu.place.memory, gpu.place.stream);
  };
  const auto host_scalar = [](double value) { return Tensor::from<double>({1}, std::vector{value}); };
  struct Step {
    float bad;
    double loss;
    StepSettings settings;
    bool applied;
  };
  const double inf = std::numeric_limits<double>::infinity();
  const Step steps[] = {{0.0f, 2.0, {.clip = 1.0, .most_loss = 3.0, .most_norm = 1e6}, true},
                        {NAN, 2.0, {.clip = 1.0}, false},
                        {INFINITY, 2.0, {.clip = 1.0}, false},
                        {1e20f, 2.0, {.clip = 1.0}, false},
                        {0.0f, std::nan(""), {.clip = 1.0}, false},
                        {0.0f, inf, {.clip = 1.0}, false},
                        {0.0f, 4.0, {.clip = 1.0, .most_loss = 3.0}, false},
                        {0.0f, 2.0, {.clip = 1.0, .most_loss = 3.0, .most_norm = 1.0}, false},
                        {0.0f, 2.0, {.clip = 0.5}, true}};
  std::uint64_t seed = 1;
  for (const Step& step : steps) {
    for (Model* model : {&cpu, &gpu}) {
      model->random_gradients(seed);
      if (step.bad == 0.0f) continue;
      Tensor grad = cast(testing::normal({200001}, 5), DType::f32);
      grad.data<float>()[70001] = step.bad;
      model->set_gradient(8, grad);
    }
    ++seed;
    a.prepare(step.settings);
    b.prepare(step.settings);
    a.step(host_scalar(step.loss));
    b.step(scalar(step.loss));
    EXPECT_EQ(a.finish().applied, step.applied) << seed;
    EXPECT_EQ(b.finish().applied, step.applied) << seed;
    const GradientNorm norm{.norm = 0.0, .squares = b.gradient_squares()};
    EXPECT_EQ(nonfinite_parameters(b.trainable(), norm), step.bad == 0.0f ? "" : "v200001");
  }
  EXPECT_EQ(b.updates(), 2);
  expect_same(cpu, gpu, a, b);
}

void add_muon_shapes(Model& model) {
  model.add("layers.0.wq", {64, 64});
  model.add("layers.0.wk", {64, 256});
  model.add("layers.0.wv", {256, 64});
  model.add("layers.0.odd", {65, 97});
  model.add("layers.0.stack", {4, 96, 72});
  model.add("layers.0.heads", {256, 128});
  model.add("layers.1.wq", {64, 64});
  model.add("layers.1.large", {300, 400});
  model.add("norm", {300}, ParameterKind::vector);
}
const OptimizerOptions kMuon{.rule = UpdateRule::muon,
                             .adamw = {},
                             .muon = {.learning_rate = 0.02, .weight_decay = 0.1},
                             .groups = {{.match = "*heads", .split = 2}}};

double relative_error(const Tensor& x, const Tensor& y) {
  return testing::distance(x, y).rel_f;
}

// One step from the same gradients: momentum is equal in bits, the update within what bf16 iterations allow. The
// direction of later steps would differ only by the rounding of the parameters.
TEST(OptimizerGpu, MuonFollowsTheCpu) {
  WEFT_NEEDS_GPU();
  const auto run = [](Model& model, bool on_gpu) {
    add_muon_shapes(model);
    model.ready(on_gpu);
    Optimizer optimizer(model.parameters, kMuon, model.place);
    for (std::uint64_t t = 1; t <= 3; ++t) {
      model.random_gradients(t);
      optimizer.prepare({.clip = 0.5});
      optimizer.step();
      EXPECT_TRUE(optimizer.finish().applied);
    }
    return optimizer;
  };
  Model cpu, gpu, again;
  const Optimizer a = run(cpu, false), b = run(gpu, true), c = run(again, true);
  const auto expected = a.states(), states = b.states();
  for (std::size_t i = 0; i < states.size(); ++i) {
    EXPECT_TRUE(bitwise_equal(gpu.host(states[i].tensor), expected[i].tensor)) << states[i].parameter;
  }
  Model start;
  add_muon_shapes(start);
  start.ready(false);
  for (std::size_t p = 0; p < cpu.parameters.size(); ++p) {
    const auto change = [&](const Tensor& to) {
      const Tensor result = cast(to, DType::f64), from = cast(start.parameters[p]->master, DType::f64);
      for (std::int64_t i = 0; i < result.numel(); ++i) result.data<double>()[i] -= from.data<double>()[i];
      return result;
    };
    const Parameter &on_cpu = *cpu.parameters[p], &on_gpu = *gpu.parameters[p];
    const Tensor master = gpu.host(on_gpu.master);
    EXPECT_LE(relative_error(change(master), change(on_cpu.master)), 2e-2) << on_cpu.name;
    EXPECT_TRUE(bitwise_equal(gpu.host(on_gpu.value), cast(master, on_gpu.value.dtype()))) << on_cpu.name;
    EXPECT_TRUE(bitwise_equal(gpu.host(on_gpu.grad), Tensor::zeros(on_gpu.shape, DType::f32))) << on_cpu.name;
    EXPECT_TRUE(bitwise_equal(again.host(again.parameters[p]->master), master)) << on_cpu.name;
  }
}

// The launches of a step as a graph, with other numbers each time.
TEST(OptimizerGpu, StepsAsAGraph) {
  WEFT_NEEDS_GPU();
  Model direct, captured;
  for (Model* model : {&direct, &captured}) {
    add_muon_shapes(*model);
    model->ready(true);
    // Hostile memory waits for the stream, which a capture forbids.
    model->place.scratch = std::make_shared<CudaArena>(model->place.stream, std::size_t{2} << 30);
  }
  Optimizer a(direct.parameters, kMuon, direct.place), b(captured.parameters, kMuon, captured.place);
  const cudaStream_t stream = cuda_stream(captured.place.stream);
  cudaGraphExec_t graph = nullptr;
  for (std::uint64_t t = 1; t <= 4; ++t) {
    const StepSettings settings{.schedule_factor = 1.0 / static_cast<double>(t), .clip = 1.0};
    for (Model* model : {&direct, &captured}) model->random_gradients(t);
    a.prepare(settings);
    b.prepare(settings);
    a.step();
    if (t == 1) {
      // The first step runs as it is, so that libraries have loaded what they need.
      b.step();
    } else {
      if (graph == nullptr) {
        cudaGraph_t recorded = nullptr;
        WEFT_CUDA_CALL(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        b.step();
        WEFT_CUDA_CALL(cudaStreamEndCapture(stream, &recorded));
        WEFT_CUDA_CALL(cudaGraphInstantiate(&graph, recorded, 0));
        WEFT_CUDA_CALL(cudaGraphDestroy(recorded));
      }
      WEFT_CUDA_CALL(cudaGraphLaunch(graph, stream));
    }
    EXPECT_EQ(a.finish().norm, b.finish().norm);
  }
  for (std::size_t p = 0; p < direct.parameters.size(); ++p) {
    EXPECT_TRUE(bitwise_equal(captured.host(captured.parameters[p]->master), direct.host(direct.parameters[p]->master)))
        << direct.parameters[p]->name;
  }
  WEFT_CUDA_CALL(cudaGraphExecDestroy(graph));
}

}  // namespace
}  // namespace weft
