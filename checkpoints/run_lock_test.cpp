#include "checkpoints/run_lock.h"

#include <atomic>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "checkpoints/checkpoint_test_support.h"

namespace weft::checkpoint_tests {
namespace {

class RunLockTest : public testing::Test {
 protected:
  std::unique_ptr<RunLock> take() {
    return std::make_unique<RunLock>(run.path, [this](const std::string& line) { lines.push_back(line); });
  }
  std::string refusal() {
    try {
      take();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      return error.what();
    }
    return "taken";
  }
  void write_lock(const std::string& text, std::int64_t age_seconds) {
    write_file_atomically(path, text);
    timespec times[2] = {{0, UTIME_OMIT}, {::time(nullptr) - age_seconds, 0}};
    ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  }

  TemporaryRun run;
  fs::path path = run.path / "run.lock";
  std::vector<std::string> lines;
  const std::string elsewhere =
      "{\"host\":\"node7\",\"nonce\":\"1\",\"pid\":1,\"process_start\":1,\"since\":\"2024-01-01\",\"space\":\"other\"}";
};

TEST_F(RunLockTest, SecondJobStops) {
  auto lock = take();
  EXPECT_TRUE(fs::exists(path));
  const std::string message = refusal();
  EXPECT_TRUE(
      message.starts_with("run " + run.path.string() + " is in use by process " + std::to_string(::getpid()) + " on "))
      << message;
  lock.reset();
  EXPECT_FALSE(fs::exists(path));
  EXPECT_EQ(refusal(), "taken");
  EXPECT_TRUE(lines.empty());
}

TEST_F(RunLockTest, DeadProcessLosesIt) {
  const pid_t child = ::fork();
  if (child == 0) {
    RunLock lock(run.path, {});
    ::raise(SIGKILL);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  ASSERT_TRUE(fs::exists(path));
  EXPECT_EQ(refusal(), "taken");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_TRUE(lines[0].starts_with("took over the lock of process " + std::to_string(child) + " on ")) << lines[0];
  EXPECT_TRUE(lines[0].ends_with(": process " + std::to_string(child) + " has ended")) << lines[0];
}

// Another process that has been given the number of the dead holder.
TEST_F(RunLockTest, ReusedProcessNumber) {
  {
    auto lock = take();
    std::string text = read_small_file(path, 4096);
    const auto at = text.find("\"process_start\":") + 16;
    write_file_atomically(path, text.substr(0, at) + "1" + text.substr(text.find(',', at)));
  }
  EXPECT_TRUE(fs::exists(path)) << "not ours any more, so not ours to remove";
  EXPECT_EQ(refusal(), "taken");
  EXPECT_EQ(lines.size(), 1u);
}

TEST_F(RunLockTest, OtherMachineIsJudgedByAge) {
  write_lock(elsewhere, 10);
  EXPECT_TRUE(
      refusal().starts_with("run " + run.path.string() + " is in use by process 1 on node7 since 2024-01-01 ("));
  write_lock(elsewhere, 400);
  EXPECT_EQ(refusal(), "taken");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_TRUE(lines[0].starts_with("took over the lock of process 1 on node7 since 2024-01-01: it was last renewed 40"))
      << lines[0];
}

TEST_F(RunLockTest, UnreadableContentIsJudgedByAge) {
  for (const char* text : {"", "rubbish", "[]", "{\"pid\":\"x\"}"}) {
    write_lock(text, 0);
    EXPECT_NE(refusal().find("is in use by an unknown process"), std::string::npos);
    write_lock(text, 400);
    EXPECT_EQ(refusal(), "taken");
  }
}

TEST_F(RunLockTest, OfManyTakersOneGetsIt) {
  for (int round = 0; round < 20; ++round) {
    write_lock(elsewhere, 400);
    std::atomic<int> taken = 0, done = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i) {
      threads.emplace_back([&] {
        try {
          const RunLock lock(run.path, {});
          ++taken;
          ++done;
          while (done < 8) std::this_thread::yield();
        } catch (const Error&) {
          ++done;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(taken, 1);
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(run.path), fs::directory_iterator()), 0);
}

TEST_F(RunLockTest, UnwritableRun) {
  try {
    RunLock lock(run.path / "none", {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::storage);
    EXPECT_NE(std::string(error.what()).find("No such file or directory"), std::string::npos);
  }
}

}  // namespace
}  // namespace weft::checkpoint_tests
