#include "checkpoints/huggingface/export.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "checkpoints/huggingface/hub_files.h"
#include "checkpoints/huggingface/remote_code.h"
#include "checkpoints/huggingface/tensor_map.h"
#include "checkpoints/huggingface/write_tokenizer.h"
#include "data/storage/file.h"

namespace weft {
namespace fs = std::filesystem;
namespace {

// Below, at and above powers of two and the chunks of recurrences.
constexpr std::array<std::int64_t, 8> kLengths = {1, 2, 3, 63, 64, 65, 130, 257};
// Of logits, relative to the largest one: parameters are equal bit by bit, and numbers of the config pass through text.
constexpr double kTolerance = 1e-5;

SafetensorsDType stored_dtype(const TensorRule& rule, SafetensorsDType dtype) {
  return rule.keep_fp32 ? SafetensorsDType::f32 : dtype;
}

std::string_view torch_name(SafetensorsDType dtype) {
  switch (dtype) {
    case SafetensorsDType::bf16:
      return "bfloat16";
    case SafetensorsDType::f16:
      return "float16";
    default:
      return "float32";
  }
}

std::span<float> values_of(LanguageModel& model, std::string_view parameter) {
  const Parameter* found = model.parameters().find(parameter);
  WEFT_CHECK(found != nullptr && found->value.dtype() == DType::f32, "parameter {} in f32", parameter);
  return found->value.span<float>();
}

void write_weights(const ExportSource& source, const ExportFiles& files, const fs::path& folder) {
  const TensorMap map(source.target.tensors(source.hub.model), source.model.parameters().all());
  std::map<std::string, const TensorRule*> rules;
  std::vector<TensorDeclaration> tensors;
  for (const TensorRule& rule : map.rules()) {
    rules[rule.name] = &rule;
    tensors.push_back(
        {.name = rule.name, .dtype = stored_dtype(rule, files.dtype), .shape = {rule.shape.begin(), rule.shape.end()}});
  }
  const ReadParameter read = [&](std::string_view parameter, std::int64_t begin, std::span<float> out) {
    std::ranges::copy(values_of(source.model, parameter).subspan(static_cast<std::size_t>(begin), out.size()),
                      out.begin());
  };
  std::vector<float> values;
  write_safetensors_directory(
      folder, std::move(tensors),
      [&](const TensorDeclaration& tensor, TensorSink& sink) {
        const TensorRule& rule = *rules.at(tensor.name);
        values.resize(static_cast<std::size_t>(rule.shape.numel()));
        map.read_tensor(rule, read, values);
        sink.write_floats(values);
      },
      files.shard_bytes);
}

nlohmann::json generation_config(const HubModel& hub, const nlohmann::json& config) {
  nlohmann::json json = {{"_from_model_config", true}, {"do_sample", false}};
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    if (!config.at(key).is_null()) json[key] = config.at(key);
  }
  if (hub.max_positions > 0) json["max_length"] = hub.max_positions;
  return json;
}

void write_json(const fs::path& path, const nlohmann::json& json) {
  write_file_atomically(path, json.dump(2) + "\n");
}

// What differs first between the parameters of two models; empty if nothing does.
std::string first_difference(LanguageModel& expected, LanguageModel& found) {
  const std::vector<Parameter*> parameters = expected.parameters().all();
  if (parameters.size() != found.parameters().all().size()) return "the number of parameters";
  for (const Parameter* p : parameters) {
    const Parameter* other = found.parameters().find(p->name);
    if (other == nullptr || !(other->shape == p->shape)) return fmt::format("the shape of {}", p->name);
    const std::span<const float> a = p->value.span<float>(), b = other->value.span<float>();
    const auto same = [](float x, float y) {
      return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
    };
    const auto at = std::ranges::mismatch(a, b, same).in1;
    if (at != a.end()) {
      const auto i = static_cast<std::size_t>(at - a.begin());
      return fmt::format("element {} of {} is {} and was {}", i, p->name, b[i], a[i]);
    }
  }
  return {};
}

}  // namespace

