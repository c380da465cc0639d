#include <cstdio>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "train/hub/import_model.h"
#include "train/loop/run_log.h"
#include "train/verbs/verbs.h"

namespace weft {

void run_import(const ImportArguments& arguments) {
  const bool on_terminal = isatty(fileno(stderr)) != 0;
  int told = -1;
  const ImportResult result = import_model(arguments.path, arguments.out, [&](std::int64_t done, std::int64_t total) {
    constexpr std::int64_t kWorthTelling = 10'000'000;
    if (total < kWorthTelling) return;
    const auto percent = static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total));
    if (percent == told || (!on_terminal && percent / 25 == told / 25 && told >= 0)) return;
    told = percent;
    fmt::print(stderr, "{}{} % of {} parameters{}", on_terminal ? "\r" : "", percent,
               short_count(static_cast<double>(total)), on_terminal ? "" : "\n");
    std::fflush(stderr);
  });
  if (on_terminal && told >= 0) fmt::print(stderr, "\n");
  if (arguments.form == OutputForm::json) {
    fmt::print("{}\n", nlohmann::json{{"run", result.folder.string()},
                                      {"checkpoint", result.checkpoint.string()},
                                      {"digest", result.digest},
                                      {"class", result.target},
                                      {"tokenizer", result.tokenizer},
                                      {"parameters", result.parameters},
                                      {"tensors", result.tensors}}
                           .dump());
    return;
  }
  fmt::print("{}: a model of the class {}, {} parameters in {} tensors, {}\n", result.folder.string(), result.target,
             short_count(static_cast<double>(result.parameters)), result.tensors,
             result.tokenizer.empty() ? "without a tokenizer" : "with its " + result.tokenizer);
  fmt::print("  weft generate {0} --prompt TEXT\n  weft train {0}/recipe.toml --set data.train=DATASET\n",
             result.folder.string());
}

}  // namespace weft
