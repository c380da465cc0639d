// The tensor-core kernel for one decay per head or token (sm_90a): masked attention with a matrix state, for any three
// of the recurrence's tensors and in either direction of time,
//
//   out_i = s sum_{j <= i} <x_i, y_j> e^{G_i - G_j} z_j  + what the state before the row's document holds for x_i,
//
// (j >= i and e^{G_j - G_i} backwards). Forward and all gradients are this sum; README.md has the table.
//
// A segment of a document goes to a block: it first walks the segment for what it adds to the state, takes the state
// that its neighbour left, leaves its own for the next, and walks again for the outputs. The second walk finds y and z
// in the L2 cache. Blocks take segments in the order of their dependencies, so that the first unfinished one is always
// being worked on by a block that waits for nothing.
//
// DX width of x and y, DZ width of z and out that a block takes; R rows of a tile, 64 for each of two groups of four
// warps. The groups share the state: its rows (DX = 128), its columns (DZ = 128), or the first has all of it.
#pragma once

#include "autograd/tile/async_copy.cuh"
#include "autograd/tile/mma.cuh"
#include "autograd/tile/reduce.cuh"
#include "autograd/tile/tma.cuh"
#include "autograd/tile/wgmma.cuh"
#include "modules/families/gated_linear/gated_linear_walks.cuh"

namespace weft::walk {

using tile::Accumulator;
using tile::bf16;
using tile::RegisterOperand;
using tile::SharedTile;
using walks::Ends;
using walks::Gradient;
using walks::HeadRows;

inline constexpr int R = 128;
inline constexpr int kThreads = 256;

struct WalkProblem {
  HeadRows x, y, z;  // copied through maps
  bool backwards;    // in time
  bool per_token;    // g is [T, H], else [H]
  const float* g;
  float pair_scale, x_scale, y_scale;  // of scores, of what is read from the state, of what is added to it
  int H, blocks;                       // blocks of DZ columns of z
  const Chunk* chunks;
  const std::int32_t* chunk_count;  // those with tokens, which come first
  bool short_documents;             // chunks are ShortDocuments::Table

  void* out;  // [T, H, blocks DZ], bf16 or f32; null: not wanted
  bool out_f32;
  Write write;
  // States in the order of the threads' registers (StateSlots): before documents (null: zero), after them (null: not
  // wanted), and between segments.
  float *initial, *final, *states;
  int* flags;  // of states: whether it is there; zero at the start

  // For the gradient of a decay per token: dots[t, h, block] = sum over columns of out w, without pairs j = i.
  HeadRows w;
  float* dots;    // null: not wanted
  int dot_parts;  // numbers of a token and head; those behind the blocks are zero
  // And the sum over S times the state that the walk in the other direction left there: [chunks, H, blocks, owners], or
  // more for a chunk and head, likewise.
  float *other_states, *other_final;
  float* alive;
  int alive_parts;
};

// Where states lie: [slots, H, blocks, owners, a group's part].
template <int DX, int DZ>
struct StateSlots {
  static constexpr bool kByRows = DX == 128;
  static constexpr int kOwners = kByRows || DZ == 128 ? 2 : 1;
  static constexpr int kColumns = kByRows ? DZ : 64;  // of a group's part, which has 64 rows
  static constexpr int kPart = 64 * kColumns;

