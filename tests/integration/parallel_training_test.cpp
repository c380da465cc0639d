// The same recipe on one, two and four ranks: the same data in the same order, and the same losses.

#include <cmath>
#include <gtest/gtest.h>

#include "tests/integration/program.h"

namespace weft::testing {
namespace {

constexpr double kRelative = 1e-5;

void expect_same_course(const StepHistory& a, const StepHistory& b) {
  ASSERT_EQ(a.losses.size(), b.losses.size());
  EXPECT_EQ(a.digests, b.digests);
  for (std::size_t i = 0; i < a.losses.size(); ++i) {
    EXPECT_NEAR(a.losses[i], b.losses[i], kRelative * std::abs(b.losses[i])) << "step " << i + 1;
  }
}

class ParallelTraining : public ::testing::Test {
 protected:
  void SetUp() override { make_dataset(workspace_); }

  // Trains `recipe` on so many ranks and returns the course of its run.
  StepHistory train(const std::string& name, int ranks, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"train", make_recipe(workspace_, name, 50)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const ProgramResult result = ranks == 1 ? weft(arguments) : run_program(mpirun(ranks, arguments));
    EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
    return step_history(workspace_ / ("runs/" + name));
  }

  Workspace workspace_;
};

TEST_F(ParallelTraining, TwoAndFourRanksFollowOne) {
  const StepHistory one = train("one", 1);
  ASSERT_EQ(one.losses.size(), 50U);
  EXPECT_LT(one.losses.back(), 0.7 * one.losses.front()) << "the model learns";
  {
    SCOPED_TRACE("two ranks");
    expect_same_course(train("two", 2), one);
  }
  {
    SCOPED_TRACE("four ranks");
    expect_same_course(train("four", 4), one);
  }
  {
    SCOPED_TRACE("one rank, accumulating over rows");
    expect_same_course(train("accumulated", 1, {"--set", "parallel.micro_batch_tokens=256"}), one);
  }
}

TEST_F(ParallelTraining, ACheckpointOfFourRanksGoesOnOnOneAndTwo) {
  const StepHistory one = train("one", 1);
  for (const int ranks : {1, 2}) {
    SCOPED_TRACE(ranks);
    const std::string name = "resharded" + std::to_string(ranks);
    // Stop after 25 steps, as the schedule of the whole run prescribes, then go on elsewhere.
    const std::string recipe = make_recipe(workspace_, name, 50, "[checkpoint]\nevery = 25\n");
    Program four(mpirun(4, {"train", recipe, "--set", "run.steps=25"}));
    ASSERT_EQ(four.wait().exit_code, 0);
    const ProgramResult result = ranks == 1 ? weft({"train", recipe}) : run_program(mpirun(ranks, {"train", recipe}));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("resumed from"), std::string::npos) << result.out;
    expect_same_course(step_history(workspace_ / ("runs/" + name)), one);
  }
}

TEST_F(ParallelTraining, RanksWithDifferentRecipesAreRefused) {
  const std::string a = make_recipe(workspace_, "a", 10);
  const std::string b = make_recipe(workspace_, "b", 11);
  std::vector<std::string> command = mpirun(1, {"train", a, ":", "-np", "1", WEFT_PROGRAM, "train", b});
  const ProgramResult result = run_program(command);
  EXPECT_EQ(result.exit_code, 2) << result.err;
  EXPECT_NE(result.err.find("recipe"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("rank"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace weft::testing
