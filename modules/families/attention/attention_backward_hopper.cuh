// Backward kernel of attention.h for Hopper: bf16, one tile of 128 keys of one key/value head at a time.
//
// The tile stays while the queries that see it pass by, tile by tile from the last, and for each the heads of the
// group. Two warpgroups own 64 keys each. Scores are made transposed, [keys][queries], so that p and dz are the left
// operands of dv and dk straight from registers; dz also goes to shared memory, from where each warpgroup makes one
// half of the queries' dq, over all 128 keys. Five products a step:
//   s = k q^T    dp = v d_o^T    dv += p^T d_o    dk += dz^T q    dq = dz k
// While exponentials run, dp is being made; while dz is made, dv; while dq is handed over, the next step's s.
//
// dq is summed in fp32 in device memory by the copy engine. Tiles of keys add to a tile of queries in ascending order:
// each waits for its turn, which is a counter for every tile of a head. Items are given out in the same order, and all
// walk their queries from the last, so that predecessors are ahead by themselves.
#pragma once

#include "autograd/tile/tma.cuh"
#include "autograd/tile/wgmma.cuh"
#include "modules/families/attention/visibility.cuh"

namespace weft::attention_cuda {

namespace tile = weft::tile;

inline constexpr int kBackwardThreads = 3 * tile::kWarpgroup;
inline constexpr int kQueries = kBackwardRows;  // of a step
// Columns and floats of dq that one warpgroup makes in one step. A half of 192 is a panel of 64 and half of the third.
template <int D>
inline constexpr int kHalf = D / 2;
template <int D>
inline constexpr int kPiece = kQueries* kHalf<D>;

// What a pass over the pairs makes. Registers hold the sums of both dk and dv for heads up to 128; wider ones take a
// pass for dk and dq and one for dv.
enum class Makes { everything, keys_and_queries, values };

struct BackwardArgs {
  const AttentionKeyTile* key_tiles;
  const AttentionQueryTile* query_tiles;  // of kQueries rows, in row order
  std::int32_t key_count, query_count;    // of tiles
  std::int32_t H_Q, H_KV;
  std::int32_t D, D_V;  // of the tensors
  Sight sight;
  float transform, unit;  // as in the forward kernel
  float scale;            // of logits
  const float* stats;     // [H_Q][tiles][2][kQueries]: lse in powers of 2, delta
  float* dq_sum;          // [H_Q][tiles][2][kPiece], not yet scaled
  int* turns;             // [H_Q][tiles], start at 0
  int* counter;           // starts at 0
  tile::bf16 *dq, *dk, *dv;
  Write write_dq, write_dk, write_dv;
};

// One step: a tile of keys meets a tile of queries.
struct StepInfo {
  static constexpr int kPartial = 1;           // some query does not see some key
  static constexpr int kCut = 2;               // rows of the tile are another document's
  static constexpr int kFirst = 4, kLast = 8;  // of the item
  static constexpr int kBlind = 16;            // << g: no query sees any key of warpgroup g
  std::int32_t flags;
  std::int32_t position, count;  // of queries
};

// A work item: a tile of keys and the steps in which it meets tiles of queries. Neighbours in the table walk side by
// side, so that what they read and add to is in the cache: without a window all start at the document's last queries
// and take the heads of a tile in turn; with one they start at queries of their own, and take one head after the other,
// so that a neighbour comes past the same queries soon. Keys that every query sees are the first that all others wait
// for: they walk forwards.
struct KeyItem {
  AttentionKeyTile tile;
  std::int32_t kv_head;      // -1: no more work
  std::int32_t first, last;  // tiles of queries of the document
  std::int32_t heads_outer, forwards;

