#include "train/hub/import_model.h"

#include <algorithm>
#include <cmath>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <optional>

#include "checkpoints/huggingface/hub_facts.h"
#include "checkpoints/huggingface/hub_files.h"
#include "checkpoints/huggingface/tensor_map.h"
#include "checkpoints/writer.h"
#include "data/storage/file.h"
#include "data/storage/json.h"
#include "data/tokenizers/tokenizer_files.h"
#include "train/hub/aside_folder.h"
#include "train/hub/imported_recipe.h"
#include "train/loop/training_state.h"
#include "train/recipe/recipe.h"
#include "train/recipe/schema.h"

namespace weft {
namespace fs = std::filesystem;
namespace {

constexpr const char* kTokenizerJson = "tokenizer.json";
constexpr const char* kTokenizerModel = "tokenizer.model";

// A run's name from a folder's.
std::string name_from(const fs::path& out) {
  std::string name = out.filename().string();
  for (char& c : name) {
    const bool legal =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
    if (!legal) c = '-';
  }
  return name.starts_with(".") ? "imported" + name : name;
}

void count_nonfinite(const TensorMap& map, const TensorSource& source, const std::string& parameter,
                     std::span<const float> values) {
  const auto bad = std::ranges::count_if(values, [](float v) { return !std::isfinite(v); });
  if (bad == 0) return;
  std::vector<std::string> tensors;
  for (const TensorRule& rule : map.rules()) {
    const auto holds = [&](const Piece& piece) { return piece.parameter == parameter; };
    if (std::ranges::any_of(rule.pieces, holds)) tensors.push_back(TensorMap::name_in(source, rule));
  }
  fail(ExitCode::nonfinite, "{}: {} of {} values of {} are not finite; the file is damaged, or its type was too small",
       source.where(tensors.front()), bad, values.size(), fmt::join(tensors, ", "));
}

// Each parameter is read when the checkpoint's writer comes to it.
class ParameterReader {
 public:
  ParameterReader(const HubFiles& files, const TensorMap& map, std::int64_t total, const ImportProgress& progress)
      : files_(files), map_(map), total_(total), progress_(progress) {}

  Slice slice(const Parameter& parameter) {
    return {.kind = "master",
            .name = parameter.name,
            .shape = parameter.shape,
            .bytes = {},
            .produce = [this, name = parameter.name](std::span<std::byte> bytes) { produce(name, bytes); }};
  }

  // The writer turns exceptions into a text; this is the one that stopped it, if it was ours.
  const std::optional<Error>& error() const { return error_; }

 private:
  void produce(const std::string& name, std::span<std::byte> bytes) {
    try {
      const std::span values(reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float));
      map_.read_parameter(*files_.tensors, name, values);
      count_nonfinite(map_, *files_.tensors, name, values);
      done_ += static_cast<std::int64_t>(values.size());
      if (progress_) progress_(done_, total_);
    } catch (const Error& error) {
      error_ = error;
      throw;
    }
  }

  const HubFiles& files_;
  const TensorMap& map_;
  std::int64_t total_, done_ = 0;
  const ImportProgress& progress_;
  std::optional<Error> error_;
};

// The tokenizer of the model, and its files in the new folder `to`; none if the model has none. The config goes with
// them, since BOS and EOS may be told there.
TokenizerBundle copy_tokenizer(const HubFiles& files, const fs::path& to) {
  write_file_atomically(to / "config.json", files.config->dump(2) + "\n");
  const fs::path from = files.path;
  TokenizerBundle bundle;
  if (!files.tokenizer.empty()) {
    for (const TokenizerFile& file : files.tokenizer) write_file_atomically(to / file.name, file.content);
    bundle = open_tokenizer(to.string());
  } else if (fs::exists(from / kTokenizerJson) || fs::exists(from / kTokenizerModel)) {
    bundle = open_tokenizer(files.path);
  }
  for (const TokenizerFile& file : bundle.files) write_file_atomically(to / file.name, file.content);
  return bundle;
}

}  // namespace

ImportResult import_model(const fs::path& path, const fs::path& out, const ImportProgress& progress) {
  fs::path folder = fs::absolute(out).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // "runs/x/"
  if (fs::exists(folder)) config_error("{}: exists already; choose another --out", out.string());
  const HubFiles files = open_hub_model(path);
  LanguageModel model(files.model.model);
  const TensorMap map(files.target->tensors(files.model.model), model.parameters().all());
  map.check(*files.tensors);

  const std::string name = name_from(folder);
  const std::string recipe =
      imported_recipe(files.model.model, {.name = name + "-tuned",
                                          .init_from = folder.string(),
                                          .origin = fs::absolute(path).lexically_normal().string(),
                                          .max_positions = files.model.max_positions});
  const std::vector<std::string> own = {
      "run.name=" + toml_string(name), "run.out=" + toml_string(folder.parent_path().string()), "model.init_from=\"\""};
  const Recipe described = parse_recipe(recipe, "recipe.toml", own);

  AsideFolder aside(folder, "tmp");
  const TokenizerBundle tokenizer = copy_tokenizer(files, aside.path());
  if (tokenizer.tokenizer && tokenizer.tokenizer->vocab_size() > files.model.model.vocabulary) {
    config_error("{}: its tokenizer has {} ids, but the embedding has {} rows", files.path,
                 tokenizer.tokenizer->vocab_size(), files.model.model.vocabulary);
  }
  ParameterReader reader(files, map, model.parameters().element_count(), progress);
  CheckpointState state;
  for (const Parameter* p : model.parameters().all()) {
    state.parameters.push_back(
        {.name = p->name, .shape = p->shape, .group = "default", .optimizer = "none", .store = {"master"}});
    state.slices.push_back(reader.slice(*p));
  }
  state.state = fresh_training_state();
  nlohmann::json provenance = {{"recipe", resolved_recipe(described)},
                               {"recipe_digest", recipe_digest(described)},
                               {"datasets", nlohmann::json::array()},
                               {kImportedFromKey, fs::absolute(path).lexically_normal().string()},
                               {kHubFactsKey, to_json(hub_facts_of(*files.target, files.model))}};
  attach_tokenizer(tokenizer, state, provenance);
  state.provenance = canonical(provenance);
  state.info = canonical({{"config", *files.config}});
  SingleProcess group;
  const SaveResult saved = save_checkpoint(aside.path(), state, group);
  if (!saved.saved) {
    if (reader.error()) throw *reader.error();
    storage_error("{}: {}", out.string(), saved.failure);
  }
  write_file_atomically(aside.path() / "recipe.toml", recipe);
  aside.take_name();
  return {.folder = out,
          .checkpoint = folder / saved.directory.lexically_relative(aside.path()),
          .target = files.target->name,
          .tokenizer = tokenizer.tokenizer ? tokenizer.tokenizer->name() : "",
          .parameters = model.parameters().element_count(),
          .tensors = static_cast<std::int64_t>(map.rules().size()),
          .digest = saved.digest};
}

}  // namespace weft
