#include "data/prepare/collector.h"

#include <filesystem>

#include "autograd/check.h"
#include "autograd/philox.h"

namespace weft {

std::string spill_name(int dataset) {
  return dataset == 0 ? "spill" : "spill-validation";
}

Collector::Collector(const PrepareOptions& options, const std::vector<PrepareInput>& inputs, std::int64_t spill_count,
                     const std::string& folder, Journal& journal)
    : options_(options), inputs_(inputs), journal_(journal), state_(journal.content().collect) {
  const int datasets = options.validation_every > 0 ? 2 : 1;
  for (CollectedDataset& dataset : state_.datasets) {
    dataset.skipped.resize(kSkipNames.size());
    dataset.source_documents.resize(inputs.size());
    dataset.source_tokens.resize(inputs.size());
  }
  state_.first_skipped.resize(kSkipNames.size());
  for (int i = 0; i < datasets; ++i) {
    const auto& lengths = state_.datasets[static_cast<std::size_t>(i)].spills;
    // The count is part of what lies on disk: a resumed run keeps it, whatever its memory.
    const std::int64_t count = lengths.empty() ? spill_count : static_cast<std::int64_t>(lengths.size());
    spills_.emplace_back(folder, spill_name(i), count, options.memory / 8, lengths);
  }
  if (options.dedup_exact) {
    seen_ = std::make_unique<SeenTexts>(folder + "/hashes", state_.hashes, options.memory / 2);
  }
}

void Collector::note_skips(const EncodedBatch& batch) {
  const PrepareInput& input = inputs_[static_cast<std::size_t>(batch.source.input)];
  for (const SkipExample& example : batch.examples) {
    std::string& first = state_.first_skipped[static_cast<std::size_t>(example.reason)];
    if (!first.empty()) continue;
    const std::string path = input.path == "-" ? "standard input" : input.path;
    if (input.format == InputFormat::jsonl) {
      first = fmt::format("{}:{}: {}", path, state_.input_lines + example.line + 1, example.what);
    } else if (options_.split == TextSplit::file) {
      first = fmt::format("{}: {}", path, example.what);
    } else {
      first = fmt::format("{}: document {}: {}", path, state_.input_documents + example.document + 1, example.what);
    }
  }
}

void Collector::take(EncodedBatch&& batch) {
  note_skips(batch);
  const auto source = static_cast<std::size_t>(batch.source.input);
  const auto tokens =
      batch.wide.empty() ? std::as_bytes(std::span(batch.narrow)) : std::as_bytes(std::span(batch.wide));
  const std::size_t width = batch.wide.empty() ? 2 : 4;
  std::size_t at = 0;
  for (EncodedDocument& document : batch.documents) {
    const std::int64_t ordinal = state_.ordinal++;
    const bool validation =
        options_.validation_every > 0 && ordinal % options_.validation_every == options_.validation_every - 1;
    CollectedDataset& dataset = state_.datasets[validation ? 1 : 0];
    const auto part = tokens.subspan(at, document.tokens * width);
    at += part.size();
    if (document.skip == Skip::none && seen_ != nullptr && !seen_->insert(document.hash))
      document.skip = Skip::duplicate;
    if (document.skip != Skip::none) {
      ++dataset.skipped[static_cast<std::size_t>(document.skip)];
      continue;
    }
    const auto index = static_cast<std::uint64_t>(ordinal);
    SpilledDocument spilled;
    spilled.key = options_.shuffle_seed
                      ? RandomWords(*options_.shuffle_seed, RandomStream::document_shuffle, index).word64()
                      : index;
    spilled.ordinal = index;
    spilled.tokens = document.tokens;
    spilled.text_bytes = document.bytes;
    spilled.source = static_cast<std::uint32_t>(source);
    spills_[validation ? 1 : 0].add(spilled, part);
    ++dataset.documents;
    dataset.tokens += document.tokens;
    dataset.text_bytes += document.bytes;
    ++dataset.source_documents[source];
    dataset.source_tokens[source] += document.tokens;
  }
  state_.input_documents += static_cast<std::int64_t>(batch.documents.size());
  state_.input_lines += batch.lines;
  state_.text_bytes += batch.text_bytes;
  state_.position = batch.source.end;
  if (batch.source.ends_input) {
    state_.input_digests.push_back(hex(batch.source.digest));
    state_.input_bytes.push_back(batch.source.input_bytes);
    state_.input_documents = 0;
    state_.input_lines = 0;
  }
  since_checkpoint_ += batch.text_bytes;
  if (since_checkpoint_ >= options_.checkpoint_bytes) checkpoint(false);
}

void Collector::checkpoint(bool end) {
  for (std::size_t i = 0; i < spills_.size(); ++i) {
    spills_[i].sync();
    state_.datasets[i].spills = spills_[i].lengths();
  }
  if (seen_ != nullptr) {
    seen_->sync();
    state_.hashes = seen_->size();
  }
  journal_.record_collect(state_, end);
  since_checkpoint_ = 0;
}

void Collector::finish() {
  if (!journal_.has_progress()) {
    for (std::size_t i = 0; i < spills_.size(); ++i) {
      spills_[i].flush();
      state_.datasets[i].spills = spills_[i].lengths();
    }
  } else {
    checkpoint(true);
  }
}

}  // namespace weft
