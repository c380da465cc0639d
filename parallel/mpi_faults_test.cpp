// Runs of several processes in which something goes wrong: how they end, seen from outside.
#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <gtest/gtest.h>
#include <string>
#include <sys/wait.h>

namespace weft {
namespace {

struct Ending {
  int exit_code;
  std::string output;
  double seconds;
};

Ending run_under_mpirun(int ranks, const std::string& fault) {
  const std::filesystem::path program =
      std::filesystem::read_symlink("/proc/self/exe").parent_path() / "parallel_mpi_tests";
  const std::string command =
      "timeout 60 env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
      "ASAN_OPTIONS=detect_leaks=0 mpirun --oversubscribe -np " +
      std::to_string(ranks) + " '" + program.string() + "' --fault " + fault + " 2>&1";
  const auto begin = std::chrono::steady_clock::now();
  Ending ending{-1, "", 0.0};
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return ending;
  std::array<char, 4096> buffer;
  while (const std::size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe))
    ending.output.append(buffer.data(), n);
  const int status = pclose(pipe);
  ending.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  ending.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return ending;
}

void expect_ending(const std::string& fault, int exit_code, const std::string& message) {
  const Ending ending = run_under_mpirun(2, fault);
  EXPECT_EQ(ending.exit_code, exit_code) << ending.output;
  EXPECT_NE(ending.output.find(message), std::string::npos) << ending.output;
  EXPECT_LT(ending.seconds, 30.0);
}

TEST(MpiFaults, NoFault) {
  expect_ending("none", 0, "");
}

TEST(MpiFaults, RankThatThrowsEndsTheRunWithItsCode) {
  expect_ending("throws", 7, "error on rank 1: disk full");
}

TEST(MpiFaults, RankThatHangsEndsInATimeout) {
  expect_ending("hangs", 6,
                "error on rank 0: rank 0: all_reduce #3 (400 bytes of f32) of group 'world' timed out after "
                "0.5 s (issued ");
}

TEST(MpiFaults, FlightRecorderIsPrinted) {
  expect_ending("hangs", 6, "s ago  world: all_reduce #3 (400 bytes of f32), not complete");
}

TEST(MpiFaults, RankThatIsKilledEndsTheRun) {
  expect_ending("killed", 137, "signal 9");
}

TEST(MpiFaults, OutOfOrderCallsAreFoundBeforeTheDeadline) {
  expect_ending("out_of_order", 1,
                "ranks issue different operations: rank 0 called all_reduce #3 (400 bytes of f32), rank 1 called "
                "all_gather #3; all ranks");
}

TEST(MpiFaults, MessagesOfAnotherLengthAreMismatches) {
  expect_ending(
      "longer_message", 1,
      "rank 0 called all_reduce #3 (400 bytes of f32), rank 1 called all_reduce #3 with a message of more than "
      "400 bytes where 400 are due");
  expect_ending(
      "shorter_message", 1,
      "rank 0 called all_reduce #3 (400 bytes of f32), rank 1 called all_reduce #3 with a message of 396 bytes "
      "where 400 are due");
}

TEST(MpiFaults, RankThatNeverLeavesEndsInATimeout) {
  expect_ending("never_leaves", 6, "while leaving: rank 0: barrier #3 of group 'world' timed out after 0.5 s");
}

TEST(MpiFaults, MessagesInPiecesGiveTheSameResults) {
  const Ending ending = run_under_mpirun(2, "pieces");
  EXPECT_EQ(ending.exit_code, 0) << ending.output;
}

}  // namespace
}  // namespace weft