  // Row x and column z of element e of [blocks, owners, part].
  __device__ static void place(int e, int& x, int& z) {
    const int part = e % kPart, owner = e / kPart % kOwners, block = e / kPart / kOwners;
    const int i = part / 512 * 4 + part % 4, thread = part / 4 % 128;
    x = Accumulator<kColumns>::row(thread, i) + (kByRows ? 64 * owner : 0);
    z = Accumulator<kColumns>::column(thread, i) + (kByRows ? 0 : 64 * owner) + block * DZ;
  }
};

// A segment as its block sees it.
struct Item {
  int chunk_at, h, block, document, begin, end;
  int tiles;           // of a walk
  int steps;           // of the first walk, which may skip tiles
  int receive, leave;  // slots of the states before and after it in the walk's direction; -1: a document's end
};

struct alignas(16) TileDecays {
  float G[R];     // sums of log decays, in log2
  float add[R];   // of what row j adds to it
  float half[R];  // between row i and the end of the first half
  float total;    // G over the tile
};

template <int DX, int DZ>
struct Shared {
  struct Stage {
    SharedTile<R, DX> x, y;
    SharedTile<R, DZ> z;
  };
  Stage stages[2];
  SharedTile<DX, DZ> state;
  TileDecays decays;
  alignas(16) float gates[R];  // log decays of the tile that is on its way
  float diagonal[R];
  float sums[8];
  Item items[3];
  alignas(16) Chunk entries[2];  // of the chunk table: the next item's and the one after it
  tile::Barrier full[2];
  int chunks, coming;  // those with tokens; the number of an item
};

__device__ inline int load_acquire(const int* flag) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ inline void store_release(int* flag, int value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

__device__ inline void copy4_async(float* shared, const float* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(tile::shared_address(shared)), "l"(global),
               "r"(valid ? 4 : 0)
               : "memory");
}

using RowsMap = tile::TileMap<R, 3>;
// A panel of a tile, with a hint that it is not read again.
__device__ inline void load_last_time(std::uint32_t to, const RowsMap& map, const tile::Barrier& full, int x, int y,
                                      int z) {
#ifdef WEFT_HOPPER
  asm volatile(
      "{\n.reg .b64 policy;\n"
      "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5}], [%2], policy;\n}\n" ::"r"(to),
      "l"(&map.map), "r"(full.address()), "r"(x), "r"(y), "r"(z)
      : "memory");
#else
  tile::unavailable();
#endif
}

struct WalkMaps {
  RowsMap x, y, z;
};

__device__ inline std::uint32_t add_pairs(std::uint32_t a, std::uint32_t b) {
  const float2 x = tile::unpack(a), y = tile::unpack(b);
  return tile::pack(x.x + y.x, x.y + y.y);
}

template <int DX, int DZ, bool kDots>
class Walk {
 public:
  using Memory = Shared<DX, DZ>;
  using Slots = StateSlots<DX, DZ>;

  // The shuffle tells the compiler that the group is the same in all lanes.
  __device__ Walk(const WalkProblem& problem, const WalkMaps& tensors, Memory& memory)
      : p(problem),
        maps(tensors),
        m(memory),
        group(__shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0)),
        thread(static_cast<int>(threadIdx.x) % 128) {}

  __device__ void run() {
    if (threadIdx.x == kThreads - 1) m.chunks = *p.chunk_count;
    if (threadIdx.x == 0) {
      m.full[0].init(1);
      m.full[1].init(1);
      tile::fence_barrier_init();
    }
    if (threadIdx.x == kThreads - 1) {
      for (int i = 0; i < 2; ++i) {
        m.coming = static_cast<int>(blockIdx.x + i * gridDim.x);
        request();
        take(m.items[i]);
      }
    }
    __syncthreads();
    if (m.items[0].tiles == 0) return;
    fetch(m.items[0], 0, 0);
    int done = 0;            // steps
    bool requested = false;  // whether an item's entries of the table are on their way
    for (int at = 0; m.items[at].tiles > 0; at = at == 2 ? 0 : at + 1) {
      const int next = at == 2 ? 0 : at + 1;
      const Item& item = m.items[at];
      const int steps = item.steps, all = steps + item.tiles;
      S.fill(0.0f);
      float total = 0.0f;
      for (int step = 0; step < all; ++step, ++done) {
        forget_thread();
        const int stage = done & 1;
        if (requested && threadIdx.x == kThreads - 1) take(m.items[step == 0 ? next : next == 2 ? 0 : next + 1]);
        tile::fence_async_shared();
        __syncthreads();
        publish_decays(item, row_of(item, step));
        const bool within = step + 1 < all;
        const Item& fetched = m.items[within ? at : next];
        if (fetched.tiles > 0) fetch(fetched, within ? step + 1 : 0, stage ^ 1);
        requested = step == 0;
        if (requested && threadIdx.x == kThreads - 1) {
          m.coming += static_cast<int>(gridDim.x);
          request();
        }
        m.full[stage].wait(done / 2 & 1);
        clear_tail(item, row_of(item, step), stage);
        if (step == steps) {
          pass_on(item, total);
          store_state();
        }
        if (step < steps) {
          __syncthreads();  // the decays are there
          if (step == 0) total += skipped_gates(item);
          total += m.decays.total;
          contribute(stage);
        } else {
          // The code of the two groups differs: products must not be under conditions.
          if (group == (p.backwards ? 0 : 1)) {
            outputs<true>(item, row_of(item, step), stage);
          } else {
            outputs<false>(item, row_of(item, step), stage);
          }
        }
      }
      if (item.leave < 0 && p.final != nullptr) publish_state(part(p.final, item.document, item));
    }
  }

