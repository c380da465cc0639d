// The collectives between processes, and the faults that only processes have. CTest runs this under mpirun with 2, 3
// and 4 ranks; mpi_faults_test.cpp runs single faults of it (`--fault NAME`) and checks how the run ends.
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <thread>

#include "parallel/collectives_cases.h"
#include "parallel/gradient_reducer.h"
#include "parallel/launch.h"
#include "parallel/mesh.h"
#include "parallel/mpi.h"
#include "parallel/threads.h"

namespace weft {
namespace {

World* world = nullptr;

Communicator& group() {
  return world->communicator();
}

TEST(MpiCollectives, Reductions) {
  testing::check_reductions(group());
}
TEST(MpiCollectives, Movements) {
  testing::check_movements(group());
}
TEST(MpiCollectives, ExclusiveScan) {
  testing::check_exclusive_scan(group());
}
TEST(MpiCollectives, OverlappingOperations) {
  testing::check_overlapping_operations(group());
}
TEST(MpiCollectives, Split) {
  testing::check_split(group());
}
TEST(MpiCollectives, HostValues) {
  testing::check_host_values(group());
}

TEST(MpiWorld, KnowsItsPlace) {
  EXPECT_EQ(group().backend(), Backend::mpi);
  EXPECT_EQ(world->size(), std::atoi(std::getenv("OMPI_COMM_WORLD_SIZE")));
  EXPECT_EQ(world->rank(), std::atoi(std::getenv("OMPI_COMM_WORLD_RANK")));
  EXPECT_EQ(world->local_rank(), std::atoi(std::getenv("OMPI_COMM_WORLD_LOCAL_RANK")));
  EXPECT_EQ(world->local_size(), std::atoi(std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE")));
  EXPECT_EQ(world->hosts(), std::vector<std::string>(static_cast<std::size_t>(world->size()), host_name()));
}

TEST(MpiWorld, DigestsThatDifferAreAnErrorOnEveryRank) {
  Digest digest{};
  agree_digest(group(), "recipe", digest);
  const int last = world->size() - 1;
  if (world->rank() == last) digest[31] = std::byte{1};
  try {
    agree_digest(group(), "recipe", digest);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_EQ(std::string(error.what())
                  .find(fmt::format("the recipe is not the same on all ranks: rank {} differs from ", last)),
              0u)
        << error.what();
  }
}

// The same gradients summed by threads and by processes: the same bits.
TEST(MpiGradientReducer, GivesTheBitsOfThreads) {
  const auto reduce = [](Communicator& ranks) {
    ParameterStore store;
    for (int p = 0; p < 5; ++p) {
      store.declare(fmt::format("p{}", p), {100 + p, 37}, ParameterKind::matrix, Init::constant(0.0));
    }
    store.initialise(1, DType::f32);
    GradientReducer reducer(ranks, store.all(), 40000);
    for (Parameter* parameter : store.all()) {
      const std::int64_t n = parameter->shape.numel();
      parameter->grad.copy_from(testing::case_tensor(DType::f32, ranks.rank(), n, 1000 * n));
    }
    for (Parameter* parameter : store.all()) reducer.mark_ready(*parameter);
    reducer.finish();
    std::string bytes;
    for (Parameter* parameter : store.all()) {
      bytes.append(static_cast<const char*>(parameter->grad.raw()), parameter->grad.nbytes());
    }
    return bytes;
  };
  std::string by_threads;
  run_ranks(world->size(), [&](Communicator& ranks) {
    const std::string bytes = reduce(ranks);
    if (ranks.rank() == 0) by_threads = bytes;
  });
  EXPECT_EQ(reduce(group()), by_threads);
}

TEST(MpiMesh, ContextParallelGroups) {
  const int cp = world->size() % 2 == 0 ? 2 : world->size();
  const Mesh mesh(world->shared_communicator(), resolve_mesh({.dp = 0, .cp = cp}, world->size()));
  EXPECT_EQ(mesh.cp().size(), cp);
  EXPECT_EQ(mesh.cp().rank(), world->rank() % cp);
  EXPECT_EQ(mesh.dp().rank(), world->rank() / cp);
  EXPECT_EQ(mesh.dpcp().size(), world->size());
  testing::check_host_values(mesh.cp());
}

// ---- Faults: each is the whole life of a run.
// ------------------------------------------------------------------------

Tensor floats(std::int64_t n) {
  return Tensor::zeros({n}, DType::f32);
}

const std::map<std::string, std::function<void()>>& faults() {
  static const std::map<std::string, std::function<void()>> table = {
      {"none", [] { group().barrier().wait(); }},
      {"throws",
       [] {
         if (world->rank() == 1) fail(ExitCode::storage, "disk full");
         group().all_reduce(floats(100), ReduceOp::sum).wait();
       }},
      {"hangs",
       [] {
         group().set_timeout(std::chrono::milliseconds(500));
         if (world->rank() == 1) std::this_thread::sleep_for(std::chrono::hours(1));
         group().all_reduce(floats(100), ReduceOp::sum).wait();
       }},
      {"killed",
       [] {
         if (world->rank() == 1) std::raise(SIGKILL);
         group().all_reduce(floats(100), ReduceOp::sum).wait();
       }},
      {"out_of_order",
       [] {
         if (world->rank() == 0) {
           group().all_reduce(floats(100), ReduceOp::sum).wait();
         } else {
           std::this_thread::sleep_for(std::chrono::milliseconds(200));
           static_cast<void>(group().all_gather(floats(50), floats(100)));
           std::this_thread::sleep_for(std::chrono::hours(1));
         }
       }},
      {"longer_message",
       [] {
         const Event event = group().all_reduce(floats(100 + world->rank()), ReduceOp::sum);
         if (world->rank() == 1) std::this_thread::sleep_for(std::chrono::hours(1));
         event.wait();
       }},
      {"shorter_message",
       [] {
         const Event event = group().all_reduce(floats(100 - world->rank()), ReduceOp::sum);
         if (world->rank() == 1) std::this_thread::sleep_for(std::chrono::hours(1));
         event.wait();
       }},
      {"never_leaves",
       [] {
         if (world->rank() == 1) std::this_thread::sleep_for(std::chrono::hours(1));
       }},
      // Messages in pieces, as those of more than 2 GiB are.
      {"pieces",
       [] {
         testing::check_reductions(group());
         testing::check_movements(group());
       }},
  };
  return table;
}

int run_fault(const std::string& name) {
  try {
    faults().at(name)();
  } catch (const Error& error) {
    fmt::print(stderr, "error on rank {}: {}\n", world->rank(), error.what());
    world->abort(error.code());
  }
  world->finalise(std::chrono::milliseconds(500));
  return 0;
}

}  // namespace
}  // namespace weft

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const std::string fault = argc == 3 && std::strcmp(argv[1], "--fault") == 0 ? argv[2] : "";
  weft::World world = fault == "pieces" ? weft::World(weft::join_mpi(/*piece_bytes=*/10000).communicator)
                                        : weft::World::launch(std::chrono::seconds(60));
  weft::world = &world;
  if (!fault.empty()) return weft::run_fault(fault);
  world.communicator().set_timeout(std::chrono::seconds(60));
  const int failed = RUN_ALL_TESTS();
  if (failed != 0) world.abort(weft::ExitCode::internal);
  world.finalise();
  return 0;
}
