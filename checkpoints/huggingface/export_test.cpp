// Exports of tiny models, as every class that weft writes but those of the Llama family, which have golden files.
#include "checkpoints/huggingface/export.h"

#include <cstring>
#include <fstream>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/common_fields.h"
#include "checkpoints/huggingface/remote_code.h"
#include "checkpoints/huggingface/write_tokenizer.h"
#include "checkpoints/safetensors/reader.h"
#include "data/dataset_test_support.h"
#include "data/storage/json.h"
#include "data/storage/utf8.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Choices = std::vector<MixerChoice>;

LanguageModelConfig tiny(Choices pattern, std::int64_t layers) {
  LanguageModelConfig model{
      .vocabulary = 37, .width = 12, .layers = layers, .ffn_hidden = 20, .pattern = std::move(pattern)};
  model.max_tokens = 64;
  return model;
}

// Sizes differ wherever a class lets them, so that no two can be taken for each other.
LanguageModelConfig gated_delta() {
  const MixerChoice gdn = mixer_choice("gdn",
                                       {{"heads", std::int64_t{2}},
                                        {"value_heads", std::int64_t{6}},
                                        {"head_dim", std::int64_t{4}},
                                        {"value_dim", std::int64_t{3}},
                                        {"conv_width", std::int64_t{3}},
                                        {"norm_eps", 1e-6}},
                                       "recipe");
  const MixerChoice gated = mixer_choice("attention",
                                         {{"heads", std::int64_t{4}},
                                          {"kv_heads", std::int64_t{2}},
                                          {"head_dim", std::int64_t{10}},
                                          {"rope_fraction", 0.5},
                                          {"rope_base", 5000.0},
                                          {"gate", std::string("elementwise")}},
                                         "recipe");
  return tiny({gdn, gdn, gated}, 4);
}

LanguageModelConfig minimax() {
  const MixerChoice lightning =
      mixer_choice("lightning", {{"heads", std::int64_t{3}}, {"head_dim", std::int64_t{6}}}, "recipe");
  const MixerChoice softmax = mixer_choice("attention",
                                           {{"heads", std::int64_t{3}},
                                            {"kv_heads", std::int64_t{1}},
                                            {"head_dim", std::int64_t{6}},
                                            {"qk_norm", false},
                                            {"window", std::int64_t{5}}},
                                           "recipe");
  LanguageModelConfig model = tiny({lightning, softmax}, 3);
  model.residual = Residual::post_norm_input;
  model.norm_eps = 1e-5;
  return model;
}

LanguageModelConfig kimi() {
  const MixerChoice kda = mixer_choice("kda",
                                       {{"heads", std::int64_t{3}},
                                        {"head_dim", std::int64_t{4}},
                                        {"gate", std::string("softplus")},
                                        {"gate_bias", false}},
                                       "recipe");
  const MixerChoice mla = mixer_choice("mla",
                                       {{"heads", std::int64_t{2}},
                                        {"latent_dim", std::int64_t{5}},
                                        {"content_dim", std::int64_t{4}},
                                        {"shared_dim", std::int64_t{2}},
                                        {"value_dim", std::int64_t{3}},
                                        {"query_latent_dim", std::int64_t{7}},
                                        {"rope", false}},
                                       "recipe");
  LanguageModelConfig model = tiny({kda, kda, mla}, 4);
  model.norm_eps = 1e-5;
  model.tied = false;
  return model;
}

MixerChoice fla_softmax() {
  return mixer_choice(
      "attention",
      {{"heads", std::int64_t{2}}, {"kv_heads", std::int64_t{1}}, {"qk_norm", false}, {"window", std::int64_t{9}}},
      "recipe");
}

LanguageModelConfig fla_kda() {
  const MixerChoice kda = mixer_choice("kda",
                                       {{"heads", std::int64_t{3}},
                                        {"head_dim", std::int64_t{4}},
                                        {"value_dim", std::int64_t{6}},
                                        {"lower_bound", -4.0},
                                        {"negative_eigenvalues", true},
                                        {"norm_eps", 1e-6}},
                                       "recipe");
  return tiny({kda, fla_softmax()}, 3);
}

