#include "train/hub/expected_outputs.h"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <variant>

#include "autograd/check.h"
#include "autograd/place.h"
#include "checkpoints/huggingface/export.h"
#include "checkpoints/safetensors/writer.h"
#include "data/storage/file.h"
#include "data/tokenizers/probe.h"
#include "train/generate/generate.h"

namespace weft {
namespace fs = std::filesystem;
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::size_t kSequences = 32;
// Below, at and above powers of two, and long ones; what is left of the 32 are the model's own and then the others.
constexpr std::array<std::int64_t, 8> kLengths = {1, 2, 63, 64, 65, 257, 1024, 4096};
constexpr std::array<std::int64_t, 31> kOthers = {3,   17,  33,  100, 129, 191, 300, 513, 5,   31,  48,
                                                  96,  127, 128, 150, 192, 193, 200, 255, 256, 384, 511,
                                                  512, 700, 7,   11,  24,  40,  80,  110, 170};
// Options of mixers that cut a sequence.
constexpr std::array<const char*, 5> kCuts = {"window", "chunk", "block", "compress_length", "batch"};
constexpr std::array<std::int64_t, 20> kPrompts = {33, 1,  80, 2,  3,  5,  8,  13, 16, 17,
                                                   21, 31, 32, 40, 48, 55, 63, 64, 65, 89};
constexpr std::int64_t kGreedyTokens = 128, kLeastGreedyTokens = 8;
// However large the model is.
constexpr std::size_t kSequencesAlways = 6, kTextsAlways = 3;
// Of all logits that are kept: 256 MiB.
constexpr std::int64_t kMostLogits = std::int64_t{64} << 20;

class Clock {
 public:
  explicit Clock(double seconds) : end_(now() + seconds) {}
  static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  double left() const { return end_ - now(); }

 private:
  double end_;
};

std::vector<std::int64_t> sequence_lengths(const LanguageModelConfig& model) {
  std::vector<std::int64_t> lengths(kLengths.begin(), kLengths.end());
  const auto add = [&](std::int64_t length) {
    const bool is_new = std::ranges::find(lengths, length) == lengths.end();
    if (is_new && length > 0 && length < kLengths.back() && lengths.size() < kSequences) lengths.push_back(length);
  };
  for (const MixerChoice& choice : model.pattern) {
    for (const char* key : kCuts) {
      const auto found = choice.options.values().find(key);
      if (found == choice.options.values().end()) continue;
      const auto* cut = std::get_if<std::int64_t>(&found->second);
      if (cut == nullptr || *cut < 2) continue;
      for (const std::int64_t length : {*cut - 1, *cut, *cut + 1, 2 * *cut + 1}) add(length);
    }
  }
  for (const std::int64_t length : kOthers) add(length);
  return lengths;
}

// `count` places of a sequence, evenly apart, the last among them.
std::vector<std::int64_t> places(std::int64_t length, std::int64_t count) {
  count = std::min(count, length);
  std::vector<std::int64_t> all;
  for (std::int64_t i = 1; i <= count; ++i) all.push_back(length * i / count - 1);
  return all;
}

// The first of `positions` where a logit is not finite.
std::optional<std::int64_t> first_not_finite(const Tensor& logits, const std::vector<std::int64_t>& positions) {
  for (std::size_t i = 0; i < positions.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i);
    const Tensor one = logits.rows(row, row + 1);
    if (!std::ranges::all_of(one.span<float>(), [](float x) { return std::isfinite(x); })) return positions[i];
  }
  return {};
}

class ExpectedOutputs {
 public:
  explicit ExpectedOutputs(LanguageModel& model) : model_(model) {}

  void add_sequences(const Clock& clock) {
    const std::int64_t V = model_.config().vocabulary;
    const std::vector<std::int64_t> lengths = sequence_lengths(model_.config());
    const std::int64_t rows = std::max<std::int64_t>(8, kMostLogits / (V * static_cast<std::int64_t>(lengths.size())));
    double pace = 0.0;  // seconds a token, of the longest
    std::int64_t longest = 0;
    std::size_t n = 0;
    for (const std::int64_t T : lengths) {
      if (n >= kSequencesAlways && 2.0 * pace * static_cast<double>(T) > clock.left()) continue;
      const double begin = Clock::now();
      add_sequence(n, probe_tokens(T, V), rows);
      if (T >= longest) {
        longest = T;
        pace = (Clock::now() - begin) / static_cast<double>(T);
      }
      ++n;
    }
  }

