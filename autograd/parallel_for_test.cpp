#include "autograd/parallel_for.h"

#include <array>
#include <cmath>
#include <gtest/gtest.h>
#include <vector>

#include "autograd/block_sum.h"
#include "autograd/map_cpu.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft {
namespace {

class Threads {
 public:
  explicit Threads(int count) { omp_set_num_threads(count); }
  ~Threads() { omp_set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_ = omp_get_max_threads();
};

TEST(ParallelFor, VisitsEveryItemOnce) {
  const Threads threads(3);
  for (const Schedule schedule : {Schedule::fixed, Schedule::dynamic}) {
    for (const std::int64_t n : {0, 1, 2, 100}) {
      std::vector<int> visits(static_cast<std::size_t>(n));
      parallel_for(n, schedule, [&](std::int64_t i) { ++visits[static_cast<std::size_t>(i)]; });
      for (const int v : visits) EXPECT_EQ(v, 1);
    }
  }
}

TEST(ParallelFor, BlocksCoverTheRange) {
  const Threads threads(3);
  std::vector<int> visits(1000);
  std::array<std::int64_t, 8> sizes{};
  parallel_blocks(1000, 128, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
    EXPECT_EQ(begin, b * 128);
    sizes[static_cast<std::size_t>(b)] = end - begin;
    for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
  });
  EXPECT_EQ(sizes, (std::array<std::int64_t, 8>{128, 128, 128, 128, 128, 128, 128, 104}));
  for (const int v : visits) EXPECT_EQ(v, 1);
}

TEST(ParallelFor, LoopsWithinLoopsStayOnTheirThread) {
  const Threads threads(2);
  std::vector<int> inner_threads(4);
  parallel_for(2, Schedule::fixed, [&](std::int64_t i) {
    const int thread = omp_get_thread_num();
    parallel_for(2, Schedule::fixed, [&](std::int64_t j) {
      inner_threads[static_cast<std::size_t>(2 * i + j)] = omp_get_thread_num() == thread ? 1 : 0;
    });
  });
  EXPECT_EQ(inner_threads, (std::vector<int>{1, 1, 1, 1}));
}

TEST(BlockSum, ThreadsDoNotChangeTheBits) {
  for (const std::int64_t R : {0, 1, 63, 1000}) {
    for (const std::int64_t W : {1, 3, 257, 2000}) {
      const Tensor x = testing::cast(testing::normal({R, W}, 1), DType::f32);
      const Tensor exact = Tensor::zeros({W}, DType::f64);
      for (std::int64_t i = 0; i < R * W; ++i) exact.data<double>()[i % W] += static_cast<double>(x.data<float>()[i]);
      const Tensor lines = Tensor::empty({row_blocks(R, W).count, W}, DType::f32);
      Tensor sums[2];
      for (const int count : {1, 3}) {
        const Threads threads(count);
        Tensor& sum = sums[count / 2];
        sum = testing::cast(testing::normal({W}, 2), DType::f32);
        sum_rows(x.data<float>(), R, W, lines.data<float>(), sum.data<float>(), Write::overwrite);
        EXPECT_TRUE(testing::close(sum, exact, 2e-6, 1e-4)) << R << " rows of " << W;
        sum_rows(x.data<float>(), R, W, lines.data<float>(), sum.data<float>(), Write::accumulate);
      }
      EXPECT_TRUE(testing::bitwise_equal(sums[0], sums[1])) << R << " rows of " << W;
    }
  }
}

TEST(MapCpu, OverwritesAccumulatesAndSkips) {
  const Threads threads(3);
  for (const std::int64_t n : {0, 1, 511, 513, 40000}) {
    std::vector<float> x(static_cast<std::size_t>(n), 2.0f), written(x.size(), NAN), added(x.size(), 10.0f);
    map_cpu<float, 1, 3>(n, {x.data()},
                         {{{written.data(), Write::overwrite}, {added.data(), Write::accumulate}, {nullptr}}},
                         [](float v, float& a, float& b, float& c) {
                           a = v;
                           b = v + 1.0f;
                           c = v + 2.0f;
                         });
    EXPECT_EQ(written, x);
    EXPECT_EQ(added, std::vector<float>(x.size(), 13.0f));
  }
}

}  // namespace
}  // namespace weft
