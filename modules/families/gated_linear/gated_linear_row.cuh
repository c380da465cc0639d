// The tensor-core kernel for one decay per head or token (sm_90a): masked attention with a matrix state, for any three
// of the recurrence's tensors and in either direction of time,
//
//   out_i = s sum_{j <= i} <x_i, y_j> e^{G_i - G_j} z_j  + what the state before the row's document holds for x_i,
//
// (j >= i and e^{G_j - G_i} backwards). Forward and all gradients are this sum; README.md has the table.
//
// A pair of blocks (a cluster) takes 64 columns of z, of the state and of out of a head, each block half of them, and
// walks the whole row of documents once, in tiles of R tokens. x and y are the same for both: each block brings half of
// a tile, and the copy engine puts it into both.
//
// A block's warps have roles, and tiles flow between them through rings in shared memory: the loader and the decays of
// a tile; one group of four warps carries the state and leaves it rounded before each tile; two groups make
// the outputs, each of every other tile.
//
// DX width of x and y.
#pragma once

#include "autograd/tile/cluster.cuh"
#include "autograd/tile/narrow_tile.cuh"
#include "autograd/tile/reduce.cuh"
#include "autograd/tile/wgmma.cuh"
#include "modules/families/gated_linear/gated_linear_walks.cuh"

namespace weft::row {

using tile::Accumulator;
using tile::bf16;
using tile::NarrowTile;
using tile::RegisterOperand;
using tile::SharedTile;
using walks::Ends;
using walks::Gradient;
using walks::HeadRows;

inline constexpr int R = 64;
inline constexpr int kColumns = 32;
inline constexpr int kCluster = 2;
inline constexpr int kGroup = 128;           // threads
inline constexpr int kThreads = 4 * kGroup;  // loader and decays; state; outputs, twice

// What a kernel is made for.
enum class Form {
  constant,  // one decay for a head
  plain,     // a decay per token
  dots,      // with sums for the gradient of decays per token
  channels,  // decays per key channel: scores and decayed x and y lie in memory (gated_linear_channels.cuh)
};

struct RowProblem {
  HeadRows x, y, z;                    // copied through maps
  bool backwards;                      // in time
  const float* g;                      // [H] or [T, H]
  float pair_scale, x_scale, y_scale;  // of scores, of what is read from the state, of what is added to it
  int H, blocks;                       // blocks of kColumns columns of z
  const Chunk* chunks;
  const std::int32_t* chunk_count;  // those with tokens, which come first
  bool chosen;                      // not all of the problem's: index is the place in its table

  void* out;  // [T, H, blocks kColumns], bf16 or f32; null: not wanted
  bool out_f32;
  bool copy_out;  // bf16 that overwrites: by the copy engine
  Write write;
  // States [N, H, ...] before documents in the walk's direction (null: zero) and after them (null: not wanted); the
  // rows of the state lie `row_stride` apart, its columns `column_stride`.
  const float* before;
  float* after;
  Write write_after;
  int row_stride, column_stride;

  // For the gradient of a decay per token: dots[t, h, block] = sum over columns of out w, without pairs j = i.
  HeadRows w;
  float* dots;
  // And alive[chunk, h, block] = the sum over S dS after each chunk: the walk forwards in time leaves S, in the order
  // of its registers, and the one backwards meets it. Between chunks of a document there are slots by the place in the
  // row; at a document's end it matters if there is a gradient (null: none).
  float *meeting, *meeting_final, *alive;

