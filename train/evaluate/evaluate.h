// Loss of a model on a dataset: nats a token, perplexity, bits a byte.
#pragma once

#include <cstdint>
#include <memory>

#include "autograd/place.h"
#include "data/sampler/row_source.h"
#include "data/tokenizers/tokenizer.h"
#include "modules/language_model.h"
#include "parallel/communicator.h"

namespace weft {

struct EvaluationOptions {
  std::int64_t max_rows = 0;             // 0: all
  std::int64_t tokens_per_batch = 4096;  // rows are joined up to this many tokens
};

struct EvaluationResult {
  double loss = 0.0;  // mean over all labels, the ends of documents included
  double perplexity = 0.0;
  double bits_per_byte = 0.0;  // of the labels that stand for text; the ends of documents are left out
  std::int64_t labels = 0;
  std::int64_t bytes = 0;  // of text that the labels stand for
};

// Scores rows 0 .. max_rows-1 of epoch 0, spread over the group, where the model lives; every rank gets the result.
// Error (config) if they hold no label.
EvaluationResult evaluate(LanguageModel& model, const RowSource& rows, const Tokenizer& tokenizer, Communicator& group,
                          const Place& place, const EvaluationOptions& options);

}  // namespace weft
