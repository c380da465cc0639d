#include <cmath>
#include <gtest/gtest.h>

#include "parallel/collectives_cases.h"
#include "parallel/reduction.h"
#include "parallel/threads.h"

namespace weft {
namespace {

using CollectiveCheck = void (*)(Communicator&);

TEST(SelfCommunicator, DoesEveryOperation) {
  const std::shared_ptr<Communicator> self = self_communicator();
  EXPECT_EQ(self->backend(), Backend::self);
  EXPECT_EQ(self->size(), 1);
  testing::check_all_collectives(*self);
}

class ThreadCollectives : public ::testing::TestWithParam<int> {
 protected:
  void run(CollectiveCheck check) {
    run_ranks(GetParam(), [&](Communicator& world) {
      WEFT_CHECK(world.size() == GetParam() && world.backend() == Backend::threads, "{} ranks", world.size());
      world.set_timeout(std::chrono::seconds(60));
      check(world);
    });
  }
};

TEST_P(ThreadCollectives, Reductions) {
  run(testing::check_reductions);
}
TEST_P(ThreadCollectives, Movements) {
  run(testing::check_movements);
}
TEST_P(ThreadCollectives, ExclusiveScan) {
  run(testing::check_exclusive_scan);
}
TEST_P(ThreadCollectives, OverlappingOperations) {
  run(testing::check_overlapping_operations);
}
TEST_P(ThreadCollectives, Split) {
  run(testing::check_split);
}
TEST_P(ThreadCollectives, HostValues) {
  run(testing::check_host_values);
}

INSTANTIATE_TEST_SUITE_P(Ranks, ThreadCollectives, ::testing::Values(1, 2, 3, 4));

// Ranks that are not a power of two, and more rounds than four ranks have.
TEST(ThreadScan, SevenRanks) {
  run_ranks(7, testing::check_exclusive_scan);
}

TEST(OrderedFold, IsInRankOrder) {
  // (1e8 + 1) - 1e8 is 0 in f32, (1e8 - 1e8) + 1 is 1.
  const float a = 1e8f;
  const float b = 1.0f;
  const float c = -1e8f;
  float out = -1.0f;
  ordered_fold(DType::f32, ReduceOp::sum, std::vector<const void*>{&a, &b, &c}, &out, 1);
  EXPECT_EQ(out, 0.0f);
  ordered_fold(DType::f32, ReduceOp::sum, std::vector<const void*>{&a, &c, &b}, &out, 1);
  EXPECT_EQ(out, 1.0f);
}

TEST(OrderedFold, RoundsBf16Once) {
  // 1 + 2^-8 + 2^-8: rounding after each addition would give 1.
  const bfloat16 one(1.0f);
  const bfloat16 small(0x1p-8f);
  bfloat16 out;
  ordered_fold(DType::bf16, ReduceOp::sum, std::vector<const void*>{&one, &small, &small}, &out, 1);
  EXPECT_EQ(static_cast<float>(out), 1.0f + 0x1p-7f);
}

TEST(OrderedFold, MaximumKeepsNaNWhereverItStands) {
  const float nan = std::nanf("");
  const float one = 1.0f;
  float out = 0.0f;
  ordered_fold(DType::f32, ReduceOp::max, std::vector<const void*>{&nan, &one}, &out, 1);
  EXPECT_TRUE(std::isnan(out));
  ordered_fold(DType::f32, ReduceOp::min, std::vector<const void*>{&one, &nan}, &out, 1);
  EXPECT_TRUE(std::isnan(out));
}

TEST(CommunicatorArguments, AreChecked) {
  const std::shared_ptr<Communicator> self = self_communicator();
  const Tensor four = Tensor::zeros({4}, DType::f32);
  EXPECT_THROW(static_cast<void>(self->all_reduce(Tensor(), ReduceOp::sum)), Error);
  EXPECT_THROW(static_cast<void>(self->all_gather(four, Tensor::zeros({3}, DType::f32))), Error);
  EXPECT_THROW(static_cast<void>(self->all_gather(four, Tensor::zeros({4}, DType::i32))), Error);
  EXPECT_THROW(static_cast<void>(self->broadcast(four, 1)), Error);
  EXPECT_THROW(static_cast<void>(self->all_to_all(four, four)), Error);
  EXPECT_THROW(static_cast<void>(self->send_receive(std::vector<PeerTensor>{{0, four}}, {})), Error);
  const std::vector<std::int64_t> three{3};
  EXPECT_THROW(static_cast<void>(self->all_to_all(four, three, Tensor::zeros({4}, DType::f32), three)), Error);
}

}  // namespace
}  // namespace weft
