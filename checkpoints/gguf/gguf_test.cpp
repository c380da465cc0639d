// GGUF: the rules of the format, dequantisation, and the way to Hugging Face's names, layouts and files.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <limits>
#include <nlohmann/json.hpp>

#include "checkpoints/gguf/hostile_cases.h"
#include "checkpoints/gguf/model.h"
#include "checkpoints/gguf/rope_factors.h"
#include "checkpoints/safetensors/reader.h"
#include "data/storage/file.h"
#include "data/storage/json.h"
#include "tests/support/error_message.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing_support::message_of;
using namespace gguf_tests;

const fs::path kGolden = "tests/golden/gguf";

class GgufTest : public testing::Test {
 protected:
  void SetUp() override { path = fs::temp_directory_path() / ("weft-gguf-" + random_nonce()); }
  void TearDown() override { fs::remove(path); }
  GgufFile open(std::string_view bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
    return GgufFile(path);
  }
  fs::path path;
};

// The one file of a byte-level tokenizer.
std::string tokenizer_json(const GgufFile& file) {
  const std::vector<TokenizerFile> files = gguf_tokenizer_files(file);
  EXPECT_EQ(files.size(), 1u);
  EXPECT_EQ(files.front().name, "tokenizer.json");
  return files.front().content;
}

void expect_refused(const std::string& message, const std::string& part, const std::string& name) {
  EXPECT_NE(message.find(part), std::string::npos) << name << ": " << message;
}

TEST_F(GgufTest, HostileFilesAreRefusedWithTheirRule) {
  for (const HostileCase& hostile : hostile_files()) {
    const std::string message = message_of([&] { open(hostile.bytes); });
    expect_refused(message, hostile.message, hostile.name);
    EXPECT_TRUE(message.starts_with(path.string())) << hostile.name << ": " << message;
  }
}

