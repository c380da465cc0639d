// Rows in global memory as operands of tensor-core products (mma m16n8k16), without passing through shared memory.
//
// A product over the channels of two rows may take the channels in any order, if both rows agree: lane (g, t) = lane
// (l / 4, l % 4) of a fragment takes 16 bytes for each 32 channels, [32c + 8t, 32c + 8t + 8), which feed two products.
// A sum of rows lets lane (g, t) read 8 channels [64h + 8g, + 8) of the rows 2t, 2t+1, 2t+8, 2t+9, and interleaves
// pairs of rows: accumulator 8h + j then holds channel 64h + 8c + j in its column c, and a lane ends up with 16
// channels side by side.
#pragma once

#include "autograd/tile/mma.cuh"
#include "modules/families/block_sparse/block_sparse_device.cuh"

namespace weft::block_sparse {

using tile::bf16;

// Whether the tensor-core kernels take the inputs: bf16, equal widths of 64 or 128.
inline bool mma_fits(const BlockSparseInputs& in) {
  const std::int64_t D = in.shape.D;
  return in.dtype == DType::bf16 && in.shape.D_V == D && (D == 64 || D == 128);
}
// Calls f.template operator()<D>() for a width that mma_fits().
template <class F>
void dispatch_width(std::int64_t D, F&& f) {
  if (D == 64) {
    f.template operator()<64>();
  } else {
    f.template operator()<128>();
  }
}

void forward_mma(const BlockSparseForward& args, const RowTables& row, const Selection& selection,
                 const Stream& stream);

struct Lane {
  int g, t;
  __device__ Lane() : g(static_cast<int>(threadIdx.x % kWarp) / 4), t(static_cast<int>(threadIdx.x) % 4) {}
};

__device__ inline void load16_or_zero(std::uint32_t (&x)[4], const bf16* from, bool valid) {
  uint4 value = make_uint4(0, 0, 0, 0);
  if (valid) value = __ldg(reinterpret_cast<const uint4*>(from));
  x[0] = value.x, x[1] = value.y, x[2] = value.z, x[3] = value.w;
}

// This lane's part of one row of D channels.
template <int D>
struct RowPart {
  std::uint32_t x[D / 32][4];

  __device__ void load(const bf16* row, bool valid, const Lane& lane) {
#pragma unroll
    for (int c = 0; c < D / 32; ++c) load16_or_zero(x[c], row + 32 * c + 8 * lane.t, valid);
  }
};

// 16 rows: g and g + 8 of each lane.
template <int D>
struct RowOperand {
  RowPart<D> low, high;
};

// c [16 x 8] += rows of a times rows of b.
template <int D>
__device__ inline void multiply_rows(tile::FragmentC& c, const RowOperand<D>& a, const RowPart<D>& b) {
#pragma unroll
  for (int i = 0; i < D / 32; ++i) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const tile::FragmentA left{
          {a.low.x[i][2 * s], a.high.x[i][2 * s], a.low.x[i][2 * s + 1], a.high.x[i][2 * s + 1]}};
      tile::mma(c, left, {{b.x[i][2 * s], b.x[i][2 * s + 1]}});
    }
  }
}

// Adds 16 rows with their weights; rows from `count` on are zero. Rows are `step` elements apart.
template <int D>
__device__ inline void add_rows(tile::FragmentC (&sum)[D / 8], const tile::FragmentA& weights, const bf16* rows,
                                int step, int count, const Lane& lane) {
#pragma unroll
  for (int h = 0; h < D / 64; ++h) {
    std::uint32_t x[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 2 * lane.t + i % 2 + i / 2 * 8;
      load16_or_zero(x[i], rows + static_cast<std::int64_t>(row) * step + 64 * h + 8 * lane.g, row < count);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const tile::FragmentB even{{__byte_perm(x[0][r], x[1][r], 0x5410), __byte_perm(x[2][r], x[3][r], 0x5410)}};
      const tile::FragmentB odd{{__byte_perm(x[0][r], x[1][r], 0x7632), __byte_perm(x[2][r], x[3][r], 0x7632)}};
      tile::mma(sum[8 * h + 2 * r], weights, even);
      tile::mma(sum[8 * h + 2 * r + 1], weights, odd);
    }
  }
}

