#include "train/loop/run_folder.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <unistd.h>

#include "checkpoints/layout.h"
#include "checkpoints/resume.h"
#include "data/storage/file.h"
#include "train/loop/training_state.h"

namespace weft {
namespace fs = std::filesystem;

fs::path run_folder(const Recipe& recipe) {
  return fs::path(recipe.run.out) / recipe.run.name;
}

void create_run_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder / "checkpoints", error);
  if (error) {
    storage_error("{}: the run's folder cannot be created: {}; set run.out to a place that can be written",
                  folder.string(), error.message());
  }
  if (access(folder.c_str(), W_OK) != 0) {
    storage_error("{}: the run's folder cannot be written: {}; set run.out to a place that can be written",
                  folder.string(), std::strerror(errno));
  }
}

void write_run_recipe(const fs::path& folder, const Recipe& recipe) {
  const std::string text = resolved_recipe(recipe);
  const auto write = [&](const fs::path& path) { write_file_atomically(path, text); };
  const fs::path current = folder / "recipe.toml";
  if (!fs::exists(current)) return write(current);
  constexpr std::uint64_t kMaxRecipe = 1 << 20;
  if (read_small_file(current, kMaxRecipe) == text) return;
  int n = 1;
  while (fs::exists(folder / fmt::format("recipe.{}.toml", n))) ++n;
  fs::copy_file(current, folder / fmt::format("recipe.{}.toml", n));
  write(current);
}

void read_run_or_checkpoint(const fs::path& path, const std::function<void(const CheckpointReader&)>& load) {
  if (fs::exists(path / kManifestName)) return load(CheckpointReader(path));
  SingleProcess group;
  const auto chosen =
      choose_checkpoint(path, {}, group, load, [](const std::string& line) { fmt::print(stderr, "{}\n", line); });
  if (!chosen) config_error("{}: neither a checkpoint nor a run with checkpoints", path.string());
}

LoadedModel load_model(const fs::path& path, const PlaceOf& place_of) {
  if (!fs::exists(path)) config_error("{}: no such run or checkpoint", path.string());
  LoadedModel loaded;
  const auto load = [&](const CheckpointReader& reader) {
    loaded.recipe = parse_recipe(recipe_of(reader), (reader.directory() / "manifest.json").string());
    loaded.tokenizer_files = tokenizer_of(reader);
    loaded.tokenizer = loaded.tokenizer_files.tokenizer;
    const bool has_own_vocabulary = loaded.recipe.model.vocabulary != 0;
    if (loaded.tokenizer == nullptr && !loaded.recipe.task && !has_own_vocabulary) {
      storage_error("{}: the manifest names neither a tokenizer nor a task", reader.directory().string());
    }
    std::int64_t vocabulary = 0;
    if (loaded.recipe.task) {
      vocabulary = make_task(*loaded.recipe.task, data_seed(loaded.recipe))->vocabulary();
    } else if (loaded.tokenizer != nullptr) {
      vocabulary = loaded.tokenizer->vocab_size();
    }
    loaded.model = std::make_unique<LanguageModel>(language_model_config(loaded.recipe, vocabulary));
    load_values(reader, *loaded.model, place_of ? place_of(loaded.recipe) : cpu_place());
    loaded.checkpoint = reader.directory();
    loaded.step = reader.step();
  };
  read_run_or_checkpoint(path, load);
  return loaded;
}

LoadedModel load_text_model(const fs::path& path, const PlaceOf& place_of) {
  LoadedModel loaded = load_model(path, place_of);
  if (loaded.tokenizer == nullptr && !loaded.recipe.task) {
    config_error("{}: imported without a tokenizer, so that there is no text for its tokens", path.string());
  }
  if (loaded.tokenizer == nullptr) {
    config_error("{}: trained on the task {}, whose tokens are no text; score it with weft eval --task", path.string(),
                 loaded.recipe.task->type->name);
  }
  return loaded;
}

}  // namespace weft