TEST_F(GgufTest, ValuesOfEveryType) {
  GgufBytes bytes(0, 16, 2);
  bytes.key("u8", 0).number<std::uint8_t>(200);
  bytes.key("i8", 1).number<std::int8_t>(-100);
  bytes.key("u16", 2).number<std::uint16_t>(65535);
  bytes.key("i16", 3).number<std::int16_t>(-3);
  bytes.key("u32", 4).number<std::uint32_t>(4'000'000'000);
  bytes.key("i32", 5).number<std::int32_t>(-4);
  bytes.key("f32", 6).number(1e-5f);
  bytes.key("bool", 7).number<std::uint8_t>(1);
  bytes.string("string", "\xc4\xa0t");
  bytes.strings("strings", {"a", "", "b c"});
  bytes.key("u64", 10).number<std::uint64_t>(std::uint64_t{1} << 40);
  bytes.key("i64", 11).number(std::numeric_limits<std::int64_t>::min());
  bytes.key("f64", 12).number(0.1);
  bytes.array("bools", 7, 2).raw(std::string_view("\1\0", 2));
  bytes.array("floats", 6, 1).number(0.5f);
  bytes.array("none", 5, 0);
  const GgufFile file = open(std::string(bytes));
  const GgufMetadata& values = file.metadata();
  EXPECT_EQ(values.require<std::int64_t>("u8"), 200);
  EXPECT_EQ(values.require<std::int64_t>("i8"), -100);
  EXPECT_EQ(values.require<std::int64_t>("u16"), 65535);
  EXPECT_EQ(values.require<std::int64_t>("i16"), -3);
  EXPECT_EQ(values.require<std::int64_t>("u32"), 4'000'000'000);
  EXPECT_EQ(values.require<std::int64_t>("i32"), -4);
  EXPECT_EQ(values.require<double>("f32"), 1e-5);
  EXPECT_TRUE(values.require<bool>("bool"));
  EXPECT_EQ(values.require<std::string>("string"), "\xc4\xa0t");
  EXPECT_EQ(values.require<std::vector<std::string>>("strings"), (std::vector<std::string>{"a", "", "b c"}));
  EXPECT_EQ(values.require<std::int64_t>("u64"), std::int64_t{1} << 40);
  EXPECT_EQ(values.require<std::int64_t>("i64"), std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(values.require<double>("f64"), 0.1);
  EXPECT_EQ(values.require<std::vector<std::int64_t>>("bools"), (std::vector<std::int64_t>{1, 0}));
  EXPECT_EQ(values.require<std::vector<double>>("floats"), std::vector<double>{0.5});
  EXPECT_TRUE(values.require<std::vector<std::int64_t>>("none").empty());
  EXPECT_EQ(values.find<bool>("more"), nullptr);
  EXPECT_EQ(message_of([&] { values.require<bool>("more"); }), path.string() + ": key \"more\" is missing");
  EXPECT_EQ(message_of([&] { values.require<double>("u8"); }),
            path.string() + ": key \"u8\": found an integer, expected a number");
}

TEST_F(GgufTest, AlignmentAndDimensionsOfTheFile) {
  GgufBytes bytes(2, 1);
  bytes.integer("general.alignment", 128).tensor("b", {3, 2}, 0, 0).tensor("a", {1}, 0, 128).data(0, 128);
  for (const float value : {1.f, 2.f, 3.f, 4.f, 5.f, 6.f}) bytes.number(value);
  bytes.data(0, 128).number(7.f);
  const GgufFile file = open(std::string(bytes));
  EXPECT_EQ(file.require("b").shape, (std::vector<std::int64_t>{2, 3}));
  float row[3];
  file.read_floats("b", 1, 2, row);
  EXPECT_EQ(row[0], 4.f);
  file.read_floats("a", 0, 1, std::span(row).first(1));
  EXPECT_EQ(row[0], 7.f);
}

TEST_F(GgufTest, OtherTypesAreRefusedByName) {
  const GgufFile file = open(std::string(GgufBytes(1).tensor("w", {256}, 14, 0).data(210)));
  std::vector<float> values(256);
  EXPECT_EQ(message_of([&] { file.read_floats("w", 0, 256, values); }),
            path.string() + ": tensor \"w\" is Q6_K; weft reads F32, F16, BF16, Q8_0, Q4_0 and Q4_1");
}

// Against what the gguf package made of the same blocks: bit for bit, in any rows.
TEST(GgufGolden, DequantisesToTheLastBit) {
  const GgufFile file(kGolden / "tiny.gguf");
  const GgufModelTensors model(file);
  const SafetensorsFile expected(kGolden / "tiny.safetensors");
  ASSERT_EQ(model.tensors().size(), expected.tensors().size());
  for (const SourceTensor& tensor : expected.tensors()) {
    ASSERT_EQ(model.require(tensor.name).shape, tensor.shape) << tensor.name;
    for (std::int64_t begin = 0; begin < tensor.rows(); begin += 3) {
      const std::int64_t end = std::min(begin + 5, tensor.rows());
      std::vector<float> a(static_cast<std::size_t>((end - begin) * tensor.row_elements()));
      std::vector<float> b(a.size());
      model.read_floats(tensor.name, begin, end, a);
      expected.read_floats(tensor.name, begin, end, b);
      ASSERT_EQ(a, b) << tensor.name << " from row " << begin;
    }
  }
}

TEST(GgufGolden, ConfigIsThatOfALlama) {
  EXPECT_EQ(gguf_config_json(GgufFile(kGolden / "tiny.gguf")),
            "{\"architectures\":[\"LlamaForCausalLM\"],\"attention_bias\":false,\"bos_token_id\":0,\"eos_token_id\":0,"
            "\"head_dim\":16,\"hidden_act\":\"silu\",\"hidden_size\":32,\"intermediate_size\":64,"
            "\"max_position_embeddings\":128,\"mlp_bias\":false,\"model_type\":\"llama\",\"num_attention_heads\":2,"
            "\"num_hidden_layers\":1,\"num_key_value_heads\":1,\"rms_norm_eps\":1e-05,\"rope_theta\":10000.0,"
            "\"tie_word_embeddings\":false,\"vocab_size\":8}");
}

TEST(GgufGolden, TokenizerHasVocabularyMergesAndSpecialTokens) {
  const auto tokenizer = parse_strict(tokenizer_json(GgufFile(kGolden / "tiny.gguf")), "tokenizer");
  EXPECT_EQ(tokenizer["model"]["vocab"].size(), 8u);
  EXPECT_EQ(tokenizer["model"]["vocab"]["abc"], 5);
  EXPECT_EQ(tokenizer["model"]["merges"][1], "ab c");
  ASSERT_EQ(tokenizer["added_tokens"].size(), 1u);
  EXPECT_EQ(tokenizer["added_tokens"][0]["content"], "<|end|>");
  EXPECT_TRUE(tokenizer["added_tokens"][0]["special"]);
  EXPECT_EQ(tokenizer["pre_tokenizer"]["pretokenizers"][0]["type"], "Digits");
  EXPECT_EQ(tokenizer["pre_tokenizer"]["pretokenizers"][1]["type"], "ByteLevel");
  EXPECT_EQ(tokenizer["post_processor"]["type"], "ByteLevel");
}

// The metadata of a small model; `more` follows, `count` values of it.
GgufBytes model_metadata(const std::string& architecture, std::uint64_t tensors, std::uint64_t count) {
  GgufBytes bytes(tensors, 7 + count);
  bytes.string("general.architecture", architecture);
  for (const auto& [key, value] :
       {std::pair("embedding_length", 4u), std::pair("attention.head_count", 2u),
        std::pair("attention.head_count_kv", 1u), std::pair("feed_forward_length", 8u), std::pair("block_count", 1u)}) {
    bytes.integer(architecture + "." + key, value);
  }
  return bytes.key(architecture + ".attention.layer_norm_rms_epsilon", 6).number(1e-6f);
}

constexpr std::uint32_t kF32 = 0;

TEST_F(GgufTest, ConfigsOfOtherFamiliesAndScalings) {
  const auto config = [&](GgufBytes bytes) {
    return parse_strict(gguf_config_json(open(std::string(bytes))), "config");
  };
  const auto qwen2 = config(model_metadata("qwen2", 1, 4)
                                .integer("qwen2.context_length", 64)
                                .string("qwen2.rope.scaling.type", "yarn")
                                .key("qwen2.rope.scaling.factor", 6)
                                .number(4.0f)
                                .integer("qwen2.rope.scaling.original_context_length", 16)
                                .tensor("token_embd.weight", {4, 5}, kF32, 0)
                                .data(80));
  EXPECT_EQ(qwen2["architectures"], nlohmann::json::array({"Qwen2ForCausalLM"}));
  EXPECT_EQ(qwen2["tie_word_embeddings"], true);
  EXPECT_EQ(qwen2["vocab_size"], 5);
  EXPECT_EQ(qwen2["rms_norm_eps"], 1e-6);
  EXPECT_EQ(qwen2["rope_scaling"]["rope_type"], "yarn");
  EXPECT_EQ(qwen2["rope_scaling"]["factor"], 4.0);
  EXPECT_EQ(qwen2["rope_scaling"]["original_max_position_embeddings"], 16);
  EXPECT_FALSE(qwen2.contains("attention_bias"));

  const auto qwen3 = config(model_metadata("qwen3", 1, 3)
                                .integer("qwen3.context_length", 64)
                                .integer("qwen3.attention.key_length", 6)
                                .integer("qwen3.attention.value_length", 6)
                                .tensor("token_embd.weight", {4, 5}, kF32, 0)
                                .data(80));
  EXPECT_EQ(qwen3["head_dim"], 6);
  EXPECT_EQ(qwen3["attention_bias"], false);

  GgufBytes llama = model_metadata("llama", 2, 1)
                        .integer("llama.context_length", 64)
                        .tensor("token_embd.weight", {4, 5}, kF32, 0)
                        .tensor("rope_freqs.weight", {1}, kF32, 96)
                        .data(96)
                        .number(1.0f);
  EXPECT_EQ(config(llama)["rope_scaling"]["rope_type"], "llama3");
  EXPECT_EQ(GgufModelTensors(GgufFile(path)).tensors().size(), 1u);
}

TEST_F(GgufTest, WhatMayChangeTheFunctionIsRefused) {
  const auto problem = [&](GgufBytes bytes) {
    return message_of([&] {
      const GgufFile file = open(std::string(bytes.tensor("token_embd.weight", {4, 5}, kF32, 0).data(80)));
      gguf_config_json(file);
    });
  };
  EXPECT_EQ(problem(model_metadata("mamba", 1, 0)),
            path.string() + ": architecture \"mamba\" is not supported; llama, qwen2 and qwen3 are");
  expect_refused(problem(model_metadata("llama", 1, 1).integer("llama.attention.sliding_window", 7)),
                 "key \"llama.attention.sliding_window\" is not understood", "unknown key");
  expect_refused(problem(model_metadata("llama", 1, 1).integer("llama.rope.dimension_count", 1)),
                 "key \"llama.rope.dimension_count\": 1 is not 2", "partial rotation");
  expect_refused(problem(model_metadata("llama", 1, 1).integer("llama.vocab_size", 6)),
                 "key \"llama.vocab_size\": 6 is not 5", "vocabulary");
  expect_refused(problem(model_metadata("llama", 1, 2)
                             .string("llama.rope.scaling.type", "longrope")
                             .integer("llama.context_length", 64)),
                 "\"longrope\" is not supported; none, linear and yarn are", "scaling");
  expect_refused(problem(model_metadata("llama", 1, 1).array("llama.context_length", 4, 1).number(64u)),
                 "found an array of integers, expected an integer", "type");
  expect_refused(problem(model_metadata("llama", 1, 1).integer("llama.expert_count", 0)),
                 "key \"llama.context_length\" is missing", "an option that is off");
}

TEST_F(GgufTest, TensorsWithoutCounterpartAreRefused) {
  EXPECT_EQ(hugging_face_name("blk.12.ffn_gate.bias"), "model.layers.12.mlp.gate_proj.bias");
  EXPECT_EQ(hugging_face_name("output_norm.weight"), "model.norm.weight");
  for (const char* name : {"blk.attn_q.weight", "blk.01.attn_q.weight", "blk.1.attn_q", "blk.1.attn_q.weight.x", "",
                           "blk.1.ffn_gate_exps.weight", "blk.-1.attn_q.weight", "token_embd.bias", "blk"}) {
    EXPECT_EQ(hugging_face_name(name), "") << name;
  }
  const GgufFile file = open(std::string(model_metadata("llama", 1, 0).tensor("v.patch", {4, 5}, kF32, 0).data(80)));
  EXPECT_EQ(message_of([&] { GgufModelTensors model(file); }),
            path.string() + ": tensor \"v.patch\" has no counterpart in a Llama or Qwen model");
  const GgufFile odd =
      open(std::string(model_metadata("llama", 1, 0).tensor("blk.0.attn_q.weight", {4, 6}, kF32, 0).data(96)));
  EXPECT_EQ(message_of([&] { GgufModelTensors model(odd); }),
            path.string() + ": tensor \"blk.0.attn_q.weight\": 6 rows are not 2 heads of an even size");
}

// Qwen's rotation is half-split in both formats.
TEST_F(GgufTest, OnlyLlamasRowsAreInterleaved) {
  const auto first_rows = [&](const std::string& architecture) {
    GgufBytes bytes = model_metadata(architecture, 1, 0).tensor("blk.0.attn_k.weight", {1, 4}, kF32, 0).data(0);
    for (const float value : {0.f, 1.f, 2.f, 3.f}) bytes.number(value);
    const GgufFile file = open(std::string(bytes));
    std::vector<float> values(4);
    GgufModelTensors(file).read_floats("model.layers.0.self_attn.k_proj.weight", 0, 4, values);
    return values;
  };
  EXPECT_EQ(first_rows("qwen2"), (std::vector<float>{0, 1, 2, 3}));
  EXPECT_EQ(first_rows("llama"), (std::vector<float>{0, 2, 1, 3}));
}

TEST(GgufRope, Llama3FactorsAreRecognised) {
  // Of Llama 3.2: theta 500000, 64 dimensions rotated, factor 32.
  std::vector<float> factors(32);
  for (std::size_t i = 0; i < factors.size(); ++i) {
    const double wavelength = 2 * 3.141592653589793 * std::pow(500000.0, static_cast<double>(i) / 32);
    const double smooth = (8192 / wavelength - 1) / 3;
    factors[i] = wavelength < 2048   ? 1.f
                 : wavelength > 8192 ? 32.f
                                     : static_cast<float>(1 / ((1 - smooth) / 32 + smooth));
  }
  EXPECT_EQ(llama3_scaling(factors, 500000.0, "f").factor, 32.0);
  factors[15] *= 1.001f;
  expect_refused(message_of([&] { llama3_scaling(factors, 500000.0, "f"); }), "divisor 15 is", "changed");
  factors[15] = std::numeric_limits<float>::quiet_NaN();
  expect_refused(message_of([&] { llama3_scaling(factors, 500000.0, "f"); }), "divisor 15 is nan", "no number");
}

GgufBytes tokenizer(const std::string& model, const std::string& pre, const std::vector<std::string>& tokens,
                    const std::vector<std::string>& merges, std::uint64_t more = 0) {
  return GgufBytes(0, 4 + more)
      .string("tokenizer.ggml.model", model)
      .string("tokenizer.ggml.pre", pre)
      .strings("tokenizer.ggml.tokens", tokens)
      .strings("tokenizer.ggml.merges", merges);
}

TEST_F(GgufTest, TokenizersOfLlama3AndQwen) {
  const auto text = [&](GgufBytes bytes) {
    return parse_strict(tokenizer_json(open(std::string(bytes))), "tokenizer");
  };
  const auto llama = text(tokenizer("gpt2", "llama-bpe", {"a", "b", "ab", "<|begin|>"}, {"a b"}, 1)
                              .integer("tokenizer.ggml.bos_token_id", 3));
  EXPECT_EQ(llama["model"]["ignore_merges"], true);
  EXPECT_EQ(llama["post_processor"]["processors"][1]["single"][0]["SpecialToken"]["id"], "<|begin|>");
  EXPECT_EQ(llama["post_processor"]["processors"][1]["special_tokens"]["<|begin|>"]["ids"], nlohmann::json::array({3}));
  const auto qwen = text(tokenizer("gpt2", "qwen2", {"a", "b", "[PAD2]"}, {}, 1)
                             .array("tokenizer.ggml.token_type", 5, 3)
                             .number(1)
                             .number(4)
                             .number(5));
  EXPECT_EQ(qwen["normalizer"]["type"], "NFC");
  EXPECT_EQ(qwen["model"]["vocab"].size(), 2u);
  EXPECT_EQ(qwen["added_tokens"][0]["special"], false);
}

TEST_F(GgufTest, TokenizersThatAreNotUnderstoodAreRefused) {
  const auto refused = [&](GgufBytes bytes, const std::string& part) {
    expect_refused(message_of([&] { gguf_tokenizer_files(open(std::string(bytes))); }), part, part);
  };
  const std::vector<std::string> tokens = {"a", "b", "ab"};
  refused(tokenizer("t5", "default", tokens, {}), "tokenizer \"t5\" is not supported; gpt2 (byte-level BPE) and llama");
  refused(tokenizer("gpt2", "deepseek-llm", tokens, {}), "pre-tokenizer \"deepseek-llm\" is not supported; gpt-2,");
  refused(tokenizer("gpt2", "gpt-2", {"a", "a"}, {}), "tokens[1]: \"a\" is there twice");
  refused(tokenizer("gpt2", "gpt-2", tokens, {"a b", "b a"}), "merges[1]: \"b a\" is no pair of tokens");
  refused(tokenizer("gpt2", "gpt-2", tokens, {"ab"}), "merges[0]: \"ab\" is no pair");
  refused(tokenizer("gpt2", "gpt-2", tokens, {"a b "}), "merges[0]: \"a b \" is no pair");
  refused(tokenizer("gpt2", "gpt-2", tokens, {}, 1).array("tokenizer.ggml.token_type", 5, 1).number(1),
          "has 1 values for 3 tokens");
  refused(
      tokenizer("gpt2", "gpt-2", tokens, {}, 1).array("tokenizer.ggml.token_type", 5, 3).number(1).number(1).number(7),
      "token_type[2] is 7, 1 to 6 are expected");
  refused(tokenizer("gpt2", "gpt-2", tokens, {}, 2)
              .key("tokenizer.ggml.add_bos_token", 7)
              .raw("\x01")
              .integer("tokenizer.ggml.bos_token_id", 3),
          "bos_token_id is 3, there are 3 tokens");
  refused(tokenizer("gpt2", "gpt-2", tokens, {}, 1).key("tokenizer.ggml.add_space_prefix", 7).raw("\x01"),
          "add_space_prefix\" is true, which is not supported");
}

// Ids that the sentencepiece package gives with the models that the GGUF files were made of.
TEST(GgufGolden, SentencePieceVocabulariesGiveTheSameIds) {
  const nlohmann::json all = read_json_file("tests/golden/sentencepiece/cases.json");
  for (const char* name : {"bpe_bytes", "bpe_plain"}) {
    SCOPED_TRACE(name);
    const GgufFile file(kGolden / fmt::format("{}.gguf", name));
    const std::vector<TokenizerFile> files = gguf_tokenizer_files(file);
    ASSERT_EQ(files.size(), 2u);
    ASSERT_EQ(files[0].name, "tokenizer.model");
    ASSERT_EQ(files[1].name, "tokenizer_config.json");
    const nlohmann::json config = parse_strict(files[1].content, files[1].name);
    EXPECT_EQ(config["add_bos_token"], std::string_view(name) == "bpe_bytes");
    EXPECT_EQ(config["bos_token"], "<s>");
    EXPECT_EQ(config["eos_token"], "</s>");
    const auto tokenizer = parse_tokenizer_model(files[0].content, name);
    const nlohmann::json& expected = all[name];
    EXPECT_EQ(tokenizer->vocab_size(), expected["vocab_size"].get<std::int64_t>());
    EXPECT_EQ(tokenizer->bos_id(), expected["bos_id"].get<std::int64_t>());
    EXPECT_EQ(tokenizer->eos_id(), expected["eos_id"].get<std::int64_t>());
    ASSERT_GE(expected["cases"].size(), 25u);
    for (const nlohmann::json& one : expected["cases"]) {
      const auto text = one["text"].get<std::string>();
      const auto ids = one["ids"].get<std::vector<std::int32_t>>();
      EXPECT_EQ(tokenizer->encode(text), ids) << text;
      EXPECT_EQ(tokenizer->decode(ids), one["decoded"].get<std::string>()) << text;
    }
  }
}

// A vocabulary of sentencepiece; `scores` and `types` as many as there are.
GgufBytes pieces(const std::vector<std::string>& texts, const std::vector<float>& scores,
                 const std::vector<std::uint32_t>& types, std::uint64_t more = 0) {
  GgufBytes bytes(0, 4 + more);
  bytes.string("tokenizer.ggml.model", "llama").strings("tokenizer.ggml.tokens", texts);
  bytes.array("tokenizer.ggml.scores", 6, scores.size());
  for (const float score : scores) bytes.number(score);
  bytes.array("tokenizer.ggml.token_type", 4, types.size());
  for (const std::uint32_t type : types) bytes.number(type);
  return bytes;
}

TEST_F(GgufTest, SentencePieceVocabulariesThatAreNotUnderstoodAreRefused) {
  const auto refused = [&](GgufBytes bytes, const std::string& part) {
    expect_refused(message_of([&] { gguf_tokenizer_files(open(std::string(bytes))); }), part, part);
  };
  const std::vector<std::string> texts = {"<unk>", "a", "b"};
  const std::vector<float> scores = {0, -1, -2};
  const std::vector<std::uint32_t> types = {2, 1, 1};
  EXPECT_EQ(gguf_tokenizer_files(open(std::string(pieces(texts, scores, types)))).size(), 2u);
  refused(pieces(texts, {0, -1}, types), "tokenizer.ggml.scores has 2 values for 3 tokens");
  refused(pieces(texts, scores, {2, 1}), "tokenizer.ggml.token_type has 2 values for 3 tokens");
  refused(pieces(texts, scores, {2, 1, 9}), "token_type[2] is 9, 1 to 6 are expected");
  refused(pieces(texts, scores, {1, 1, 1}), "0 pieces of type unknown, expected one");
  refused(pieces({"<unk>", "a", "a"}, scores, types), "pieces 1 and 2 are both \"a\"");
  refused(pieces({"<unk>", "a", ""}, scores, types), "piece 2 is empty");
  // Neither scores nor types are looked at.
  refused(pieces(std::vector<std::string>(2'000'001, "a"), {}, {}), "tokens: more than 2000000 pieces");
  refused(pieces(texts, scores, {2, 1, 3}), "of type control, but the library finds single characters");
  refused(pieces(texts, scores, {2, 1, 6}), "is of type byte, but not <0xNN>");
  refused(pieces(texts, {0, -1, std::numeric_limits<float>::infinity()}, types), "piece 2 has the score inf");
  refused(pieces(texts, scores, types, 1).integer("tokenizer.ggml.bos_token_id", 3), "bos_token_id is 3, there are 3");
  refused(pieces(texts, scores, types, 1).array("tokenizer.ggml.precompiled_charsmap", 0, 1).raw("\x01"),
          "precompiled_charsmap is not supported");
  refused(pieces(texts, scores, types, 1).key("tokenizer.ggml.add_eos_token", 7).raw("\x01"),
          "add_eos_token\" is true, which is not supported");
}

}  // namespace
}  // namespace weft
