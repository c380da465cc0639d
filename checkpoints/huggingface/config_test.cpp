// Configs that are understood in more than one form, and those that are refused, each with its message.
#include <ctime>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <random>

#include "autograd/check.h"
#include "checkpoints/huggingface/rope_fields.h"
#include "checkpoints/huggingface/target.h"
#include "checkpoints/huggingface/tensor_map.h"
#include "data/storage/json.h"
#include "modules/rope_options.h"

namespace weft {
namespace {

using nlohmann::json;

json llama() {
  return {{"model_type", "llama"},    {"vocab_size", 96},       {"hidden_size", 32},
          {"intermediate_size", 48},  {"num_hidden_layers", 4}, {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"rms_norm_eps", 1e-5},   {"max_position_embeddings", 256}};
}

json with(json config, const json& changes) {
  for (const auto& [key, value] : changes.items()) config[key] = value;
  return config;
}

json without(json config, const char* key) {
  config.erase(key);
  return config;
}

json qwen(const char* type, const json& changes) {
  return with(with(llama(), {{"model_type", type}}), changes);
}

json layer_types(const char* linear) {
  return {linear, "full_attention", linear, "full_attention"};
}

json hybrid(const char* type) {
  json config =
      with(llama(), {{"model_type", type}, {"layer_types", layer_types("linear_attention")}, {"num_experts", 0}});
  if (std::string(type) != "qwen3_next") config.erase("num_experts");
  return config;
}

json minimax() {
  return with(hybrid("minimax"), {{"num_local_experts", 1}, {"block_size", 64}});
}

json kimi() {
  return with(hybrid("kimi_linear"),
              {{"mlp_layer_types", {"dense", "dense", "dense", "dense"}}, {"num_key_value_heads", nullptr}});
}

HubModel read(const json& config) {
  return hub_target_of(config, "m/config.json").read_config(config, "m/config.json");
}

const Options& options_of(const HubModel& hub, std::int64_t layer = 0) {
  return hub.model.choice(layer).options;
}

TEST(HubConfig, DefaultsAreThoseOfTheClass) {
  json config = llama();
  config.erase("num_key_value_heads");
  config.erase("max_position_embeddings");
  const HubModel hub = read(config);
  EXPECT_EQ(options_of(hub).integer("kv_heads"), 4);
  EXPECT_EQ(options_of(hub).integer("head_dim"), 8);
  EXPECT_EQ(options_of(hub).real("rope_base"), 10000.0);
  EXPECT_FALSE(options_of(hub).flag("qk_norm"));
  EXPECT_FALSE(hub.model.tied);
  EXPECT_EQ(hub.max_positions, 2048);
  EXPECT_EQ(hub.bos, 1);
  EXPECT_EQ(hub.eos, std::vector<std::int32_t>{2});
  EXPECT_EQ(read(with(llama(), {{"eos_token_id", nullptr}})).eos, std::vector<std::int32_t>{});

  config = qwen("qwen3", {});
  EXPECT_EQ(options_of(read(config)).integer("head_dim"), 128);
  EXPECT_TRUE(options_of(read(config)).flag("qk_norm"));
  config = qwen("mistral", {});
  EXPECT_EQ(options_of(read(config)).integer("window"), 4096);
  EXPECT_EQ(options_of(read(with(config, {{"sliding_window", nullptr}}))).integer("window"), 0);
  EXPECT_TRUE(options_of(read(qwen("qwen2", {}))).flag("bias"));
  EXPECT_FALSE(options_of(read(qwen("qwen2", {}))).flag("out_bias"));
}

// Those of transformers' configuration classes.
TEST(HubConfig, DefaultsOfHybridsAreThoseOfTheClass) {
  const auto bare = [](json config) {
    for (const char* key : {"max_position_embeddings", "num_key_value_heads", "rms_norm_eps"}) config.erase(key);
    return read(with(config, {{"num_attention_heads", config.at("model_type") == "kimi_linear" ? 32 : 8}}));
  };
  struct Case {
    json config;
    std::int64_t positions, kv_heads;
    double eps;
    std::int32_t bos;
    std::vector<std::int32_t> eos;
  };
  const std::vector<Case> cases = {{hybrid("qwen3_next"), 32768, 2, 1e-6, -1, {}},
                                   {hybrid("qwen3_5_text"), 32768, 4, 1e-6, -1, {}},
                                   {minimax(), 131072, 8, 1e-5, 1, {2}},
                                   {kimi(), 1048576, 0, 1e-5, 163584, {163586}}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.config.at("model_type").get<std::string>());
    const HubModel hub = bare(c.config);
    EXPECT_EQ(hub.max_positions, c.positions);
    EXPECT_EQ(hub.model.norm_eps, c.eps);
    EXPECT_EQ(hub.bos, c.bos);
    EXPECT_EQ(hub.eos, c.eos);
    if (c.kv_heads > 0) {
      EXPECT_EQ(options_of(hub, 1).integer("kv_heads"), c.kv_heads);
    }
  }
  // A field that is null is not absent.
  const HubModel none = read(with(minimax(), {{"bos_token_id", nullptr}, {"num_key_value_heads", nullptr}}));
  EXPECT_EQ(none.bos, -1);
  EXPECT_EQ(options_of(none, 1).integer("kv_heads"), 4);
}

// Whatever the class: fields of no meaning, and spellings of the same.
TEST(HubConfig, GeneralFieldsAreThoseOfAllClasses) {
  for (const json& config : {llama(), hybrid("qwen3_next"), minimax(), kimi()}) {
    SCOPED_TRACE(config.at("model_type").get<std::string>());
    const HubModel hub = read(with(config, {{"pad_token_id", -1},
                                            {"hidden_act", "swish"},
                                            {"tokenizer_class", "X"},
                                            {"_commit_hash", "0"},
                                            {"torchscript", false}}));
    EXPECT_EQ(hub.pad, -1);
  }
}

// A small config.json of many heads took minutes.
TEST(HubConfig, ManyHeadsHaveTheirRulesSoon) {
  const HubModel hub =
      read(with(hybrid("qwen3_next"), {{"num_hidden_layers", 512},
                                       {"layer_types", std::vector<std::string>(512, "linear_attention")},
                                       {"linear_num_key_heads", 1024},
                                       {"linear_num_value_heads", 1024}}));
  const std::clock_t begin = std::clock();
  EXPECT_GT(find_hub_target("qwen3_next")->tensors(hub.model).size(), 1000U);
  EXPECT_LT(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC, 5.0);
}

TEST(HubConfig, WindowsComeFromTheLayers) {
  const json used = {{"use_sliding_window", true}, {"sliding_window", 16}, {"max_window_layers", 3}};
  HubModel hub = read(qwen("qwen2", used));
  EXPECT_EQ(hub.model.pattern.size(), 4u);
  EXPECT_EQ(options_of(hub, 2).integer("window"), 0);
  EXPECT_EQ(options_of(hub, 3).integer("window"), 16);
  // Named layers prevail, and their shortest pattern is found.
  hub = read(qwen(
      "qwen3",
      with(used, {{"layer_types", {"full_attention", "sliding_attention", "full_attention", "sliding_attention"}}})));
  EXPECT_EQ(hub.model.pattern.size(), 2u);
  EXPECT_EQ(options_of(hub, 3).integer("window"), 16);
  EXPECT_EQ(read(qwen("qwen2", {{"sliding_window", 16}})).model.pattern.size(), 1u);
}

TEST(HubConfig, OldAndNewRotaryFieldsSayTheSame) {
  const json yarn = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 64}};
  const HubModel old = read(with(llama(), {{"rope_theta", 5e5}, {"rope_scaling", yarn}}));
  json parameters = yarn;
  parameters["rope_theta"] = 5e5;
  const HubModel recent = read(with(llama(), {{"rope_parameters", parameters}}));
  EXPECT_EQ(options_of(old).values(), options_of(recent).values());
  EXPECT_EQ(options_of(old).text("rope_scaling"), "yarn");
  const HubModel both =
      read(with(llama(), {{"rope_theta", 5e5}, {"rope_scaling", yarn}, {"rope_parameters", parameters}}));
  EXPECT_EQ(options_of(both).values(), options_of(recent).values());
  // By kind of layer.
  const json kinds = {{"full_attention", {{"rope_type", "default"}, {"rope_theta", 1e6}}},
                      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}};
  const HubModel hub = read(qwen(
      "qwen3",
      {{"use_sliding_window", true}, {"sliding_window", 16}, {"max_window_layers", 2}, {"rope_parameters", kinds}}));
  EXPECT_EQ(options_of(hub, 0).real("rope_base"), 1e6);
  EXPECT_EQ(options_of(hub, 3).real("rope_base"), 1e4);
}

