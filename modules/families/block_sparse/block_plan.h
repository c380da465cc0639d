// Who attends to which block: the selection turned around, a slab of queries at a time.
//
// Kernels work block by block: one copy of its keys serves the rows of all queries that chose it, and each leaves a
// partial result in its own slot, to be added up in the order of slots. Partials of all queries would fill the memory,
// so queries go through in slabs. Neither slabs nor documents beside change a bit.
#pragma once

#include <span>
#include <vector>

#include "modules/families/block_sparse/block_sparse_attention.h"

namespace weft::block_sparse {

// One query row that chose a block, and its slot for it.
struct BlockEntry {
  std::int32_t token;
  std::int32_t slot;
  std::int32_t visible;  // keys of its document that it sees
};

class BlockPlan {
 public:
  // A slab holds as many queries as have partials of `partial` elements a slot and head in the budget.
  BlockPlan(const BlockSparseInputs& in, std::int64_t partial);

  std::int64_t slots() const { return n_; }                        // of a query
  std::int64_t slab_tokens() const { return slab_tokens_; }        // most that a slab holds
  std::int64_t lists_of_group() const { return lists_of_group_; }  // selections of one key/value head
  std::int64_t heads_of_list() const { return G_ / lists_of_group_; }
  std::int64_t block_keys() const { return block_keys_; }  // most keys that a block holds

  // Sorts the queries [begin, end) of the row.
  void build(std::int64_t begin, std::int64_t end);

  // A block of one key/value head that somebody in the slab chose.
  struct Item {
    std::int64_t document, block, head;
  };
  const std::vector<Item>& items() const { return items_; }
  std::int64_t key_begin(const Item& item) const { return item.block * in_.block; }
  std::int64_t key_end(const Item& item) const;
  // Who chose it, by token; `list` is one of lists_of_group().
  std::span<const BlockEntry> entries(const Item& item, std::int64_t list) const;
  // Slots in use of a query row and head: the first ones.
  std::int64_t used(std::int64_t token, std::int64_t query_head) const {
    return used_[static_cast<std::size_t>((token - begin_) * lists_ + list_of_head(query_head))];
  }

 private:
  std::int64_t list_of_head(std::int64_t h) const { return lists_ == 1 ? 0 : h / (H_Q_ / lists_); }
  std::int64_t list_index(const Item& item, std::int64_t list) const {
    return lists_ == 1 ? 0 : item.head * lists_of_group_ + list;
  }
  template <class F>
  void for_choices(std::int64_t begin, std::int64_t end, F&& f);

  const BlockSparseInputs& in_;
  std::int64_t H_Q_, G_, n_, lists_, lists_of_group_, slab_tokens_, block_keys_;
  std::int64_t begin_ = 0;
  std::vector<std::int64_t> first_block_;  // [N + 1] of each document
  std::vector<std::int64_t> offsets_;      // [lists * blocks + 1] into entries_
  std::vector<BlockEntry> entries_;
  std::vector<std::int32_t> used_;  // [tokens of the slab, lists]
  std::vector<Item> items_;
};

}  // namespace weft::block_sparse