 private:
  // --- what a block works on -----------------------------------------------------------------------------------------

  // Items count through the chunks, in the walk's direction, and the heads and blocks of each. One thread asks for the
  // entries of the table, and takes the item from them a step later; it has no tiles if there is none.
  __device__ int coming_chunk() const {
    const int c = m.coming / (p.H * p.blocks);
    return p.backwards ? m.chunks - 1 - c : c;
  }
  __device__ void request() const {
    const int c = coming_chunk();
    if (c < 0 || c >= m.chunks) return;
    tile::copy16_async(&m.entries[0], p.chunks + c, true);
    tile::copy16_async(&m.entries[1], p.chunks + c + 1, c + 1 < m.chunks);
    tile::commit_copies();
  }
  __device__ void take(Item& item) const {
    item.tiles = 0;
    item.chunk_at = coming_chunk();
    if (item.chunk_at < 0 || item.chunk_at >= m.chunks) return;
    tile::wait_copies<0>();
    const Chunk chunk = m.entries[0], after = m.entries[1];
    item.h = m.coming / p.blocks % p.H;
    item.block = m.coming % p.blocks;
    item.document = chunk.document;
    item.begin = chunk.begin;
    item.end = chunk.end;
    item.tiles = (chunk.end - chunk.begin + R - 1) / R;
    // A segment that another follows in its document is whole, so no two of them begin in the same kSegment tokens of
    // the row: that names the state between the two.
    constexpr int kLength = static_cast<int>(kSegment);
    const bool last = item.chunk_at + 1 >= m.chunks || after.document != chunk.document;
    const int left = p.short_documents || chunk.index == 0 ? -1 : chunk.begin / kLength - 1;
    const int right = last ? -1 : chunk.begin / kLength;
    if (p.short_documents) item.chunk_at = chunk.index;
    item.receive = p.backwards ? right : left;
    item.leave = p.backwards ? left : right;
    item.steps = item.leave < 0 ? 0 : item.tiles - skipped(item);
  }
  __device__ float constant_gate(const Item& item) const { return p.g[item.h] * tile::kLog2e; }
  // Tiles at the start of the first walk whose decay to the segment's end leaves nothing of any fp32 number.
  __device__ int skipped(const Item& item) const {
    if (p.per_token) return 0;
    const float reach = 300.0f / fmaxf(-constant_gate(item), 1e-3f);  // tokens
    return max(0, item.tiles - 2 - static_cast<int>(reach / R));
  }
  __device__ float skipped_gates(const Item& item) const {
    const int skip = item.tiles - item.steps;
    return skip > 0 ? static_cast<float>(skip * R) * constant_gate(item) : 0.0f;
  }
  // First row, in the segment, of the tile of a step.
  __device__ int row_of(const Item& item, int step) const {
    const int i = step < item.steps ? item.tiles - item.steps + step : step - item.steps;
    return (p.backwards ? item.tiles - 1 - i : i) * R;
  }
  __device__ int lane() const { return thread % 32; }
  // Addresses and masks that depend on the thread are cheaper to compute again than to keep.
  __device__ void forget_thread() { asm volatile("" : "+r"(thread)); }
  // A group without a part of its own does the work of the first again, and keeps it to itself.
  __device__ bool owner() const { return group < Slots::kOwners; }
  __device__ int index_of(int slot, const Item& item) const {
    return ((slot * p.H + item.h) * p.blocks + item.block) * Slots::kOwners + group;
  }
  __device__ float* part(float* states, int slot, const Item& item) const {
    return states + static_cast<std::int64_t>(index_of(slot, item)) * Slots::kPart;
  }

