// Tiny models that transformers made (tests/golden/make_models.py): imported, they compute the same; their configs and
// tensors are written back as they were.
#include <algorithm>
#include <bit>
#include <cstring>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "checkpoints/huggingface/hub_files.h"
#include "checkpoints/huggingface/tensor_map.h"
#include "data/dataset_test_support.h"
#include "data/storage/file.h"
#include "data/storage/json.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

struct Golden {
  std::string folder;
  std::vector<std::int32_t> ids, greedy;
  std::int64_t prompt;
  std::vector<float> logits;
};

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const auto& entry : fs::directory_iterator("tests/golden/models")) all.push_back(entry.path().filename());
  std::ranges::sort(all);
  return all;
}

Golden golden(const std::string& name) {
  const fs::path folder = fs::path("tests/golden/models") / name;
  const nlohmann::json expected = read_json_file((folder / "expected.json").string());
  Golden g{.folder = folder.string(),
           .ids = expected.at("ids"),
           .greedy = expected.at("greedy"),
           .prompt = expected.at("prompt"),
           .logits = {}};
  const std::string bytes = read_small_file(folder / "expected.bin", 1 << 20);
  for (std::size_t i = 0; i < bytes.size(); i += 4) {
    std::uint32_t bits = 0;
    for (std::size_t b = 4; b > 0; --b) bits = bits << 8 | static_cast<unsigned char>(bytes[i + b - 1]);
    g.logits.push_back(std::bit_cast<float>(bits));
  }
  return g;
}

Tensor row_of(const std::vector<std::int32_t>& ids) {
  Tensor tensor = Tensor::empty({static_cast<std::int64_t>(ids.size())}, DType::i32);
  std::ranges::copy(ids, tensor.data<std::int32_t>());
  return tensor;
}

std::int32_t largest(const Tensor& logits) {
  const std::span<const float> row = logits.span<float>();
  return static_cast<std::int32_t>(std::ranges::max_element(row) - row.begin());
}

class GoldenModel : public ::testing::TestWithParam<std::string> {
 protected:
  GoldenModel()
      : g(golden(GetParam())),
        files(open_hub_model(g.folder)),
        model(files.model.model),
        map(files.target->tensors(files.model.model), model.parameters().all()) {
    map.check(*files.tensors);
    model.initialise(1, DType::f32);
    for (Parameter* p : model.parameters().all()) {
      map.read_parameter(*files.tensors, p->name, p->value.span<float>());
    }
  }

  Golden g;
  HubFiles files;
  LanguageModel model;
  TensorMap map;
};

TEST_P(GoldenModel, ComputesTheSameLogits) {
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  std::vector<std::int64_t> positions(g.ids.size());
  std::iota(positions.begin(), positions.end(), 0);
  const Tensor logits =
      model.logits_at(tape, row_of(g.ids), Documents::single(static_cast<std::int32_t>(g.ids.size())), positions);
  ASSERT_EQ(logits.numel(), static_cast<std::int64_t>(g.logits.size()));
  float worst = 0.0F;
  for (std::size_t i = 0; i < g.logits.size(); ++i) {
    worst = std::max(worst, std::abs(logits.data<float>()[i] - g.logits[i]));
  }
  RecordProperty("worst", fmt::format("{:.1e}", worst));
  EXPECT_LE(worst, 1e-4F);
}

TEST_P(GoldenModel, DecodesTheSameTokens) {
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  const std::vector<std::int32_t> prompt(g.ids.begin(), g.ids.begin() + g.prompt);
  ModelState state = model.initial_state(1, cpu_place(DType::f32));
  Tensor logits = model.prefill(tape, row_of(prompt), Documents::single(static_cast<std::int32_t>(g.prompt)), state);
  std::vector<std::int32_t> made;
  for (std::size_t i = 0; i < g.greedy.size(); ++i) {
    made.push_back(largest(logits));
    logits = model.decode(tape, row_of({made.back()}), state);
  }
  EXPECT_EQ(made, g.greedy);
}