TEST(HubConfig, RefusesWhatItDoesNotUnderstand) {
  struct Case {
    json config;
    std::string message;  // after the source
  };
  const auto rope = [](const json& parameters) { return with(llama(), {{"rope_parameters", parameters}}); };
  const std::vector<Case> cases = {
      {json::array(), ": expected an object"},
      {{{"vocab_size", 3}}, ": there is no model_type, a string"},
      {with(llama(), {{"model_type", "gemma2"}}), ": models of type gemma2 are not supported yet"},
      {with(llama(), {{"model_type", "jamba"}}), ": models of type jamba are not supported yet"},
      {with(llama(), {{"model_type", "mamba2"}}), ": models of type mamba2 are not supported yet"},
      {with(llama(), {{"model_type", "lama\n"}}), ": model_type \"lama?\" is none that weft reads: llama, qwen3"},
      {with(llama(), {{"hidden_size", nullptr}}), ": the field hidden_size is missing"},
      {with(llama(), {{"hidden_size", 70000}}), ": hidden_size = 70000: expected 1 to 65536"},
      {with(llama(), {{"hidden_size", "32"}}), ": hidden_size = \"32\": expected an integer"},
      {with(llama(), {{"num_hidden_layers", 1025}}), ": num_hidden_layers = 1025: expected 1 to 1024"},
      {with(llama(), {{"vocab_size", 0}}), ": vocab_size = 0: expected 1 to 4194304"},
      {with(llama(), {{"num_attention_heads", 5}}), ": num_attention_heads = 5 is not a multiple of"},
      {qwen("mistral", {{"num_attention_heads", 6}}),
       ": hidden_size = 32 is not a multiple of num_attention_heads = 6, and there is no head_dim"},
      {with(llama(), {{"num_attention_heads", 6}, {"head_dim", 8}}),
       ": hidden_size = 32 is not a multiple of num_attention_heads = 6, which transformers refuses in this class"},
      {with(llama(), {{"head_dim", 7}}), ": the heads are 7 wide"},
      {with(llama(), {{"hidden_act", "gelu"}}), ": hidden_act = \"gelu\": weft's feed-forward branch has silu"},
      {with(llama(), {{"attention_dropout", 0.1}}), ": attention_dropout = 0.1: expected 0 to 0"},
      {with(llama(), {{"pretraining_tp", 2}}), ": pretraining_tp = 2: only 1 is understood"},
      {with(llama(), {{"sliding_window", 16}}), ": sliding_window = 16: the class llama has no windows"},
      {with(llama(), {{"tie_word_embeddings", 1}}), ": tie_word_embeddings = 1: expected true or false"},
      {with(llama(), {{"logit_scale", 0.5}}), ": logit_scale = 0.5: a field that is not understood"},
      {with(llama(), {{"no_rope_layers", json::array({1, 0})}}), ": no_rope_layers = [1,0]: a field that is not"},
      {with(llama(), {{"quantization_config", {{"bits", 4}}}}), ": quantization_config = {\"bits\":4}: quantised"},
      {with(llama(), {{"partial_rotary_factor", 0.5}}), ": partial_rotary_factor = 0.5: only 1.0 is understood"},
      {with(llama(), {{"eos_token_id", "x"}}), ": eos_token_id = \"x\": expected a token id, or several"},
      {qwen("mistral", {{"attention_bias", true}}), ": attention_bias = true: only false is understood"},
      {qwen("qwen3", {{"mlp_bias", true}}), ": mlp_bias = true: only false is understood"},
      {qwen("qwen2", {{"layer_types", {"full_attention"}}}),
       ": layer_types = [\"full_attention\"]: expected 4 strings"},
      {qwen("qwen2", {{"layer_types", json::array({"full_attention", "x", "full_attention", "full_attention"})}}),
       ": layer_types = [\"full_attention\",\"x\",\"full_attention\",\"full_attention\"]: the class has "
       "full_attention"},
      {qwen("qwen2", {{"layer_types", json(std::vector<std::string>(4, "sliding_attention"))}}),
       ": layer_types = [\"sliding_attention\",\"sliding_attention\",\"sliding_attention\"...: sliding_attention "
       "without"},
      {qwen("mistral", {{"layer_types", json(std::vector<std::string>(4, "full_attention"))}}),
       ": layer_types = [\"full_attention\",\"full_attention\",\"full_attention\",\"full_at...: the class has the "
       "same"},
      {with(llama(), {{"\x1b[31m", 1}}), ": ?[31m = 1: a field that is not understood"},
      {with(hybrid("qwen3_next"), {{"layer_types", json(std::vector<std::string>(4, "full\x7f"))}}),
       ": layer_types = [\"full?\",\"full?\",\"full?\",\"full?\"]: expected linear_attention or full_attention, found "
       "\"full?\""},
      {rope({{"rope_type", "dynamic"}, {"factor", 2.0}}),
       ": rope_parameters: rope_type = \"dynamic\": its frequencies follow the length of each text"},
      {rope({{"rope_type", "longrope"}}),
       ": rope_parameters: rope_type = \"longrope\": weft computes default, linear, llama3 and yarn"},
      {rope({{"rope_type", "linear"}}), ": rope_parameters: the field factor is missing"},
      {rope({{"rope_type", "linear"}, {"factor", 0.5}}), ": rope_parameters: factor = 0.5: expected 1 to"},
      {rope({{"rope_type", "default"}, {"factor", 2.0}}), ": rope_parameters: factor = 2.0: a field that is not"},
      {rope({{"rope_type", "llama3"}, {"factor", 8.0}}), ": rope_parameters: the field low_freq_factor is missing"},
      {rope({{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 4.0}, {"high_freq_factor", 4.0}}),
       ": rope_parameters: low_freq_factor = 4.0: expected less than high_freq_factor"},
      {rope({{"rope_type", "yarn"}, {"factor", 8.0}, {"beta_slow", 40.0}}),
       ": rope_parameters: beta_slow = 40.0: expected less than beta_fast"},
      {rope({{"rope_type", "linear"}, {"type", "yarn"}, {"factor", 2.0}}),
       ": rope_parameters: type = \"yarn\": differs from rope_type"},
      {with(rope({{"rope_type", "default"}, {"rope_theta", 1e4}}), {{"rope_theta", 5e5}}),
       ": rope_parameters = {\"rope_theta\":10000.0,\"rope_type\":\"default\"}: differs from rope_theta"},
      {with(rope({{"rope_type", "default"}}), {{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}}),
       ": rope_parameters = {\"rope_type\":\"default\"}: differs from rope_scaling"},
      {with(kimi(), {{"intermediate_size", 0}}), ": intermediate_size = 0: expected 1 to"},
      {without(kimi(), "num_key_value_heads"),
       ": num_key_value_heads = 32, the class's default: expected num_attention_heads = 4"},
      {with(kimi(), {{"num_key_value_heads", 2}}), ": num_key_value_heads = 2: expected num_attention_heads = 4"},
      {with(kimi(), {{"pretraining_tp", 2}}), ": pretraining_tp = 2: only 1 is understood"},
      {with(minimax(), {{"intermediate_size", 0}}), ": intermediate_size = 0: expected 1 to"},
      {with(minimax(), {{"block_size", nullptr}}), ": the field block_size is missing"},
      {with(hybrid("qwen3_next"), {{"head_dim", 7}}),
       ": rope_parameters, of which there is none: 1 channels cannot turn in pairs"},
      {rope({{"rope_type", "yarn"}, {"factor", 8.0}, {"beta_fast", 0.5}}),
       ": rope_parameters: beta_slow, of which there is none: expected less than beta_fast"},
      {with(hybrid("qwen3_next"), {{"intermediate_size", 0}}), ": intermediate_size = 0: expected 1 to"},
      {with(llama(), {{"model_type", "weft"}, {"max_position_embeddings", nullptr}}),
       ": the field max_position_embeddings is missing"},
      {rope({{"full_attention", {{"rope_type", "default"}}}, {"other", 1}}),
       ": rope_parameters: other = 1: a field that is not understood"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.config.dump());
    try {
      read(c.config);
      ADD_FAILURE() << "accepted; expected " << c.message;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      EXPECT_TRUE(std::string(error.what()).starts_with("m/config.json" + c.message)) << error.what();
    }
  }
}