LanguageModelConfig fla_gdn() {
  LanguageModelConfig model = gated_delta();
  for (const std::size_t i : {std::size_t{0}, std::size_t{1}}) {
    model.pattern[i].options.set("conv_width", std::int64_t{0});
    model.pattern[i].options.set("value_dim", std::int64_t{6});
  }
  model.pattern[2] = fla_softmax();
  return model;
}

LanguageModelConfig of_no_class() {
  const MixerChoice based = mixer_choice("based", {}, "recipe");
  const MixerChoice window =
      mixer_choice("attention", {{"heads", std::int64_t{2}}, {"window", std::int64_t{8}}}, "recipe");
  const MixerChoice full = mixer_choice("attention", {{"heads", std::int64_t{3}}, {"sink_logit", true}}, "recipe");
  return tiny({based, window, full}, 3);
}

struct Case {
  const char* target;
  LanguageModelConfig (*model)();
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.target;
}

// A model whose every parameter is away from its first value, and a folder to export it to.
class Subject {
 public:
  explicit Subject(const Case& c, std::int64_t positions = 64)
      : target(*find_hub_target(c.target)),
        hub{.model = c.model(), .max_positions = positions, .bos = 1, .eos = {2, 3}, .pad = -1},
        model(hub.model) {
    model.initialise(3, DType::f32);
    std::uint32_t state = 1;
    for (Parameter* p : model.parameters().all()) {
      for (float& value : p->value.span<float>()) {
        state = state * 1664525U + 1013904223U;
        value += 0.3F * (static_cast<float>(state >> 8) * 0x1p-24F - 0.5F);
      }
    }
  }

  ExportSource source() { return {.target = target, .hub = hub, .model = model, .tokenizer = nullptr}; }
  void write(SafetensorsDType dtype, std::uint64_t shard_bytes = kDefaultShardBytes) {
    write_export(source(), {.dtype = dtype, .shard_bytes = shard_bytes, .card = "A card.\n"}, path());
    round_to_files(source(), dtype);
  }
  std::string rejection() {
    try {
      check_export(source(), path());
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }
  fs::path path() const { return fs::path(folder / "x").parent_path(); }
  fs::path operator/(const char* name) const { return path() / name; }

  const HubTarget& target;
  HubModel hub;
  LanguageModel model;
  data_test::TemporaryFolder folder;
};

std::string bytes_of(const fs::path& path) {
  return read_small_file(path, std::uint64_t{1} << 26);
}

class ExportTest : public ::testing::TestWithParam<Case> {};

TEST_P(ExportTest, HasNoObstacles) {
  EXPECT_THAT(find_hub_target(GetParam().target)->obstacles(GetParam().model()), IsEmpty());
}

TEST_P(ExportTest, IsRereadAsTheSameModel) {
  for (const SafetensorsDType dtype : {SafetensorsDType::f32, SafetensorsDType::bf16, SafetensorsDType::f16}) {
    Subject subject(GetParam());
    subject.write(dtype);
    const Reread reread = check_export(subject.source(), subject.path());
    EXPECT_LE(reread.max_difference, 1e-6 * reread.largest_logit) << name_of(dtype);
    EXPECT_GT(reread.largest_logit, 0.01);
  }
}

TEST_P(ExportTest, KeepsLengthsAndSpecialTokens) {
  Subject subject(GetParam(), 777);
  subject.write(SafetensorsDType::bf16);
  const nlohmann::json config = read_json_file((subject / "config.json").string());
  const HubModel hub = subject.target.read_config(config, "config.json");
  EXPECT_EQ(hub.max_positions, 777);
  EXPECT_EQ(hub.bos, 1);
  EXPECT_THAT(hub.eos, ElementsAre(2, 3));
  EXPECT_EQ(hub.pad, -1);
  EXPECT_EQ(config.at("dtype"), "bfloat16");
  const nlohmann::json generation = read_json_file((subject / "generation_config.json").string());
  EXPECT_EQ(generation.at("eos_token_id"), nlohmann::json({2, 3}));
  EXPECT_FALSE(generation.contains("pad_token_id"));
}

TEST_P(ExportTest, GivesTheSameBytesAgain) {
  Subject first(GetParam()), second(GetParam());
  for (Subject* subject : {&first, &second}) {
    write_export(subject->source(), {.dtype = SafetensorsDType::bf16, .card = "A card.\n"}, subject->path());
  }
  std::size_t files = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(first.path())) {
    ++files;
    EXPECT_EQ(bytes_of(entry.path()), bytes_of(second.path() / entry.path().filename())) << entry.path();
  }
  EXPECT_GE(files, 4U);
}

