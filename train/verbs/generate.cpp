#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/tokenizers/stream_decoder.h"
#include "train/loop/run_folder.h"
#include "train/loop/run_log.h"
#include "train/verbs/inference_device.h"
#include "train/verbs/verbs.h"

namespace weft {
namespace {

std::vector<std::int32_t> prompt_of(const Tokenizer& tokenizer, const GenerateArguments& arguments) {
  std::vector<std::int32_t> prompt = tokenizer.encode(arguments.prompt, arguments.mode);
  if (!prompt.empty()) return prompt;
  // Without a prompt the text begins as a document does: with BOS, or after the end of another.
  const std::int64_t first = tokenizer.bos_id() >= 0 ? tokenizer.bos_id() : tokenizer.eos_id();
  if (first < 0) {
    config_error("{}: the tokenizer {} has neither BOS nor EOS to begin a text with; give a --prompt", arguments.path,
                 tokenizer.name());
  }
  return {static_cast<std::int32_t>(first)};
}

void print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void generate_text(const GenerateArguments& arguments) {
  const World world(self_communicator());
  InferenceDevice device(arguments.device, world);
  LoadedModel loaded = load_text_model(arguments.path, device.place_of());
  const std::vector<std::int32_t> prompt = prompt_of(*loaded.tokenizer, arguments);
  device.open_arena(*loaded.model, 1, static_cast<std::int64_t>(prompt.size()) + arguments.tokens);
  const GenerateOptions options{.tokens = arguments.tokens,
                                .stop = stop_ids(loaded.tokenizer_files),
                                .ids = loaded.tokenizer->vocab_size(),
                                .sampling = arguments.sampling};
  StreamDecoder decoder(*loaded.tokenizer);
  // The text goes on from the prompt, so that a space at its beginning stays.
  if (!arguments.prompt.empty()) {
    for (const std::int32_t id : prompt) decoder.push(id);
  }
  const bool text = arguments.form == OutputForm::text;
  if (text) fmt::print("{}", arguments.prompt);
  const Generated result = generate(*loaded.model, device.place(), prompt, options, [&](std::int32_t token) {
    if (text) {
      print(decoder.push(token));
    }
    return true;
  });
  std::string all;
  if (!text) {
    for (const std::int32_t token : result.tokens) all += decoder.push(token);
    all += decoder.finish();
    const nlohmann::json json = {{"prompt", arguments.prompt},
                                 {"tokens", result.tokens},
                                 {"text", all},
                                 {"device", device.description()},
                                 {"state_bytes", result.state_bytes},
                                 {"prefill_seconds", result.prefill_seconds},
                                 {"decode_seconds", result.decode_seconds}};
    fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    return;
  }
  print(decoder.finish());
  fmt::print("\n");
  fmt::print(stderr, "[{} tokens in {:.2f} s, {:.0f} a second, the first after {:.2f} s; states hold {}B; {}]\n",
             result.tokens.size(), result.decode_seconds,
             static_cast<double>(result.tokens.size()) / std::max(result.decode_seconds, 1e-9), result.prefill_seconds,
             short_count(static_cast<double>(result.state_bytes)), device.description());
}

}  // namespace

void run_generate(const GenerateArguments& arguments) {
  within_gpu_memory(fmt::format("Use a shorter prompt, fewer --tokens (now {}), --device cpu, or end what else is on "
                                "the GPU",
                                arguments.tokens),
                    [&] { generate_text(arguments); });
}

}  // namespace weft
