// Killed at any moment and started again, prepare ends with the same bytes.
#include <chrono>
#include <cstdio>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdexcept>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "autograd/philox.h"
#include "data/dataset.h"
#include "data/prepare/prepare.h"
#include "data/prepare/prepare_test_support.h"

namespace weft {
namespace {

using namespace data_test;

std::string some_text(std::uint64_t seed, std::size_t bytes) {
  RandomWords words(seed, RandomStream::test, 0);
  std::string text;
  while (text.size() < bytes) {
    for (std::uint64_t n = words.below(300); n > 0; --n) text += "abcdefghij \n"[words.below(12)];
    text += words.below(50) == 0 ? "\xFF\n\n" : "\n\n";
  }
  return text;
}

PrepareOptions crash_options(const TemporaryFolder& folder, const std::string& out) {
  PrepareOptions options;
  options.out = folder / out;
  options.inputs = {folder / "a.txt", folder / "b.txt"};
  options.split = TextSplit::blank;
  options.threads = 2;
  options.dedup_exact = true;
  options.validation_every = 20;
  options.shard_tokens = 1 << 20;
  options.checkpoint_bytes = 1 << 19;
  return options;
}

// Starts prepare in a child and kills it after `delay`, if it still runs. True if it was killed.
bool run_and_kill(const PrepareOptions& options, std::chrono::microseconds delay) {
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("cannot fork");
  if (child == 0) {
    try {
      prepare(options);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      ::_exit(3);
    }
    ::_exit(0);
  }
  std::this_thread::sleep_for(delay);
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_FALSE(WIFEXITED(status) && WEXITSTATUS(status) != 0) << "prepare failed";
  return WIFSIGNALED(status);
}

TEST(PrepareCrash, KilledAnywhereGivesTheSameBytes) {
  const TemporaryFolder folder;
  write_text(folder / "a.txt", some_text(1, 3 << 20));
  write_text(folder / "b.txt", some_text(2, 2 << 20));
  PrepareOptions options = crash_options(folder, "reference");
  const auto start = std::chrono::steady_clock::now();
  prepare(options);
  const auto duration = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start);
  const auto reference = content_of(folder / "reference");
  const auto validation = content_of(folder / "reference-validation");
  ASSERT_GT(reference.size(), 5u);

  RandomWords words(3, RandomStream::test, 0);
  int killed = 0;
  int resumed = 0;
  for (int trial = 0; trial < 10; ++trial) {
    options.out = folder / ("out" + std::to_string(trial));
    // Twice in a row, so that a resumed run is interrupted, too.
    for (int kill = 0; kill < 2; ++kill) {
      if (std::filesystem::exists(options.out)) break;
      killed +=
          run_and_kill(options, std::chrono::microseconds(words.below(static_cast<std::uint64_t>(duration.count()))));
    }
    if (!std::filesystem::exists(options.out) || std::filesystem::exists(options.out + ".partial/journal")) {
      options.threads = 1 + trial % 3;  // may change between the attempts
      options.memory = (16 + trial) << 20;
      resumed += prepare(options).resumed;
    }
    ASSERT_TRUE(content_of(options.out) == reference) << trial;
    ASSERT_TRUE(content_of(options.out + "-validation") == validation) << trial;
    ASSERT_FALSE(std::filesystem::exists(options.out + ".partial/journal"));
    std::filesystem::remove_all(options.out);
    std::filesystem::remove_all(options.out + "-validation");
  }
  EXPECT_GE(killed, 5);
  EXPECT_GE(resumed, 3);
}

TEST(PrepareCrash, TornJournalIsCutOff) {
  const TemporaryFolder folder;
  write_text(folder / "a.txt", some_text(1, 3 << 20));
  write_text(folder / "b.txt", some_text(2, 1 << 20));
  PrepareOptions options = crash_options(folder, "reference");
  prepare(options);
  const auto reference = content_of(folder / "reference");
  options.out = folder / "out";
  // Stop in the middle of the first pass.
  EXPECT_THROW(prepare(options,
                       [](const PrepareProgress& p) {
                         if (p.done > 0) throw std::runtime_error("stop");
                       }),
               std::runtime_error);
  const std::string journal = folder / "out.partial/journal";
  const std::string text = read_text(journal);
  write_text(journal, text + text.substr(text.rfind('\n', text.size() - 2) + 1, 40));
  write_text(folder / "out.partial/spill-0000.tokens",
             read_text(folder / "out.partial/spill-0000.tokens") + "left over");
  EXPECT_TRUE(prepare(options).resumed);
  EXPECT_TRUE(content_of(folder / "out") == reference);
}

TEST(PrepareCrash, OtherOptionsOrInputsAreRefused) {
  const TemporaryFolder folder;
  write_text(folder / "a.txt", some_text(1, 1 << 20));
  write_text(folder / "b.txt", some_text(2, 1 << 20));
  PrepareOptions options = crash_options(folder, "out");
  EXPECT_THROW(prepare(options, [](const PrepareProgress&) { throw std::runtime_error("stop"); }), std::runtime_error);
  const std::string expected = (folder / "out.partial") +
                               " is from an interrupted run with other options or inputs; remove it, or run the same "
                               "command again";
  options.shuffle_seed = 7;
  EXPECT_EQ(message_of(ExitCode::config, [&] { prepare(options); }), expected);
  options.shuffle_seed = 0;
  write_text(folder / "b.txt", "changed");
  EXPECT_EQ(message_of(ExitCode::config, [&] { prepare(options); }), expected);
}

// A run without an entry in the journal is done again, and leaves nothing behind when its options change.
TEST(PrepareCrash, ShortRunsStartAnew) {
  const TemporaryFolder folder;
  write_text(folder / "a.txt", some_text(1, 3 << 20));
  write_text(folder / "b.txt", some_text(2, 1 << 20));
  PrepareOptions options = crash_options(folder, "out");
  options.checkpoint_bytes = 1 << 30;
  const pid_t child = ::fork();
  if (child == 0) {
    prepare(options, [](const PrepareProgress&) { ::raise(SIGKILL); });
    ::_exit(0);
  }
  ASSERT_GT(child, 0);
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  ASSERT_TRUE(std::filesystem::exists(folder / "out.partial/journal"));
  write_text(folder / "out.partial/dataset/tokens-00003.h5", "a shard that the other options do not have");
  options.shard_tokens = 1 << 30;
  options.validation_every = 0;
  EXPECT_FALSE(prepare(options).resumed);
  const auto files = content_of(folder / "out");
  EXPECT_EQ(files.size(), 2u);
  EXPECT_TRUE(files.contains("tokens-00000.h5"));
  EXPECT_FALSE(std::filesystem::exists(folder / "out.partial"));
}

}  // namespace
}  // namespace weft
