// A process dies, or an operation fails, at every step of saving and deleting: an earlier or the new checkpoint is
// whole, and nothing is left behind after cleaning.
#include <gtest/gtest.h>
#include <set>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checkpoints/checkpoint_test_support.h"
#include "checkpoints/resume.h"
#include "tests/support/small_filesystem.h"

namespace weft::checkpoint_tests {
namespace {

// Calls `act` at the n-th point that the protocol passes.
ProtocolHook at_point(int n, std::function<void(std::string_view)> act) {
  auto passed = std::make_shared<std::atomic<int>>(0);
  return [passed, n, act](std::string_view point) {
    if (++*passed == n) act(point);
  };
}

// The step that a restart resumes from, -1 for none; fails the test if what it loads is not that step's state.
std::int64_t resumed_step(const fs::path& run, const std::map<std::int64_t, unsigned>& seeds) {
  SingleProcess group;
  const auto loaded = choose_checkpoint(
      run, {ResumeRequest::Mode::automatic, {}, ResumeRequest::Verify::files}, group,
      [&](const CheckpointReader& reader) { EXPECT_TRUE(TrainingState(seeds.at(reader.step())).equals(reader)); },
      [](const std::string& line) { ADD_FAILURE() << line; });
  return loaded ? loaded->step : -1;
}

void expect_nothing_left(const fs::path& run) {
  EXPECT_TRUE(list_debris(run).empty());
  for (const auto& entry : fs::directory_iterator(checkpoints_directory(run))) {
    const std::string name = entry.path().filename();
    EXPECT_TRUE(step_of_directory_name(name) >= 0 || name == "LATEST") << name;
    if (name == "LATEST") continue;
    for (const auto& file : fs::directory_iterator(entry.path())) {
      EXPECT_FALSE(file.path().string().ends_with(".part")) << file.path();
    }
  }
}

// Runs `f` in a child; true if SIGKILL ended it, false if it ended by itself.
bool is_killed(const std::function<void()>& f) {
  const pid_t child = ::fork();
  if (child == 0) {
    f();
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  if (WIFSIGNALED(status)) {
    EXPECT_EQ(WTERMSIG(status), SIGKILL);
    return true;
  }
  EXPECT_EQ(WEXITSTATUS(status), 0);
  return false;
}

SaveOptions hooked(const ProtocolHook& hook) {
  SaveOptions options = small_options();
  options.retention = {1, 0, 0, ""};
  options.hook = hook;
  return options;
}

void save_as(const fs::path& run, std::int64_t step, unsigned seed, int ranks, const ProtocolHook& hook) {
  const TrainingState state(seed);
  ThreadRanks group(ranks);
  group.run([&](CheckpointGroup& member) {
    save_checkpoint(run, state.part(step, member.rank(), member.size()), member, hooked(hook));
  });
}

struct Scenario {
  const char* name;
  std::int64_t earlier;  // step that is there already, -1 for none
  std::int64_t step;
  int ranks;
};

class CrashTest : public testing::TestWithParam<Scenario> {};

TEST_P(CrashTest, KilledAtEveryPoint) {
  const Scenario scenario = GetParam();
  constexpr unsigned kOldSeed = 100, kNewSeed = 200;
  std::set<std::int64_t> outcomes;
  int points = 0;
  for (int n = 1;; ++n) {
    const TemporaryRun run;
    if (scenario.earlier >= 0) save_as(run.path, scenario.earlier, kOldSeed, 1, {});
    const bool killed = is_killed([&] {
      save_as(run.path, scenario.step, kNewSeed, scenario.ranks,
              at_point(n, [](std::string_view) { ::raise(SIGKILL); }));
    });
    std::map<std::int64_t, unsigned> seeds{{scenario.earlier, kOldSeed}, {scenario.step, kNewSeed}};
    if (scenario.earlier == scenario.step) {
      // Either content is right, but it must be one of them.
      SingleProcess group;
      choose_checkpoint(run.path, {}, group,
                        [&](const CheckpointReader& reader) {
                          const bool is_old = TrainingState(kOldSeed).equals(reader);
                          EXPECT_TRUE(is_old || TrainingState(kNewSeed).equals(reader));
                          seeds[scenario.step] = is_old ? kOldSeed : kNewSeed;
                        },
                        {});
    }
    const std::int64_t step = resumed_step(run.path, seeds);
    outcomes.insert(step);
    EXPECT_TRUE(step == scenario.step || step == scenario.earlier) << "point " << n;
    // The next start cleans up, goes on, and saves.
    clean_debris(run.path);
    expect_nothing_left(run.path);
    EXPECT_EQ(resumed_step(run.path, seeds), step);
    save_as(run.path, scenario.step + 1, 7, 1, {});
    EXPECT_EQ(resumed_step(run.path, {{scenario.step + 1, 7}}), scenario.step + 1);
    expect_nothing_left(run.path);
    if (!killed) {
      points = n - 1;
      break;
    }
  }
  EXPECT_GE(points, 18);
  EXPECT_TRUE(outcomes.contains(scenario.step));
  EXPECT_TRUE(outcomes.contains(scenario.earlier));
}

// A failing operation instead of a dying process: training goes on, so nothing may be left even without cleaning.
TEST_P(CrashTest, FailingAtEveryPoint) {
  const Scenario scenario = GetParam();
  constexpr unsigned kOldSeed = 100, kNewSeed = 200;
  int failures = 0;
  for (int n = 1;; ++n) {
    const TemporaryRun run;
    if (scenario.earlier >= 0) save_as(run.path, scenario.earlier, kOldSeed, 1, {});
    const TrainingState state(kNewSeed);
    ThreadRanks group(scenario.ranks);
    std::string point;
    std::vector<SaveResult> results(static_cast<std::size_t>(scenario.ranks));
    const ProtocolHook hook = at_point(n, [&](std::string_view at) {
      point = at;
      throw DiskFull(fmt::format("no space at \"{}\"", at));
    });
    group.run([&](CheckpointGroup& member) {
      results[static_cast<std::size_t>(member.rank())] =
          save_checkpoint(run.path, state.part(scenario.step, member.rank(), member.size()), member, hooked(hook));
    });
    if (point.empty()) break;
    for (const SaveResult& result : results) {
      EXPECT_EQ(result.saved, results[0].saved);
      EXPECT_EQ(result.failure, results[0].failure);
      EXPECT_EQ(result.saved, result.failure.empty());
    }
    if (!results[0].saved) {
      ++failures;
      EXPECT_NE(results[0].failure.find("no space at \"" + point + "\""), std::string::npos) << results[0].failure;
    }
    if (!point.starts_with("trash")) expect_nothing_left(run.path);
    SingleProcess single;
    std::int64_t step = -1;
    choose_checkpoint(run.path, {}, single, [&](const CheckpointReader& reader) { step = reader.step(); }, {});
    EXPECT_TRUE(step == scenario.step || (step == scenario.earlier && !results[0].saved)) << point;
  }
  EXPECT_GE(failures, 16);
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, CrashTest,
                         testing::Values(Scenario{"First", -1, 5, 1}, Scenario{"Next", 4, 5, 1},
                                         Scenario{"SameStep", 5, 5, 1}, Scenario{"TwoRanks", 4, 5, 2}),
                         [](const auto& scenario) { return scenario.param.name; });

// A peer disappears in the middle of a save: the exchange fails on the others, and the error passes through.
TEST(Crash, LostPeer) {
  class LosesPeer final : public CheckpointGroup {
   public:
    int rank() const override { return 0; }
    int size() const override { return 2; }
    std::vector<std::string> gather(const std::string& text) override {
      if (++gathers == 2) fail(ExitCode::peer_lost, "rank 1 is gone");
      return {text, text};
    }
    std::string broadcast(const std::string& text) override { return text; }
    int gathers = 0;
  };
  const TemporaryRun run;
  ASSERT_TRUE(save(run.path, 1).saved);
  const TrainingState state(2);
  LosesPeer group;
  EXPECT_THROW(save_checkpoint(run.path, state.part(2, 0, 2), group, small_options()), Error);
  EXPECT_EQ(list_debris(run.path).size(), 1u);
  EXPECT_EQ(clean_debris(run.path).size(), 1u);
  EXPECT_EQ(resumed_step(run.path, {{1, 1}}), 1);
}

class DiskFullTest : public testing::Test {
 protected:
  static constexpr std::size_t kBytes = 2 << 20;

  // Leaves `left` bytes free.
  void fill(std::uint64_t left) {
    const std::uint64_t free = free_space(run).bytes;
    if (free > left) write_file_atomically(run / ("filler-" + random_nonce()), std::string(free - left, 'x'));
  }

  TemporaryRun outside;
  testing_support::SmallFilesystem small{outside.path / "small", kBytes};
  fs::path run = small.directory();
};

TEST_F(DiskFullTest, PreflightRefusesWithNumbers) {
  if (!small.mounted()) GTEST_SKIP() << "cannot mount a tmpfs: " << small.reason();
  ASSERT_TRUE(save(run, 1).saved);
  fill(64 << 10);
  const SaveResult result = save(run, 2);
  EXPECT_FALSE(result.saved);
  EXPECT_NE(
      result.failure.find("checkpoint of step 2 not saved: " + (run / "checkpoints").string() + " has 0.1 MiB free, "),
      std::string::npos)
      << result.failure;
  EXPECT_EQ(resumed_step(run, {{1, 1}}), 1);
  expect_nothing_left(run);
  // The default asks for a GiB to spare, which this file system never has.
  EXPECT_FALSE(save(run, 2, SaveOptions{}).saved);
}

TEST_F(DiskFullTest, MakesRoomFromDebrisAndOldCheckpoints) {
  if (!small.mounted()) GTEST_SKIP() << "cannot mount a tmpfs: " << small.reason();
  for (const int step : {1, 2, 3}) ASSERT_TRUE(save(run, step).saved);
  const fs::path debris = run / "checkpoints" / "step_0000000009.tmp-00aa";
  fs::create_directory(debris);
  write_file_atomically(debris / "shard_00000.h5.part", std::string(200 << 10, 'x'));
  fill(40 << 10);
  const SaveResult result = save(run, 4);
  EXPECT_TRUE(result.saved) << result.failure;
  ASSERT_FALSE(result.notes.empty());
  EXPECT_EQ(result.notes[0], "made room: removed " + debris.string());

  SaveOptions options = small_options();
  options.retention.keep_last = 1;
  fill(120 << 10);
  const SaveResult next = save(run, 5, options);
  EXPECT_TRUE(next.saved || next.failure.find("free") != std::string::npos) << next.failure;
  // Whatever was deleted, the newest valid one is there.
  const std::int64_t step = next.saved ? 5 : 4;
  EXPECT_EQ(resumed_step(run, {{step, static_cast<unsigned>(step)}}), step);
}

TEST_F(DiskFullTest, InodesRunOut) {
  const testing_support::SmallFilesystem few(outside.path / "few", kBytes, 20);
  if (!few.mounted()) GTEST_SKIP() << "cannot mount a tmpfs: " << few.reason();
  ASSERT_TRUE(save(few.directory(), 1).saved);
  for (std::uint64_t i = free_space(few.directory()).inodes; i > 5; --i) {
    write_file_atomically(few.directory() / fmt::format("filler-{}", i), std::string_view());
  }
  const SaveResult result = save(few.directory(), 2);
  EXPECT_FALSE(result.saved);
  EXPECT_NE(result.failure.find("has 5 inodes free, 18 are needed"), std::string::npos) << result.failure;
  EXPECT_EQ(resumed_step(few.directory(), {{1, 1}}), 1);
}

TEST_F(DiskFullTest, BecomesReadOnly) {
  if (!small.mounted()) GTEST_SKIP() << "cannot mount a tmpfs: " << small.reason();
  ASSERT_TRUE(save(run, 1).saved);
  ASSERT_TRUE(small.set_read_only(true));
  const SaveResult result = save(run, 2);
  EXPECT_FALSE(result.saved);
  EXPECT_NE(result.failure.find("Read-only file system"), std::string::npos) << result.failure;
  EXPECT_EQ(resumed_step(run, {{1, 1}}), 1);
  ASSERT_TRUE(small.set_read_only(false));
  EXPECT_TRUE(save(run, 2).saved);
}

// The disk fills up while the save is under way, at each of its points.
TEST_F(DiskFullTest, FillsUpDuringTheSave) {
  if (!small.mounted()) GTEST_SKIP() << "cannot mount a tmpfs: " << small.reason();
  ASSERT_TRUE(save(run, 1).saved);
  int failures = 0;
  for (int n = 1;; ++n) {
    std::string point;
    const SaveResult result = save(run, 2, hooked(at_point(n, [&](std::string_view at) {
                                     point = at;
                                     fill(0);
                                   })));
    if (point.empty()) break;
    for (const auto& entry : fs::directory_iterator(run)) {
      if (entry.path().filename().string().starts_with("filler")) fs::remove(entry.path());
    }
    expect_nothing_left(run);
    if (!result.saved) {
      ++failures;
      EXPECT_NE(result.failure.find("No space left on device"), std::string::npos) << point << ": " << result.failure;
      EXPECT_EQ(resumed_step(run, {{1, 1}}), 1);
    } else {
      EXPECT_EQ(resumed_step(run, {{2, 2}}), 2);
      fs::remove_all(run / "checkpoints" / "step_0000000002");
      ASSERT_TRUE(save(run, 1).saved);
    }
  }
  EXPECT_GE(failures, 2);
}

}  // namespace
}  // namespace weft::checkpoint_tests
