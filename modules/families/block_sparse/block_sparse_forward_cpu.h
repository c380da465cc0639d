// Forward kernel of block_sparse_attention.h on the CPU. A work item is a block of keys and some of the queries that
// chose it: an online softmax over the block's keys, whose unnormalised result and statistics go to the query's slot.
// Slots are then merged in order:
//   o = sum_s 2^(top_s - top) o_s / sum_s 2^(top_s - top) mass_s
#pragma once

#include "modules/families/block_sparse/block_plan.h"
#include "modules/families/block_sparse/block_sparse_tiles.h"

namespace weft::block_sparse {

template <class T>
class ForwardCpu {
 public:
  explicit ForwardCpu(const BlockSparseForward& a)
      : a_(a),
        in_(a.in),
        e_(a.in.shape),
        plan_(a.in, a.in.shape.D_V + 2),
        unit_(static_cast<T>(a.in.scale * kLog2e)),
        R_(tile_rows(plan_.heads_of_list())) {}

  std::size_t workspace() const {
    Carver<T> carver(nullptr);
    carve(carver);
    return static_cast<std::size_t>(carver.used() + worker_count() * scratch_size()) * sizeof(T);
  }

  void run(T* workspace) {
    Carver<T> carver(workspace);
    const Partials partials = carve(carver);
    T* const scratch = workspace + carver.used();
    for (std::int64_t begin = 0; begin < in_.shape.T; begin += plan_.slab_tokens()) {
      const std::int64_t end = std::min(begin + plan_.slab_tokens(), in_.shape.T);
      plan_.build(begin, end);
      const std::vector<Work> work = work_of_slab();
      parallel_items(static_cast<std::int64_t>(work.size()), [&](std::int64_t i, std::int64_t worker) {
        block(work[static_cast<std::size_t>(i)], begin, partials, scratch + worker * scratch_size());
      });
      merge(begin, end, partials);
    }
  }

 private:
  struct Partials {
    T* o;                  // [slab, H_Q, n, D_V]
    Statistics<T>* stats;  // [slab, H_Q, n]
  };
  struct Scratch {
    T* k_columns;          // [tiles][D][kTileKeys]
    T* v;                  // [block][D_V_pad]
    T *q, *o;              // [R][D], [R][D_V_pad]
    T* score;              // [R][kTileKeys]
    Statistics<T>* stats;  // [R]
  };
  struct Work {
    const typename BlockPlan::Item* item;
    std::int64_t list;
    std::span<const BlockEntry> entries;
  };

  Partials carve(Carver<T>& carver) const {
    const std::int64_t rows = plan_.slab_tokens() * e_.H_Q * plan_.slots();
    T* o = carver.take(rows * e_.D_V);
    return {o, reinterpret_cast<Statistics<T>*>(carver.take(2 * rows))};
  }
  Scratch carve_scratch(Carver<T>& carver) const {
    Scratch s;
    s.k_columns = carver.take(block_count(plan_.block_keys(), kTileKeys) * e_.D * kTileKeys);
    s.v = carver.take(plan_.block_keys() * e_.D_V_pad);
    s.q = carver.take(R_ * e_.D);
    s.o = carver.take(R_ * e_.D_V_pad);
    s.score = carver.take(R_ * kTileKeys);
    s.stats = reinterpret_cast<Statistics<T>*>(carver.take(2 * R_));
    return s;
  }
  std::int64_t scratch_size() const {
    Carver<T> carver(nullptr);
    carve_scratch(carver);
    return carver.used();
  }

  // Blocks that many queries chose are shared out.
  std::vector<Work> work_of_slab() const {
    constexpr std::size_t kEntries = 512;
    std::vector<Work> work;
    for (const auto& item : plan_.items()) {
      for (std::int64_t list = 0; list < plan_.lists_of_group(); ++list) {
        const std::span<const BlockEntry> all = plan_.entries(item, list);
        for (std::size_t i = 0; i < all.size(); i += kEntries) {
          work.push_back({&item, list, all.subspan(i, std::min(kEntries, all.size() - i))});
        }
      }
    }
    return work;
  }

  void block(const Work& work, std::int64_t slab_begin, const Partials& partials, T* scratch) const {
    Carver<T> carver(scratch);
    const Scratch s = carve_scratch(carver);
    const std::int64_t first = plan_.key_begin(*work.item), last = plan_.key_end(*work.item);
    const KeyRows<T> keys(in_.documents[work.item->document], in_.k, in_.v, e_.H_KV, e_.D, e_.D_V, work.item->head);
    for (std::int64_t key = first; key < last; key += kTileKeys) {
      pack_columns([&](std::int64_t i) { return keys.k(key + i); }, std::min(kTileKeys, last - key), e_.D,
                   s.k_columns + (key - first) * e_.D);
    }
    for (std::int64_t key = first; key < last; ++key) {
      pack_row(keys.v(key), e_.D_V, s.v + (key - first) * e_.D_V_pad, e_.D_V_pad);
    }
    const std::int64_t heads = plan_.heads_of_list();
    const std::int64_t head = work.item->head * e_.G + work.list * heads;
    const auto step = static_cast<std::size_t>(tile_entries(heads));
    for (std::size_t i = 0; i < work.entries.size(); i += step) {
      rows(work.entries.subspan(i, std::min(step, work.entries.size() - i)), head, first, last, slab_begin, partials,
           s);
    }
  }