  // Form::channels: e^{G_n} of every chunk, [chunks, H, DX], and where (unless null) the rounded states before each
  // chunk go, [chunks, H, DX, blocks kColumns]. The table's chunks are tiles; x, y and scores are [chunks, H].
  const float* totals;
  bf16* entries;
};

using TilesMap = tile::TileMap<R, 3>;
struct RowMaps {
  TilesMap x, y, scores;
  tile::NarrowMap<R> z;
  tile::NarrowMap<16> out;
};

struct alignas(16) TileDecays {
  float G[R];     // sums of log decays, in log2
  float add[R];   // of what row j adds to the state
  float read[R];  // of what row i reads from it
  float total;    // G over the tile
};

// Scores and what rows read from the state are one product with x: the state before a tile lies, rounded and
// transposed, behind the rows of y.
template <int DX, bool kGiven>
struct Stage {
  SharedTile<R, DX> x;
  SharedTile<R + kColumns, DX> y;
  NarrowTile<R> z;
};
template <int DX>
struct Stage<DX, true> {
  SharedTile<R, DX> x, y;
  SharedTile<R, 64> scores;
  NarrowTile<R> z;
  float totals[DX];
};
// What only some forms have: columns of z as they are added to the state, of two tiles; or rounded states.
template <int DX, bool kGiven>
struct Extra {
  NarrowTile<R> scaled[2];
};
template <int DX>
struct Extra<DX, true> {
  NarrowTile<DX> states[4];
};

template <int DX, Form kForm>
struct Shared {
  static constexpr bool kGiven = kForm == Form::channels;
  static constexpr int kStages = DX == 64 ? 6 : 4;
  static constexpr int kStates = kGiven ? 4 : kStages;  // of the ring; a stage's state lies in the stage
  using Stage = row::Stage<DX, kGiven>;
  Stage stages[kStages];
  Extra<DX, kGiven> extra;
  NarrowTile<R> outputs[2];  // on their way, of two groups
  TileDecays decays[kForm == Form::plain || kForm == Form::dots ? kStages : 1];
  float sums[4];
  tile::Barrier full[kStages], empty[kStages];
  tile::Barrier vectors_empty[kStages];  // the decays, or the totals, have been read
  tile::Barrier state_full[kStates], state_empty[kStates];
};
static_assert(R == static_cast<int>(general::kChunk), "chunks of decays per channel are tiles");

// Where a role is: a tile of a chunk of the table, of a block of columns of a head. Every role goes through all tiles
// of the cluster in the same order.
class Cursor {
 public:
  __device__ Cursor(const RowProblem& problem, int cluster_rank)
      : p(problem),
        rank(cluster_rank),
        count(*problem.chunk_count),
        item(static_cast<int>(blockIdx.x) / kCluster - static_cast<int>(gridDim.x) / kCluster) {}

  // To the next tile; false behind the last one.
  __device__ bool advance() {
    starts_document = false;
    if (++tile >= tiles) {
      if (++entry >= count && !next_item()) return false;
      const int before = document;
      chunk = next;
      next = at(entry + 1);
      document = chunk.document;
      starts_document = entry == 0 || document != before;
      tiles = (chunk.end - chunk.begin + R - 1) / R;
      tile = 0;
    }
    row = chunk.begin + (p.backwards ? tiles - 1 - tile : tile) * R;
    n = min(R, chunk.end - row);
    return true;
  }
  __device__ bool starts_head() const { return starts_document && entry == 0; }
  __device__ bool starts_chunk() const { return tile == 0; }
  __device__ bool ends_chunk() const { return tile + 1 == tiles; }
  __device__ bool ends_document() const { return ends_chunk() && (entry + 1 >= count || next.document != document); }
  __device__ int chunk_at() const { return p.chosen ? chunk.index : p.backwards ? count - 1 - entry : entry; }
  __device__ int chunk_begin() const { return chunk.begin; }

  int h, block;  // of columns
  int row, n;    // first token of the tile; tokens
  int document;
  bool starts_document;

 private:
  __device__ bool next_item() {
    item += static_cast<int>(gridDim.x) / kCluster;
    const int pairs = p.blocks / kCluster;
    if (item >= p.H * pairs || count == 0) return false;
    h = item / pairs;
    block = item % pairs * kCluster + rank;
    entry = 0;
    next = at(0);
    return true;
  }
  __device__ Chunk at(int e) const {
    if (e >= count) return {};
    const int4 words = __ldg(reinterpret_cast<const int4*>(p.chunks) + (p.backwards ? count - 1 - e : e));
    return {words.x, words.y, words.z, words.w};
  }

  const RowProblem& p;
  const int rank, count;
  int item, entry = 0x7ffffff0, tile = 0, tiles = 0;
  Chunk chunk, next;
};

// A place in a ring, and the parity of its round.
template <int Size>
struct Ring {
  int at = 0;
  std::uint32_t parity = 0;
  __device__ void advance(int by = 1) {
    at += by;
    if (at >= Size) {
      at -= Size;
      parity ^= 1;
    }
  }
};

template <int DX, Form kForm>
class Walk {
 public:
  using Memory = Shared<DX, kForm>;
  static constexpr bool kConstant = kForm == Form::constant, kDots = kForm == Form::dots,
                        kGiven = kForm == Form::channels, kPerToken = !kConstant && !kGiven;
  static constexpr int kStages = Memory::kStages, kStates = Memory::kStates;
  static constexpr int kHalves = DX / 64;  // of the state's rows

