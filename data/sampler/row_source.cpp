#include "data/sampler/row_source.h"

#include <algorithm>
#include <array>

#include "autograd/check.h"
#include "autograd/philox.h"
#include "data/sampler/pack_index.h"
#include "data/sampler/row_builder.h"

namespace weft {

namespace {

constexpr std::array<std::string_view, 3> kPackingNames = {"concat", "pack", "bucket"};

class ConcatSource final : public RowSource {
 public:
  ConcatSource(std::shared_ptr<const Dataset> dataset, const RowOptions& options, std::uint64_t seed)
      : dataset_(std::move(dataset)), options_(options), seed_(seed), window_(text_positions(options)) {
    if (rows() < 1) {
      config_error("dataset {}: {} tokens are too few for rows of {}; at least {} are needed", dataset_->folder(),
                   dataset_->n_tokens(), options.length, 2 * window_ + 1);
    }
  }

  // One row less than fits, so that every offset gives as many.
  std::int64_t rows() const override { return (dataset_->n_tokens() - 1) / window_ - 1; }

  Row build(std::int64_t epoch, std::int64_t index) const override {
    WEFT_CHECK(index >= 0 && index < rows(), "row {} of {}", index, rows());
    const auto offset =
        static_cast<std::int64_t>(RandomWords(seed_, RandomStream::window_offset, static_cast<std::uint64_t>(epoch))
                                      .below(static_cast<std::uint64_t>(window_)));
    const std::int64_t begin = offset + index * window_;
    const std::int64_t end = begin + window_;
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(window_ + 1));
    dataset_->read(begin, tokens);

    RowBuilder builder(options_, *dataset_);
    std::vector<std::int32_t> labels(tokens.begin() + 1, tokens.end());
    const auto offsets = dataset_->doc_offsets();
    auto document = static_cast<std::size_t>(dataset_->doc_of(begin));
    for (std::int64_t at = begin; at < end; ++document) {
      const std::int64_t document_end = offsets[document + 1];
      const std::int64_t stop = std::min(document_end, end);
      const auto first = static_cast<std::size_t>(at - begin);
      const auto count = static_cast<std::size_t>(stop - at);
      // What follows the end of a document is the start of an unrelated one.
      if (stop == document_end) labels[first + count - 1] = kIgnoredLabel;
      builder.add(std::span(tokens).subspan(first, count), std::span(labels).subspan(first, count));
      at = stop;
    }
    return builder.finish();
  }

 private:
  std::shared_ptr<const Dataset> dataset_;
  RowOptions options_;
  std::uint64_t seed_;
  std::int64_t window_;
};

class PackSource final : public RowSource {
 public:
  PackSource(std::shared_ptr<const Dataset> dataset, const RowOptions& options)
      : dataset_(std::move(dataset)),
        options_(options),
        index_(build_pack_index(dataset_->doc_offsets(), text_positions(options), text_pieces(options))) {
    if (rows() < 1)
      config_error("dataset {}: no document has two tokens, so there is nothing to predict", dataset_->folder());
  }

  std::int64_t rows() const override { return static_cast<std::int64_t>(index_.bins.size()) - 1; }

  Row build(std::int64_t, std::int64_t index) const override {
    WEFT_CHECK(index >= 0 && index < rows(), "row {} of {}", index, rows());
    RowBuilder builder(options_, *dataset_);
    std::vector<std::int32_t> tokens;
    const auto bin = static_cast<std::size_t>(index);
    for (std::int64_t p = index_.bins[bin]; p < index_.bins[bin + 1]; ++p) {
      const Piece& piece = index_.pieces[static_cast<std::size_t>(p)];
      tokens.resize(static_cast<std::size_t>(piece.length) + 1);
      dataset_->read(piece.start, tokens);
      builder.add_predictions(tokens);
    }
    return builder.finish();
  }

  std::string losses() const override {
    const std::int64_t predictions = dataset_->n_tokens() - dataset_->n_docs();
    const double padding = 1.0 - static_cast<double>(predictions) / static_cast<double>(rows() * options_.length);
    return fmt::format("{:.2f} % of positions are padding", 100 * padding);
  }

 private:
  std::shared_ptr<const Dataset> dataset_;
  RowOptions options_;
  PackIndex index_;
};

}  // namespace

std::string_view name_of(Packing packing) {
  return kPackingNames[static_cast<std::size_t>(packing)];
}

Packing packing_from_name(std::string_view name) {
  for (std::size_t i = 0; i < kPackingNames.size(); ++i) {
    if (kPackingNames[i] == name) return static_cast<Packing>(i);
  }
  config_error("packing \"{}\": expected \"concat\", \"pack\" or \"bucket\"", name);
}

std::unique_ptr<RowSource> make_row_source(std::shared_ptr<const Dataset> dataset, const RowOptions& options,
                                           std::uint64_t seed) {
  check_row_options(options, *dataset);
  WEFT_CHECK(options.packing != Packing::bucket, "rows of buckets are addressed by the sampler");
  if (options.packing == Packing::concat) return std::make_unique<ConcatSource>(std::move(dataset), options, seed);
  return std::make_unique<PackSource>(std::move(dataset), options);
}

std::unique_ptr<RowSource> make_evaluation_source(std::shared_ptr<const Dataset> dataset, RowOptions options) {
  options.packing = Packing::pack;
  return make_row_source(std::move(dataset), options, 0);
}

}  // namespace weft