std::string write_export(const ExportSource& source, const ExportFiles& files, const fs::path& folder) {
  write_weights(source, files, folder);
  nlohmann::json config = source.target.write_config(source.hub);
  config["dtype"] = torch_name(files.dtype);
  write_json(folder / "config.json", config);
  write_json(folder / "generation_config.json", generation_config(source.hub, config));
  std::string alone;
  if (source.tokenizer != nullptr) alone = write_tokenizer(*source.tokenizer, source.hub.max_positions, folder);
  if (source.target.name == "weft") {
    for (const auto& [name, text] : remote_code(source.hub.model)) write_file_atomically(folder / name, text);
  }
  write_file_atomically(folder / "README.md", files.card);
  return alone;
}

void round_to_files(const ExportSource& source, SafetensorsDType dtype) {
  std::vector<std::byte> stored;
  for (const TensorRule& rule : source.target.tensors(source.hub.model)) {
    const SafetensorsDType as = stored_dtype(rule, dtype);
    for (const Piece& piece : rule.pieces) {
      const std::span<float> values =
          values_of(source.model, piece.parameter)
              .subspan(static_cast<std::size_t>(piece.begin), static_cast<std::size_t>(piece.count));
      for (float& value : values) value = static_cast<float>(static_cast<double>(value) + rule.shift);
      stored.resize(values.size() * static_cast<std::size_t>(bits_of(as)) / 8);
      stored_from_floats(as, values, stored);
      floats_from_stored(as, stored, values);
      for (float& value : values) value = static_cast<float>(static_cast<double>(value) - rule.shift);
    }
  }
}

Reread check_export(const ExportSource& source, const fs::path& folder) {
  const HubFiles files = open_hub_model(folder);
  if (files.target->name != source.target.name) {
    storage_error("{}: reread, it is a model of the class {}, not {}", folder.string(), files.target->name,
                  source.target.name);
  }
  LanguageModel reread(files.model.model);
  reread.parameters().allocate(cpu_place());
  const TensorMap map(files.target->tensors(files.model.model), reread.parameters().all());
  map.check(*files.tensors);
  for (const Parameter* p : reread.parameters().all()) {
    map.read_parameter(*files.tensors, p->name, p->value.span<float>());
  }
  if (const std::string difference = first_difference(source.model, reread); !difference.empty()) {
    storage_error("{}: reread, the model is another: {}", folder.string(), difference);
  }
  Reread result;
  for (const std::int64_t length : kLengths) {
    const std::vector<std::int32_t> tokens = probe_tokens(length, source.hub.model.vocabulary);
    const Tensor expected = logits_of(source.model, tokens), found = logits_of(reread, tokens);
    result.lengths.push_back(length);
    const std::span<const float> a = expected.span<float>(), b = found.span<float>();
    for (std::size_t i = 0; i < a.size(); ++i) {
      const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
      // A NaN stays.
      if (!(difference <= result.max_difference) && !std::isnan(result.max_difference)) {
        result.max_difference = difference;
      }
      result.largest_logit = std::max(result.largest_logit, std::abs(static_cast<double>(a[i])));
    }
  }
  if (!(result.max_difference <= kTolerance * std::max(1.0, result.largest_logit))) {
    storage_error(
        "{}: reread, the parameters are equal but logits differ by {:.3g} (largest {:.3g}): {} means another "
        "function",
        folder.string(), result.max_difference, result.largest_logit, (folder / "config.json").string());
  }
  return result;
}

std::vector<std::int32_t> probe_tokens(std::int64_t length, std::int64_t vocabulary) {
  constexpr std::uint64_t kSeed = 20150;
  std::vector<std::int32_t> tokens;
  std::uint64_t state = kSeed + static_cast<std::uint64_t>(length);
  for (std::int64_t t = 0; t < length; ++t) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    tokens.push_back(static_cast<std::int32_t>((state >> 33) % static_cast<std::uint64_t>(vocabulary)));
  }
  return tokens;
}

Tensor logits_at(LanguageModel& model, std::span<const std::int32_t> tokens, std::span<const std::int64_t> positions) {
  const auto T = static_cast<std::int64_t>(tokens.size());
  const Place place = cpu_place();
  Tape tape(place.arena, Tape::Mode::inference, place.stream);
  return model.logits_at(tape, Tensor::from({T}, tokens), Documents::single(T), positions).clone();
}

Tensor logits_of(LanguageModel& model, std::span<const std::int32_t> tokens) {
  std::vector<std::int64_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), std::int64_t{0});
  return logits_at(model, tokens, positions);
}

}  // namespace weft