  // The heads [head, head + heads_of_list) of some entries against the keys [first, last).
  void rows(std::span<const BlockEntry> entries, std::int64_t head, std::int64_t first, std::int64_t last,
            std::int64_t slab_begin, const Partials& partials, const Scratch& s) const {
    const std::int64_t heads = plan_.heads_of_list();
    const auto count = static_cast<std::int64_t>(entries.size()) * heads;
    const auto* q = static_cast<const T*>(in_.q);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const T* from = q + (entries[i].token * e_.H_Q + head) * e_.D;
      std::copy(from, from + heads * e_.D, s.q + static_cast<std::int64_t>(i) * heads * e_.D);
    }
    std::fill(s.stats, s.stats + count, Statistics<T>{});
    std::fill(s.o, s.o + count * e_.D_V_pad, T(0));
    for (std::int64_t key = first; key < last; key += kTileKeys) {
      const std::int64_t keys = std::min(kTileKeys, last - key);
      tile::product<tile::Left::rows>(count, tile::padded(keys), e_.D, s.q, e_.D, s.k_columns + (key - first) * e_.D,
                                      kTileKeys, s.score, kTileKeys, false);
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t bound =
            std::clamp<std::int64_t>(entries[static_cast<std::size_t>(r / heads)].visible - key, 0, keys);
        const T factor = softmax_row(s.score + r * kTileKeys, bound, keys, unit_, s.stats[r]);
        if (factor == T(1) || key == first) continue;
        for (std::int64_t c = 0; c < e_.D_V_pad; ++c) s.o[r * e_.D_V_pad + c] *= factor;
      }
      tile::product<tile::Left::rows>(count, e_.D_V_pad, keys, s.score, kTileKeys, s.v + (key - first) * e_.D_V_pad,
                                      e_.D_V_pad, s.o, e_.D_V_pad, true);
    }
    for (std::int64_t r = 0; r < count; ++r) {
      const BlockEntry& entry = entries[static_cast<std::size_t>(r / heads)];
      const std::int64_t slot = ((entry.token - slab_begin) * e_.H_Q + head + r % heads) * plan_.slots() + entry.slot;
      std::copy(s.o + r * e_.D_V_pad, s.o + r * e_.D_V_pad + e_.D_V, partials.o + slot * e_.D_V);
      partials.stats[slot] = s.stats[r];
    }
  }

  void merge(std::int64_t begin, std::int64_t end, const Partials& partials) const {
    const std::int64_t block = rows_per_block(e_.H_Q * plan_.slots() * e_.D_V);
    parallel_blocks(end - begin, block, [&](std::int64_t, std::int64_t from, std::int64_t to) {
      for (std::int64_t i = from * e_.H_Q; i < to * e_.H_Q; ++i) merge_row(begin * e_.H_Q + i, i, partials);
    });
  }

  // Row `row` of o, which is row i of the slab.
  void merge_row(std::int64_t row, std::int64_t i, const Partials& partials) const {
    const std::int64_t used = plan_.used(row / e_.H_Q, row % e_.H_Q);
    const Statistics<T>* stats = partials.stats + i * plan_.slots();
    Statistics<T> all;
    for (std::int64_t s = 0; s < used; ++s) all.top = std::max(all.top, stats[s].top);
    T* o = static_cast<T*>(a_.o) + row * e_.D_V;
    std::fill(o, o + e_.D_V, T(0));
    for (std::int64_t s = 0; s < used; ++s) {
      const T factor = tile::exp2(tile::broadcast(T(stats[s].top - all.top)))[0];
      all.mass += factor * stats[s].mass;
      const T* from = partials.o + (i * plan_.slots() + s) * e_.D_V;
#pragma omp simd
      for (std::int64_t c = 0; c < e_.D_V; ++c) o[c] += factor * from[c];
    }
    static_cast<T*>(a_.lse)[row] = log_sum(all);
    if (all.mass == T(0)) return;
    const T inverse = T(1) / all.mass;
    for (std::int64_t c = 0; c < e_.D_V; ++c) o[c] *= inverse;
  }

  const BlockSparseForward& a_;
  const BlockSparseInputs& in_;
  Extents e_;
  BlockPlan plan_;
  T unit_;
  std::int64_t R_;
};

}  // namespace weft::block_sparse