// Any element of any tensor that weft reads.
TEST_P(ExportTest, IsRefusedWithACorruptedTensor) {
  Subject subject(GetParam());
  subject.write(SafetensorsDType::f32);
  const fs::path path = subject / "model.safetensors";
  const std::string original = bytes_of(path);
  const SafetensorsFile file(path);
  std::uint64_t header = 0;
  std::memcpy(&header, original.data(), sizeof header);
  for (const SafetensorsEntry& entry : file.entries()) {
    std::string damaged = original;
    // Inside the mantissa of the tensor's last element.
    damaged[8 + header + entry.end - 2] = static_cast<char>(damaged[8 + header + entry.end - 2] ^ 0x40);
    std::ofstream(path, std::ios::binary) << damaged;
    if (entry.name.ends_with("block_sparse_moe.gate.weight")) {
      // The softmax over one expert is 1 whatever its weight.
      EXPECT_EQ(subject.rejection(), "accepted") << entry.name;
      continue;
    }
    EXPECT_NE(subject.rejection(), "accepted") << entry.name;
  }
  std::ofstream(path, std::ios::binary) << original;
  EXPECT_EQ(subject.rejection(), "accepted");
}

INSTANTIATE_TEST_SUITE_P(Classes, ExportTest,
                         ::testing::Values(Case{"qwen3_next", gated_delta}, Case{"qwen3_5_text", gated_delta},
                                           Case{"minimax", minimax}, Case{"kimi_linear", kimi},
                                           Case{"weft", gated_delta}, Case{"weft", minimax}, Case{"weft", kimi},
                                           Case{"weft", of_no_class}, Case{"fla_kda", fla_kda},
                                           Case{"fla_gated_deltanet", fla_gdn}),
                         [](const auto& test) { return fmt::format("{}_{}", test.param.target, test.index); });

TEST(ExportGate, NamesTheElementThatIsAnother) {
  Subject subject({"weft", kimi});
  subject.write(SafetensorsDType::f32);
  subject.model.parameters().find("layers.1.mixer.wk")->value.span<float>()[5] += 1.0F;
  EXPECT_THAT(subject.rejection(), HasSubstr("reread, the model is another: element 5 of layers.1.mixer.wk is "));
}

// Equal parameters under a config that says something else.
TEST(ExportGate, ComparesLogits) {
  Subject subject({"qwen3_next", gated_delta});
  subject.write(SafetensorsDType::f32);
  nlohmann::json config = read_json_file((subject / "config.json").string());
  config["rope_parameters"]["rope_theta"] = 400.0;
  std::ofstream(subject / "config.json") << config.dump();
  EXPECT_THAT(subject.rejection(), HasSubstr("reread, the parameters are equal but logits differ by "));
}

TEST(ExportGate, NoticesMissingAndForeignTensors) {
  Subject subject({"kimi_linear", kimi});
  subject.write(SafetensorsDType::f32);
  nlohmann::json config = read_json_file((subject / "config.json").string());
  config["num_hidden_layers"] = 3;
  config["layer_types"].erase(3);
  config["mlp_layer_types"].erase(3);
  std::ofstream(subject / "config.json") << config.dump();
  EXPECT_THAT(subject.rejection(), HasSubstr("model.layers.3."));
}

