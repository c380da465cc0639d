#include "modules/families/block_sparse/block_plan.h"

#include <algorithm>

namespace weft::block_sparse {
namespace {

// Memory for partial results.
constexpr std::int64_t kBudgetBytes = std::int64_t{64} << 20;

std::int64_t blocks_of(std::int64_t keys, std::int64_t block) {
  return (keys + block - 1) / block;
}

}  // namespace

BlockPlan::BlockPlan(const BlockSparseInputs& in, std::int64_t partial)
    : in_(in),
      H_Q_(in.shape.H_Q),
      G_(in.shape.H_Q / in.shape.H_KV),
      n_(in.shape.n),
      lists_(in.idx == nullptr ? 1 : in.shape.H_sel),
      lists_of_group_(lists_ > in.shape.H_KV ? G_ : 1),
      block_keys_(0) {
  first_block_.push_back(0);
  for (std::int64_t d = 0; d < in.document_count; ++d) {
    const std::int64_t keys = in.documents[d].key_count;
    block_keys_ = std::max(block_keys_, std::min(in.block, keys));
    if (in.idx == nullptr) n_ = std::max(n_, blocks_of(keys, in.block));
    first_block_.push_back(first_block_.back() + blocks_of(keys, in.block));
  }
  const std::int64_t bytes =
      std::max<std::int64_t>(1, H_Q_ * n_ * partial * static_cast<std::int64_t>(size_of(in.dtype)));
  slab_tokens_ = std::clamp<std::int64_t>(kBudgetBytes / bytes, 1, std::max<std::int64_t>(1, in.shape.T));
}

std::int64_t BlockPlan::key_end(const Item& item) const {
  return std::min<std::int64_t>(key_begin(item) + in_.block, in_.documents[item.document].key_count);
}

std::span<const BlockEntry> BlockPlan::entries(const Item& item, std::int64_t list) const {
  const auto i = static_cast<std::size_t>(list_index(item, list) * first_block_.back() +
                                          first_block_[static_cast<std::size_t>(item.document)] + item.block);
  return std::span(entries_).subspan(static_cast<std::size_t>(offsets_[i]),
                                     static_cast<std::size_t>(offsets_[i + 1] - offsets_[i]));
}

// Calls f(list and block, token, slot, visible keys) for every choice of the queries [begin, end), by token.
template <class F>
void BlockPlan::for_choices(std::int64_t begin, std::int64_t end, F&& f) {
  for (std::int64_t d = 0; d < in_.document_count; ++d) {
    const BlockSparseDocument& document = in_.documents[d];
    const std::int64_t from = std::max<std::int64_t>(begin, document.query_row);
    const std::int64_t to = std::min<std::int64_t>(end, document.query_row + document.query_count);
    const std::int64_t first = first_block_[static_cast<std::size_t>(d)];
    for (std::int64_t t = from; t < to; ++t) {
      const std::int64_t position = document.query_position + t - document.query_row;
      const std::int64_t visible = std::min<std::int64_t>(document.key_count, in_.span.count(position + 1));
      for (std::int64_t c = 0; c < lists_; ++c) {
        std::int32_t& used = used_[static_cast<std::size_t>((t - begin_) * lists_ + c)];
        const std::int32_t* chosen = in_.idx == nullptr ? nullptr : in_.idx + (t * lists_ + c) * n_;
        const std::int64_t most = chosen == nullptr ? blocks_of(visible, in_.block) : n_;
        for (used = 0; used < most && (chosen == nullptr || chosen[used] >= 0); ++used) {
          const std::int64_t block = chosen == nullptr ? used : chosen[used];
          WEFT_CHECK(block * in_.block < visible, "block-sparse attention: the query at position {} chose block {}",
                     position, block);
          f(c * first_block_.back() + first + block, t, used, visible);
        }
      }
    }
  }
}

void BlockPlan::build(std::int64_t begin, std::int64_t end) {
  begin_ = begin;
  const std::int64_t blocks = first_block_.back();
  used_.assign(static_cast<std::size_t>((end - begin) * lists_), 0);
  offsets_.assign(static_cast<std::size_t>(lists_ * blocks) + 1, 0);
  for_choices(begin, end, [&](std::int64_t key, std::int64_t, std::int32_t, std::int64_t) {
    ++offsets_[static_cast<std::size_t>(key) + 1];
  });
  for (std::size_t i = 1; i < offsets_.size(); ++i) offsets_[i] += offsets_[i - 1];
  entries_.resize(static_cast<std::size_t>(offsets_.back()));
  std::vector<std::int64_t> next(offsets_.begin(), offsets_.end() - 1);
  for_choices(begin, end, [&](std::int64_t key, std::int64_t token, std::int32_t slot, std::int64_t visible) {
    entries_[static_cast<std::size_t>(next[static_cast<std::size_t>(key)]++)] = {static_cast<std::int32_t>(token), slot,
                                                                                 static_cast<std::int32_t>(visible)};
  });
  items_.clear();
  for (std::int64_t d = 0; d < in_.document_count; ++d) {
    const std::int64_t count =
        first_block_[static_cast<std::size_t>(d) + 1] - first_block_[static_cast<std::size_t>(d)];
    for (std::int64_t block = 0; block < count; ++block) {
      for (std::int64_t head = 0; head < in_.shape.H_KV; ++head) {
        const Item item{d, block, head};
        bool chosen = false;
        for (std::int64_t list = 0; list < lists_of_group_; ++list) chosen |= !entries(item, list).empty();
        if (chosen) items_.push_back(item);
      }
    }
  }
}

}  // namespace weft::block_sparse