  __device__ Walk(const RowProblem& problem, const RowMaps& tensors, Memory& memory)
      : p(problem),
        maps(tensors),
        m(memory),
        rank(tile::cluster_rank()),
        thread(static_cast<int>(threadIdx.x) % kGroup),
        warp(__shfl_sync(0xffffffffu, thread / 32, 0)),
        lane(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void run() {
    if (threadIdx.x == 0) {
      for (int s = 0; s < kStages; ++s) {
        m.full[s].init(kPerToken ? 1 + 32 : 1);  // the loader and a warp's decays
        m.empty[s].init((makes_outputs() ? 8 : 4) *
                        kCluster);  // warps of the state's and an output's group, in both blocks
        m.vectors_empty[s].init(kGiven ? kGroup : 2 * kGroup);  // threads of this one
      }
      for (int s = 0; s < kStates; ++s) {
        m.state_full[s].init(kGroup);
        m.state_empty[s].init((makes_outputs() ? 4 : 0) + (keeps_states() ? 1 : 0));
      }
      tile::fence_barrier_init();
    }
    tile::cluster_sync();
    const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kGroup, 0);
    if (group == 0) {
      tile::shrink_registers<64>();
      if (warp == 0) load_tiles();
      if constexpr (kGiven) {
        if (warp != 0 && keeps_states()) keep_states(warp - 1);
      } else if constexpr (kPerToken) {
        if (warp != 0) make_decays(warp - 1);
      }
      __syncwarp();
    } else if (group == 1) {
      tile::shrink_registers<120>();
      carry_state();
    } else {
      tile::grow_registers<160>();
      if (makes_outputs()) make_outputs(group - 2);
      tile::wait_stores<0>();
    }
    tile::cluster_sync();
  }

 private:
  // Walks for the states alone have no outputs.
  __device__ bool makes_outputs() const { return !kGiven || p.out != nullptr; }
  __device__ bool keeps_states() const { return kGiven && p.entries != nullptr; }

  // --- the first group -----------------------------------------------------------------------------------------------

  __device__ void load_tiles() {
    if (lane != 0) return;
    constexpr int kPanels = DX / 64;
    constexpr std::uint32_t kBoth = (1u << kCluster) - 1;
    Ring<kStages> ring;
    Cursor at(p, rank);
    for (; at.advance(); ring.advance()) {
      auto& stage = m.stages[ring.at];
      tile::Barrier& full = m.full[ring.at];
      const int index = at.chunk_at() * p.H + at.h;
      const int y_row = kGiven ? 0 : at.row, y_head = kGiven ? index : at.h / p.y.sharing;
      const int x_row = kGiven ? 0 : at.row, x_head = kGiven ? index : at.h / p.x.sharing;
      m.empty[ring.at].wait(ring.parity ^ 1);
      if constexpr (kGiven) {
        m.vectors_empty[ring.at].wait(ring.parity ^ 1);
        full.arrive_expect(sizeof(stage.y) + sizeof(stage.z) + sizeof(stage.totals) +
                           (makes_outputs() ? sizeof(stage.x) + sizeof(stage.scores) : 0));
        tile::load_bytes(stage.totals, p.totals + static_cast<std::int64_t>(index) * DX, sizeof(stage.totals), full);
      } else {
        full.arrive_expect(sizeof(stage.x) + R * DX * 2 + sizeof(stage.z));
      }
      // Each panel is brought by one block of the pair.
#pragma unroll
      for (int i = 0; i < kPanels; ++i) {
        if (i % kCluster == rank) tile::load_panel_to_all(stage.y, i, maps.y, full, 64 * i, y_row, y_head, kBoth);
      }
      tile::load_tile(stage.z, maps.z, full, at.block * kColumns, at.row, at.h / p.z.sharing);
      if (!makes_outputs()) continue;
#pragma unroll
      for (int i = 0; i < kPanels; ++i) {
        if ((kPanels + i) % kCluster != rank) continue;
        tile::load_panel_to_all(stage.x, i, maps.x, full, 64 * i, x_row, x_head, kBoth);
      }
      if constexpr (kGiven) {
        if (rank == 1) tile::load_panel_to_all(stage.scores, 0, maps.scores, full, 0, 0, index, kBoth);
      }
    }
    // The other block's arrivals are here before this one leaves.
    for (int s = 0; s < kStages; ++s, ring.advance()) m.empty[ring.at].wait(ring.parity ^ 1);
  }

  // Decays below 2^-180 leave nothing of an fp32 number; bounded sums keep the digits of the others.
  __device__ static float gate(const float* log_decay) {
    return fmaxf(__ldg(log_decay) * tile::kLog2e, -180.0f);
  }

