#include "train/optimizers/parameter_groups.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

struct Model {
  ParameterStore store;
  std::vector<Parameter*> parameters;
  Model() {
    const auto add = [&](const std::string& name, const Shape& shape, ParameterKind kind) {
      store.declare(name, shape, kind, Init::constant(0));
    };
    add("embedding", {300, 128}, ParameterKind::embedding);
    for (const std::string layer : {"layers.0.", "layers.1."}) {
      add(layer + "mixer.wq", {128, 128}, ParameterKind::matrix);
      add(layer + "mixer.w_beta", {4, 128}, ParameterKind::matrix);
      add(layer + "mixer.a_log", {4}, ParameterKind::vector);
      add(layer + "mixer.conv_q", {128, 4}, ParameterKind::convolution);
    }
    add("head", {300, 128}, ParameterKind::head);
    parameters = store.all();
  }
};

std::string error_of(const OptimizerOptions& options) {
  Model model;
  try {
    plan_parameters(model.parameters, options);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "no error";
}

TEST(ParameterGroups, BuiltInDefaults) {
  Model model;
  OptimizerOptions options;
  options.rule = UpdateRule::muon;
  options.muon.learning_rate = 0.02;
  options.muon.weight_decay = 0.05;
  const std::vector<ParameterPlan> plans = plan_parameters(model.parameters, options);
  EXPECT_EQ(describe_plans(plans),
            "parameter              count  shape       rule   rate   decay  state bytes\n"
            "embedding              1      [300, 128]  adamw  0.001  0      307200\n"
            "layers.*.mixer.wq      2      [128, 128]  muon   0.02   0.05   131072\n"
            "layers.*.mixer.w_beta  2      [4, 128]    adamw  0.001  0.1    8192\n"
            "layers.*.mixer.a_log   2      [4]         adamw  0.001  0      64\n"
            "layers.*.mixer.conv_q  2      [128, 4]    adamw  0.001  0      8192\n"
            "head                   1      [300, 128]  adamw  0.001  0.1    307200\n");
}

TEST(ParameterGroups, FirstMatchWins) {
  Model model;
  OptimizerOptions options;
  options.groups = {{.match = "layers.1.*log", .lr_mult = 0.5, .wd_mult = 2.0},
                    {.match = "layers.?.mixer.a_log", .rule = UpdateRule::frozen},
                    {.match = "*.wq", .beta2 = 0.99}};
  const std::vector<ParameterPlan> plans = plan_parameters(model.parameters, options);
  EXPECT_EQ(plans[3].rule, UpdateRule::frozen);
  EXPECT_EQ(plans[3].state_bytes, 0);
  EXPECT_EQ(plans[7].rule, UpdateRule::adamw);
  EXPECT_DOUBLE_EQ(plans[7].learning_rate, 5e-4);
  EXPECT_DOUBLE_EQ(plans[7].weight_decay, 0.2);
  EXPECT_EQ(plans[1].beta2, 0.99);
  EXPECT_EQ(plans[1].weight_decay, 0.1);
}

TEST(ParameterGroups, Errors) {
  OptimizerOptions options;
  options.groups = {{.match = "*.wx"}};
  EXPECT_EQ(error_of(options),
            "optimizer.groups[0] (match = \"*.wx\") fits no parameter that earlier rules leave; names look like "
            "\"head\"");
  options.groups = {{.match = "*"}, {.match = "head"}};
  EXPECT_EQ(error_of(options),
            "optimizer.groups[1] (match = \"head\") fits no parameter that earlier rules leave; names look like "
            "\"head\"");
  options.groups = {{.match = "emb*", .rule = UpdateRule::muon}};
  EXPECT_EQ(error_of(options),
            "optimizer.groups[0] (match = \"emb*\"): muon needs a hidden matrix, and embedding [300, 128] is none; use "
            "adamw");
  options.rule = UpdateRule::muon;
  options.groups = {{.match = "*.wq", .split = 3}};
  EXPECT_EQ(error_of(options),
            "optimizer.groups[0] (match = \"*.wq\"): split = 3 does not divide the 128 rows of layers.0.mixer.wq");
}

TEST(ParameterGroups, Globs) {
  EXPECT_TRUE(glob_matches("*", ""));
  EXPECT_TRUE(glob_matches("a*b*c", "axxbyybc"));
  EXPECT_TRUE(glob_matches("layers.?.w", "layers.3.w"));
  EXPECT_FALSE(glob_matches("layers.?.w", "layers.13.w"));
  EXPECT_FALSE(glob_matches("w", "ww"));
  EXPECT_FALSE(glob_matches("", "w"));
  EXPECT_TRUE(glob_matches("w**", "w"));
  // Quadratic at worst.
  EXPECT_FALSE(glob_matches("*a*a*a*a*a*a*a*a*b", std::string(2000, 'a')));
}

TEST(AutomaticBeta2, HalfLifeOfSevenMillionTokens) {
  EXPECT_NEAR(automatic_beta2(524288), 0.95, 2e-3);
  EXPECT_NEAR(automatic_beta2(131072), 0.987, 5e-4);
  EXPECT_NEAR(automatic_beta2(32768), 0.997, 5e-4);
  EXPECT_EQ(automatic_beta2(100), 0.9995);
  EXPECT_EQ(automatic_beta2(1e9), 0.9);
}

}  // namespace
}  // namespace weft
