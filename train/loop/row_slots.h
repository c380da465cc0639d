// The micro-batches of a run in device memory, at addresses that do not change.
//
// T tokens of the packed row, N documents.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "autograd/document_tables.h"
#include "autograd/place.h"
#include "train/loop/batch.h"

namespace weft {

// What decides which kernels a micro-batch launches and with which grids. Documents are padded with empty ones to a
// power of two, so that a run meets few different forms.
struct RowForm {
  std::int64_t tokens = 0;
  std::int64_t documents = 0;
  bool weighted = false;
  Anchor anchor = Anchor::none;
  auto operator<=>(const RowForm&) const = default;
};
RowForm row_form(const Batch& batch);

// Room for one batch of a form. The copies to the device are made from pinned memory, in the order of the stream: each
// load since the last rewind() has pinned memory of its own, since its copies may wait behind the work of those before.
class RowSlot {
 public:
  RowSlot(const RowForm& form, const Place& place);

  // Error (config) for tokens or labels that the model's vocabulary does not have, naming the first.
  void load(const Batch& batch, std::int64_t vocabulary);
  // Call it when the stream has done all that was asked of it.
  void rewind();
  // The batch that was loaded last, in device memory.
  const Batch& batch() const { return batch_; }

 private:
  RowForm form_;
  Place place_;
  Batch allocate(const std::shared_ptr<Allocator>& memory) const;

  std::vector<Batch> pinned_;
  std::size_t loads_ = 0;  // since rewind()
  Batch batch_;
  std::shared_ptr<DocumentTables> tables_;
};

}  // namespace weft