  void add_texts(const Clock& clock) {
    std::size_t n = 0;
    for (const std::int64_t length : kPrompts) {
      if (n >= kTextsAlways && clock.left() <= 0.0) break;
      const std::vector<std::int32_t> prompt = probe_tokens(length, model_.config().vocabulary);
      const GenerateOptions options{.tokens = kGreedyTokens, .stop = {}, .sampling = {.temperature = 0.0}};
      std::int64_t made = 0;
      const auto go_on = [&](std::int32_t) { return ++made < kLeastGreedyTokens || clock.left() > 0.0; };
      put(fmt::format("greedy.{}", n), generate(model_, cpu_place(), prompt, options, go_on).tokens);
      put(fmt::format("prompt.{}", n), prompt);
      ++n;
    }
  }

  // Tokens after which logits are not finite numbers any more, the fewest of all sequences.
  const std::optional<std::int64_t>& finite_tokens() const { return finite_tokens_; }

  void write(const fs::path& path) const {
    std::vector<TensorDeclaration> declarations;
    for (const auto& [name, tensor] : tensors_) {
      declarations.push_back({.name = name,
                              .dtype = tensor.dtype() == DType::i64 ? SafetensorsDType::i64 : SafetensorsDType::f32,
                              .shape = {tensor.shape().begin(), tensor.shape().end()}});
    }
    write_safetensors_file(path, declarations, [&](const TensorDeclaration& declaration, TensorSink& sink) {
      const Tensor& tensor = tensors_.at(declaration.name);
      if (tensor.dtype() == DType::i64) {
        sink.write_bytes(std::as_bytes(tensor.span<std::int64_t>()));
      } else {
        sink.write_floats(tensor.span<float>());
      }
    });
  }

 private:
  // States that grow without bound, as those of memories that learn with too large steps, overflow elsewhere in another
  // program, at half of the tokens where that squares them: only what is before that is comparable.
  void add_sequence(std::size_t n, std::vector<std::int32_t> ids, std::int64_t rows) {
    for (;;) {
      const std::vector<std::int64_t> positions = places(static_cast<std::int64_t>(ids.size()), rows);
      Tensor logits = logits_at(model_, ids, positions);
      const std::optional<std::int64_t> end = first_not_finite(logits, positions);
      if (!end) {
        put(fmt::format("logits.{}", n), std::move(logits));
        put(fmt::format("ids.{}", n), ids);
        put(fmt::format("positions.{}", n), positions);
        return;
      }
      finite_tokens_ = std::min(*end, finite_tokens_.value_or(*end));
      if (*end < 2) {
        storage_error("the model's own logits are not finite numbers from token {} of a text on: nothing to compare",
                      *end);
      }
      ids.resize(static_cast<std::size_t>(*end / 2));
    }
  }
  void put(const std::string& name, Tensor tensor) { tensors_[name] = std::move(tensor); }
  template <class T>
  void put(const std::string& name, const std::vector<T>& numbers) {
    put(name, Tensor::from({static_cast<std::int64_t>(numbers.size())},
                           std::vector<std::int64_t>(numbers.begin(), numbers.end())));
  }

  LanguageModel& model_;
  std::map<std::string, Tensor> tensors_;
  std::optional<std::int64_t> finite_tokens_;
};

}  // namespace

std::optional<std::int64_t> write_expected_outputs(LanguageModel& model, const Tokenizer* tokenizer, double seconds,
                                                   const fs::path& folder) {
  ExpectedOutputs expected(model);
  expected.add_sequences(Clock(seconds / 2.0));
  expected.add_texts(Clock(seconds / 2.0));
  expected.write(folder / "expected.safetensors");
  if (tokenizer == nullptr) return expected.finite_tokens();
  nlohmann::json texts = {
      {"texts", nlohmann::json::array()}, {"ids", nlohmann::json::array()}, {"prompt_ids", nlohmann::json::array()}};
  for (const std::string& line : probe_lines()) {
    texts["texts"].push_back(line);
    texts["ids"].push_back(tokenizer->encode(line));
    texts["prompt_ids"].push_back(tokenizer->encode(line, EncodeMode::prompt));
  }
  write_file_atomically(folder / "texts.json", texts.dump());
  return expected.finite_tokens();
}

}  // namespace weft
