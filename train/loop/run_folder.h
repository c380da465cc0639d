// The folder of a run: recipe.toml, metrics.jsonl, log.txt, checkpoints/, report.html.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "checkpoints/reader.h"
#include "data/tokenizers/tokenizer_files.h"
#include "modules/language_model.h"
#include "train/recipe/recipe.h"

namespace weft {

std::filesystem::path run_folder(const Recipe& recipe);

// Creates the folder and checks that files can be written there. Error (storage) otherwise.
void create_run_folder(const std::filesystem::path& folder);

// Writes the resolved recipe; if the folder holds another one, that one becomes recipe.N.toml, so that none is lost.
void write_run_recipe(const std::filesystem::path& folder, const Recipe& recipe);

// Calls `load` with a checkpoint, or with the newest of a run that loads: rejected ones are reported on standard error,
// and `load` must overwrite what an earlier call has written. Error (config) if `path` is neither.
void read_run_or_checkpoint(const std::filesystem::path& path,
                            const std::function<void(const CheckpointReader&)>& load);

// A trained model for evaluation and generation.
struct LoadedModel {
  Recipe recipe;
  TokenizerBundle tokenizer_files;
  std::shared_ptr<const Tokenizer>
      tokenizer;  // of these files; null: trained on a task whose tokens are symbols, or imported without one
  std::unique_ptr<LanguageModel> model;
  std::filesystem::path checkpoint;
  std::int64_t step = 0;
};

// `path` is a run (its newest valid checkpoint is taken; rejected ones are reported on standard error) or one
// checkpoint. `place_of` says where a model of the checkpoint's recipe is to live; its parameters have values only.
using PlaceOf = std::function<Place(const Recipe&)>;
LoadedModel load_model(const std::filesystem::path& path, const PlaceOf& place_of = {});
// The same for what needs text. Error (config) if the model has no tokenizer.
LoadedModel load_text_model(const std::filesystem::path& path, const PlaceOf& place_of = {});

}  // namespace weft
