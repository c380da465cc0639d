// Log-likelihoods of continuations, as evaluation harnesses ask for them: with the conventions of lm_eval's backend for
// Hugging Face models, so that an exported model scores alike there.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "data/tokenizers/tokenizer.h"
#include "modules/language_model.h"

namespace weft {

struct ScoreRequest {
  std::string context;  // empty: the beginning of a text
  std::string continuation;
};

struct ContinuationScore {
  double log_likelihood = 0.0;  // natural, summed over the continuation's tokens
  bool is_greedy = false;       // every token of it is the most likely one
  std::int64_t tokens = 0;      // of the continuation
};

// The ids of a request. Spaces that end the context belong to the continuation; context and continuation are encoded
// together, framed as the tokenizer frames prompts, and cut where the context alone would end. An empty context is one
// token: BOS, or else the end of a document.
struct EncodedRequest {
  std::vector<std::int32_t> context, continuation;
};
EncodedRequest encode_request(const ScoreRequest& request, const Tokenizer& tokenizer);

// Lines {"context": ..., "continuation": ...} of a file; other members are left alone. Error (config) naming the line.
std::vector<ScoreRequest> read_requests(const std::string& path);

// Scores in the order of the requests, where the model lives. What exceeds `max_length` tokens loses its beginning, not
// its continuation: Error (config), naming the request, if that is longer by itself or empty. `done` sees each score in
// order.
void score_requests(LanguageModel& model, const Place& place, const Tokenizer& tokenizer,
                    const std::vector<ScoreRequest>& requests, std::int64_t max_length,
                    const std::function<void(const ContinuationScore&)>& done);

}  // namespace weft