TEST(Export, WritesSeveralFilesAboveTheShardSize) {
  Subject subject({"weft", kimi});
  subject.write(SafetensorsDType::f32, 4096);
  EXPECT_TRUE(fs::exists(subject / "model.safetensors.index.json"));
  EXPECT_EQ(subject.rejection(), "accepted");
}

TEST(Export, BringsTheFilesThatTheMixersNeed) {
  const std::map<std::string, std::string> files = remote_code(kimi());
  std::vector<std::string> names;
  for (const auto& [name, text] : files) {
    names.push_back(name);
    EXPECT_FALSE(text.empty()) << name;
  }
  EXPECT_THAT(names, ::testing::IsSupersetOf({"configuration_weft.py", "modeling_weft.py", "weft_kda.py", "weft_mla.py",
                                              "weft_mixers.py", "weft_delta_rule.py", "weft_layers.py"}));
  EXPECT_THAT(names, ::testing::Not(::testing::Contains("weft_gdn.py")));
  EXPECT_THAT(files.at("modeling_weft.py"), HasSubstr("\nfrom .weft_delta_rule import __name__ as _"));
  EXPECT_EQ(files.at("weft_mixers.py"),
            "\"\"\"The mixers of this model.\"\"\"\n\nfrom .weft_kda import Kda\nfrom .weft_mla import Mla\n\n"
            "MIXERS = {\n    \"kda\": Kda,\n    \"mla\": Mla,\n}\n");
}

// Tokenizers of other libraries make the byte tokenizer's ids of every byte.
TEST(ExportedTokenizer, OfBytesIsTheSameTokenizer) {
  const data_test::TemporaryFolder folder;
  write_tokenizer(open_tokenizer("byte"), 64, folder / "");
  const auto bytes = make_tokenizer("byte"), written = make_tokenizer(folder / "tokenizer.json");
  std::string text;
  for (std::uint32_t c = 0; c < 0x400; ++c) append_utf8(c, text);
  EXPECT_EQ(written->encode(text), bytes->encode(text));
  EXPECT_EQ(written->decode(written->encode(text)), text);
  EXPECT_EQ(written->eos_id(), bytes->eos_id());
  EXPECT_EQ(written->vocab_size(), bytes->vocab_size());
}

// transformers takes the file as it is; what it says of tokens beyond it is dropped, or keeps the tokenizer.model
// alone.
TEST(ExportedTokenizer, OfSentencePieceIsAFileForTransformers) {
  const std::string model = bytes_of("tests/golden/sentencepiece/bpe_bytes.model");
  const auto write = [&](const std::string& config, std::string& alone) {
    const data_test::TemporaryFolder folder;
    const TokenizerBundle bundle{parse_tokenizer_model(model, "m"),
                                 {{"tokenizer.model", model}, {"tokenizer_config.json", config}}};
    alone = write_tokenizer(bundle, 64, folder / "");
    EXPECT_EQ(std::filesystem::exists(folder / "tokenizer.json"), alone.empty());
    EXPECT_EQ(bytes_of(folder / "tokenizer.model"), model);
    EXPECT_EQ(make_tokenizer(folder / "")->fingerprint(), bundle.tokenizer->fingerprint());
    return nlohmann::json::parse(bytes_of(folder / "tokenizer_config.json"));
  };
  std::string alone;
  const nlohmann::json written =
      write(R"({"tokenizer_class": "LlamaTokenizer", "unk_token": {"content": "<unk>"}, "chat_template": "t",
                "added_tokens_decoder": {"1": {"content": "<s>", "normalized": true}}})",
            alone);
  EXPECT_EQ(alone, "");
  EXPECT_EQ(written, nlohmann::json({{"tokenizer_class", "PreTrainedTokenizerFast"},
                                     {"bos_token", "<s>"},
                                     {"eos_token", "</s>"},
                                     {"unk_token", "<unk>"},
                                     {"chat_template", "t"},
                                     {"add_bos_token", true},
                                     {"add_eos_token", false},
                                     {"clean_up_tokenization_spaces", false},
                                     {"legacy", false},
                                     {"model_max_length", 64}}));
  const std::string extended = R"({"added_tokens_decoder": {"560": {"content": "<|user|>"}}})";
  EXPECT_EQ(write(extended, alone), nlohmann::json::parse(extended));
  EXPECT_EQ(alone, "its token 560 (\"<|user|>\") is none of its pieces");
  write(R"({"pad_token": "[PAD]"})", alone);
  EXPECT_EQ(alone, "its pad_token \"[PAD]\" is none of its pieces");
  write(R"({"pad_token": "<tool>"})", alone);
  EXPECT_EQ(alone, "its pad_token \"<tool>\" is no control piece");
}

