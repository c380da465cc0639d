#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include "parallel/threads.h"

namespace weft {
namespace {

std::string config_message(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "no error";
}

TEST(Mesh, RankFormula) {
  const MeshShape shape{.pp = 2, .dp = 3, .cp = 4, .tp = 5};
  EXPECT_EQ(mesh_rank(shape, {.pp = 1, .dp = 2, .cp = 3, .tp = 4}), ((1 * 3 + 2) * 4 + 3) * 5 + 4);
  for (int rank = 0; rank < shape.size(); ++rank) EXPECT_EQ(mesh_rank(shape, mesh_coordinate(shape, rank)), rank);
  EXPECT_EQ(mesh_coordinate(shape, 1), (MeshCoordinate{.tp = 1}));
  EXPECT_EQ(mesh_coordinate(shape, 5), (MeshCoordinate{.cp = 1}));
  EXPECT_EQ(mesh_coordinate(shape, 20), (MeshCoordinate{.dp = 1}));
  EXPECT_EQ(mesh_coordinate(shape, 60), (MeshCoordinate{.pp = 1}));
  EXPECT_THROW(mesh_coordinate(shape, 120), Error);
  EXPECT_THROW(mesh_rank(shape, {.cp = 4}), Error);
}

TEST(Mesh, DataParallelIsWhatRemains) {
  EXPECT_EQ(resolve_mesh({.dp = 0}, 1), MeshShape{});
  EXPECT_EQ(resolve_mesh({.dp = 0}, 4), (MeshShape{.dp = 4}));
  EXPECT_EQ(resolve_mesh({.dp = 0, .cp = 2}, 6), (MeshShape{.dp = 3, .cp = 2}));
  EXPECT_EQ(resolve_mesh({.dp = 3, .cp = 2}, 6), (MeshShape{.dp = 3, .cp = 2}));
}

TEST(Mesh, ImpossibleMeshesAreConfigurationErrors) {
  EXPECT_EQ(config_message([] { resolve_mesh({.pp = 2}, 4); }),
            "parallel.pp = 2: there is no pipeline parallelism; expected 1");
  EXPECT_EQ(config_message([] { resolve_mesh({.tp = 0}, 4); }),
            "parallel.tp = 0: there is no tensor parallelism; expected 1");
  EXPECT_EQ(config_message([] { resolve_mesh({.dp = 0, .cp = 0}, 4); }), "parallel.cp = 0: expected at least 1");
  EXPECT_EQ(config_message([] { resolve_mesh({.dp = -1}, 4); }),
            "parallel.dp = -1: expected a number of replicas, or 0 for what remains");
  EXPECT_EQ(
      config_message([] { resolve_mesh({.dp = 0, .cp = 3}, 4); }),
      "parallel.cp = 3 does not divide the 4 ranks of this run; choose a divisor, or start a multiple of 3 ranks with "
      "mpirun -np");
  EXPECT_EQ(
      config_message([] { resolve_mesh({.dp = 0, .cp = 2}, 1); }),
      "parallel.cp = 2 does not divide the 1 rank of this run; choose a divisor, or start a multiple of 2 ranks with "
      "mpirun -np");
  EXPECT_EQ(config_message([] { resolve_mesh({.dp = 2000000000, .cp = 2}, 6); }),
            "parallel.dp = 2000000000 and parallel.cp = 2 need 4000000000 ranks, this run has 6; start that many with "
            "mpirun -np");
}

TEST(Mesh, RowLength) {
  check_row_length({.dp = 4}, 1000, 64, 3);  // rows are not cut
  check_row_length({.dp = 1, .cp = 2}, 1024, 64, 3);
  EXPECT_EQ(
      config_message([] { check_row_length({.cp = 2}, 1000, 64, 3); }),
      "data.sequence_length = 1000: a row is cut over parallel.cp = 2 ranks in chunks of 64 tokens, so its length "
      "must be a multiple of 128");
  EXPECT_EQ(
      config_message([] { check_row_length({.cp = 4}, 8, 1, 3); }),
      "data.sequence_length = 8: 2 tokens on each of parallel.cp = 4 ranks, but a short convolution reaches back 3 "
      "tokens; use longer rows or fewer ranks");
}

TEST(Mesh, GroupsThatSpanTooManyNodes) {
  const std::vector<std::string> good{"a", "a", "b", "b"};
  const std::vector<std::string> bad{"a", "b", "a", "b"};
  const std::vector<std::string> single{"a", "b", "c", "d"};
  const MeshShape shape{.dp = 2, .cp = 2};
  EXPECT_TRUE(placement_warnings(shape, good).empty());
  EXPECT_TRUE(placement_warnings(shape, single).empty());
  EXPECT_EQ(
      placement_warnings(shape, bad),
      (std::vector<std::string>{"the context-parallel group of ranks 0, 1 spans 2 nodes (a, b) where 1 would do; place "
                                "neighbouring ranks on the same node (mpirun --map-by slot)",
                                "the context-parallel group of ranks 2, 3 spans 2 nodes (a, b) where 1 would do; place "
                                "neighbouring ranks on the same node (mpirun --map-by slot)"}));
}

// The world ranks of a group, in its order.
std::vector<std::string> members(Communicator& group, int world_rank) {
  return all_gather_strings(group, std::to_string(world_rank));
}

TEST(Mesh, Groups) {
  run_ranks(6, [](Communicator& communicator) {
    const Mesh mesh(communicator.shared_from_this(), {.dp = 3, .cp = 2});
    const int rank = communicator.rank();
    const int dp = rank / 2;
    const int cp = rank % 2;
    EXPECT_EQ(mesh.at(), (MeshCoordinate{.dp = dp, .cp = cp}));
    using Names = std::vector<std::string>;
    EXPECT_EQ(members(mesh.cp(), rank), (Names{std::to_string(2 * dp), std::to_string(2 * dp + 1)}));
    EXPECT_EQ(members(mesh.dp(), rank), (Names{std::to_string(cp), std::to_string(2 + cp), std::to_string(4 + cp)}));
    EXPECT_EQ(members(mesh.dpcp(), rank), (Names{"0", "1", "2", "3", "4", "5"}));
    EXPECT_EQ(mesh.world().size(), 6);
  });
}

TEST(Mesh, GroupsWithEveryAxis) {
  run_ranks(16, [](Communicator& communicator) {
    const MeshShape shape{.pp = 2, .dp = 2, .cp = 2, .tp = 2};
    const Mesh mesh(communicator.shared_from_this(), shape);
    const MeshCoordinate at = mesh.at();
    const auto name = [&](int dp, int cp) { return std::to_string(mesh_rank(shape, {at.pp, dp, cp, at.tp})); };
    using Names = std::vector<std::string>;
    EXPECT_EQ(members(mesh.cp(), communicator.rank()), (Names{name(at.dp, 0), name(at.dp, 1)}));
    EXPECT_EQ(members(mesh.dp(), communicator.rank()), (Names{name(0, at.cp), name(1, at.cp)}));
    EXPECT_EQ(members(mesh.dpcp(), communicator.rank()), (Names{name(0, 0), name(0, 1), name(1, 0), name(1, 1)}));
  });
}

TEST(Mesh, MustMatchTheWorld) {
  EXPECT_THROW(Mesh(self_communicator(), {.dp = 2}), Error);
}

}  // namespace
}  // namespace weft
