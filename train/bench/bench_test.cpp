#include "train/bench/bench.h"

#include <filesystem>
#include <gtest/gtest.h>
#include <set>

namespace weft {
namespace {

constexpr BenchShape kSmall{.T = 256, .width = 64, .H = 8, .D = 8, .vocabulary = 97, .classes = 97};

std::vector<BenchRow> rows_of(const std::string& filter) {
  std::vector<BenchRow> rows;
  bench(
      {.filter = filter, .repeats = 1, .device = "cpu", .shape = kSmall},
      [](const DeviceSpeed& speed) {
        EXPECT_GT(speed.matrix_rate, 1e8);
        EXPECT_GT(speed.bandwidth, 1e7);
      },
      [&](const BenchRow& row, const DeviceSpeed&) { rows.push_back(row); });
  return rows;
}

TEST(Bench, EveryOperationHasCases) {
  for (const auto& folder : std::filesystem::directory_iterator("autograd/ops")) {
    if (!folder.is_directory()) continue;
    const std::string name = folder.path().filename().string();
    EXPECT_TRUE(std::filesystem::exists(folder.path() / (name + "_bench.cpp"))) << name;
  }
  std::set<std::string> names;
  for (const BenchCase& c : bench_cases(kSmall)) {
    EXPECT_TRUE(names.insert(c.name).second) << c.name << " twice";
    EXPECT_GT(c.forward.elements + c.forward.wide + c.forward.flops, 0.0) << c.name;
  }
}

TEST(Bench, TimesEveryCaseAndEveryMixer) {
  const std::vector<BenchRow> rows = rows_of("");
  EXPECT_EQ(rows.size(), 2 * (bench_cases(kSmall).size() + mixer_types().size()));
  for (const BenchRow& row : rows) EXPECT_GT(row.seconds, 0.0) << row.name;
}

TEST(Bench, ChoosesByName) {
  const std::vector<BenchRow> rows = rows_of("rms_norm");
  ASSERT_FALSE(rows.empty());
  for (const BenchRow& row : rows) EXPECT_NE(row.name.find("rms_norm"), std::string::npos) << row.name;
  EXPECT_THROW(rows_of("no such thing"), Error);
}

TEST(Bench, TheFloorIsTheSlowerOfProductsAndBytes) {
  const DeviceSpeed speed{.device = "", .matrix_rate = 100.0, .bandwidth = 10.0};
  EXPECT_EQ((BenchRow{.name = "", .flops = 300.0, .bytes = 20.0}.floor(speed)), 3.0);
  EXPECT_EQ((BenchRow{.name = "", .flops = 300.0, .bytes = 40.0}.floor(speed)), 4.0);
}

TEST(Bench, AStepIsTheSumOfItsOperations) {
  const Recipe recipe = load_recipe("modules/mixers/gla/tiny.toml",
                                    std::vector<std::string>{"run.device=cpu", "model.recompute=selective"});
  const StepBench step = bench_step(recipe, 64, 3);
  EXPECT_EQ(step.tokens, 1024);
  EXPECT_EQ(step.steps, 3);
  EXPECT_GT(step.seconds, 0.0);
  EXPECT_GT(step.utilisation(), 0.0);
  EXPECT_GT(step.optimizer_seconds, 0.0);
  double sum = 0.0;
  std::set<std::string> operations;
  for (const TapeProfile::Entry& entry : step.operations) {
    sum += entry.seconds;
    if (entry.backward) operations.insert(entry.op);
    // 4 micro-batches of 2 layers.
    if (entry.op == "gated_linear") {
      EXPECT_EQ(entry.calls, 8);
    }
  }
  EXPECT_NEAR(sum, step.forward_seconds + step.backward_seconds, 1e-9);
  for (const char* op : {"linear", "gated_linear", "add_rms_norm", "embedding", "cheap operations again"}) {
    EXPECT_TRUE(operations.contains(op)) << op;
  }
}

}  // namespace
}  // namespace weft
