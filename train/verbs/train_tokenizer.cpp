#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "train/loop/run_log.h"
#include "train/verbs/verbs.h"

namespace weft {

void run_train_tokenizer(const TrainTokenizerOptions& options, OutputForm form) {
  const bool terminal = isatty(STDERR_FILENO) == 1;
  auto shown = std::chrono::steady_clock::time_point();
  const TrainTokenizerResult result = train_tokenizer(options, [&](const TrainTokenizerProgress& progress) {
    const auto now = std::chrono::steady_clock::now();
    if (!terminal || now - shown < std::chrono::milliseconds(200)) return;
    shown = now;
    const std::string total =
        progress.total > 0 ? fmt::format(" of {}", short_count(static_cast<double>(progress.total))) : "";
    fmt::print(stderr, "\r\033[K{}: {}{}", progress.phase, short_count(static_cast<double>(progress.done)), total);
  });
  if (terminal) fmt::print(stderr, "\r\033[K");
  if (form == OutputForm::text) {
    fmt::print("{}\n", describe(result));
    return;
  }
  const nlohmann::json json = {{"file", result.file},
                               {"vocabulary", result.vocabulary},
                               {"merges", result.merges},
                               {"documents", result.documents},
                               {"skipped", result.skipped},
                               {"text_bytes", result.text_bytes},
                               {"words", result.words},
                               {"distinct_words", result.distinct_words},
                               {"reading_seconds", result.reading_seconds},
                               {"merging_seconds", result.merging_seconds}};
  fmt::print("{}\n", json.dump());
}

}  // namespace weft
