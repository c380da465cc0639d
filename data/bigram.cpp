#include "data/bigram.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <vector>

#include "autograd/check.h"

namespace weft {

namespace {

constexpr std::int64_t kMaxVocabulary = 4096;
constexpr std::int64_t kChunk = std::int64_t{1} << 20;

// Calls visit(previous, next) for each prediction inside a document.
void for_each_bigram(const Dataset& dataset, const std::function<void(std::int32_t, std::int32_t)>& visit) {
  std::vector<std::int32_t> tokens;
  const auto offsets = dataset.doc_offsets();
  std::size_t document = 0;
  // Chunks overlap by a token, which is where the next one goes on.
  for (std::int64_t begin = 0; begin + 1 < dataset.n_tokens(); begin += kChunk) {
    tokens.resize(static_cast<std::size_t>(std::min(kChunk + 1, dataset.n_tokens() - begin)));
    dataset.read(begin, tokens);
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      const std::int64_t next = begin + static_cast<std::int64_t>(i) + 1;
      if (next == offsets[document + 1]) {
        ++document;
      } else {
        visit(tokens[i], tokens[i + 1]);
      }
    }
  }
}

}  // namespace

BigramEntropy bigram_entropy(const Dataset& train, const Dataset& validation, double smoothing) {
  const std::int64_t vocab = train.vocab_size();
  if (train.manifest().tokenizer_fingerprint != validation.manifest().tokenizer_fingerprint) {
    config_error("datasets {} and {} have different tokenizers: {} and {}", train.folder(), validation.folder(),
                 train.manifest().tokenizer_name, validation.manifest().tokenizer_name);
  }
  if (vocab > kMaxVocabulary) {
    config_error("bigram model: a vocabulary of {} ids is too large, at most {} are possible", vocab, kMaxVocabulary);
  }
  WEFT_CHECK(smoothing > 0, "bigram model: smoothing {}", smoothing);
  const auto v = static_cast<std::size_t>(vocab);
  std::vector<double> pairs(v * v, 0.0);
  std::vector<double> singles(v, 0.0);
  for_each_bigram(train, [&](std::int32_t a, std::int32_t b) {
    pairs[static_cast<std::size_t>(a) * v + static_cast<std::size_t>(b)] += 1;
    singles[static_cast<std::size_t>(a)] += 1;
  });

  BigramEntropy entropy;
  double nats = 0;
  double text_nats = 0;
  for_each_bigram(validation, [&](std::int32_t a, std::int32_t b) {
    const double count = pairs[static_cast<std::size_t>(a) * v + static_cast<std::size_t>(b)];
    const double nll = -std::log((count + smoothing) /
                                 (singles[static_cast<std::size_t>(a)] + smoothing * static_cast<double>(vocab)));
    nats += nll;
    if (b != validation.manifest().eos_id) text_nats += nll;
    ++entropy.predictions;
  });
  if (entropy.predictions == 0) config_error("dataset {}: no document has two tokens", validation.folder());
  entropy.nats_per_token = nats / static_cast<double>(entropy.predictions);
  entropy.bits_per_byte = text_nats / std::numbers::ln2 / static_cast<double>(validation.manifest().text_bytes);
  return entropy;
}

}  // namespace weft