// Configs damaged at random: read or refused with a message that a terminal can show, and what is read has rules that
// hold its parameters.
TEST(HubConfigSweep, DamagedConfigsAreReadOrRefused) {
  std::vector<std::string> texts;
  for (const json& config :
       {with(llama(), {{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}, {"mscale", 0.7}, {"mscale_all_dim", 1}}}}),
        qwen("qwen3", {{"layer_types", json(std::vector<std::string>(4, "full_attention"))}, {"head_dim", 16}}),
        qwen("mistral", {{"sliding_window", 16}, {"eos_token_id", {2, 3}}}),
        qwen("qwen2", {{"rope_parameters", {{"rope_type", "linear"}, {"factor", 2}, {"rope_theta", 1e4}}}})}) {
    texts.push_back(config.dump());
  }
  const std::string alphabet = "0123456789.-eE\"{}[],:ntrufalse\x01\x7f\xc3\xa9 ";
  std::mt19937 random(7);
  int read_well = 0;
  for (int trial = 0; trial < 40000; ++trial) {
    std::string text = texts[static_cast<std::size_t>(trial) % texts.size()];
    const auto changes = 1 + random() % 3;
    for (unsigned long i = 0; i < changes; ++i) {
      const std::size_t at = random() % text.size();
      const char c = alphabet[random() % alphabet.size()];
      // Every other text stays JSON for the most part: only its numbers change.
      if (trial / 4 % 2 == 0) {
        const std::size_t digit = text.find_first_of("0123456789", at);
        if (digit != std::string::npos) text[digit] = alphabet[random() % 10];
        continue;
      }
      switch (random() % 3) {
        case 0:
          text[at] = c;
          break;
        case 1:
          text.insert(at, 1, c);
          break;
        default:
          text.erase(at, 1 + random() % 8);
      }
    }
    try {
      const json config = parse_strict(text, "damaged");
      const HubTarget& target = hub_target_of(config, "damaged");
      const HubModel hub = target.read_config(config, "damaged");
      ++read_well;
      if (hub.model.layers > 64) continue;
      LanguageModel model(hub.model);
      const TensorMap map(target.tensors(hub.model), model.parameters().all());
      EXPECT_TRUE(target.obstacles(hub.model).empty()) << text;
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == ExitCode::config || error.code() == ExitCode::storage) << error.what() << "\n"
                                                                                         << text;
      for (const char c : std::string_view(error.what())) {
        EXPECT_TRUE(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f) << error.what();
      }
    }
  }
  EXPECT_GT(read_well, 1000);
}