// Row g (upper = 0) or g + 8 (upper = 1) of such a sum, times a factor, to a row of D bf16.
template <int D>
__device__ inline void store_row(bf16* row, const tile::FragmentC (&sum)[D / 8], int upper, float factor, Write write,
                                 const Lane& lane) {
#pragma unroll
  for (int h = 0; h < D / 64; ++h) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto* to = reinterpret_cast<uint4*>(row + 64 * h + 16 * lane.t + 8 * half);
      uint4 before = make_uint4(0, 0, 0, 0);
      if (write == Write::accumulate) before = *to;
      const std::uint32_t old[4] = {before.x, before.y, before.z, before.w};
      std::uint32_t x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 base = tile::unpack(old[i]);
        x[i] = tile::pack(base.x + factor * sum[8 * h + 2 * i].x[2 * upper + half],
                          base.y + factor * sum[8 * h + 2 * i + 1].x[2 * upper + half]);
      }
      *to = make_uint4(x[0], x[1], x[2], x[3]);
    }
  }
}

// Two neighbouring channels of a gradient.
__device__ inline void put_pair(bf16* to, float x, float y, Write write) {
  auto* const at = reinterpret_cast<std::uint32_t*>(to);
  if (write == Write::accumulate) {
    const float2 before = tile::unpack(*at);
    x += before.x;
    y += before.y;
  }
  *at = tile::pack(x, y);
}

inline constexpr int kBundleRows = 16;

// The rows of a warp: as many neighbouring queries as fit with the R heads that share a list, or up to 16 heads of one
// query. Queries walk the union of their blocks in the order of keys; a row takes part in those it chose, and the rest
// adds exact zeros to it, so that its bits do not depend on its companions. Lane i < queries keeps the place of query
// i in its list. Keys are counted along the whole row, documents included.
class Bundle {
 public:
  // Bundle `index` of the queries, and part `part` of [0, parts()) of the heads.
  __device__ Bundle(const RowTables& row, const Selection& selection, int T_count, int index, int part,
                    const Lane& lane)
      : R_(selection.rows_of_entry()), queries_(max(1, kBundleRows / R_)), first_token_(index * queries_) {
    const int tiles = (R_ + kBundleRows - 1) / kBundleRows;
    first_head_ = part / tiles * R_ + part % tiles * kBundleRows;
    heads_ = min(min(R_, kBundleRows), R_ - part % tiles * kBundleRows);
    const int own = static_cast<int>(threadIdx.x) % kWarp;
    next_ = kNone;
    if (own < queries_ && first_token_ + own < T_count) {
      const int token = first_token_ + own;
      const QueryPlace place = place_of(row, token);
      choices_ = selection.of(token, first_head_, place.visible);
      document_ = place.key_row;
      find_next();
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = lane.g + 8 * r;
      query_[r] = at / heads_;
      valid_[r] = query_[r] < queries_ && first_token_ + query_[r] < T_count;
      row_[r] = static_cast<std::int64_t>(first_token_ + query_[r]) * selection.H_Q + first_head_ + at % heads_;
    }
  }
  static dim3 grid(const Selection& selection, std::int64_t T_count, int warps) {
    const int R = selection.rows_of_entry();
    return {blocks_for(T_count, warps * std::max(1, kBundleRows / R)),
            static_cast<unsigned>(selection.H_Q / R * ((R + kBundleRows - 1) / kBundleRows))};
  }

  __device__ int key_head(const Selection& selection) const {
    return first_head_ / selection.heads_of_group();
  }
  // Row g (r = 0) or g + 8 (r = 1) of the lane.
  __device__ bool valid(int r) const {
    return valid_[r];
  }
  __device__ std::int64_t row(int r) const {
    return row_[r];
  }

  // The next block: its first key, how many keys each of the lane's rows sees of it, and the most that a row sees.
  struct Block {
    int key, most;
    int seen[2];
  };
  __device__ bool next(Block& block) {
    block.key = static_cast<int>(__reduce_min_sync(kAllLanes, static_cast<unsigned>(next_)));
    if (block.key == kNone) return false;
    int seen = 0;
    if (next_ == block.key) {
      const int first = next_ - document_;
      seen = choices_.last(first) - first;
      ++slot_;
      find_next();
    }
    block.most = static_cast<int>(__reduce_max_sync(kAllLanes, static_cast<unsigned>(seen)));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      block.seen[r] = __shfl_sync(kAllLanes, seen, query_[r]);
      if (!valid_[r]) block.seen[r] = 0;
    }
    return true;
  }

 private:
  static constexpr int kNone = 0x7fffffff;

  __device__ void find_next() {
    next_ = kNone;
    for (; slot_ < choices_.slots(); ++slot_) {
      const int first = choices_.first(slot_);
      if (first >= choices_.visible) continue;
      next_ = document_ + first;
      return;
    }
  }

  int R_, queries_, first_token_, first_head_, heads_;
  Choices choices_{};
  int document_ = 0, slot_ = 0, next_;
  int query_[2];
  bool valid_[2];
  std::int64_t row_[2];
};

}  // namespace weft::block_sparse