// Users are told to trust the code in an export: it is weft's alone.
TEST(ExportedTokenizer, NamesNoForeignCode) {
  const data_test::TemporaryFolder folder;
  TokenizerBundle bundle = open_tokenizer("byte");
  bundle.files = {{"tokenizer_config.json",
                   R"({"z": 1, "auto_map": {"AutoTokenizer": ["someone/else--tokens.Own", null]}, "a": [2]})"}};
  write_tokenizer(bundle, 64, folder / "");
  EXPECT_EQ(bytes_of(folder / "tokenizer_config.json"), "{\n  \"z\": 1,\n  \"a\": [\n    2\n  ]\n}\n");
  bundle.files = {{"tokenizer_config.json", R"({"z": 1,  "a": [2]})"}};
  write_tokenizer(bundle, 64, folder / "");
  EXPECT_EQ(bytes_of(folder / "tokenizer_config.json"), bundle.files[0].content);
}

// Embedding keeps every byte, and every mixer can be exported.
TEST(Export, HasAPythonFileForEveryMixer) {
  for (const MixerType* type : mixer_types()) {
    const EmbeddedFile* file = find_embedded_file(python_file_of_mixer(type->name));
    ASSERT_NE(file, nullptr) << type->name;
    EXPECT_THAT(std::string(file->text), HasSubstr(fmt::format("class {}(", python_class_of_mixer(type->name))));
    const fs::path source = fs::path("modules/mixers") / type->name / file->name;
    EXPECT_EQ(file->text, bytes_of(source)) << source;
  }
}

std::string joined(const std::vector<std::string>& lines) {
  return fmt::format("{}", fmt::join(lines, "\n"));
}

TEST(ExportObstacles, OfQwen3Next) {
  LanguageModelConfig model = gated_delta();
  model.residual = Residual::post_norm_input;
  model.ffn_hidden = 0;
  Options& gdn = model.pattern[0].options;
  gdn.set("norm_eps", 1e-5);
  gdn.set("negative_eigenvalues", true);
  model.pattern[1].options = gdn;
  model.pattern[2].options.set("gate", std::string("none"));
  model.pattern[2].options.set("qk_norm", false);
  EXPECT_EQ(joined(find_hub_target("qwen3_next")->obstacles(model)),
            "ffn = 0 in [model]: the class has a feed-forward branch in every layer\n"
            "residual = \"post_norm_input\" in [model]: the class adds branches to the input before its norm; use "
            "\"pre_norm\"\n"
            "recipe: gdn: negative_eigenvalues = true: the class writes with strengths below 1\n"
            "recipe: gdn: norm_eps = 1e-05: the class has one epsilon, norm_eps = 1e-06 of [model]; make them equal\n"
            "recipe: attention: gate = \"none\": the class gates every channel of the output; use \"elementwise\"\n"
            "recipe: attention: qk_norm = false: the class normalises queries and keys");
}

TEST(ExportObstacles, OfLayersThatDiffer) {
  LanguageModelConfig model = gated_delta();
  model.pattern[1].options.set("head_dim", std::int64_t{5});
  EXPECT_THAT(joined(find_hub_target("qwen3_next")->obstacles(model)),
              HasSubstr("the options differ from those of recipe: gdn, and the class has one set for all layers"));
  EXPECT_THAT(find_hub_target("weft")->obstacles(model), IsEmpty());
}

