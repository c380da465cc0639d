// weft import: a foreign model as a run folder that eval, generate, inspect and model.init_from take.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

namespace weft {

struct ImportResult {
  std::filesystem::path folder, checkpoint;
  std::string target;     // the class that it was of
  std::string tokenizer;  // the name of its file; empty: there was none
  std::int64_t parameters = 0;
  std::int64_t tensors = 0;
  std::string digest;  // of the checkpoint
};

// Called with the elements that have been read, of all.
using ImportProgress = std::function<void(std::int64_t done, std::int64_t total)>;

// Reads the model at `path` and writes the folder `out`, which must not exist: recipe.toml, config.json, the
// tokenizer's files, and a checkpoint of step 0 with the parameters in fp32 (what is stored in fewer bits is exact).
// Written aside and renamed; holds one parameter in memory at a time. Error (config, storage) with the reason, and
// nothing is left; values that are not finite are an Error (nonfinite).
ImportResult import_model(const std::filesystem::path& path, const std::filesystem::path& out,
                          const ImportProgress& progress);

}  // namespace weft