// Frequencies that transformers computes, in fp32.
TEST(HubRope, FrequenciesAreThoseOfTransformers) {
  const json cases = read_json_file("tests/golden/rope.json");
  EXPECT_EQ(cases.size(), 9u);
  for (const json& c : cases) {
    SCOPED_TRACE(c.at("name").get<std::string>());
    const json config = {{"rope_parameters", c.at("rope_parameters")}};
    ConfigReader reader(config, "golden");
    const HubRope rope = read_rope(reader, {"full_attention"}, 10000.0, 2048).front();
    const RopeConfig ours{.rotary_dim = c.at("head_dim"), .base = rope.theta, .scaling = rope.scaling};
    const std::vector<double> frequencies = rope_frequencies(ours);
    const std::vector<double> expected = c.at("frequencies");
    ASSERT_EQ(frequencies.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(frequencies[i] / expected[i], 1.0, 1e-6) << "channel " << i;
    }
    EXPECT_NEAR(rope_magnitude(ours), c.at("magnitude").get<double>(), 1e-6);
    // Written and read again, the same.
    json written;
    write_rope(written, rope);
    ConfigReader again(written, "written");
    EXPECT_EQ(read_rope(again, {"full_attention"}, 1.0, 2048).front(), rope);
  }
}

TEST(HubTargets, ObstaclesNameRecipeKeys) {
  LanguageModelConfig model = read(llama()).model;
  model.pattern.front().table = "[mixer.attention]";
  EXPECT_TRUE(find_hub_target("llama")->obstacles(model).empty());
  Options& options = model.pattern.front().options;
  options.set("sinks", std::int64_t{4});
  options.set("window", std::int64_t{8});
  options.set("bias", true);
  model.residual = Residual::post_norm_input;
  EXPECT_EQ(find_hub_target("llama")->obstacles(model),
            (std::vector<std::string>{
                "[mixer.attention]: sinks is set, which the class does not have",
                "[mixer.attention]: the class has bias and out_bias together or neither",
                "[mixer.attention]: window = 8, and the class has full attention",
                "model.residual = \"post_norm_input\": the class adds branches to what has not been normalised"}));
}

}  // namespace
}  // namespace weft
