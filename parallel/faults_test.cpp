// A rank that throws, hangs, leaves early or calls something else: every other rank must end with the documented error.
#include <future>
#include <gtest/gtest.h>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "parallel/threads.h"

namespace weft {
namespace {

// Runs the ranks and collects the error of each; run_ranks itself must throw the first of them.
struct Outcome {
  std::vector<ExitCode> codes;
  std::vector<std::string> messages;
  std::string thrown;
};

Outcome run_faulty(int ranks, const std::function<void(Communicator&)>& fn) {
  Outcome outcome;
  outcome.codes.assign(static_cast<std::size_t>(ranks), ExitCode::ok);
  outcome.messages.resize(static_cast<std::size_t>(ranks));
  try {
    run_ranks(ranks, [&](Communicator& world) {
      try {
        fn(world);
      } catch (const Error& error) {
        outcome.codes[static_cast<std::size_t>(world.rank())] = error.code();
        outcome.messages[static_cast<std::size_t>(world.rank())] = error.what();
        throw;
      }
    });
  } catch (const std::exception& error) {
    outcome.thrown = error.what();
  }
  return outcome;
}

Tensor floats(std::int64_t n) {
  return Tensor::zeros({n}, DType::f32);
}

TEST(ThreadFaults, RankThatThrowsReleasesTheOthers) {
  const Outcome outcome = run_faulty(3, [](Communicator& world) {
    world.barrier().wait();
    if (world.rank() == 1) fail(ExitCode::storage, "disk full");
    world.all_reduce(floats(100), ReduceOp::sum).wait();
  });
  EXPECT_EQ(outcome.thrown, "disk full");
  EXPECT_EQ(outcome.codes[0], ExitCode::peer_lost);
  EXPECT_EQ(outcome.codes[2], ExitCode::peer_lost);
  EXPECT_EQ(outcome.messages[0],
            "rank 0: all_reduce #1 (400 bytes of f32) of group 'world' cannot complete: rank 1 failed: disk full");
}

TEST(ThreadFaults, AnyExceptionReleasesTheOthers) {
  EXPECT_THROW(run_ranks(2,
                         [](Communicator& world) {
                           if (world.rank() == 1) throw std::logic_error("not an Error");
                           world.barrier().wait();
                         }),
               std::logic_error);
}

TEST(ThreadFaults, RankThatThrowsReleasesSubgroups) {
  const Outcome outcome = run_faulty(4, [](Communicator& world) {
    const auto half = world.split(world.rank() / 2, 0, "half");
    if (world.rank() == 3) fail(ExitCode::nonfinite, "NaN");
    half->all_reduce(floats(5), ReduceOp::sum).wait();
    world.barrier().wait();
  });
  EXPECT_EQ(outcome.thrown, "NaN");
  EXPECT_EQ(outcome.messages[2],
            "rank 2: all_reduce #0 (20 bytes of f32) of group 'half' cannot complete: rank 3 failed: NaN");
  EXPECT_EQ(outcome.codes[0], ExitCode::peer_lost);
  EXPECT_EQ(outcome.codes[1], ExitCode::peer_lost);
}

TEST(ThreadFaults, RankThatHangsEndsInATimeout) {
  std::promise<void> noticed;
  std::once_flag once;
  const Outcome outcome = run_faulty(3, [&](Communicator& world) {
    world.set_timeout(std::chrono::milliseconds(300));
    world.barrier().wait();
    if (world.rank() == 2) {
      noticed.get_future().wait();  // hangs until the others have given up
      return;
    }
    try {
      world.all_reduce(floats(1000), ReduceOp::sum).wait();
    } catch (const Error&) {
      std::call_once(once, [&] { noticed.set_value(); });
      throw;
    }
  });
  // Both ranks wait for the same time; whichever is first, the other sees a timeout or a lost peer.
  const bool first = outcome.codes[0] == ExitCode::timeout;
  const std::string& message = outcome.messages[first ? 0 : 1];
  EXPECT_EQ(outcome.codes[first ? 0 : 1], ExitCode::timeout);
  EXPECT_EQ(message.find(first ? "rank 0" : "rank 1"), 0u) << message;
  EXPECT_NE(message.find("all_reduce #1 (4000 bytes of f32) of group 'world' timed out after 0.3 s (issued "),
            std::string::npos)
      << message;
  EXPECT_NE(message.find("s ago), waiting for rank 2"), std::string::npos) << message;
}

TEST(ThreadFaults, TimeoutLeavesOtherWorkReadable) {
  // The flight recorder lists what was done and what is missing.
  run_ranks(2, [](Communicator& world) {
    world.all_reduce(floats(3), ReduceOp::max).wait();
    const Tensor mine = floats(1);
    const Tensor all = floats(2);
    world.all_gather(mine, all).wait();
    const std::string log = world.recent_operations();
    const std::size_t first = log.find("world: all_reduce #0 (12 bytes of f32), took ");
    const std::size_t second = log.find("world: all_gather #1 (4 bytes of f32), took ");
    WEFT_CHECK(first != std::string::npos && second != std::string::npos && first < second, "{}", log);
  });
}

TEST(ThreadFaults, OutOfOrderCallsNameBothRanks) {
  const Outcome outcome = run_faulty(2, [](Communicator& world) {
    const Tensor a = floats(8);
    const Tensor b = floats(4);
    const Tensor c = floats(8);
    if (world.rank() == 0) {
      const Event reduce = world.all_reduce(a, ReduceOp::sum);
      const Event gather = world.all_gather(b, c);
      reduce.wait();
      gather.wait();
    } else {
      const Event gather = world.all_gather(b, c);
      const Event reduce = world.all_reduce(a, ReduceOp::sum);
      gather.wait();
      reduce.wait();
    }
  });
  const std::string by_0 =
      "ranks issue different operations: rank 0 called all_reduce #0 (32 bytes of f32), rank 1 called all_gather #0 "
      "(16 "
      "bytes of f32); all ranks of a group must issue the same operations in the same order";
  const std::string by_1 =
      "ranks issue different operations: rank 1 called all_gather #0 (16 bytes of f32), rank 0 called all_reduce #0 "
      "(32 "
      "bytes of f32); all ranks of a group must issue the same operations in the same order";
  EXPECT_TRUE(outcome.thrown == by_0 || outcome.thrown == by_1) << outcome.thrown;
  for (const ExitCode code : outcome.codes) EXPECT_TRUE(code == ExitCode::internal || code == ExitCode::peer_lost);
}

TEST(ThreadFaults, DifferentSizesTypesAndReductionsAreMismatches) {
  const std::function<void(Communicator&)> cases[] = {
      [](Communicator& world) { world.all_reduce(floats(256 + world.rank()), ReduceOp::sum).wait(); },
      [](Communicator& world) { world.all_reduce(floats(100000 + world.rank()), ReduceOp::sum).wait(); },
      [](Communicator& world) {
        world.all_reduce(Tensor::zeros({8}, world.rank() == 0 ? DType::f32 : DType::i32), ReduceOp::sum).wait();
      },
      [](Communicator& world) {
        world.all_reduce(floats(8), world.rank() == 0 ? ReduceOp::sum : ReduceOp::max).wait();
      },
      [](Communicator& world) {
        const std::vector<std::int64_t> counts(2, world.rank() + 1);  // each expects what the other does not send
        const std::int64_t rows = 2 * (world.rank() + 1);
        world.all_to_all(floats(rows), counts, floats(rows), counts).wait();
      },
      [](Communicator& world) {
        const int other = 1 - world.rank();
        world
            .send_receive(std::vector<PeerTensor>{{other, floats(3)}},
                          std::vector<PeerTensor>{{other, floats(world.rank() == 0 ? 3 : 4)}})
            .wait();
      },
  };
  for (const auto& fn : cases) {
    const Outcome outcome = run_faulty(2, fn);
    EXPECT_EQ(outcome.thrown.find("ranks issue different operations: rank "), 0u) << outcome.thrown;
  }
}

TEST(ThreadFaults, RankThatReturnsEarlyIsLost) {
  const Outcome outcome = run_faulty(2, [](Communicator& world) {
    world.barrier().wait();
    if (world.rank() == 1) return;
    world.barrier().wait();
  });
  EXPECT_EQ(outcome.codes[0], ExitCode::peer_lost);
  EXPECT_EQ(outcome.thrown, "rank 0: barrier #1 of group 'world' cannot complete: rank 1 has returned");
}

TEST(ThreadFaults, BrokenRankStaysBroken) {
  const Outcome outcome = run_faulty(2, [](Communicator& world) {
    if (world.rank() == 1) return;
    EXPECT_THROW(world.barrier().wait(), Error);
    EXPECT_THROW(static_cast<void>(world.barrier()), Error);
    world.progress();
  });
  EXPECT_EQ(outcome.codes[0], ExitCode::peer_lost);
}

TEST(ThreadFaults, ResultsSentBeforeLeavingStillArrive) {
  for (int repeat = 0; repeat < 200; ++repeat) {
    run_ranks(3, [&](Communicator& world) {
      // Rank 1 is gone while rank 2 is still late.
      if (world.rank() == 2) std::this_thread::sleep_for(std::chrono::microseconds(repeat * 10));
      const Tensor value = Tensor::from<float>({1}, std::vector<float>{static_cast<float>(world.rank())});
      const std::vector<PeerTensor> sends{{0, value}};
      std::vector<PeerTensor> receives;
      if (world.rank() == 0) receives = {{1, floats(1)}, {2, floats(1)}};
      world.send_receive(world.rank() == 0 ? std::span<const PeerTensor>() : sends, receives).wait();
      if (world.rank() == 0) {
        WEFT_CHECK(receives[0].data.span<float>()[0] == 1.0f && receives[1].data.span<float>()[0] == 2.0f, "values");
      }
    });
  }
}

}  // namespace
}  // namespace weft
