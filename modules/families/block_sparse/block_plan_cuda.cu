#include <cub/block/block_scan.cuh>
#include <cub/device/device_radix_sort.cuh>

#include "modules/families/block_sparse/block_plan_cuda.cuh"

namespace weft::block_sparse {
namespace {

constexpr int kThreads = 256;
constexpr int kScanThreads = 256;

struct Arrays {
  std::int32_t *key_row, *first_block;
  std::uint32_t *keys, *sorted_keys, *rows, *sorted_rows;
  std::byte* sort;
  std::size_t sort_bytes;
  std::int32_t *list_begin, *item_begin, *part_begin;
};

struct Sizes {
  std::int64_t B, blocks, choices, items, parts;
  int bits;  // of block numbers, the one for "none" included
};

Sizes sizes_of(const BlockSparseInputs& in) {
  const Selection selection = selection_of(in);
  Sizes s;
  s.B = most_blocks(in.shape.S, in.N, selection.block);
  s.blocks = s.B * selection.groups();
  s.choices = in.idx == nullptr ? 0 : in.shape.T * selection.lists * selection.n;
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  WEFT_CHECK(s.choices < kMost && s.blocks < kMost / 2 && in.shape.T * in.shape.H_Q < kMost,
             "block-sparse attention: {} choices of {} blocks, {} tokens of {} heads in one row", s.choices, s.blocks,
             in.shape.T, in.shape.H_Q);
  // A list of more than one item has at most twice its share of them.
  const std::int64_t entries = in.idx == nullptr ? in.shape.T * s.blocks : s.choices;
  const std::int64_t least = (32768 + selection.rows_of_entry() - 1) / selection.rows_of_entry();
  s.parts = std::min(2 * (entries / least), DevicePlan::kMostItems * s.blocks);
  s.items = s.blocks + s.parts;
  s.bits = 1;
  while ((std::int64_t{1} << s.bits) <= s.blocks) ++s.bits;
  return s;
}

Arrays carve(DeviceCarver& carver, const BlockSparseInputs& in, const Sizes& s) {
  Arrays a{};
  a.key_row = carver.take<std::int32_t>(in.N + 1);
  a.first_block = carver.take<std::int32_t>(in.N + 1);
  if (in.idx != nullptr) {
    a.keys = carver.take<std::uint32_t>(s.choices);
    a.sorted_keys = carver.take<std::uint32_t>(s.choices);
    a.rows = carver.take<std::uint32_t>(s.choices);
    a.sorted_rows = carver.take<std::uint32_t>(s.choices);
    WEFT_CUDA_CALL(cub::DeviceRadixSort::SortPairs(nullptr, a.sort_bytes, a.keys, a.sorted_keys, a.rows, a.sorted_rows,
                                                   static_cast<int>(s.choices), 0, s.bits));
    a.sort = carver.take<std::byte>(static_cast<std::int64_t>(a.sort_bytes));
    a.list_begin = carver.take<std::int32_t>(s.blocks + 1);
  }
  a.item_begin = carver.take<std::int32_t>(s.blocks + 1);
  a.part_begin = carver.take<std::int32_t>(s.blocks + 1);
  return a;
}

// The block of every choice; `none` for empty slots and blocks that the query does not see.
__global__ void __launch_bounds__(kThreads)
    number_choices(RowTables row, Selection selection, int B, std::int64_t count, std::uint32_t none,
                   std::uint32_t* keys, std::uint32_t* rows) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const std::int64_t chooser = i / selection.n;
  const auto token = static_cast<int>(chooser / selection.lists), list = static_cast<int>(chooser % selection.lists);
  const int j = selection.idx[i];
  const QueryPlace place = place_of(row, token);
  const int group = selection.lists <= selection.H_KV ? list : list / selection.heads_of_group();
  const bool seen = j >= 0 && j < (place.visible + selection.block - 1) / selection.block;
  keys[i] =
      seen ? static_cast<std::uint32_t>((selection.groups() == 1 ? 0 : group) * B + row.first_block[place.document] + j)
           : none;
  rows[i] = static_cast<std::uint32_t>(chooser);
}

__global__ void __launch_bounds__(kThreads)
    find_lists(const std::uint32_t* sorted_keys, std::int64_t count, int blocks, std::int32_t* list_begin) {
  const int id = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (id > blocks) return;
  std::int64_t low = 0, high = count;  // the first choice of block `id` or later
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (sorted_keys[middle] < static_cast<std::uint32_t>(id)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  list_begin[id] = static_cast<std::int32_t>(low);
}

// One block: where the items and the partial sums of each block of keys begin.
__global__ void __launch_bounds__(kScanThreads)
    cut_lists(DevicePlan plan, std::int32_t* item_begin, std::int32_t* part_begin) {
  using Scan = cub::BlockScan<unsigned long long, kScanThreads>;
  __shared__ typename Scan::TempStorage storage;
  unsigned long long before = 0;  // parts in the upper half, items in the lower
  const int blocks = plan.group_blocks();
  for (int begin = 0; begin < blocks; begin += kScanThreads) {
    const int id = begin + static_cast<int>(threadIdx.x);
    unsigned long long own = 0;
    if (id < blocks) {
      const DevicePlan::Block block = plan.block(id);
      const auto items = static_cast<unsigned long long>(block.keys == 0 ? 0 : plan.items_of(block.entries));
      own = (items > 1 ? items << 32 : 0) | items;
    }
    unsigned long long offset = 0, total = 0;
    Scan(storage).ExclusiveSum(own, offset, total);
    if (id < blocks) {
      item_begin[id] = static_cast<std::int32_t>((before + offset) & 0xffffffffu);
      part_begin[id] = static_cast<std::int32_t>((before + offset) >> 32);
    }
    before += total;
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    item_begin[blocks] = static_cast<std::int32_t>(before & 0xffffffffu);
    part_begin[blocks] = static_cast<std::int32_t>(before >> 32);
  }
}

}  // namespace

std::size_t device_plan_workspace(const BlockSparseInputs& in) {
  DeviceCarver carver(nullptr);
  carve(carver, in, sizes_of(in));
  return carver.used();
}

DevicePlan device_plan_bounds(const BlockSparseInputs& in) {
  const Sizes s = sizes_of(in);
  DevicePlan plan{};
  plan.selection = selection_of(in);
  plan.T_count = static_cast<int>(in.shape.T);
  plan.B = static_cast<int>(s.B);
  plan.items = s.items;
  plan.parts = s.parts;
  return plan;
}

DevicePlan build_device_plan(const BlockSparseInputs& in, const Launch& launch, DeviceCarver& carver) {
  const Sizes s = sizes_of(in);
  Arrays a = carve(carver, in, s);
  DevicePlan plan = device_plan_bounds(in);
  plan.row = lay_out_row(in.cu_seqlens, in.N, in.span, plan.selection.block, a.key_row, a.first_block, launch.stream);
  plan.sorted = a.sorted_rows;
  plan.list_begin = a.list_begin;
  plan.item_begin = a.item_begin;
  plan.part_begin = a.part_begin;
  const cudaStream_t stream = cuda_stream(launch.stream);
  if (in.idx != nullptr) {
    number_choices<<<blocks_for(s.choices, kThreads), kThreads, 0, stream>>>(
        plan.row, plan.selection, plan.B, s.choices, static_cast<std::uint32_t>(s.blocks), a.keys, a.rows);
    WEFT_CHECK_LAUNCH();
    WEFT_CUDA_CALL(cub::DeviceRadixSort::SortPairs(a.sort, a.sort_bytes, a.keys, a.sorted_keys, a.rows, a.sorted_rows,
                                                   static_cast<int>(s.choices), 0, s.bits, stream));
    find_lists<<<blocks_for(s.blocks + 1, kThreads), kThreads, 0, stream>>>(a.sorted_keys, s.choices,
                                                                            static_cast<int>(s.blocks), a.list_begin);
    WEFT_CHECK_LAUNCH();
  }
  cut_lists<<<1, kScanThreads, 0, stream>>>(plan, a.item_begin, a.part_begin);
  WEFT_CHECK_LAUNCH();
  return plan;
}

}  // namespace weft::block_sparse
