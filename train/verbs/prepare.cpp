#include <cstdio>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "train/loop/run_log.h"
#include "train/verbs/verbs.h"

namespace weft {

void run_prepare(const PrepareOptions& options, OutputForm form) {
  const bool terminal = isatty(STDERR_FILENO) == 1;
  const PrepareResult result = prepare(options, [&](const PrepareProgress& progress) {
    if (!terminal) return;
    const std::string total =
        progress.total > 0 ? fmt::format(" of {}", short_count(static_cast<double>(progress.total))) : "";
    fmt::print(stderr, "\r\033[K{}: {}{}, {} documents", progress.phase,
               short_count(static_cast<double>(progress.done)), total,
               short_count(static_cast<double>(progress.documents)));
  });
  if (terminal) fmt::print(stderr, "\r\033[K");
  if (form == OutputForm::text) {
    fmt::print("{}\n", describe(result));
    return;
  }
  const nlohmann::json json = {{"folder", result.folder},         {"validation_folder", result.validation_folder},
                               {"digest", result.digest},         {"validation_digest", result.validation_digest},
                               {"documents", result.documents},   {"tokens", result.tokens},
                               {"text_bytes", result.text_bytes}, {"skipped", result.skipped},
                               {"seconds", result.seconds}};
  fmt::print("{}\n", json.dump());
}

}  // namespace weft
