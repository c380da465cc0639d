// The baseline that a trained model must beat: a bigram model with additive smoothing.
#pragma once

#include <cstdint>

#include "data/dataset.h"

namespace weft {

struct BigramEntropy {
  double nats_per_token = 0;  // cross-entropy of the validation predictions, end-of-document predictions included
  double bits_per_byte = 0;   // the same in bits over UTF-8 bytes, end-of-document predictions excluded
  std::int64_t predictions = 0;
};

// p(b | a) = (count(a b) + smoothing) / (count(a) + smoothing * vocabulary), counted inside the documents of `train`
// and scored on those of `validation`. Vocabularies of at most 4096 ids; the two datasets must share a tokenizer.
BigramEntropy bigram_entropy(const Dataset& train, const Dataset& validation, double smoothing = 0.1);

}  // namespace weft
