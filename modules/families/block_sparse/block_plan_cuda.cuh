// The selection turned around on the device: for each block of keys the list of query rows that chose it, by token, and
// the list cut into work items. Built by a stable sort and prefix sums; grids are sized by bounds that depend on shapes
// alone, and nothing is read back.
//
// A list entry is a row of idx: its R query rows (the G heads of a group, or one head) lie side by side. Blocks of all
// groups of lists are numbered g B + b. Attention to every block needs no lists: the entries of a block are all queries
// from the first that sees it.
#pragma once

#include "modules/families/block_sparse/block_sparse_device.cuh"

namespace weft::block_sparse {

struct DevicePlan {
  RowTables row;
  Selection selection;
  int T_count;
  int B;                           // bound on the blocks of the row
  const std::uint32_t* sorted;     // [T lists n] rows of idx by block, or null
  const std::int32_t* list_begin;  // [groups B + 1] into `sorted`, or null
  const std::int32_t* item_begin;  // [groups B + 1] work items
  const std::int32_t* part_begin;  // [groups B + 1] partial sums, of blocks with more than one item
  std::int64_t items, parts;       // bounds

  __host__ __device__ int group_blocks() const { return selection.groups() * B; }

  // A block of one group of lists; `keys` = 0 beyond the blocks that the row has.
  struct Block {
    int document, key_begin, keys, key_row;  // keys [key_begin, + keys) of the document
    int first_token;                         // of the document
    int entries;
    std::int64_t list;  // where they are in `sorted`
  };
  __device__ Block block(int id) const {
    const int b = id % B;
    if (b >= row.first_block[row.N]) return {};
    Block x;
    x.document = last_at_most(row.first_block, row.N, b);
    x.key_begin = (b - row.first_block[x.document]) * selection.block;
    x.key_row = row.key_row[x.document];
    x.keys = min(selection.block, row.key_row[x.document + 1] - x.key_row - x.key_begin);
    x.first_token = row.cu_seqlens[x.document];
    if (sorted == nullptr) {
      const int first_seen = row.span.length - 1 + x.key_begin * row.span.stride;
      x.list = x.first_token + first_seen;
      x.entries = row.cu_seqlens[x.document + 1] - x.first_token - first_seen;
    } else {
      x.list = list_begin[id];
      x.entries = list_begin[id + 1] - list_begin[id];
    }
    return x;
  }

  // Entries of one item of a list. It depends on nothing but the list, so that documents beside change no bit.
  static constexpr int kMostItems = 16;
  __host__ __device__ int entries_of_item(int entries) const {
    const int least = (32768 + selection.rows_of_entry() - 1) / selection.rows_of_entry();
    return max(least, (entries + kMostItems - 1) / kMostItems);
  }
  __device__ int items_of(int entries) const {
    const int each = entries_of_item(entries);
    return entries == 0 ? 1 : (entries + each - 1) / each;
  }

  // Query row `at` of a block's list, for key/value head `kv_head`: its number [0, T H_Q) and the keys of its document
  // that it sees.
  struct Row {
    std::int64_t row;
    int visible;
  };
  __device__ Row row_at(const Block& x, std::int64_t at, int kv_head) const {
    const auto R = static_cast<std::uint32_t>(selection.rows_of_entry()), row_of_list = static_cast<std::uint32_t>(at);
    const auto entry = static_cast<int>(row_of_list / R), head = static_cast<int>(row_of_list % R);
    if (sorted == nullptr) {
      const int token = static_cast<int>(x.list) + entry;
      return {static_cast<std::int64_t>(token) * selection.H_Q + kv_head * R + head,
              span_count(row.span, token - x.first_token + 1)};
    }
    const std::uint32_t chosen = sorted[x.list + entry];
    const auto token = static_cast<int>(chosen / static_cast<std::uint32_t>(selection.lists));
    const std::int64_t first = static_cast<std::int64_t>(chosen) * (selection.lists == 1 ? selection.H_Q : R) +
                               (selection.lists == 1 ? kv_head * R : 0);
    return {first + head, span_count(row.span, token - x.first_token + 1)};
  }
};

std::size_t device_plan_workspace(const BlockSparseInputs& in);
DevicePlan device_plan_bounds(const BlockSparseInputs& in);  // sizes without tables
DevicePlan build_device_plan(const BlockSparseInputs& in, const Launch& launch, DeviceCarver& carver);

}  // namespace weft::block_sparse