  // Three warps take turns.
  __device__ void make_decays(int turn) {
    Ring<kStages> ring;
    Cursor at(p, rank);
    for (; at.advance(); ring.advance()) {
      turn = turn == 0 ? 2 : turn - 1;
      if (turn != 2) {
        // Of every round, as a parity does not tell a round from the one after the next.
        m.vectors_empty[ring.at].wait(ring.parity ^ 1);
        continue;
      }
      const int first = 2 * lane;  // two tokens a lane
      const float* from = p.g + static_cast<std::int64_t>(at.row) * p.H + at.h;
      float g[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        g[i] = first + i < at.n ? gate(from + (first + i) * static_cast<std::int64_t>(p.H)) : 0.0f;
      }
      float sum = g[0] + g[1];
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const float before = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane >= step) sum += before;
      }
      const float total = __shfl_sync(0xffffffffu, sum, 31);
      const float G[2] = {sum - g[1], sum};
      float2 add, read;
      const auto from_start = [&](int i) { return tile::exp2_fast(fminf(G[i], 0.0f)); };
      const auto to_end = [&](int i) { return tile::exp2_fast(fminf(total - G[i], 0.0f)); };
      if (p.backwards) {
        add = {from_start(0), from_start(1)}, read = {to_end(0), to_end(1)};
      } else {
        add = {to_end(0), to_end(1)}, read = {from_start(0), from_start(1)};
      }
      TileDecays& decays = m.decays[ring.at];
      m.vectors_empty[ring.at].wait(ring.parity ^ 1);
      *reinterpret_cast<float2*>(decays.G + first) = {G[0], G[1]};
      *reinterpret_cast<float2*>(decays.add + first) = {p.y_scale * add.x, p.y_scale * add.y};
      *reinterpret_cast<float2*>(decays.read + first) = {p.x_scale * read.x, p.x_scale * read.y};
      if (lane == 0) decays.total = total;
      m.full[ring.at].arrive();
    }
  }

  // The rounded states before the tiles go to memory. Three warps take turns.
  __device__ void keep_states(int turn) {
    Ring<kStates> slot;
    Cursor at(p, rank);
    const int width = p.blocks * kColumns, c = lane % 4 * 8;
    for (; at.advance(); slot.advance()) {
      turn = turn == 0 ? 2 : turn - 1;
      if (turn != 2) continue;
      bf16* to = p.entries + (static_cast<std::int64_t>(at.chunk_at()) * p.H + at.h) * DX * width;
      m.state_full[slot.at].wait(slot.parity);
#pragma unroll 4
      for (int x = lane / 4; x < DX; x += 8) {
        *reinterpret_cast<uint4*>(to + x * width + at.block * kColumns + c) = m.extra.states[slot.at].chunk(x, c);
      }
      __syncwarp();
      if (lane == 0) m.state_empty[slot.at].arrive();
    }
  }

  // The calling warp has read the stage, for good. What other threads than the copy engine wrote is given back by each
  // reader itself, as the race checker does not follow arrivals for others.
  __device__ void release(int stage, bool vectors) {
    if (!kConstant && vectors) m.vectors_empty[stage].arrive();
    __syncwarp();
    if (lane < kCluster) tile::arrive_at(m.empty[stage], lane);
  }

  // --- the state -----------------------------------------------------------------------------------------------------

  using State = Accumulator<kColumns>[kHalves];

  __device__ std::int64_t state_at(int document, int h) const {
    return (static_cast<std::int64_t>(document) * p.H + h) * DX * p.blocks * kColumns;
  }
  template <class F>
  __device__ void for_each_element(State& S, int block, F&& f) {
    int t = thread;
    asm volatile("" : "+r"(t));  // places are not worth registers between documents
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < S[half].kSize; ++i) {
        const int x = 64 * half + Accumulator<kColumns>::row(t, i);
        const int z = kColumns * block + Accumulator<kColumns>::column(t, i);
        f(x * p.row_stride + z * p.column_stride, S[half].x[i]);
      }
    }
  }

  // What a tile adds is on its way through the tensor cores while the next tile's right operand is made.
  __device__ void carry_state() {
    Ring<kStages> ring;
    Ring<kStates> slot;
    Cursor at(p, rank);
    State S;
    float decay = 0.0f;  // Form::constant: of a token, in log2
    int parity = 0;      // of what is scaled
    bool more = at.advance();
    if (kConstant && more) decay = gate(p.g + at.h);
    if (more) prepare(ring, at.n, decay, parity);
    while (more) {
      if (at.starts_document) {
        const float* before = p.before == nullptr ? nullptr : p.before + state_at(at.document, at.h);
        for_each_element(S, at.block, [&](int e, float& s) { s = before == nullptr ? 0.0f : before[e]; });
      }
      if constexpr (kDots) {
        if (p.backwards && at.starts_chunk() && p.alive != nullptr) meet(S, at);
      }
      // What the tile's rows read.
      auto& stage = m.stages[ring.at];
      if constexpr (kGiven) {
        m.state_empty[slot.at].wait(slot.parity ^ 1);
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          tile::store_rounded(S[half], m.extra.states[slot.at], 64 * half, thread);
        }
      } else {
#pragma unroll
        for (int half = 0; half < kHalves; ++half) store_transposed(S[half], stage.y, R, 64 * half);
      }
      tile::fence_async_shared();
      m.state_full[slot.at].arrive();
      tile::barrier_sync<kGroup>(1);  // the right operand is there

      if constexpr (kGiven) {
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          const int row = 64 * half + warp * 16 + lane / 4;
          const float kept[2] = {stage.totals[row], stage.totals[row + 8]};
#pragma unroll
          for (int i = 0; i < S[half].kSize; ++i) S[half].x[i] *= kept[i / 2 % 2];
        }
      } else {
        const float total = [&] {
          if constexpr (kConstant)
            return decay * static_cast<float>(at.n);
          else
            return m.decays[ring.at].total;
        }();
        const float kept = tile::exp2_fast(total);
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
#pragma unroll
          for (int i = 0; i < S[half].kSize; ++i) S[half].x[i] *= kept;
        }
      }
      const tile::Operand<DX, R, tile::Major::mn, sizeof(stage.y) / kHalves> y{tile::along_rows(stage.y).descriptor};
      const auto z = [&] {
        if constexpr (kGiven)
          return tile::along_rows(stage.z);
        else
          return tile::along_rows(m.extra.scaled[parity]);
      }();
