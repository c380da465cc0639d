#include "parallel/launch.h"

#include <cstdlib>
#include <gtest/gtest.h>
#include <mutex>

#include "parallel/mpi.h"
#include "parallel/threads.h"

namespace weft {
namespace {

TEST(World, IsAloneWithoutALauncher) {
  ASSERT_FALSE(launched_by_mpi());
  World world = World::launch();
  EXPECT_EQ(world.communicator().backend(), Backend::self);
  EXPECT_EQ(world.rank(), 0);
  EXPECT_EQ(world.size(), 1);
  EXPECT_EQ(world.local_rank(), 0);
  EXPECT_EQ(world.local_size(), 1);
  EXPECT_TRUE(world.is_root());
  EXPECT_EQ(world.host(), host_name());
  agree_digest(world.communicator(), "recipe", Digest{});
  world.finalise();
}

TEST(World, IsAloneUnderALauncherOfOne) {
  setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
  EXPECT_FALSE(launched_by_mpi());
  setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
  EXPECT_TRUE(launched_by_mpi());
  unsetenv("OMPI_COMM_WORLD_SIZE");
}

TEST(World, AbortEndsWithTheExitCode) {
  // The child starts anew, since a fork of a process with threads may hang.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  World world = World::launch();
  EXPECT_EXIT(world.abort(ExitCode::nonfinite), ::testing::ExitedWithCode(3), "");
}

std::vector<std::string> disagreement(const std::vector<int>& digests) {
  std::vector<std::string> messages(digests.size());
  run_ranks(static_cast<int>(digests.size()), [&](Communicator& world) {
    Digest digest{};
    digest[17] = static_cast<std::byte>(digests[static_cast<std::size_t>(world.rank())]);
    try {
      agree_digest(world, "dataset manifest", digest);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      messages[static_cast<std::size_t>(world.rank())] = error.what();
    }
  });
  return messages;
}

TEST(AgreeDigest, NamesTheRanksThatDiffer) {
  EXPECT_EQ(disagreement({5, 5, 5}), std::vector<std::string>(3));
  EXPECT_EQ(disagreement({1, 2}),
            std::vector<std::string>(2,
                                     "the dataset manifest is not the same on all ranks: rank 1 differs from rank 0; "
                                     "start every rank with the same files and arguments"));
  EXPECT_EQ(disagreement({9, 4, 4, 4}),
            std::vector<std::string>(4,
                                     "the dataset manifest is not the same on all ranks: rank 0 differs from ranks 1, "
                                     "2, 3; start every rank with the same files and arguments"));
  EXPECT_EQ(disagreement({4, 9, 4, 8}),
            std::vector<std::string>(4,
                                     "the dataset manifest is not the same on all ranks: ranks 1, 3 differ from ranks "
                                     "0, 2; start every rank with the same files and arguments"));
}

}  // namespace
}  // namespace weft
