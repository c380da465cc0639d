// Imported models on their way out again.
#include <filesystem>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "data/dataset_test_support.h"
#include "data/storage/json.h"
#include "train/hub/import_model.h"
#include "train/verbs/verbs.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using data_test::message_of;
using data_test::read_text;
using data_test::write_text;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

class ExportOfAnImport : public ::testing::Test {
 protected:
  ExportOfAnImport() {
    const fs::path base = folder_ / "base";
    fs::copy("tests/golden/models/qwen2", base, fs::copy_options::recursive);
    write_text(base / "tokenizer.json", R"({
      "version": "1.0", "decoder": {"type": "Fuse"},
      "model": {"type": "BPE", "unk_token": "?", "vocab": {"?": 0, "a": 1, "b": 2, "c": 3}, "merges": []}})");
    write_text(base / "generation_config.json", R"({"eos_token_id": [2, 3, 5]})");
    import_model(base, folder_ / "run", {});
  }
  ExportArguments arguments() const {
    return {.path = folder_ / "run", .out = folder_ / "out", .form = OutputForm::json};
  }
  json read(const char* name) const { return read_json_file(folder_ / ("out/" + std::string(name)), 1 << 20); }

  data_test::TemporaryFolder folder_;
};

TEST_F(ExportOfAnImport, KeepsEveryTokenThatEndsTexts) {
  run_export(arguments());
  EXPECT_EQ(read("config.json").at("eos_token_id"), json({2, 3, 5}));
  EXPECT_EQ(read("generation_config.json").at("eos_token_id"), json({2, 3, 5}));
}

TEST_F(ExportOfAnImport, SaysWhatItWasMadeFrom) {
  run_export(arguments());
  const std::string card = read_text(folder_ / "out/README.md");
  EXPECT_THAT(card, AllOf(HasSubstr("base_model: # fill in the id of base\n"), HasSubstr("Converted with weft"),
                          HasSubstr("The parameters are those of `base`")));
  EXPECT_THAT(card, Not(AnyOf(HasSubstr("Training data"), HasSubstr("0 steps"), HasSubstr("Trained with"))));
  EXPECT_EQ(read("weft_export.json").at("imported_from"), folder_ / "base");
}

TEST_F(ExportOfAnImport, MissesAnInterpreterBeforeItWritesAnything) {
  ExportArguments missing = arguments();
  missing.verify = "python";
  missing.python = folder_ / "no-python";
  EXPECT_EQ(message_of(ExitCode::config, [&] { run_export(missing); }),
            "--verify python: there is no " + missing.python +
                "; name an interpreter with --python PATH, or leave --verify out");
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(folder_ / "")) left.push_back(entry.path().filename());
  EXPECT_THAT(left, UnorderedElementsAre("base", "run"));
}

// An interpreter whose check has these figures.
class ExportCheckedElsewhere : public ExportOfAnImport {
 protected:
  ExportArguments with_figures(const json& figures) {
    ExportArguments checked = arguments();
    checked.verify = "python";
    checked.verify_seconds = 0.1;
    checked.python = folder_ / "python";
    checked.form = OutputForm::text;
    const json report = {{"torch", "2"}, {"transformers", "5"}, {"directories", {{"out", figures}}}};
    write_text(folder_ / "figures.json", report.dump());
    write_text(checked.python, "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = --report ] && cp " +
                                   (folder_ / "figures.json") + " \"$2\"; shift; done\nexit 0\n");
    fs::permissions(checked.python, fs::perms::owner_all);
    return checked;
  }
};

TEST_F(ExportCheckedElsewhere, FailsWhereNothingWasCompared) {
  const json all = {{"failures", json::array()}, {"sequences", 6}, {"greedy_tokens", 24}, {"texts", 100}};
  for (const char* lacking : {"sequences", "greedy_tokens", "texts"}) {
    json figures = all;
    figures.erase(lacking);
    EXPECT_THAT(message_of(ExitCode::storage, [&] { run_export(with_figures(figures)); }),
                HasSubstr("the check in Python compared nothing: no " + std::string(lacking)));
  }
}

TEST_F(ExportCheckedElsewhere, SaysWhatWasExcusedAndWhatWasNotCompared) {
  const json figures = {{"failures", json::array()},
                        {"sequences", 6},
                        {"greedy_tokens", 24},
                        {"greedy_excused", 1},
                        {"transformers_tokenizer", "not compared: needs sentencepiece and protobuf"}};
  ::testing::internal::CaptureStdout();
  run_export(with_figures(figures));
  EXPECT_THAT(::testing::internal::GetCapturedStdout(),
              HasSubstr("greedy text equal (1 excused), greedy_tokens 24, sequences 6, transformers_tokenizer not "
                        "compared: needs sentencepiece and protobuf\n"));
  EXPECT_EQ(read("weft_export.json").at("verification").at("python").at("figures").at("greedy_excused"), 1);
}

}  // namespace
}  // namespace weft