#pragma unroll
      for (int half = 0; half < kHalves; ++half) tile::detail::pin(S[half]);
      tile::wgmma_fence();
#pragma unroll
      for (int half = 0; half < kHalves; ++half) tile::multiply_add(S[half], y.template part_at<64>(half), z);
      tile::wgmma_commit();

      const bool ends = at.ends_document(), ends_chunk = at.ends_chunk();
      const Cursor now = at;
      const int read = ring.at;
      more = at.advance();
      ring.advance(), slot.advance(), parity ^= 1;
      if (kConstant && more && at.starts_head()) decay = gate(p.g + at.h);
      if (more) prepare(ring, at.n, decay, parity);
      tile::wgmma_wait<0>();
#pragma unroll
      for (int half = 0; half < kHalves; ++half) tile::detail::pin(S[half]);
      release(read, true);
      if constexpr (kDots) {
        if (!p.backwards && ends_chunk && p.meeting != nullptr) leave(S, now);
      }
      if (ends && p.after != nullptr) {
        float* after = p.after + state_at(now.document, now.h);
        for_each_element(S, now.block,
                         [&](int e, float& s) { after[e] = p.write_after == Write::accumulate ? after[e] + s : s; });
      }
    }
  }
  // Waits for a tile and makes its right operand: the block's columns of z, each row decayed to where the state is
  // next. Rows behind the document are a neighbour's: zero, and those of y as well, as they meet them; the outputs'
  // group finds them so when the state is there. A fence and a barrier must follow.
  __device__ void prepare(const Ring<kStages>& ring, int n, [[maybe_unused]] float decay, int parity) {
    m.full[ring.at].wait(ring.parity);
    auto& stage = m.stages[ring.at];
    const int r = thread / 2, first = thread % 2 * 16;
    // Threads that read z, as those that sum up dots do, have given it back here.
    if (kDots && n < R) m.vectors_empty[ring.at].wait(ring.parity ^ 1);
    if (r >= n) {
#pragma unroll
      for (int c = first; c < first + 16; c += 8) {
        stage.z.chunk(r, c) = uint4{};
        if constexpr (!kGiven) m.extra.scaled[parity].chunk(r, c) = uint4{};
      }
    } else if constexpr (!kGiven) {
      const float add = [&] {
        if constexpr (kConstant) {
          return p.y_scale * tile::exp2_fast(decay * static_cast<float>(p.backwards ? r + 1 : n - 1 - r));
        } else {
          return m.decays[ring.at].add[r];
        }
      }();
#pragma unroll
      for (int c = first; c < first + 16; c += 8) {
        const uint4 from = stage.z.chunk(r, c);
        const auto scaled = [&](std::uint32_t pair) {
          const float2 value = tile::unpack(pair);
          return tile::pack(value.x * add, value.y * add);
        };
        m.extra.scaled[parity].chunk(r, c) = {scaled(from.x), scaled(from.y), scaled(from.z), scaled(from.w)};
      }
    }
    if constexpr (!kGiven) {
#pragma unroll 1
      for (int i = n * (DX / 8) + thread; i < R * (DX / 8); i += kGroup) {
        stage.y.chunk(i / (DX / 8), i % (DX / 8) * 8) = tile::Vector16<bf16>::filled(0.0f);
      }
    }
  }
  // c rounded into rows [row, row + kColumns) of a tile, its rows as columns from `column` on.
  template <int Rows>
  __device__ void store_transposed(const Accumulator<kColumns>& c, SharedTile<Rows, DX>& to, int row, int column) {
#ifdef WEFT_HOPPER
#pragma unroll
    for (int n = 0; n < kColumns; n += 16) {
      const float* x = c.x + n / 2;
      asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                       to.address(row + n + lane / 16 * 8 + lane % 8, column + warp * 16 + lane / 8 % 2 * 8)),
                   "r"(tile::pack(x[0], x[1])), "r"(tile::pack(x[2], x[3])), "r"(tile::pack(x[4], x[5])),
                   "r"(tile::pack(x[6], x[7]))
                   : "memory");
    }
