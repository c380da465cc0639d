#include "train/loop/batch.h"

namespace weft {
namespace {

Batch to_batch(const Row& row) {
  Batch batch;
  const Shape shape{row.length()};
  batch.tokens = Tensor::from(shape, row.tokens);
  batch.labels = Tensor::from(shape, row.labels);
  if (!row.weight.empty()) batch.weights = Tensor::from(shape, row.weight);
  std::vector<std::int32_t> pos0;
  for (std::size_t n = 0; n + 1 < row.cu_seqlens.size(); ++n) {
    pos0.push_back(row.positions[static_cast<std::size_t>(row.cu_seqlens[n])]);
  }
  batch.documents = std::make_shared<const Documents>(row.cu_seqlens, std::move(pos0),
                                                      row.anchor ? Anchor::first_token : Anchor::none);
  return batch;
}

}  // namespace

Batch make_batch(std::span<const Row> rows) {
  WEFT_CHECK(!rows.empty(), "a batch needs a row");
  return rows.size() == 1 ? to_batch(rows[0]) : to_batch(join_rows(rows));
}

}  // namespace weft
