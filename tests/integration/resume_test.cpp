// A run that is stopped, killed, or finds its newest checkpoint damaged goes on as if nothing had happened.

#include <csignal>
#include <fstream>
#include <gtest/gtest.h>
#include <random>
#include <thread>
#include <unistd.h>

#include "tests/integration/program.h"
#include "tests/support/small_filesystem.h"

namespace weft::testing {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

constexpr const char* kFrequentCheckpoints = "[checkpoint]\nevery = 5\n[validation]\nevery = 20\n";

bool saving(const fs::path& run) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", error)) {
    if (entry.path().filename().string().find(".tmp-") != std::string::npos) return true;
  }
  return false;
}

std::size_t step_rows(const fs::path& run) {
  const std::string text = read_text(run / "metrics.jsonl");
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

void wait_for_rows(Program& program, const fs::path& run, std::size_t rows) {
  while (program.running() && step_rows(run) < rows) std::this_thread::sleep_for(milliseconds(1));
}

class Resume : public ::testing::Test {
 protected:
  void SetUp() override { make_dataset(workspace_); }

  std::vector<std::string> uninterrupted(int steps, const std::string& extra) {
    const ProgramResult result = weft({"train", make_recipe(workspace_, "straight", steps, extra)});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return without_name(timeless_rows(workspace_ / "runs/straight"));
  }

  // The first row carries the run's name.
  static std::vector<std::string> without_name(std::vector<std::string> rows) {
    if (!rows.empty()) rows.erase(rows.begin());
    return rows;
  }

  Workspace workspace_;
};

TEST_F(Resume, KilledTwentyTimesAtRandomMoments) {
  constexpr int kSteps = 240;
  constexpr int kKills = 20;
  const std::vector<std::string> straight = uninterrupted(kSteps, kFrequentCheckpoints);
  ASSERT_EQ(straight.size(), kSteps + kSteps / 20U);

  const std::string recipe = make_recipe(workspace_, "killed", kSteps, kFrequentCheckpoints);
  const fs::path run = workspace_ / "runs/killed";
  std::mt19937 random(20260823);
  int kills_while_saving = 0;
  for (int kill = 0; kill < kKills; ++kill) {
    Program program({WEFT_PROGRAM, "train", recipe});
    // At a random moment, every other time while it saves; but not so late that the run ends before the last kill.
    const auto moment = std::chrono::steady_clock::now() + milliseconds(random() % 500);
    const auto latest = static_cast<std::size_t>((kill + 1) * kSteps / (kKills + 1));
    const bool while_saving = kill % 2 == 1;
    const auto is_time = [&] { return std::chrono::steady_clock::now() >= moment && (!while_saving || saving(run)); };
    while (program.running() && step_rows(run) < latest && !is_time()) {
    }
    kills_while_saving += saving(run) ? 1 : 0;
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
    program.kill(SIGKILL);
    const ProgramResult result = program.wait();
    ASSERT_EQ(result.exit_code, 128 + SIGKILL) << result.err;
  }
  EXPECT_GE(kills_while_saving, 3);
  const ProgramResult last = weft({"train", recipe});
  ASSERT_EQ(last.exit_code, 0) << last.err;
  EXPECT_EQ(without_name(timeless_rows(run)), straight);
  EXPECT_FALSE(saving(run)) << "debris of killed saves is removed";
}

TEST_F(Resume, StopsCleanlyOnSigterm) {
  const std::string settings = "[checkpoint]\nevery = 0\n";
  const std::vector<std::string> straight = uninterrupted(60, settings);
  const std::string recipe = make_recipe(workspace_, "stopped", 60, settings);
  const fs::path run = workspace_ / "runs/stopped";
  for (const int signal : {SIGTERM, SIGINT}) {
    Program program({WEFT_PROGRAM, "train", recipe});
    wait_for_rows(program, run, step_rows(run) + 10);
    program.kill(signal);
    const ProgramResult result = program.wait();
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("the same command goes on from here"), std::string::npos) << result.out;
  }
  // The last validation row is the only one: it comes at the end, and once, however often the command is given.
  for (int repeat = 0; repeat < 2; ++repeat) {
    ASSERT_EQ(weft({"train", recipe}).exit_code, 0);
    EXPECT_EQ(without_name(timeless_rows(run)), straight);
  }
}

TEST_F(Resume, ADamagedCheckpointIsFoundAndTheOneBeforeUsed) {
  const std::string settings = "[checkpoint]\nevery = 10\nkeep = 4\n";
  const std::vector<std::string> straight = uninterrupted(40, settings);
  const std::string recipe = make_recipe(workspace_, "damaged", 40, settings);
  const fs::path run = workspace_ / "runs/damaged";
  ASSERT_EQ(weft({"train", recipe}).exit_code, 0);

  const fs::path shard = run / "checkpoints/step_0000000040/shard_00000.h5";
  std::fstream file(shard, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(fs::file_size(shard) / 2));
  const int byte = file.peek();
  file.seekp(static_cast<std::streamoff>(fs::file_size(shard) / 2));
  file.put(static_cast<char>(byte ^ 1));
  file.close();

  const ProgramResult fsck = weft({"fsck", run.string()});
  EXPECT_EQ(fsck.exit_code, 7);
  const ProgramResult result = weft({"train", recipe});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("step_0000000040"), std::string::npos) << "the damage is reported: " << result.err;
  EXPECT_NE(result.out.find("resumed from " + (run / "checkpoints/step_0000000030").string()), std::string::npos)
      << result.out;
  EXPECT_EQ(without_name(timeless_rows(run)), straight);
}

// A small file system that fills up: saves fail, training goes on and says so; when there is room again, it saves.
TEST_F(Resume, AFullDiskDoesNotStopTraining) {
  const testing_support::SmallFilesystem disk(workspace_ / "disk", std::size_t{1200} << 20);
  if (!disk.mounted()) GTEST_SKIP() << "no small file system: " << disk.reason();
  const std::string recipe = make_recipe(workspace_, "full", 60, "[checkpoint]\nevery = 20\n");
  const fs::path ballast = disk.directory() / "ballast";
  // Saves want a gigabyte to spare.
  EXPECT_EQ(run_program({"fallocate", "-l", "300m", ballast.string()}).exit_code, 0);
  const fs::path run = disk.directory() / "full";
  Program program({WEFT_PROGRAM, "train", recipe, "--set", "run.out=" + disk.directory().string()});
  wait_for_rows(program, run, 30);
  fs::remove(ballast);
  const ProgramResult result = program.wait();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("the checkpoint was not saved"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("training goes on"), std::string::npos) << result.err;
  EXPECT_TRUE(fs::exists(run / "checkpoints/step_0000000060/manifest.json"));
  EXPECT_EQ(timeless_rows(run).size(), 1U + 60U + 1U);
}

}  // namespace
}  // namespace weft::testing