#endif
  }

  // Where the state after the cursor's chunk lies, if anywhere. No two chunks that others of their document follow
  // begin in the same kChunk tokens of the row.
  __device__ float* meeting_at(const Cursor& at, bool last) const {
    if (last && p.meeting_final == nullptr) return nullptr;
    const std::int64_t slot = last ? at.document : at.chunk_begin() / static_cast<int>(kChunk);
    return (last ? p.meeting_final : p.meeting) + ((slot * p.H + at.h) * p.blocks + at.block) * (DX * kColumns);
  }
  __device__ void leave(const State& S, const Cursor& at) {
    auto* to = reinterpret_cast<float4*>(meeting_at(at, at.ends_document()));
    if (to == nullptr) return;
    to += thread;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < S[half].kSize; i += 4, to += kGroup) {
        *to = {S[half].x[i], S[half].x[i + 1], S[half].x[i + 2], S[half].x[i + 3]};
      }
    }
  }
  __device__ void meet(const State& S, const Cursor& at) {
    float* alive = p.alive + (static_cast<std::int64_t>(at.chunk_at()) * p.H + at.h) * p.blocks + at.block;
    const auto* from = reinterpret_cast<const float4*>(meeting_at(at, at.starts_document));
    if (from == nullptr) {
      if (thread == 0) *alive = 0.0f;
      return;
    }
    from += thread;
    float sum = 0.0f;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < S[half].kSize; i += 4, from += kGroup) {
        const float4 other = *from;
        sum += S[half].x[i] * other.x + S[half].x[i + 1] * other.y + S[half].x[i + 2] * other.z +
               S[half].x[i + 3] * other.w;
      }
    }
    sum = tile::reduce_lanes<tile::Sum>(sum);
    if (lane == 0) m.sums[warp] = sum;
    tile::barrier_sync<kGroup>(1);
    if (thread == 0) *alive = (m.sums[0] + m.sums[1]) + (m.sums[2] + m.sums[3]);
    tile::barrier_sync<kGroup>(1);
  }

  // --- the outputs ---------------------------------------------------------------------------------------------------

  // Form::constant: s e^{|i - j| log decay} of the pairs that a thread has, by how far their blocks of 8 are apart.
  struct Powers {
    float x[9][2];
  };

  __device__ void make_outputs(int group) {
    Ring<kStages> ring;
    Ring<kStates> slot;
    Cursor at(p, rank);
    float decay = 0.0f;
    Powers powers;
    for (int turn = group; at.advance(); ring.advance(), slot.advance(), turn ^= 1) {
      if (kConstant && at.starts_head()) {
        decay = gate(p.g + at.h);
        const int nearest = warp * 16 + lane / 4 - lane % 4 * 2;
#pragma unroll
        for (int blocks = 0; blocks < 9; ++blocks) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int apart = nearest + 8 * (blocks - 7) - i;
            powers.x[blocks][i] =
                p.pair_scale * tile::exp2_fast(decay * static_cast<float>(max(p.backwards ? -apart : apart, 0)));
          }
        }
      }
      if (turn == 0) output(group, at, ring, slot, decay, powers);
    }
  }

  __device__ void output(int group, const Cursor& at, const Ring<kStages>& ring, const Ring<kStates>& slot,
                         [[maybe_unused]] float decay, const Powers& powers) {
    auto& stage = m.stages[ring.at];
    [[maybe_unused]] const int row = warp * 16 + lane / 4;
    std::uint32_t w[kDots ? 2 : 1][kDots ? 4 : 1];
    if constexpr (kDots) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = row + 8 * half;
        const bf16* from = p.w.at(at.row + (r < at.n ? r : 0), at.h) + at.block * kColumns + lane % 4 * 2;
#pragma unroll
        for (int n8 = 0; n8 < 4; ++n8) {
          w[half][n8] = r < at.n ? __ldg(reinterpret_cast<const std::uint32_t*>(from + 8 * n8)) : 0u;
        }
      }
    }
    m.full[ring.at].wait(ring.parity);
    m.state_full[slot.at].wait(slot.parity);
    const auto x = tile::along_columns(stage.x);
    const auto z = tile::along_rows(stage.z);
    Accumulator<kColumns> O;
    [[maybe_unused]] float diagonal[2];
    if constexpr (kGiven) {
      tile::wgmma_fence();
      tile::multiply(O, x, tile::along_rows(m.extra.states[slot.at]));
      tile::multiply_add(O, tile::along_columns(stage.scores), z);
      tile::wgmma_commit();
      tile::wgmma_wait<0>(O);
      __syncwarp();
      if (lane == 0) m.state_empty[slot.at].arrive();
    } else {
      Accumulator<R + kColumns> both;
      tile::wgmma_fence();
      tile::multiply(both, x, tile::along_columns(stage.y));
      tile::wgmma_commit();
      float read[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = row + 8 * half;
        if constexpr (kConstant) {
          const int tokens = p.backwards ? max(at.n - 1 - r, 0) : r + 1;
          read[half] = p.x_scale * tile::exp2_fast(decay * static_cast<float>(tokens));
        } else {
          read[half] = m.decays[ring.at].read[r];
        }
      }
      tile::wgmma_wait<0>(both);
      Accumulator<R> P;
#pragma unroll
      for (int i = 0; i < P.kSize; ++i) P.x[i] = both.x[i];
      mask(P, m.decays[kPerToken ? ring.at : 0], powers, at.n, diagonal);
      RegisterOperand<R> near;
      tile::round_to_operand(near, P);
#pragma unroll
      for (int i = 0; i < O.kSize; ++i) O.x[i] = both.x[P.kSize + i] * read[i / 2 % 2];
      tile::wgmma_fence(O, near);
      tile::multiply_add(O, near, z);
      tile::wgmma_commit();
      tile::wgmma_wait<0>(O);
    }
    if constexpr (kDots) add_diagonal(O, diagonal, w, stage.z, at);
    release(ring.at, kPerToken);
    store(O, group, at);
  }

  // Scores masked and decayed. Whole blocks of 8 columns are on one side of the diagonal for all rows of a warp, but
  // two. With kDots, pairs j = i are taken out.
  __device__ void mask(Accumulator<R>& P, [[maybe_unused]] const TileDecays& decays,
                       [[maybe_unused]] const Powers& powers, int n_tokens, float (&diagonal)[2]) {
    const int row = warp * 16 + lane / 4;
    [[maybe_unused]] const float sign = p.backwards ? -1.0f : 1.0f;
    [[maybe_unused]] float own[2];
    if constexpr (kPerToken) own[0] = sign * decays.G[row], own[1] = sign * decays.G[row + 8];
    diagonal[0] = diagonal[1] = 0.0f;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int side = (p.backwards ? -1 : 1) * (n - 2 * warp);  // of the diagonal
      const bool crosses = n == 2 * warp || n == 2 * warp + 1;
      if (!crosses && side > 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) P.x[4 * n + i] = 0.0f;
        continue;
      }
      const int column = 8 * n + lane % 4 * 2;
      if constexpr (kConstant) {
#pragma unroll
        for (int i = 0; i < 4; ++i) P.x[4 * n + i] *= powers.x[i / 2 - n + 7][i % 2];
      } else {
        const float2 other = *reinterpret_cast<const float2*>(decays.G + column);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float difference = own[i / 2] - sign * (i % 2 == 0 ? other.x : other.y);
          P.x[4 * n + i] *= p.pair_scale * tile::exp2_fast(fminf(difference, 0.0f));
        }
      }
      if (!crosses) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = row + i / 2 * 8, c = column + i % 2;
        if (kDots && r == c) {
          diagonal[i / 2] += P.x[4 * n + i];
          P.x[4 * n + i] = 0.0f;
        }
        if (p.backwards ? c < r : c > r) P.x[4 * n + i] = 0.0f;
      }
    }
    if (p.backwards && n_tokens < R) {
#pragma unroll
      for (int i = 0; i < P.kSize; ++i) {
        if (Accumulator<R>::column(thread, i) >= n_tokens) P.x[i] = 0.0f;
      }
    }
    if constexpr (kDots) {
      diagonal[0] = tile::reduce_quad<tile::Sum>(diagonal[0]);
      diagonal[1] = tile::reduce_quad<tile::Sum>(diagonal[1]);
    }
  }

  // Sums of out w without the pairs j = i, which then join the outputs.
  template <class W>
  __device__ void add_diagonal(Accumulator<kColumns>& O, const float (&diagonal)[2], const W& w, const NarrowTile<R>& z,
                               const Cursor& at) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = warp * 16 + lane / 4 + 8 * half;
      const bool valid = r < at.n;  // others of z may be cleared by now
      float dot = 0.0f;
