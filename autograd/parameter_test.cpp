#include "autograd/parameter.h"

#include <cmath>
#include <ctime>
#include <gtest/gtest.h>
#include <omp.h>
#include <string>

#include "autograd/cuda/cuda_memory.h"
#include "tests/support/compare.h"
#include "tests/support/gpu.h"

namespace weft {
namespace {

using testing::bitwise_equal;

Tensor initial(const std::string& name, const Shape& shape, const Init& init, std::uint64_t seed = 1234,
               DType dtype = DType::f64) {
  ParameterStore store;
  store.declare(name, shape, ParameterKind::matrix, init);
  store.initialise(seed, dtype);
  return store.find(name)->value;
}

// Computed by an independent implementation of Philox, FNV-1a, Box-Muller and the C library's logarithm. These are part
// of what makes runs reproducible: they never change.
TEST(Parameter, GoldenValues) {
  struct Golden {
    const char* name;
    Init init;
    double values[3];  // of elements 0, 1 and 5
  };
  const Golden goldens[] = {
      {"layers.0.mixer.wq", Init::normal(0.02), {0.0007724278108442868, -0.03334295675897991, -0.02305236029008433}},
      {"u", Init::uniform(-1.0, 1.0), {0.6365157452663539, -0.49098005381933274, -0.5450927070792055}},
      {"a_log", Init::log_uniform(1.0, 16.0), {2.0362677277705874, 1.6062852007885802, 0.7518561480877072}},
      {"dt_bias",
       Init::inverse_softplus_log_uniform(0.001, 0.1),
       {-4.453423718764022, -4.023024793911958, -4.015583194232724}},
      {"norm_w", Init::constant(1.5), {1.5, 1.5, 1.5}},
  };
  for (const Golden& g : goldens) {
    const Tensor t = initial(g.name, {2, 3}, g.init);
    const int elements[] = {0, 1, 5};
    for (int k = 0; k < 3; ++k) {
      EXPECT_NEAR(t.data<double>()[elements[k]], g.values[k], 1e-13 * std::abs(g.values[k])) << g.name << " " << k;
    }
    const Tensor f32 = initial(g.name, {2, 3}, g.init, 1234, DType::f32);
    for (int i = 0; i < 6; ++i) EXPECT_EQ(f32.data<float>()[i], static_cast<float>(t.data<double>()[i])) << g.name;
  }
}

// Models have tens of thousands of parameters where each head has its own.
TEST(Parameter, AreFoundSoonAmongMany) {
  constexpr int kMany = 60000;
  ParameterStore store;
  const std::clock_t begin = std::clock();
  for (int i = 0; i < kMany; ++i) {
    store.declare("layers.0.mixer.w" + std::to_string(i), {1}, ParameterKind::vector, Init::constant(0.0));
  }
  for (int i = 0; i < kMany; ++i) {
    const std::string name = "layers.0.mixer.w" + std::to_string(i);
    ASSERT_EQ(store.find(name)->name, name);
  }
  EXPECT_LT(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC, 2.0);
  EXPECT_EQ(store.find("layers.0.mixer.w"), nullptr);
  EXPECT_THROW(store.declare("layers.0.mixer.w7", {1}, ParameterKind::vector, Init::constant(0.0)), Error);
}

TEST(Parameter, InitialValuesDependOnNeitherOrderNorThreads) {
  const auto build = [](ParameterStore& store, bool reversed) {
    const char* names[] = {"a", "b", "c"};
    for (int i = 0; i < 3; ++i) {
      store.declare(names[reversed ? 2 - i : i], {300, 7}, ParameterKind::matrix, Init::normal(1.0));
    }
    store.initialise(7, DType::f32);
  };
  ParameterStore forward, backward;
  build(forward, false);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  build(backward, true);
  omp_set_num_threads(threads);
  for (Parameter* p : forward.all()) EXPECT_TRUE(bitwise_equal(p->value, backward.find(p->name)->value)) << p->name;
  EXPECT_FALSE(bitwise_equal(forward.find("a")->value, forward.find("b")->value));
  EXPECT_FALSE(bitwise_equal(initial("a", {9}, Init::normal(1.0), 1), initial("a", {9}, Init::normal(1.0), 2)));
  // A shorter tensor is the beginning of a longer one: elements do not depend on the shape.
  EXPECT_TRUE(bitwise_equal(initial("a", {9}, Init::normal(1.0)),
                            initial("a", {4, 5}, Init::normal(1.0)).reshape({20}).rows(0, 9)));
}

// A GPU draws where the parameters live, in the same bits, and rounds the values that it computes with.
TEST(ParameterGpu, InitialValuesAreThoseOfTheHost) {
  WEFT_NEEDS_GPU();
  const auto declare = [](ParameterStore& store) {
    store.declare("normal", {1031, 517}, ParameterKind::matrix, Init::normal(0.02));
    store.declare("uniform", {100003}, ParameterKind::convolution, Init::uniform(-0.5, 0.25));
    store.declare("a_log", {40001}, ParameterKind::vector, Init::log_uniform(1.0, 16.0));
    store.declare("dt_bias", {40001}, ParameterKind::vector, Init::inverse_softplus_log_uniform(0.001, 0.1));
    store.declare("norm_w", {77}, ParameterKind::vector, Init::constant(1.5));
  };
  ParameterStore host, device;
  declare(host);
  declare(device);
  host.initialise(9, DType::f32);
  device.initialise(
      9, {.stream = testing::gpu_stream(), .lasting = cuda_allocator(0), .arena = nullptr, .dtype = DType::bf16});
  for (const Parameter* p : host.all()) {
    const Parameter& q = *device.find(p->name);
    EXPECT_TRUE(bitwise_equal(to_host(q.master, testing::gpu_stream()), p->value)) << p->name;
    Tensor rounded = Tensor::empty(p->shape, q.value.dtype());
    rounded.copy_from(p->value);
    EXPECT_TRUE(bitwise_equal(to_host(q.value, testing::gpu_stream()), rounded)) << p->name;
    const Tensor gradient = to_host(q.grad, testing::gpu_stream());
    for (const float g : gradient.span<float>()) ASSERT_EQ(g, 0.0F) << p->name;
  }
}

TEST(Parameter, NormalsHaveTheirMoments) {
  constexpr std::int64_t kCount = 400000;
  const Tensor t = initial("w", {kCount}, Init::normal(0.02));
  double sum = 0.0, squares = 0.0, cubes = 0.0, fourths = 0.0;
  for (const double v : t.span<double>()) {
    const double z = v / 0.02;
    sum += z;
    squares += z * z;
    cubes += z * z * z;
    fourths += z * z * z * z;
  }
  EXPECT_NEAR(sum / kCount, 0.0, 0.01);
  EXPECT_NEAR(std::sqrt(squares / kCount), 1.0, 0.01);
  EXPECT_NEAR(cubes / kCount, 0.0, 0.03);
  EXPECT_NEAR(fourths / kCount, 3.0, 0.06);
}

TEST(Parameter, BoundedLawsStayInTheirBounds) {
  const Tensor uniform = initial("u", {10000}, Init::uniform(-0.5, 2.0));
  for (const double v : uniform.span<double>()) {
    ASSERT_GE(v, -0.5);
    ASSERT_LT(v, 2.0);
  }
  const Tensor log_uniform = initial("a", {10000}, Init::log_uniform(1.0, 16.0));
  for (const double v : log_uniform.span<double>()) {
    ASSERT_GE(v, 0.0);
    ASSERT_LE(v, std::log(16.0));
  }
  const Tensor dt_bias = initial("d", {10000}, Init::inverse_softplus_log_uniform(0.001, 0.1));
  for (const double v : dt_bias.span<double>()) {
    const double softplus = std::log1p(std::exp(v));
    ASSERT_GE(softplus, 0.001 * (1.0 - 1e-9));
    ASSERT_LE(softplus, 0.1 * (1.0 + 1e-9));
  }
}

TEST(Parameter, StoreKeepsTheOrderOfDeclaration) {
  ParameterStore store;
  const ParameterScope root(store);
  Parameter& first = root.declare("embedding", {4, 2}, ParameterKind::embedding, Init::normal(1.0));
  const ParameterScope layer = root.scope("layers").scope("0");
  layer.declare("wq", {2, 2}, ParameterKind::matrix, Init::normal(1.0));
  for (int i = 0; i < 100; ++i) layer.declare(fmt::format("b{}", i), {1}, ParameterKind::vector, Init::constant(0.0));
  EXPECT_EQ(store.all().front(), &first) << "declaring more moves no parameter";
  EXPECT_EQ(store.all()[1]->name, "layers.0.wq");
  EXPECT_EQ(store.element_count(), 8 + 4 + 100);
  EXPECT_EQ(store.find("wq"), nullptr);
  EXPECT_THROW(root.declare("embedding", {1}, ParameterKind::vector, Init::constant(0.0)), Error);
}

TEST(Parameter, GradientsStartAndRestartAtZero) {
  ParameterStore store;
  Parameter& p = store.declare("w", {3}, ParameterKind::vector, Init::constant(2.0));
  store.initialise(1, DType::f32);
  const Tensor zero = Tensor::zeros({3}, DType::f32);
  EXPECT_TRUE(bitwise_equal(p.grad, zero));
  p.grad.data<float>()[1] = 5.0f;
  store.zero_gradients();
  EXPECT_TRUE(bitwise_equal(p.grad, zero));
}

}  // namespace
}  // namespace weft
