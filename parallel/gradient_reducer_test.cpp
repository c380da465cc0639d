#include "parallel/gradient_reducer.h"

#include <gtest/gtest.h>

#include "parallel/collectives_cases.h"
#include "parallel/threads.h"

namespace weft {
namespace {

const std::vector<Shape> kShapes{{300}, {7, 11}, {1}, {64, 64}, {256}, {2, 3, 5}, {1000}};

struct Model {
  explicit Model(DType dtype) {
    for (std::size_t p = 0; p < kShapes.size(); ++p) {
      store.declare(fmt::format("p{}", p), kShapes[p], ParameterKind::matrix, Init::constant(0.0));
    }
    store.initialise(1, dtype);
  }
  void fill_gradients(int rank, int step) {
    for (std::size_t p = 0; p < kShapes.size(); ++p) {
      const Tensor& grad = store.all()[p]->grad;
      grad.copy_from(testing::case_tensor(grad.dtype(), rank, grad.numel(), first_element(p, step)));
    }
  }
  static std::int64_t first_element(std::size_t p, int step) { return static_cast<std::int64_t>(p) * 10000 + step; }
  void expect_sums(const Communicator& group, int step) {
    for (std::size_t p = 0; p < kShapes.size(); ++p) {
      const Tensor& grad = store.all()[p]->grad;
      testing::expect_same(
          grad,
          testing::expected_reduction(grad.dtype(), ReduceOp::sum, group.size(), grad.numel(), first_element(p, step)),
          group, fmt::format("gradient of {}", store.all()[p]->name));
    }
  }
  ParameterStore store;
};

TEST(FlatLayout, PadsEveryParameter) {
  const std::vector<std::int64_t> counts{300, 256, 1, 0, 1000};
  const FlatLayout layout(counts, 1 << 20);
  EXPECT_EQ(layout.offsets, (std::vector<std::int64_t>{0, 512, 768, 1024, 1024}));
  EXPECT_EQ(layout.elements, 2048);
  ASSERT_EQ(layout.buckets.size(), 1u);
  EXPECT_EQ(layout.buckets[0].begin, 0);
  EXPECT_EQ(layout.buckets[0].end, 2048);
}

TEST(FlatLayout, FillsBucketsFromTheLastParameter) {
  const std::vector<std::int64_t> counts{256, 256, 256, 5000, 256, 512};
  const FlatLayout layout(counts, 768);
  ASSERT_EQ(layout.buckets.size(), 3u);
  EXPECT_EQ(layout.bucket_of, (std::vector<std::size_t>{2, 2, 2, 1, 0, 0}));
  EXPECT_EQ(layout.buckets[0].first_parameter, 4u);
  EXPECT_EQ(layout.buckets[0].last_parameter, 6u);
  EXPECT_EQ(layout.buckets[1].end - layout.buckets[1].begin, 5120);  // larger than a bucket, hence alone
  EXPECT_EQ(layout.buckets[2].begin, 0);
  // Buckets tile the flat array.
  EXPECT_EQ(layout.buckets[0].end, layout.elements);
  EXPECT_EQ(layout.buckets[0].begin, layout.buckets[1].end);
  EXPECT_EQ(layout.buckets[1].begin, layout.buckets[2].end);
}

TEST(GradientReducer, OneRankChangesNothing) {
  Model model(DType::f32);
  const auto self = self_communicator();
  const void* before = model.store.all()[0]->grad.raw();
  GradientReducer reducer(*self, model.store.all());
  model.fill_gradients(0, 0);
  for (const Parameter* parameter : model.store.all()) reducer.mark_ready(*parameter);
  reducer.finish();
  EXPECT_EQ(model.store.all()[0]->grad.raw(), before);
  model.expect_sums(*self, 0);
}

TEST(GradientReducer, SumsInRankOrderWhateverTheBuckets) {
  for (const int ranks : {2, 3, 4}) {
    for (const DType dtype : {DType::f32, DType::f64}) {
      for (const std::int64_t bucket_bytes : {std::int64_t{1}, std::int64_t{8000}, GradientReducer::kBucketBytes}) {
        run_ranks(ranks, [&](Communicator& world) {
          Model model(dtype);
          GradientReducer reducer(world, model.store.all(), bucket_bytes);
          for (int step = 0; step < 3; ++step) {
            model.fill_gradients(world.rank(), step);
            const std::vector<Parameter*> parameters = model.store.all();
            for (auto it = parameters.rbegin(); it != parameters.rend(); ++it) reducer.mark_ready(**it);
            reducer.finish();
            model.expect_sums(world, step);
          }
        });
      }
    }
  }
}

TEST(GradientReducer, PostsBucketsAsTheyComplete) {
  run_ranks(2, [](Communicator& world) {
    Model model(DType::f32);
    GradientReducer reducer(world, model.store.all(), 1);  // a bucket for each parameter
    const std::vector<Parameter*> parameters = model.store.all();
    ASSERT_EQ(reducer.layout().buckets.size(), parameters.size());
    model.fill_gradients(world.rank(), 0);
    EXPECT_EQ(reducer.posted(), 0u);
    reducer.mark_ready(*parameters[6]);
    EXPECT_EQ(reducer.posted(), 1u);
    // Out of turn: kept back until the one before it is complete, so the order is the same on all ranks.
    reducer.mark_ready(*parameters[4]);
    EXPECT_EQ(reducer.posted(), 1u);
    reducer.mark_ready(*parameters[5]);
    EXPECT_EQ(reducer.posted(), 3u);
    reducer.finish();
    model.expect_sums(world, 0);
  });
}

TEST(GradientReducer, RanksMayBecomeReadyInDifferentOrders) {
  run_ranks(3, [](Communicator& world) {
    Model model(DType::f32);
    GradientReducer reducer(world, model.store.all(), 4000);
    model.fill_gradients(world.rank(), 0);
    const std::vector<Parameter*> parameters = model.store.all();
    for (std::size_t k = 0; k < parameters.size(); ++k) {
      // 3 is coprime to the 7 parameters.
      const std::size_t p = (k * 3 + static_cast<std::size_t>(world.rank())) % parameters.size();
      if (world.rank() != 2 || k < 2) reducer.mark_ready(*parameters[p]);
    }
    reducer.finish();
    model.expect_sums(world, 0);
  });
}

TEST(GradientReducer, KeepsGradientsWhenItMovesThem) {
  run_ranks(2, [](Communicator& world) {
    Model model(DType::f32);
    model.fill_gradients(world.rank(), 5);
    GradientReducer reducer(world, model.store.all());
    reducer.finish();
    model.expect_sums(world, 5);
    model.store.zero_gradients();
    reducer.finish();
    for (const Parameter* parameter : model.store.all()) {
      for (const float g : parameter->grad.span<float>()) ASSERT_EQ(g, 0.0f);
    }
  });
}

TEST(GradientReducer, MisuseIsReported) {
  run_ranks(2, [](Communicator& world) {
    Model model(DType::f32);
    GradientReducer reducer(world, model.store.all());
    Parameter stranger;
    stranger.name = "stranger";
    EXPECT_THROW(reducer.mark_ready(stranger), Error);
    reducer.mark_ready(*model.store.all()[1]);
    EXPECT_THROW(reducer.mark_ready(*model.store.all()[1]), Error);
    reducer.finish();
  });
}

}  // namespace
}  // namespace weft