TEST_P(GoldenModel, IsWrittenAsItWas) {
  const auto read = [&](std::string_view parameter, std::int64_t begin, std::span<float> out) {
    const Tensor& value = model.parameters().find(parameter)->value;
    std::copy_n(value.data<float>() + begin, out.size(), out.begin());
  };
  std::size_t written = 0;
  for (const TensorRule& rule : map.rules()) {
    ++written;
    // Constants, which loading has checked: powers to a relative 1e-5, and a router that changes nothing.
    if (rule.pieces.empty()) continue;
    const SourceTensor& original = files.tensors->require(TensorMap::name_in(*files.tensors, rule));
    std::vector<float> before(static_cast<std::size_t>(rule.shape.numel())), after(before.size());
    files.tensors->read_floats(original.name, 0, original.rows(), before);
    map.read_tensor(rule, read, after);
    EXPECT_EQ(std::memcmp(before.data(), after.data(), before.size() * sizeof(float)), 0) << rule.name;
  }
  EXPECT_EQ(written, files.tensors->tensors().size());
}

void expect_equal(const HubModel& a, const HubModel& b) {
  EXPECT_EQ(a.max_positions, b.max_positions);
  EXPECT_EQ(a.bos, b.bos);
  EXPECT_EQ(a.eos, b.eos);
  EXPECT_EQ(a.pad, b.pad);
  EXPECT_EQ(a.model.vocabulary, b.model.vocabulary);
  EXPECT_EQ(a.model.width, b.model.width);
  EXPECT_EQ(a.model.layers, b.model.layers);
  EXPECT_EQ(a.model.ffn_hidden, b.model.ffn_hidden);
  EXPECT_EQ(a.model.ffn_bias, b.model.ffn_bias);
  EXPECT_EQ(a.model.tied, b.model.tied);
  EXPECT_EQ(a.model.norm_eps, b.model.norm_eps);
  ASSERT_EQ(a.model.pattern.size(), b.model.pattern.size());
  for (std::size_t i = 0; i < a.model.pattern.size(); ++i) {
    EXPECT_EQ(a.model.pattern[i].options.values(), b.model.pattern[i].options.values());
  }
}

TEST_P(GoldenModel, ItsConfigReadsBackToTheSame) {
  const nlohmann::json written = files.target->write_config(files.model);
  expect_equal(files.target->read_config(written, "written"), files.model);
  // What transformers wrote is in it, value for value, but for what changes nothing.
  const std::set<std::string> passed_over = {
      "initializer_range", "use_cache", "model_max_length", "head_dim", "qk_head_dim",
      // Of experts that no layer has, and of their training.
      "decoder_sparse_step", "moe_intermediate_size", "moe_renormalize", "norm_topk_prob", "num_expert_group",
      "num_experts", "num_experts_per_tok", "num_experts_per_token", "num_shared_experts", "output_router_logits",
      "routed_scaling_factor", "router_aux_loss_coef", "shared_expert_intermediate_size", "topk_group"};
  for (const auto& [key, value] : files.config->items()) {
    if (passed_over.contains(key) && !written.contains(key)) continue;
    if (key == "dtype" || key == "transformers_version" || key == "pretraining_tp") continue;
    if (key == "max_window_layers" && !files.config->at("use_sliding_window").get<bool>()) continue;
    if (key == "rope_parameters") {
      for (const auto& [inner, number] : value.items()) EXPECT_EQ(written[key][inner], number) << inner;
      continue;
    }
    EXPECT_EQ(written.value(key, nlohmann::json()), value) << key;
  }
}

TEST_P(GoldenModel, IsOfItsOwnClassFirst) {
  for (const HubTarget& target : hub_targets()) {
    if (!target.obstacles(files.model.model).empty()) continue;
    // What is of Qwen3.5 is of Qwen3-Next as well.
    EXPECT_EQ(target.name, files.target->name == "qwen3_5_text" ? "qwen3_next" : files.target->name);
    return;
  }
  ADD_FAILURE() << "no class has it";
}

std::string folder_name(const ::testing::TestParamInfo<std::string>& model) {
  return model.param;
}

INSTANTIATE_TEST_SUITE_P(All, GoldenModel, ::testing::ValuesIn(names()), folder_name);

// A folder from elsewhere may not bring the machine's own files along.
TEST(HubModel, TakesNoConfigFromOutsideItsFolder) {
  const data_test::TemporaryFolder outside;
  const fs::path folder = outside / "model";
  fs::copy("tests/golden/models/llama_mha", folder);
  fs::rename(folder / "config.json", outside / "config.json");
  fs::create_symlink("../config.json", folder / "config.json");
  EXPECT_EQ(data_test::message_of(ExitCode::storage, [&] { open_hub_model(folder); }),
            fmt::format("{}: \"config.json\" is a link to {}, outside the model's folder", folder.string(),
                        fs::canonical(outside / "config.json").string()));
}

}  // namespace
}  // namespace weft
