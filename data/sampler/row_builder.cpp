#include "data/sampler/row_builder.h"

#include <bit>

#include "autograd/check.h"

namespace weft {

namespace {

constexpr std::int64_t kMaxLength = std::int64_t{1} << 26;

std::int64_t capacity(const RowOptions& options) {
  return options.max_docs > 0 ? options.max_docs : options.length / 16 + 2;
}

}  // namespace

std::int64_t text_positions(const RowOptions& options) {
  return options.length - (options.anchor ? 1 : 0);
}
std::int64_t text_pieces(const RowOptions& options) {
  return capacity(options) - 1 - (options.anchor ? 1 : 0);
}

void check_row_options(const RowOptions& options, const Dataset& dataset) {
  if (options.length < 2 || options.length > kMaxLength) {
    config_error("sequence length {}: expected 2 to {}", options.length, kMaxLength);
  }
  if (options.max_docs < 0 || text_pieces(options) < 1) {
    config_error("max_docs {}: a row needs room for a document, padding{}", options.max_docs,
                 options.anchor ? " and the anchor" : "");
  }
  if (options.anchor && dataset.manifest().bos_id < 0 && dataset.manifest().eos_id < 0) {
    config_error("anchor: the tokenizer of {} has neither BOS nor EOS", dataset.folder());
  }
  if (options.packing != Packing::bucket) return;
  if (options.anchor) config_error("anchor: bucket packing fills rows exactly and leaves no room for the anchor");
  if (!std::has_single_bit(static_cast<std::uint64_t>(options.length))) {
    config_error("sequence length {}: bucket packing needs a power of two", options.length);
  }
  const int longest = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(options.length))) - 1;
  if (options.min_bucket_log2 < 0 || options.min_bucket_log2 > longest) {
    config_error("min_bucket_log2 {}: expected 0 to {} for sequence length {}", options.min_bucket_log2, longest,
                 options.length);
  }
  const std::int64_t pieces = options.length >> options.min_bucket_log2;
  if (pieces > capacity(options)) {
    config_error("max_docs {}: rows of the shortest bucket have {} pieces", capacity(options), pieces);
  }
}

RowBuilder::RowBuilder(const RowOptions& options, const Dataset& dataset)
    : options_(options), padding_id_(dataset.padding_id()) {
  const auto length = static_cast<std::size_t>(options.length);
  row_.tokens.reserve(length);
  row_.labels.reserve(length);
  row_.positions.reserve(length);
  if (options.anchor) {
    const DatasetManifest& manifest = dataset.manifest();
    row_.anchor = true;
    begins_.push_back(0);
    row_.tokens.push_back(static_cast<std::int32_t>(manifest.bos_id >= 0 ? manifest.bos_id : manifest.eos_id));
    row_.labels.push_back(kIgnoredLabel);
  }
}

void RowBuilder::add(std::span<const std::int32_t> inputs, std::span<const std::int32_t> labels) {
  WEFT_CHECK(
      inputs.size() == labels.size() && row_.tokens.size() + inputs.size() <= static_cast<std::size_t>(options_.length),
      "{} inputs with {} labels after {} of {} positions", inputs.size(), labels.size(), row_.tokens.size(),
      options_.length);
  if (inputs.empty()) return;
  begins_.push_back(static_cast<std::int32_t>(row_.tokens.size()));
  row_.tokens.insert(row_.tokens.end(), inputs.begin(), inputs.end());
  row_.labels.insert(row_.labels.end(), labels.begin(), labels.end());
}

void RowBuilder::add_predictions(std::span<const std::int32_t> tokens) {
  add(tokens.first(tokens.size() - 1), tokens.subspan(1));
}

Row RowBuilder::finish() {
  const auto length = static_cast<std::size_t>(options_.length);
  const bool padded = row_.tokens.size() < length;
  const auto most = static_cast<std::size_t>(capacity(options_));
  if (options_.intra_document && begins_.size() + (padded ? 1 : 0) > most) {
    const auto end = static_cast<std::size_t>(begins_[most - 1]);
    row_.cut_tokens = static_cast<std::int64_t>(row_.tokens.size() - end);
    begins_.resize(most - 1);
    row_.tokens.resize(end);
    row_.labels.resize(end);
  }
  if (row_.tokens.size() < length) begins_.push_back(static_cast<std::int32_t>(row_.tokens.size()));
  row_.tokens.resize(length, padding_id_);
  row_.labels.resize(length, kIgnoredLabel);

  if (!options_.intra_document)
    begins_ = options_.anchor ? std::vector<std::int32_t>{0, 1} : std::vector<std::int32_t>{0};
  row_.cu_seqlens = begins_;
  row_.cu_seqlens.push_back(static_cast<std::int32_t>(length));
  // Behind an anchor, whose position is 0, every piece counts from 1.
  const std::int32_t first = options_.anchor ? 1 : 0;
  for (std::size_t piece = 0; piece + 1 < row_.cu_seqlens.size(); ++piece) {
    const bool is_anchor = options_.anchor && piece == 0;
    const std::int32_t n = row_.cu_seqlens[piece + 1] - row_.cu_seqlens[piece];
    for (std::int32_t i = 0; i < n; ++i) row_.positions.push_back(is_anchor ? 0 : first + i);
  }
  return std::move(row_);
}

}  // namespace weft