  // --- what a step needs from memory ---------------------------------------------------------------------------------

  template <int Cols>
  __device__ static void load(SharedTile<R, Cols>& to, const RowsMap& map, tile::Barrier& full, int x, int y, int z,
                              bool last_time) {
    if (!last_time) return tile::load_tile(to, map, full, x, y, z);
#pragma unroll
    for (int panel = 0; panel < SharedTile<R, Cols>::kPanels; ++panel) {
      load_last_time(tile::shared_address(to.data) + panel * SharedTile<R, Cols>::kPanelBytes, map, full,
                     x + panel * tile::kPanel, y, z);
    }
  }
  // Begins the copies of a step; the first warp loads the log decays of its rows, four a lane.
  __device__ void fetch(const Item& item, int step, int stage_index) {
    if (threadIdx.x > 32) return;
    const int row = row_of(item, step), n = min(R, item.end - item.begin - row);
    if (threadIdx.x == 32) {
      auto& stage = m.stages[stage_index];
      tile::Barrier& full = m.full[stage_index];
      const bool outputs = step >= item.steps;
      full.arrive_expect(sizeof(stage.y) + sizeof(stage.z) + (outputs ? sizeof(stage.x) : 0));
      const int t = item.begin + row;
      // What nobody reads again leaves the L2 cache first, so that the second walk finds there what the first one read.
      const bool last_time = outputs && item.steps > 0;
      load(stage.y, maps.y, full, 0, t, item.h / p.y.sharing, last_time);
      if (outputs) load(stage.x, maps.x, full, 0, t, item.h / p.x.sharing, last_time);
      load(stage.z, maps.z, full, item.block * DZ, t, item.h / p.z.sharing, last_time);
      return;
    }
    if (!p.per_token) return;
    const float* g = p.g + static_cast<std::int64_t>(item.begin + row) * p.H + item.h;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = 4 * static_cast<int>(threadIdx.x) + i;
      copy4_async(&m.gates[at], g + (at < n ? at * static_cast<std::int64_t>(p.H) : 0), at < n);
    }
    tile::commit_copies();
  }
  // Rows after the segment are a neighbour's. What they read does not matter, what is read from them does.
  __device__ void clear_tail(const Item& item, int row, int stage_index) {
    const int n = item.end - item.begin - row;
    if (n >= R) return;
    auto& stage = m.stages[stage_index];
    tile::zero_rows_outside<kThreads>(stage.y, 0, n, static_cast<int>(threadIdx.x));
    tile::zero_rows_outside<kThreads>(stage.z, 0, n, static_cast<int>(threadIdx.x));
    tile::fence_async_shared();
    __syncthreads();
  }
  // Decays of a tile, by the first warp.
  __device__ void publish_decays(const Item& item, int row) {
    if (threadIdx.x >= 32) return;
    float4 gates;
    if (p.per_token) {
      tile::wait_copies<0>();
      gates = *reinterpret_cast<const float4*>(m.gates + 4 * threadIdx.x);
      // Decays below 2^-180 leave nothing of an fp32 number; bounded sums keep the digits of the others.
      const auto bounded = [](float g) { return fmaxf(g * tile::kLog2e, -180.0f); };
      gates = {bounded(gates.x), bounded(gates.y), bounded(gates.z), bounded(gates.w)};
    } else {
      const float g = constant_gate(item);
      const int left = item.end - item.begin - row - 4 * static_cast<int>(threadIdx.x);  // rows
      gates = {left > 0 ? g : 0.0f, left > 1 ? g : 0.0f, left > 2 ? g : 0.0f, left > 3 ? g : 0.0f};
    }
    const int first = 4 * static_cast<int>(threadIdx.x);
    float sum = gates.x + gates.y + gates.z + gates.w;
    const float own = sum;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const float before = __shfl_up_sync(0xffffffffu, sum, step);
      if (static_cast<int>(threadIdx.x) >= step) sum += before;
    }
    const float total = __shfl_sync(0xffffffffu, sum, 31), middle = __shfl_sync(0xffffffffu, sum, 15);
    float G = sum - own;
    const float g[4] = {gates.x, gates.y, gates.z, gates.w};
    float sums[4], add[4], half[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      G = i == 3 ? sum : G + g[i];
      sums[i] = G;
      add[i] = p.y_scale * tile::exp2_fast(p.backwards ? G : fminf(total - G, 0.0f));
      half[i] = tile::exp2_fast(fminf(first < R / 2 ? middle - G : G - middle, 0.0f));
    }
    const auto put = [&](float* to, const float(&x)[4]) {
      *reinterpret_cast<float4*>(to + first) = {x[0], x[1], x[2], x[3]};
    };
    put(m.decays.G, sums);
    put(m.decays.add, add);
    put(m.decays.half, half);
    if (threadIdx.x == 0) m.decays.total = total;
  }

  // --- the state -----------------------------------------------------------------------------------------------------

  // Rows of y, decayed to where the state is next, as a left operand: their channels are the rows of the group's part.
  __device__ void load_decayed(RegisterOperand<R>& a, int stage) const {
    const auto& y = m.stages[stage].y;
    const int channel = (Slots::kByRows ? 64 * group : 0) + thread / 32 * 16 + lane() / 8 % 2 * 8;
    const int token = lane() % 8 + lane() / 16 * 8;
    const float* add = m.decays.add + lane() % 4 * 2;
#pragma unroll
    for (int s = 0; s < R / 16; ++s) {
      const float2 low = *reinterpret_cast<const float2*>(add + 16 * s);
      const float2 high = *reinterpret_cast<const float2*>(add + 16 * s + 8);
      std::uint32_t raw[4];
      tile::ldmatrix4_transposed(raw, y.address(16 * s + token, channel));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 value = tile::unpack(raw[i]);
        const float2 factor = i < 2 ? low : high;
        a.x[s][i] = tile::pack(value.x * factor.x, value.y * factor.y);
      }
    }
  }
  __device__ void decay_state() {
    const float kept = tile::exp2_fast(m.decays.total);
#pragma unroll
    for (int i = 0; i < S.kSize; ++i) S.x[i] *= kept;
  }
  __device__ auto state_columns(int stage) const {
    const auto z = tile::along_rows(m.stages[stage].z);
    if constexpr (Slots::kByRows) {
      return z;
    } else {
      return z.template part_at<64>(Slots::kOwners == 2 ? group : 0);
    }
  }
  // S <- e^G S + what the tile adds.
  __device__ void contribute(int stage) {
    RegisterOperand<R> a;
    load_decayed(a, stage);
    decay_state();
    tile::wgmma_fence(S, a);
    tile::multiply(S, a, state_columns(stage), true);
    tile::wgmma_commit();
    tile::wgmma_wait<0>();
    tile::detail::pin(S);
  }

  __device__ float4* registers_of(float* part, int i) const {
    return reinterpret_cast<float4*>(part) + i * 128 + thread;
  }
  __device__ void publish_state(float* to) {
    if (!owner()) return;
#pragma unroll
    for (int i = 0; i < S.kSize / 4; ++i) {
      *registers_of(to, i) = {S.x[4 * i], S.x[4 * i + 1], S.x[4 * i + 2], S.x[4 * i + 3]};
    }
  }
  // S holds what the segment adds; leaves the state after the segment for the next one, and S the state before it.
  __device__ void pass_on(const Item& item, float total) {
    if (!owner()) return;
    const float kept = tile::exp2_fast(total);
    const bool received = item.receive >= 0, leaves = item.leave >= 0;
    float* before = received               ? part(p.states, item.receive, item)
                    : p.initial != nullptr ? part(p.initial, item.document, item)
                                           : nullptr;
    if (received) {
      if (thread == 0) {
        const int* flag = p.flags + index_of(item.receive, item);
        while (load_acquire(flag) == 0) __nanosleep(32);
      }
      tile::barrier_sync<128>(1 + group);
    }
    float* own = part(p.states, leaves ? item.leave : 0, item);
    constexpr int kAtOnce = 4;  // loads before the first store, which the compiler must not move them across
#pragma unroll
    for (int first = 0; first < S.kSize / 4; first += kAtOnce) {
      float4 arrived[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        arrived[i] = before == nullptr ? float4{0.0f, 0.0f, 0.0f, 0.0f} : __ldcg(registers_of(before, first + i));
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float4 s = arrived[i];
        float* x = S.x + 4 * (first + i);
        if (leaves) {
          *registers_of(own, first + i) = {fmaf(kept, s.x, x[0]), fmaf(kept, s.y, x[1]), fmaf(kept, s.z, x[2]),
                                           fmaf(kept, s.w, x[3])};
        }
        x[0] = s.x, x[1] = s.y, x[2] = s.z, x[3] = s.w;
      }
    }
    if (leaves) {
      __threadfence();
      tile::barrier_sync<128>(1 + group);
      if (thread == 0) store_release(p.flags + index_of(item.leave, item), 1);
    }
    if constexpr (kDots) {
      if (p.alive == nullptr) return;
      float alive = 0.0f;
      if (before != nullptr) {
        float* other = received ? part(p.other_states, item.receive, item) : part(p.other_final, item.document, item);
#pragma unroll
        for (int i = 0; i < S.kSize / 4; ++i) {
          const float4 o = __ldcg(registers_of(other, i));
          const float* x = S.x + 4 * i;
          alive += x[0] * o.x + x[1] * o.y + x[2] * o.z + x[3] * o.w;
        }
      }
      alive = tile::reduce_lanes<tile::Sum>(alive);
      float* sums = m.sums + 4 * group;
      if (lane() == 0) sums[thread / 32] = alive;
      tile::barrier_sync<128>(1 + group);
      const int parts = p.blocks * Slots::kOwners, part = item.block * Slots::kOwners + group;
      float* to = p.alive + (static_cast<std::int64_t>(item.chunk_at) * p.H + item.h) * p.alive_parts;
      if (thread == 0) to[part] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      if (part == 0 && thread > 0 && thread <= p.alive_parts - parts) to[parts + thread - 1] = 0.0f;
    }
  }
  // S rounded, as the operand of what rows read from it; a barrier must follow.
  __device__ void store_state() {
    if (!owner()) return;
    tile::store_rounded(S, m.state, Slots::kByRows ? 64 * group : 0, Slots::kByRows ? 0 : 64 * group, thread);
    tile::fence_async_shared();
  }

  // --- the outputs ---------------------------------------------------------------------------------------------------

  // Scores of the group's rows with themselves: masked and decayed. Whole blocks of 8 columns are on one side of the
  // diagonal for all rows of a warp, but two.
  __device__ void mask(Accumulator<64>& P) {
    const int warp = thread / 32, row = warp * 16 + lane() / 4;
    const float sign = p.backwards ? -1.0f : 1.0f;
    const float* G = m.decays.G + 64 * group;
    const float own[2] = {sign * G[row], sign * G[row + 8]};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int side = (p.backwards ? -1 : 1) * (n - 2 * warp);  // of the diagonal
      const bool crosses = n == 2 * warp || n == 2 * warp + 1;
      if (!crosses && side > 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) P.x[4 * n + i] = 0.0f;
        continue;
      }
      const int column = 8 * n + lane() % 4 * 2;
      const float2 other = *reinterpret_cast<const float2*>(G + column);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float difference = own[i / 2] - sign * (i % 2 == 0 ? other.x : other.y);
        P.x[4 * n + i] *= p.pair_scale * tile::exp2_fast(fminf(difference, 0.0f));
      }
      if (!crosses) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = row + i / 2 * 8, c = column + i % 2;
        if (kDots && r == c) {
          m.diagonal[64 * group + r] = P.x[4 * n + i];
          P.x[4 * n + i] = 0.0f;
        }
        if (p.backwards ? c < r : c > r) P.x[4 * n + i] = 0.0f;
      }
    }
  }
  // Scores with the rows of the other group, which are all before (after, backwards).
  __device__ void decay(Accumulator<64>& P) {
    const int row = 64 * group + thread / 32 * 16 + lane() / 4;
    const float* half = m.decays.half;
    const float own[2] = {p.pair_scale * half[row], p.pair_scale * half[row + 8]};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 other = *reinterpret_cast<const float2*>(half + 64 * (1 - group) + 8 * n + lane() % 4 * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) P.x[4 * n + i] *= own[i / 2] * (i % 2 == 0 ? other.x : other.y);
    }
  }

  // kAcross: whether the group's rows see those of the other.
  template <bool kAcross>
  __device__ void outputs(const Item& item, int first, int stage_index) {
    const auto x = [&] { return tile::along_columns(m.stages[stage_index].x).template part_at<64>(group); };
    using Half = tile::Operand<DZ, 64, tile::Major::mn, R * 128>;
    const auto rows_of_z = [&](int half) {
      const auto z = tile::along_rows(m.stages[stage_index].z);
      return Half{z.descriptor + static_cast<std::uint64_t>(half * 4 * 2048 / 16)};
    };

    // Scores first; what the tile adds to the state, which nobody reads before the next tile, keeps the tensor cores
    // busy while they are masked.
    RegisterOperand<64> near, far;
    {
      Accumulator<64> P, Q;
      RegisterOperand<R> a;
      const auto y = tile::along_columns(m.stages[stage_index].y);
      tile::wgmma_fence(P);
      tile::multiply(P, x(), y.template part_at<64>(group), false);
      tile::wgmma_commit();
      const auto scores_across = [&] {
        tile::wgmma_fence(Q);
        tile::multiply(Q, x(), y.template part_at<64>(1 - group), false);
        tile::wgmma_commit();
      };
      if constexpr (kAcross && !kDots) scores_across();
      tile::barrier_sync<kThreads>(3);  // the decays, and the state's rows, are there
      load_decayed(a, stage_index);
      decay_state();
      tile::wgmma_fence(S, a);
      tile::multiply(S, a, state_columns(stage_index), true);
      tile::wgmma_commit();
      tile::wgmma_wait<kDots ? 0 : kAcross ? 2 : 1>();  // with dots there are no registers to spare: one by one
      tile::detail::pin(P);
      mask(P);
      tile::round_to_operand(near, P);
      if constexpr (kAcross) {
        if constexpr (kDots) scores_across();
        tile::wgmma_wait<kDots ? 0 : 1>();
        tile::detail::pin(Q);
        decay(Q);
        tile::round_to_operand(far, Q);
      }
      tile::wgmma_wait<0>();
      tile::detail::pin(S);
    }
    forget_thread();
    asm volatile("" : "+r"(stage_index));
    Accumulator<DZ> O;
    tile::wgmma_fence(O);
    tile::multiply(O, x(), tile::along_rows(m.state), false);
    tile::wgmma_commit();
    tile::wgmma_wait<0>();
    tile::detail::pin(O);
    const int row = 64 * group + thread / 32 * 16 + lane() / 4;
    const auto read_of = [&](int i) {
      const float G = m.decays.G[i];
      return p.x_scale * tile::exp2_fast(p.backwards ? fminf(m.decays.total - G, 0.0f) : G);
    };
    const float read[2] = {read_of(row), read_of(row + 8)};
#pragma unroll
    for (int e = 0; e < O.kSize; ++e) O.x[e] *= read[e / 2 % 2];
    tile::wgmma_fence(O, near);
    tile::multiply(O, near, rows_of_z(group), true);
    if constexpr (kAcross) {
      tile::wgmma_fence(far);
      tile::multiply(O, far, rows_of_z(1 - group), true);
    }
    tile::wgmma_commit();
    tile::wgmma_wait<0>();
    tile::detail::pin(O);
    forget_thread();
    asm volatile("" : "+r"(stage_index));
    const int n = item.end - item.begin - first;
    if constexpr (kDots) add_diagonal(O, m.stages[stage_index].z, item, item.begin + first, n);
    tile::barrier_sync<kThreads>(3);  // the tile and the state have been read
    store_state();
    store_outputs(O, m.stages[stage_index].z, item, item.begin + first, n);
  }

  // Sums of out w without the pairs j = i, which then join the outputs.
  __device__ void add_diagonal(Accumulator<DZ>& O, const SharedTile<R, DZ>& z, const Item& item, int t, int n) {
    tile::barrier_sync<128>(1 + group);  // the diagonal is there
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = 64 * group + thread / 32 * 16 + lane() / 4 + 8 * half;
      const float diagonal = m.diagonal[r];
      const bool valid = r < n;
      const bf16* w = p.w.at(t + (valid ? r : 0), item.h) + item.block * DZ;
      float dot = 0.0f;
#pragma unroll
      for (int n8 = 0; n8 < DZ / 8; ++n8) {
        float* o = O.x + 4 * n8 + 2 * half;
        const int column = 8 * n8 + lane() % 4 * 2;
        const float2 value = tile::unpack(valid ? *reinterpret_cast<const std::uint32_t*>(w + column) : 0u);
        dot = fmaf(o[0], value.x, fmaf(o[1], value.y, dot));
        const float2 other = tile::unpack(*reinterpret_cast<const std::uint32_t*>(&z.at(r, column)));
        o[0] = fmaf(diagonal, other.x, o[0]);
        o[1] = fmaf(diagonal, other.y, o[1]);
      }
      dot = tile::reduce_quad<tile::Sum>(dot);
      if (lane() % 4 == 0 && valid && p.dots != nullptr) {
        float* to = p.dots + (static_cast<std::int64_t>(t + r) * p.H + item.h) * p.dot_parts;
        to[item.block] = dot;
        if (item.block > 0) continue;
        for (int part = p.blocks; part < p.dot_parts; ++part) to[part] = 0.0f;
      }
    }
  }

  __device__ void store_outputs(const Accumulator<DZ>& O, SharedTile<R, DZ>& z, const Item& item, int t, int n) {
    if (p.out == nullptr) return;
    const std::int64_t stride = static_cast<std::int64_t>(p.H) * p.blocks * DZ;  // between tokens
    const std::int64_t start = t * stride + (item.h * p.blocks + item.block) * DZ;
    if (p.out_f32) return store_floats(O, static_cast<float*>(p.out) + start, stride, n);
    // z has been read: its tile takes the outputs on their way.
    tile::store_rounded(O, z, 64 * group, 0, thread);
    tile::barrier_sync<128>(1 + group);
    constexpr int kChunks = DZ / 8, kStep = 128 / kChunks;
    const int r = 64 * group + thread / kChunks, c = thread % kChunks * 8;
    bf16* out = static_cast<bf16*>(p.out) + start + r * stride + c;
    const auto* from = reinterpret_cast<const char*>(&z.chunk(r, c));
#pragma unroll 2
    for (int i = 0; i < 64 / kStep; ++i) {
      if (r + kStep * i >= n) break;
      uint4 value = *reinterpret_cast<const uint4*>(from + kStep * i * 128);
      auto* to = reinterpret_cast<uint4*>(out + kStep * i * stride);
      if (p.write == Write::accumulate) {
        const uint4 before = *to;
        value = {add_pairs(value.x, before.x), add_pairs(value.y, before.y), add_pairs(value.z, before.z),
                 add_pairs(value.w, before.w)};
      }
      __stcs(to, value);
    }
  }
  __device__ void store_floats(const Accumulator<DZ>& O, float* out, std::int64_t stride, int n) const {
    const int row = 64 * group + thread / 32 * 16 + lane() / 4;
    out += row * stride + lane() % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row + 8 * half >= n) break;
      auto* to = reinterpret_cast<float2*>(out + 8 * half * stride);
#pragma unroll
      for (int n8 = 0; n8 < DZ / 8; ++n8) to[4 * n8] = {O.x[4 * n8 + 2 * half], O.x[4 * n8 + 2 * half + 1]};
    }
  }

  const WalkProblem& p;
  const WalkMaps& maps;
  Memory& m;
  const int group;
  int thread;                      // of the group
  Accumulator<Slots::kColumns> S;  // the group's part of the state
};

template <int DX, int DZ, bool kDots>
__global__ void __launch_bounds__(kThreads, 1)
    walk_kernel(const __grid_constant__ WalkProblem p, const __grid_constant__ WalkMaps maps) {
#ifdef WEFT_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  Walk<DX, DZ, kDots>(p, maps, *reinterpret_cast<Shared<DX, DZ>*>(memory)).run();
#else
  tile::unavailable();
#endif
}

}  // namespace weft::walk
