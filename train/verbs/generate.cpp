#include <cstdio>
#include <nlohmann/json.hpp>

#include "train/loop/run_folder.h"
#include "train/loop/run_log.h"
#include "train/verbs/verbs.h"

namespace weft {

void run_generate(const GenerateArguments& arguments) {
  LoadedModel loaded = load_text_model(arguments.path);
  std::vector<std::int32_t> prompt = loaded.tokenizer->encode(arguments.prompt);
  // Without a prompt the text begins as a document does: after the end of another.
  if (prompt.empty()) prompt.push_back(static_cast<std::int32_t>(loaded.tokenizer->eos_id()));
  const GenerateOptions options{.tokens = arguments.tokens,
                                .eos = static_cast<std::int32_t>(loaded.tokenizer->eos_id()),
                                .sampling = arguments.sampling};
  const bool text = arguments.form == OutputForm::text;
  if (text) fmt::print("{}", arguments.prompt);
  const Generated result = generate(*loaded.model, prompt, options, [&](std::int32_t token) {
    if (text) {
      const std::string piece = loaded.tokenizer->decode(std::span(&token, 1));
      std::fwrite(piece.data(), 1, piece.size(), stdout);
      std::fflush(stdout);
    }
    return true;
  });
  if (!text) {
    const nlohmann::json json = {{"prompt", arguments.prompt},
                                 {"tokens", result.tokens},
                                 {"text", loaded.tokenizer->decode(result.tokens)},
                                 {"state_bytes", result.state_bytes},
                                 {"prefill_seconds", result.prefill_seconds},
                                 {"decode_seconds", result.decode_seconds}};
    fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    return;
  }
  fmt::print("\n");
  fmt::print(stderr, "[{} tokens in {:.2f} s, {:.0f} a second; states hold {}B]\n", result.tokens.size(),
             result.decode_seconds, static_cast<double>(result.tokens.size()) / std::max(result.decode_seconds, 1e-9),
             short_count(static_cast<double>(result.state_bytes)));
}

}  // namespace weft
