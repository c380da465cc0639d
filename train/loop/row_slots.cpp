#include "train/loop/row_slots.h"

#include <bit>

#include "autograd/cuda/cuda_memory.h"
#include "data/sampler/row.h"

namespace weft {
namespace {

// The same row with empty documents at its end.
DocumentsPtr padded(const Documents& documents, const RowForm& form) {
  std::vector<std::int32_t> cu(documents.cu_seqlens());
  cu.resize(static_cast<std::size_t>(form.documents) + 1, cu.back());
  std::vector<std::int32_t> pos0;
  for (std::int64_t n = 0; n < form.documents; ++n) pos0.push_back(n < documents.count() ? documents.pos0(n) : 0);
  return std::make_shared<const Documents>(std::move(cu), std::move(pos0), form.anchor);
}

void check_ids(const char* what, const Tensor& ids, std::int64_t vocabulary, std::int32_t least) {
  const auto values = ids.span<std::int32_t>();
  for (std::size_t t = 0; t < values.size(); ++t) {
    if (values[t] >= least && values[t] < vocabulary) continue;
    config_error("{} {} at position {} of a row: expected {} to {}; was the data prepared with another tokenizer?",
                 what, values[t], t, least, vocabulary - 1);
  }
}

}  // namespace

RowForm row_form(const Batch& batch) {
  return {.tokens = batch.tokens.numel(),
          .documents = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(batch.documents->count()))),
          .weighted = batch.weights.defined(),
          .anchor = batch.documents->anchored() ? Anchor::first_token : Anchor::none};
}

RowSlot::RowSlot(const RowForm& form, const Place& place)
    : form_(form), place_(place), tables_(std::make_shared<DocumentTables>(place.stream, form.tokens, form.documents)) {
  batch_ = allocate(place.lasting);
}

Batch RowSlot::allocate(const std::shared_ptr<Allocator>& memory) const {
  Batch batch;
  batch.tokens = Tensor({form_.tokens}, DType::i32, memory);
  batch.labels = Tensor({form_.tokens}, DType::i32, memory);
  if (form_.weighted) batch.weights = Tensor({form_.tokens}, DType::f32, memory);
  return batch;
}

void RowSlot::rewind() {
  loads_ = 0;
  tables_->rewind();
}

void RowSlot::load(const Batch& batch, std::int64_t vocabulary) {
  WEFT_CHECK(row_form(batch) == form_, "a row of another form");
  check_ids("token", batch.tokens, vocabulary, 0);
  check_ids("label", batch.labels, vocabulary, kIgnoredLabel);
  const auto stage = [&](const Tensor& host, const Tensor& through, const Tensor& device) {
    through.copy_from(host);
    copy(device, through, place_.stream);
  };
  if (loads_ == pinned_.size()) pinned_.push_back(allocate(pinned_allocator()));
  const Batch& pinned = pinned_[loads_++];
  stage(batch.tokens, pinned.tokens, batch_.tokens);
  stage(batch.labels, pinned.labels, batch_.labels);
  if (form_.weighted) stage(batch.weights, pinned.weights, batch_.weights);
  batch_.documents = padded(*batch.documents, form_);
  tables_->load(*batch_.documents);
  batch_.documents->attach(tables_);
}

}  // namespace weft