  __device__ void set_walk(const Sight& sight) {
    const bool windowed = sight.window < 1 << 30;
    const bool pinned = tile.anchor != 0 || (windowed && tile.position < sight.sinks);
    first = tile.anchor != 0 ? 0 : max(0, tile.position - tile.query_position) / kQueries;
    last = tile.query_tiles - 1;
    const int end = tile.position + kKeyRows + sight.window - 1 - tile.query_position;  // first query that sees no key
    if (!pinned) last = end <= 0 ? -1 : min(last, (end - 1) / kQueries);
    heads_outer = windowed && !pinned ? 1 : 0;
    forwards = pinned ? 1 : 0;
  }
  __device__ int steps(int G) const { return max(0, last - first + 1) * G; }
  // Tile of queries (of all of the row's) and head of the group of step j.
  __device__ int2 step(int j, int G) const {
    const int tiles = last - first + 1;
    const int i = heads_outer != 0 ? j % tiles : j / G;
    return {tile.query_tile + (forwards != 0 ? first + i : last - i), heads_outer != 0 ? j / tiles : j % G};
  }
  __device__ StepInfo meet(const AttentionQueryTile& t, const Sight& sight) const {
    const std::int32_t last = t.position + kQueries - 1;
    int flags = 0;
    if (tile.count < kKeyRows || tile.position + kKeyRows - 1 > t.position || last - tile.position >= sight.window) {
      flags |= StepInfo::kPartial;
    }
    if (t.count < kQueries) flags |= StepInfo::kCut;
    for (int group = 0; group < 2; ++group) {
      const std::int32_t begin = tile.position + group * 64, end = tile.position + min(group * 64 + 64, tile.count);
      const bool left = tile.anchor == 0 && t.position - (end - 1) >= sight.window && begin >= sight.sinks;
      if (begin >= end || begin > last || left) flags |= StepInfo::kBlind << group;
    }
    return {flags, t.position, t.count};
  }
};

template <int D, int D_V, Makes kMakes>
struct BackwardMemory {
  static constexpr bool kValues = kMakes != Makes::keys_and_queries;
  static constexpr bool kKeys = kMakes != Makes::values;
  static constexpr int kGradientStages = D <= 128 ? 2 : 1;
  static constexpr int kItems = 3;  // the coming one, this one, and the one before
  static constexpr int kSumBuffers = D <= 128 && kKeys ? 2 : 1;
  tile::SharedTile<kKeyRows, D> k;
  tile::SharedTile<kKeyRows, D_V> v;
  tile::SharedTile<kQueries, D> q[2];
  tile::SharedTile<kQueries, D_V> d_o[kGradientStages];
  tile::SharedTile<kKeyRows, kQueries> dz[kKeys ? 2 : 1];
  alignas(128) float dq[kSumBuffers][2][kKeys ? kPiece<D> : 4];  // the two warpgroups' pieces
  alignas(16) float stats[2][2 * kQueries];
  KeyItem item[kItems];  // in turn
  StepInfo step[2];
  tile::Barrier k_full, k_empty, v_full, v_empty;
  tile::Barrier q_full[2], q_empty[2], d_o_full[kGradientStages], d_o_empty[kGradientStages];
  tile::Barrier dz_full[2], dz_empty[2];
  tile::Barrier dq_full[2], dq_empty[kSumBuffers];  // full: of even and of odd steps
  // Sums that come back to be rounded, of each warpgroup and warp, and how often they did.
  static constexpr int kGroupWarps = tile::kWarpgroup / tile::kWarp;
  tile::Barrier sums_here[kSumBuffers][2][kGroupWarps];
  std::uint32_t rounds[2][kGroupWarps];

