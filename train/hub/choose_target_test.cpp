#include "train/hub/choose_target.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "autograd/check.h"
#include "checkpoints/huggingface/common_fields.h"
#include "train/recipe/recipe.h"

namespace weft {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

LanguageModelConfig model(const std::string& path, const std::vector<std::string>& overrides = {}) {
  return language_model_config(load_recipe("recipes/models/" + path + ".toml", overrides), 257);
}

std::string refusal(const LanguageModelConfig& config, const std::string& name) {
  try {
    return "chosen: " + choose_target(config, name, "none").name;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
}

TEST(ChooseTarget, TakesTheFirstThatIsExact) {
  EXPECT_EQ(choose_target(model("qwen3_next"), "auto", "none").name, "qwen3_next");
  EXPECT_EQ(choose_target(model("kimi_linear"), "auto", "none").name, "kimi_linear");
  EXPECT_EQ(choose_target(model("minimax_transformers"), "auto", "none").name, "minimax");
  EXPECT_EQ(choose_target(model("minimax_01"), "auto", "none").name, "weft");
  EXPECT_EQ(choose_target(model("titans_mag"), "auto", "none").name, "weft");
}

TEST(ChooseTarget, TakesTheProfileThatTheRecipeNames) {
  EXPECT_EQ(choose_target(model("qwen3_next"), "auto", "weft").name, "weft");
  EXPECT_EQ(choose_target(model("qwen3_next"), "qwen3_next", "weft").name, "qwen3_next");
}

TEST(ChooseTarget, SaysWhyNot) {
  EXPECT_THAT(refusal(model("minimax_01"), "minimax"),
              AllOf(HasSubstr("minimax cannot express this model:\n  residual = \"pre_norm\" in [model]: "),
                    HasSubstr("[mixer.softmax]: rope_fraction = 0.5: the class turns whole heads; use 1")));
  EXPECT_THAT(refusal(model("qwen3_next"), "qwen"),
              HasSubstr("--to qwen: there is no such target; expected one of auto, "));
}

// Before training, each at its line.
TEST(ExportProfile, RefusesWhatTheTargetCannotExpress) {
  const std::string recipe = "recipes/models/qwen3_next.toml";
  EXPECT_NO_THROW(load_recipe(recipe));
  const auto problems = [&](const std::vector<std::string>& overrides) -> std::string {
    try {
      load_recipe(recipe, overrides);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  const std::vector<std::string> changed{"mixer.gated.gate=none", "model.residual=post_norm_input",
                                         "mixer.gdn.norm_eps=1e-5"};
  EXPECT_THAT(
      problems(changed),
      AllOf(HasSubstr("--set model.residual=post_norm_input: residual = \"post_norm_input\" in [model]: the class "
                      "adds branches to the input before its norm; use \"pre_norm\" (export_profile = "
                      "\"qwen3_next\")"),
            HasSubstr("[mixer.gdn]: norm_eps = 1e-05: the class has one epsilon"),
            HasSubstr("[mixer.gated]: gate = \"none\": the class gates every channel")));
  std::vector<std::string> free = changed;
  free.emplace_back("model.export_profile=none");
  EXPECT_EQ(problems(free), "accepted");
  free.back() = "model.export_profile=weft";
  EXPECT_EQ(problems(free), "accepted");
  free.back() = "model.export_profile=gpt";
  EXPECT_THAT(problems(free), AllOf(HasSubstr("export_profile"), HasSubstr("qwen3_next"), Not(HasSubstr("accepted"))));
}

}  // namespace
}  // namespace weft