#pragma unroll
      for (int n8 = 0; n8 < kColumns / 8; ++n8) {
        float* o = O.x + 4 * n8 + 2 * half;
        const float2 value = tile::unpack(w[half][n8]);
        dot = fmaf(o[0], value.x, fmaf(o[1], value.y, dot));
        const int column = 8 * n8 + lane % 4 * 2;
        const float2 other = tile::unpack(valid ? *reinterpret_cast<const std::uint32_t*>(&z.at(r, column)) : 0u);
        o[0] = fmaf(diagonal[half], other.x, o[0]);
        o[1] = fmaf(diagonal[half], other.y, o[1]);
      }
      dot = tile::reduce_quad<tile::Sum>(dot);
      if (lane % 4 == 0 && valid && p.dots != nullptr) {
        p.dots[(static_cast<std::int64_t>(at.row + r) * p.H + at.h) * p.blocks + at.block] = dot;
      }
    }
  }

  __device__ void store(const Accumulator<kColumns>& O, int group, const Cursor& at) {
    if (p.out == nullptr) return;
    const std::int64_t stride = static_cast<std::int64_t>(p.H) * p.blocks * kColumns;  // between tokens
    const std::int64_t start = at.row * stride + (at.h * p.blocks + at.block) * kColumns;
    if (p.out_f32) {
      const int row = warp * 16 + lane / 4;
      float* out = static_cast<float*>(p.out) + start + row * stride + lane % 4 * 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (row + 8 * half >= at.n) break;
        auto* to = reinterpret_cast<float2*>(out + 8 * half * stride);
#pragma unroll
        for (int n8 = 0; n8 < kColumns / 8; ++n8) to[4 * n8] = {O.x[4 * n8 + 2 * half], O.x[4 * n8 + 2 * half + 1]};
      }
      return;
    }
    // A warp has whole rows: it needs no other to copy them, or to turn them into 16 bytes a thread.
    NarrowTile<R>& rows = m.outputs[group];
    tile::wait_stores_read<0>();
    __syncwarp();
    tile::store_rounded(O, rows, 0, thread);
    if (p.copy_out && warp * 16 + 16 <= at.n) {
      tile::fence_async_shared();
      __syncwarp();
      if (lane == 0) {
        tile::store_rows(maps.out, rows, warp * 16, at.block * kColumns, at.row + warp * 16, at.h);
        tile::commit_stores();
      }
      return;
    }
    __syncwarp();
    const int c = lane % 4 * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = warp * 16 + lane / 4 + 8 * half;
      if (r >= at.n) break;
      uint4 value = rows.chunk(r, c);
      auto* to = reinterpret_cast<uint4*>(static_cast<bf16*>(p.out) + start + r * stride + c);
      if (p.write == Write::accumulate) {
        const uint4 before = *to;
        const auto sum = [](std::uint32_t a, std::uint32_t b) {
          const float2 x = tile::unpack(a), y = tile::unpack(b);
          return tile::pack(x.x + y.x, x.y + y.y);
        };
        value = {sum(value.x, before.x), sum(value.y, before.y), sum(value.z, before.z), sum(value.w, before.w)};
      }
      __stcs(to, value);
    }
  }

  const RowProblem& p;
  const RowMaps& maps;
  Memory& m;
  const int rank, thread, warp, lane;
};

template <int DX, Form kForm>
__global__ void __launch_bounds__(kThreads, 1)
    row_kernel(const __grid_constant__ RowProblem p, const __grid_constant__ RowMaps maps) {
#ifdef WEFT_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  Walk<DX, kForm>(p, maps, *reinterpret_cast<Shared<DX, kForm>*>(memory)).run();
#else
  tile::unavailable();
#endif
}

}  // namespace weft::row