  __device__ void init() {
    constexpr int kComputing = 2 * tile::kWarpgroup, kWarps = kComputing / tile::kWarp;
    k_full.init(1);
    v_full.init(1);
    k_empty.init(kComputing + (kKeys ? 2 : 0));
    v_empty.init(kWarps);
    for (int i = 0; i < kGradientStages; ++i) {
      d_o_full[i].init(1);
      d_o_empty[i].init(kWarps);
    }
    for (int i = 0; i < 2; ++i) {
      q_full[i].init(1);
      q_empty[i].init(kComputing);
      dz_full[i].init(kWarps);
      dz_empty[i].init(kWarps);
      dq_full[i].init(kComputing);
    }
    for (tile::Barrier& barrier : dq_empty) barrier.init(1);
    for (int i = 0; i < kWarps; ++i) {
      for (auto& of_buffer : sums_here) of_buffer[i / kGroupWarps][i % kGroupWarps].init(1);
      rounds[i / kGroupWarps][i % kGroupWarps] = 0;
    }
    tile::fence_barrier_init();
  }
};

// Where elements 4c .. 4c + 3 of a thread's accumulator lie in a piece of dq: in the order in which threads hold them.
__host__ __device__ inline int piece_offset(int thread, int c) {
  return (c * tile::kWarpgroup + thread) * 4;
}

__device__ inline int load_acquire(const int* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline void store_release(int* to, int value) {
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

// The thread that loads.
template <int D, int D_V, Makes kMakes>
__device__ void produce(BackwardMemory<D, D_V, kMakes>& m, const tile::TileMap<kKeyRows, 3>& k_map,
                        const tile::TileMap<kKeyRows, 3>& v_map, const tile::TileMap<kQueries, 3>& q_map,
                        const tile::TileMap<kQueries, 3>& d_o_map, const BackwardArgs& a) {
  using Memory = BackwardMemory<D, D_V, kMakes>;
  constexpr std::uint32_t kStats = 2 * kQueries * 4;
  const int G = a.H_Q / a.H_KV;
  tile::PipelineState<Memory::kItems> slot;  // of the item
  std::uint32_t parity = 0;                  // of its barriers
  tile::PipelineState<2> state;
  tile::PipelineState<Memory::kGradientStages> gradients;
  const int items = a.key_count * a.H_KV;
  for (int next = atomicAdd(a.counter, 1); next < items; next = atomicAdd(a.counter, 1)) {
    KeyItem item;
    item.tile = a.key_tiles[next / a.H_KV];
    item.kv_head = next % a.H_KV;
    if (item.tile.count <= 0) continue;
    item.set_walk(a.sight);
    const int steps = item.steps(G);
    const auto load_step = [&](int j) {
      const int2 step = item.step(j, G);
      const AttentionQueryTile t = a.query_tiles[step.x];
      const int head = item.kv_head * G + step.y, s = state.stage, r = gradients.stage;
      m.q_empty[s].wait(state.parity() ^ 1);
      StepInfo info = item.meet(t, a.sight);
      if (j == 0) info.flags |= StepInfo::kFirst;
      if (j + 1 == steps) info.flags |= StepInfo::kLast;
      m.step[s] = info;
      m.q_full[s].arrive_expect(kQueries * D * 2 + kStats);
      tile::load_tile(m.q[s], q_map, m.q_full[s], 0, t.row, head);
      tile::load_bytes(m.stats[s], a.stats + (static_cast<std::int64_t>(head) * a.query_count + step.x) * 2 * kQueries,
                       kStats, m.q_full[s]);
      m.d_o_empty[r].wait(gradients.parity() ^ 1);
      m.d_o_full[r].arrive_expect(kQueries * D_V * 2);
      tile::load_tile(m.d_o[r], d_o_map, m.d_o_full[r], 0, t.row, head);
      state.advance();
      gradients.advance();
    };
    // The first queries come while the item before still makes its last dq, keys while it is being written out.
    if (steps > 0) load_step(0);
    m.k_empty.wait(parity ^ 1);
    m.item[slot.stage] = item;
    slot.advance();
    m.k_full.arrive_expect(kKeyRows * D * 2);
    tile::load_tile(m.k, k_map, m.k_full, 0, item.tile.row, item.kv_head);
    m.v_empty.wait(parity ^ 1);
    m.v_full.arrive_expect(kKeyRows * D_V * 2);
    tile::load_tile(m.v, v_map, m.v_full, 0, item.tile.row, item.kv_head);
    parity ^= 1;
    for (int j = 1; j < steps; ++j) load_step(j);
  }
  m.k_empty.wait(parity ^ 1);
  m.item[slot.stage].kv_head = -1;
  m.k_full.arrive();
}

// What the counter of a tile says when its dq is complete; until then, whose turn it is.
inline constexpr int kComplete = -1;

// Whether a tile of keys is the last that a tile of queries sees.
__device__ inline bool is_last(const AttentionKeyTile& keys, const AttentionQueryTile& queries) {
  if (keys.anchor != 0) return queries.anchor_row < 0;
  return keys.position + kKeyRows > queries.position + queries.count - 1;
}

// A thread that adds to dq, when it is this tile of keys' turn; one for even steps and one for odd ones, so that a sum
// has two steps' time to arrive and be announced.
template <int D, int D_V, Makes kMakes>
__device__ void add_pieces(BackwardMemory<D, D_V, kMakes>& m, const BackwardArgs& a, int own) {
  using Memory = BackwardMemory<D, D_V, kMakes>;
  const int G = a.H_Q / a.H_KV, buffer = Memory::kSumBuffers == 2 ? own : 0;
  tile::PipelineState<Memory::kItems> slot;
  std::uint32_t item_parity = 0, parity = 0;
  int next = own;  // own step, counted from the beginning of the item
  for (;; item_parity ^= 1, slot.advance()) {
    m.k_full.wait(item_parity);
    const KeyItem item = m.item[slot.stage];
    if (item.kv_head < 0) return;
    m.k_empty.arrive();  // the next item may come while this one's last sums are on their way
    const int steps = item.steps(G);
    for (; next < steps; next += 2, parity ^= 1) {
      const int2 step = item.step(next, G);
      const AttentionQueryTile t = a.query_tiles[step.x];
      const int turn = KeyWalk<kKeyRows>(t, a.sight).turn(item.tile.position, item.tile.anchor != 0, t);
      const int head = item.kv_head * G + step.y;
      const std::int64_t at = static_cast<std::int64_t>(head) * a.query_count + step.x;
      float* const to = a.dq_sum + at * 2 * kPiece<D>;
      auto& from = m.dq[buffer];
      if (turn > 0) {
        while (load_acquire(a.turns + at) != turn) {
        }
        tile::fence_async_global();
      }
      m.dq_full[own].wait(parity);
      if (turn == 0) {
        tile::store_bytes(to, from, sizeof(from));
      } else {
        tile::add_floats(to, from[0], sizeof(from));
      }
      tile::commit_stores();
      tile::wait_stores_read<0>();
      m.dq_empty[buffer].arrive();
      tile::wait_stores<0>();
      tile::fence_async_global();
      store_release(a.turns + at, is_last(item.tile, t) ? kComplete : turn + 1);
    }
    next -= steps;
  }
}

}  // namespace weft::attention_cuda
