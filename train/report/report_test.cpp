#include "train/report/report.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <unistd.h>

#include "autograd/check.h"
#include "train/report/chart.h"

namespace weft {
namespace {

class Report : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::temp_directory_path() / ("weft_report_" + std::to_string(getpid()) + "_" +
                                                  ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string run(const std::string& name, const std::string& metrics, const std::string& recipe = {}) {
    const std::filesystem::path path = folder_ / name;
    std::filesystem::create_directories(path);
    std::ofstream(path / "metrics.jsonl", std::ios::binary) << metrics;
    if (!recipe.empty()) std::ofstream(path / "recipe.toml") << recipe;
    return path.string();
  }
  static std::string error_of(const std::string& run) {
    try {
      read_run(run);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      return error.what();
    }
    return "no error";
  }
  std::filesystem::path folder_;
};

std::string step_row(int step, double loss) {
  return fmt::format(
      "{{\"step\": {}, \"loss\": {}, \"lr\": 0.001, \"grad_norm\": {}, \"tokens\": {}, \"skipped\": {}, "
      "\"tokens_per_second\": 5000.5, \"seconds\": 0.25, \"mfu\": 0.5, \"phases\": {{\"data\": 0.01, \"forward\": "
      "0.08, "
      "\"backward\": 0.16}}}}\n",
      step, loss, 1.0 + 0.5 * std::sin(step), step * 1000, step == 7);
}

TEST_F(Report, ReadsRows) {
  const std::string path =
      run("a", "{\"run\": {\"name\": \"first\", \"references\": {\"bigram model\": 2.5}}}\n" + step_row(1, 5.5) +
                   step_row(2, 5.0) + "{\"step\": 2, \"val_loss\": 5.1, \"val_bits_per_byte\": 7.4}\n");
  const RunHistory history = read_run(path);
  EXPECT_EQ(history.name, "first");
  EXPECT_EQ(history.curve("loss").y, (std::vector<double>{5.5, 5.0}));
  EXPECT_EQ(history.curve("val_loss").x, std::vector<double>{2.0});
  EXPECT_EQ(history.phases, (std::vector<std::string>{"data", "forward", "backward"}));
  EXPECT_EQ(history.references.at(0), std::pair(std::string("bigram model"), 2.5));
  EXPECT_TRUE(history.curve("nothing").empty());
  EXPECT_EQ(history.unreadable_lines, 0);
}

TEST_F(Report, ResumedRowsReplaceLaterOnes) {
  const RunHistory history =
      read_run(run("a", step_row(1, 3) + step_row(2, 4) + step_row(3, 5) + step_row(2, 40) + step_row(3, 50)));
  EXPECT_EQ(history.curve("loss").x, (std::vector<double>{1, 2, 3}));
  EXPECT_EQ(history.curve("loss").y, (std::vector<double>{3, 40, 50}));
}

TEST_F(Report, TornAndHostileLines) {
  std::string deep = "{\"step\": 1, \"loss\": ";
  for (int i = 0; i < 30000; ++i) deep += '[';
  const RunHistory history = read_run(run(
      "a", step_row(1, 3) + "\n[1, 2]\nnonsense\n{\"step\": -4, \"loss\": 1}\n{\"step\": 1.5, \"loss\": 1}\n" + deep +
               "\n" + std::string(100000, 'x') + "\n{\"step\": 18446744073709551615, \"loss\": 1}\n" +
               "{\"step\": 2, \"loss\": null, \"lr\": \"high\", \"grad_norm\": 1e999, \"phases\": {\"a\": -1, \"b\": "
               "\"c\"}}\n{\"run\": [3]}\n{\"step\": 3, \"lo"));
  EXPECT_EQ(history.curve("loss").x, std::vector<double>{1.0});
  EXPECT_EQ(history.unreadable_lines, 9);
  EXPECT_NE(report_page({history}).find("9 lines of metrics.jsonl could not be read"), std::string::npos);
}

TEST_F(Report, FoldersThatAreNoRuns) {
  EXPECT_EQ(error_of((folder_ / "none").string()), (folder_ / "none").string() + " is no run: it has no metrics.jsonl");
  EXPECT_EQ(error_of(run("empty", "")), (folder_ / "empty/metrics.jsonl").string() + " has no row of metrics");
  EXPECT_THROW(write_report({}, (folder_ / "r.html").string()), Error);
  EXPECT_THROW(write_report(std::vector<std::string>(17, "x"), (folder_ / "r.html").string()), Error);
}

TEST_F(Report, TextsFromFilesAreEscaped) {
  const std::string path =
      run("a",
          "{\"run\": {\"name\": \"<script>alert(1)</script>\", \"references\": {\"</svg><b onload='x'>\": 2}}}\n" +
              step_row(1, 3) + "{\"step\": 2, \"loss\": 2, \"phases\": {\"\\\"><img>\": 0.5}}\n",
          "[run]\nname = \"</pre><script>\xff\x01\"\n");
  const std::string page = report_page({read_run(path)});
  for (const char* bad : {"<script>alert", "</svg><b", "\"><img>", "</pre><script>", "\xff", "\x01"}) {
    EXPECT_EQ(page.find(bad), std::string::npos) << bad;
  }
  EXPECT_NE(page.find("&lt;script&gt;alert(1)&lt;/script&gt;"), std::string::npos);
}

TEST_F(Report, PageIsSelfContainedAndComplete) {
  std::string rows = "{\"run\": {\"references\": {\"bigram model\": 2.5}}}\n";
  for (int step = 1; step <= 300; ++step) rows += step_row(step, 6.0 / (1 + 0.01 * step));
  rows += "{\"step\": 300, \"val_loss\": 1.6, \"val_bits_per_byte\": 2.3}\n";
  const std::string a = run("a", rows, "[run]\nsteps = 300\n");
  const std::string b = run("b", rows);
  const std::filesystem::path path = folder_ / "report.html";
  write_report({a, b, a}, path.string());
  std::ifstream file(path);
  const std::string page(std::istreambuf_iterator<char>(file), {});
  for (const char* part :
       {"<b>Loss</b>", "<b>Learning rate</b>", "<b>Gradient norm</b>", "<b>Throughput</b>", "Time by phase: a",
        "bigram model 2.500", "a validation", "b training", "a (2)", "1.6000 at 300", "[run]\nsteps = 300",
        "backward 64%", "1 min 15 s", "<td>50%</td>", "<td>1</td>"}) {
    EXPECT_NE(page.find(part), std::string::npos) << part;
  }
  for (const char* foreign : {"src=", "href=", "@import", "http://", "https://"}) {
    std::string found = page;
    const std::string name_space = "http://www.w3.org/2000/svg";
    while (found.find(name_space) != std::string::npos) found.erase(found.find(name_space), name_space.size());
    EXPECT_EQ(found.find(foreign), std::string::npos) << foreign;
  }
  for (const char* bad : {"nan", "inf,", "-nan"}) EXPECT_EQ(page.find(bad), std::string::npos) << bad;
}

TEST_F(Report, DegenerateCurves) {
  for (const std::string& rows :
       {step_row(0, 0), step_row(5, 3), step_row(1, 2) + step_row(2, 2),
        std::string(
            "{\"step\": 1, \"grad_norm\": 0, \"loss\": 1e300}\n{\"step\": 2, \"grad_norm\": -1, \"loss\": -1e300}\n"),
        std::string("{\"step\": 1000000000000000, \"loss\": 1, \"phases\": {\"a\": 0}}\n")}) {
    const std::string page = report_page({read_run(run("a", rows))});
    EXPECT_EQ(page.find("nan"), std::string::npos) << rows;
    EXPECT_EQ(page.find("=\"inf"), std::string::npos) << rows;
  }
}

TEST(Downsample, KeepsExtremesWithinTheLimit) {
  Series series;
  for (int i = 0; i < 100000; ++i) series.add(i, std::sin(i * 0.001));
  series.y[54321] = 99.0;
  series.y[77777] = -99.0;
  const Series small = downsample(series);
  EXPECT_LE(small.x.size(), 2000u);
  EXPECT_GE(small.x.size(), 1000u);
  EXPECT_TRUE(std::ranges::is_sorted(small.x));
  EXPECT_NE(std::ranges::find(small.y, 99.0), small.y.end());
  EXPECT_NE(std::ranges::find(small.y, -99.0), small.y.end());
  EXPECT_EQ(downsample(small).y, small.y);
  // Steps with a large gap.
  Series gap;
  for (int i = 0; i < 3000; ++i) gap.add(i < 2999 ? i : 1e12, i);
  EXPECT_EQ(downsample(gap).x.back(), 1e12);
}

TEST(ShortNumber, FewDigits) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(1234), "1234");
  EXPECT_EQ(short_number(25600), "25.6k");
  EXPECT_EQ(short_number(3.5e6), "3.5M");
  EXPECT_EQ(short_number(0.00012), "0.00012");
  EXPECT_EQ(short_number(-2.25), "-2.25");
}

}  // namespace
}  // namespace weft