TEST(ExportObstacles, OfMiniMax) {
  LanguageModelConfig model = minimax();
  model.residual = Residual::pre_norm;
  model.pattern[1].options.set("head_dim", std::int64_t{4});
  model.pattern[1].options.set("rope_fraction", 0.5);
  EXPECT_EQ(joined(find_hub_target("minimax")->obstacles(model)),
            "residual = \"pre_norm\" in [model]: the class adds branches to the normalised input; use "
            "\"post_norm_input\"\n"
            "recipe: attention: rope_fraction = 0.5: the class turns whole heads; use 1\n"
            "recipe: attention: 3 heads of 4, but recipe: lightning has 3 of 6: the class has the same in all layers");
}

TEST(ExportObstacles, OfKimiLinear) {
  LanguageModelConfig model = kimi();
  model.tied = true;
  for (const std::size_t i : {std::size_t{0}, std::size_t{1}}) {
    model.pattern[i].options.set("gate_bias", true);
    model.pattern[i].options.set("gate", std::string("bounded"));
    model.pattern[i].options.set("rank", std::int64_t{2});
  }
  EXPECT_EQ(joined(find_hub_target("kimi_linear")->obstacles(model)),
            "tied = true in [model]: the class has a head of its own; use false\n"
            "recipe: kda: gate = \"bounded\": the class has the gate \"softplus\"\n"
            "recipe: kda: gate_bias = true: the class's output gate has no bias; use false\n"
            "recipe: kda: rank = 2: the class's gates have the rank head_dim = 4");
  EXPECT_THAT(joined(find_hub_target("kimi_linear")->obstacles(gated_delta())),
              HasSubstr("recipe: gdn: the class has layers of kda and mla, not gdn"));
}

// Counts that a class derives from a factor: it truncates head_dim * partial_rotary_factor.
TEST(Export, TurnsAsManyChannelsAsTheRecipe) {
  for (const std::int64_t head_dim : {10, 14, 22, 30, 34, 98, 256}) {
    for (const double fraction : {0.25, 0.3, 0.5, 0.7, 1.0}) {
      HubModel hub{.model = gated_delta(), .max_positions = 8, .eos = {}};
      hub.model.pattern[2].options.set("head_dim", head_dim);
      hub.model.pattern[2].options.set("rope_fraction", fraction);
      const auto turned =
          fraction == 1.0 ? head_dim : 2 * static_cast<std::int64_t>(static_cast<double>(head_dim) * fraction / 2.0);
      const nlohmann::json config = find_hub_target("qwen3_next")->write_config(hub);
      const auto factor = config.at("rope_parameters").at("partial_rotary_factor").get<double>();
      EXPECT_EQ(static_cast<std::int64_t>(static_cast<double>(head_dim) * factor), turned)
          << head_dim << " " << fraction;
    }
  }
}

// And values head_dim * expand_v wide.
TEST(Export, HasValuesAsWideAsTheRecipe) {
  for (const auto& [keys, values] : {std::pair{104, 120}, {176, 240}, {4, 6}, {3, 7}, {128, 128}}) {
    HubModel hub{.model = fla_gdn(), .max_positions = 8, .eos = {}};
    for (const std::size_t i : {std::size_t{0}, std::size_t{1}}) {
      hub.model.pattern[i].options.set("head_dim", std::int64_t{keys});
      hub.model.pattern[i].options.set("value_dim", std::int64_t{values});
    }
    const HubTarget& target = *find_hub_target("fla_gated_deltanet");
    const nlohmann::json config = target.write_config(hub);
    EXPECT_EQ(static_cast<int>(keys * config.at("expand_v").get<double>()), values) << keys;
    EXPECT_EQ(target.read_config(config, "config.json").model.pattern[0].options.integer("value_dim"), values);
  }
}

}  // namespace
}  // namespace weft
